"""The commands: options in, `Learner` calls, text or JSON out. One function per command, named like it."""
from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecl.errors import BadInput
from edgecl.samples import Refusal, Sample
from edgecl.settings import short_names
from edgecl.sources.spec import shown

if TYPE_CHECKING:
    from edgecl.learner import Learner
    from edgecl.sources.folders import FolderContents
    from edgecl.sources.spec import Item, Spec

DEFAULT_STATE = Path("edgecl-state")
FIRST_COLUMN = 16       # characters that the first column of a table has on a narrow terminal, if it needs them
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def configuration(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of a state in the file of --config, not yet checked, and its key `state`; the values of the daemon's
    keys beside them are not checked either. Raises BadInput."""
    from edgecl.settings import SETTING_NAMES, read_configuration

    if not options.config:
        return {}
    from edgecl.runtime.settings import DAEMON_NAMES

    known = SETTING_NAMES | {"state"}
    values = read_configuration(options.config, known | DAEMON_NAMES)
    return {name: value for name, value in values.items() if name in known}


def state_path(options: argparse.Namespace) -> Path:
    """--state, else the configuration's, else ./edgecl-state."""
    configured = Path(configuration(options).get("state", DEFAULT_STATE))
    return options.state or configured


def socket_path(options: argparse.Namespace) -> Path:
    """Where the daemon of the state listens, if there is one."""
    from edgecl.runtime.protocol import SOCKET

    if options.config and options.state is None:
        from edgecl.runtime.settings import read_settings

        return read_settings(options.config).socket
    return state_path(options) / SOCKET


def asked(options: argparse.Namespace, command: str, directly: Callable[[Learner], Any], **values: Any) -> Any:
    """The answer to a command by the daemon that serves the state, or by `directly` if there is no daemon."""
    from edgecl.runtime.client import Client, NoDaemon

    try:
        with Client(socket_path(options)) as client:
            return client.ask(command, **values)
    except NoDaemon:
        with opened(options) as learner:
            return directly(learner)


@contextlib.contextmanager
def opened(options: argparse.Namespace) -> Iterator[Learner]:
    """The learner on the state that the options name."""
    from edgecl.learner import Learner

    learner = Learner.open(state_path(options))
    try:
        check_memory(options, learner.settings.memory)
        yield learner
    finally:
        learner.close()


def check_memory(options: argparse.Namespace, memory: str) -> None:
    """Raises BadInput if the configuration wants another kind of memory than the state has."""
    wanted = configuration(options).get("memory", memory)
    if wanted != memory:
        raise BadInput(f"{options.config} asks for memory of kind {wanted}, but this state was created with {memory}",
                       "name another --state, to be created: the kind of a state can't change")


class Intake:
    """The samples of sources that fit a learner; the others are listed in `refused`. shape: of its windows or vectors,
    None if it takes photos or has learned nothing yet."""

    def __init__(self, shape: tuple[int, ...] | None, items: Iterable[Item],
                 progress: ProgressBar | None = None) -> None:
        self._shape = shape
        self._items, self._progress = items, progress
        self.taken = 0
        self.refused: list[Refusal] = []

    def __iter__(self) -> Iterator[Sample]:
        for item in self._items:
            if isinstance(item, Refusal):
                self.refused.append(item)
                continue
            if item.data.dtype.kind == "f":
                self._shape = self._shape or item.data.shape
                if item.data.shape != self._shape:
                    refusal = Refusal(item.group or item.source, f"samples of shape {_shape(item.data.shape)}, "
                                                                 f"not {_shape(self._shape)}")
                    if refusal not in self.refused[-1:]:  # one line per recording, not per window
                        self.refused.append(refusal)
                    continue
            self.taken += 1
            if self._progress:
                self._progress(1)
            yield item

    def report(self) -> None:
        """List on stderr what was refused."""
        report_refused(self.refused)

    def explain(self, label: str) -> BadInput:
        """The error if no sample was left."""
        first = f": {self.refused[0].source}: {self.refused[0].reason}" if self.refused else ""
        self.refused = self.refused[1:]
        return BadInput(f"no sample of {label!r} could be used{first}",
                        "give complete photos, recordings or arrays of the form that this state takes")


def report_refused(refused: Iterable[Refusal]) -> None:
    """List refusals on stderr."""
    for refusal in refused:
        print(f"edgecl: refused {refusal.source}: {refusal.reason}", file=sys.stderr)


def say_left_out(found: FolderContents) -> None:
    """Say on stderr which files of a folder are left out, since they are of a kind that can't be read."""
    for note in found.notes():
        print(f"edgecl: left out of {shown(found.path)}: {note}", file=sys.stderr)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def read_all(sources: list[Path], spec: Spec) -> Iterator[Item]:
    """All samples of several sources. A bad one among several is refused alone; if it is the only one, BadInput."""
    from edgecl.sources import is_stream, read

    for path in sources:
        if not (path.exists() or is_stream(path)):
            raise BadInput(f"{path} does not exist", "name a file or a folder")
    for path in sources:
        try:
            yield from read(path, spec, told=say_left_out)
        except BadInput as error:
            if len(sources) == 1:
                raise
            yield Refusal(shown(path), error.what)


def report_damage(damage: Iterable[str]) -> None:
    """Report damage on stderr. damage: `Learner.damage`."""
    for line in damage:
        print(f"edgecl: note: {short_names(line)}", file=sys.stderr)


class ProgressBar:
    """A bar on stderr, shown if stderr is a terminal and the work takes over a second. total: None if not known."""

    def __init__(self, title: str, total: int | None = None) -> None:
        self._title, self._total, self._started, self._done = title, total, time.monotonic(), 0
        self._shown = sys.stderr is not None and sys.stderr.isatty()
        self._bar: Any = None

    def columns(self) -> list[Any]:
        """What rich shows: here, how many samples are done."""
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

        return [SpinnerColumn(), TextColumn("{task.description}", markup=False), TextColumn("{task.completed} samples"),
                TimeElapsedColumn()]

    def __call__(self, count: int) -> None:
        """`count` more are done."""
        self._done += count
        if self._shown and self._bar is None and time.monotonic() - self._started > 1:
            from rich.console import Console
            from rich.progress import Progress

            self._bar = Progress(*self.columns(), console=Console(stderr=True), transient=True)
            self._bar.start()
            self._bar.add_task(self._title, total=self._total)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()


def print_json(value: Any) -> None:
    """One object, on one line; what the encoding of stdout lacks is escaped."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value)
    print(text, flush=True)


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table under a line of text; columns after the first are aligned to the right."""
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    print(title)
    table = Table(header_style="bold")
    widest = max((cell_len(each[0]) for each in [columns, *rows]), default=0)
    for number, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if number else "left", overflow="fold", no_wrap=number > 0,
                         min_width=None if number else min(widest, FIRST_COLUMN))
    for row in rows:
        table.add_row(*map(Text, row))     # what stands in brackets is no markup
    Console().print(table)


def percent(share: float | None) -> str:
    """`86.2 %`, or a dash if nothing was measured."""
    return "-" if share is None else f"{100 * share:.1f} %"


def keep_memory_low() -> None:
    """Make glibc map large blocks and return them at once: loading a model then peaks 20 MB lower, and answers and
    learning take a few per cent longer."""
    import ctypes

    with contextlib.suppress(OSError, AttributeError):  # another C library
        library = ctypes.CDLL(None)
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            library.mallopt(option, 65536)
