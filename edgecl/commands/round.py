"""`edgecl round`: one learning round, with a bar that shows what it costs, and the gate's verdict."""
from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecl.commands import opened, percent, print_json, print_table, socket_path
from edgecl.errors import BadInput, StateError
from edgecl.runtime.client import Client, NoDaemon
from edgecl.settings import counted, format_size, parse_seconds, parse_size

if TYPE_CHECKING:
    from edgecl.results import RoundResult


LOOK_SECONDS = 0.5   # seconds between two polls of a daemon's round


def round(options: argparse.Namespace) -> None:
    """Tune the backbone in a worker process; the gate accepts or refuses the result."""
    from edgecl.rounds.gate import Bounds
    from edgecl.rounds.run import MEMORY, SECONDS, RoundRequest

    given = {"epochs": options.epochs, "blocks": options.blocks, "threads": options.threads}
    for name, value in given.items():
        if value is not None and value < 1:
            raise BadInput(f"--{name} {value}", "give 1 or more")
    if not 0 <= options.max_regression <= 1:
        raise BadInput(f"--max-regression {options.max_regression}", "give a share from 0 to 1, such as 0.1")
    request = RoundRequest(options.method, parse_seconds(options.time) if options.time else SECONDS,
                parse_size(options.memory) if options.memory else MEMORY, bounds=Bounds(options.max_regression),
                **{name: value for name, value in given.items() if value is not None})
    try:
        with Client(socket_path(options)) as client:
            done = served(client, options, given)
    except NoDaemon:
        with opened(options) as learner, RoundBar(request.memory) as bar:
            done = learner.round(request, bar)
    if options.json:
        print_json({**asdict(done), "checks": [dict(zip(("name", "found", "passed"), check)) for check in done.checks]})
    else:
        show(done)


def served(client: Client, options: argparse.Namespace, given: dict[str, int | None]) -> RoundResult:
    """The result of a round that the daemon runs; options that are not given are as in its settings."""
    from edgecl.results import RoundResult
    from edgecl.runtime.protocol import result_of

    method = str(Path(options.method).absolute()) if str(options.method).endswith(".toml") else options.method
    client.ask("start_round", method=method, time=parse_seconds(options.time) if options.time else None,
               memory=parse_size(options.memory) if options.memory else None, max_regression=options.max_regression,
               **given)
    try:
        while (found := client.ask("round_result"))["running"]:
            time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt:
        raise StateError("the daemon continues the round", "see `edgecl history` for its verdict") from None
    if "error" in found["result"]:
        result_of({"error": {"code": found["result"]["error"].get("type", "StateError"), **found["result"]["error"]}})
    return RoundResult(**found["result"])


def show(done: RoundResult) -> None:
    """Print the verdict, every check, and the classes whose accuracy changed."""
    print(f"{done.method}: {done.steps} of {counted(done.planned_steps, 'step')} on {counted(done.samples, 'sample')}, "
          f"{done.seconds:.0f} s ({done.train_seconds:.0f} s of training), peak "
          f"{format_size(done.peak_rss_bytes)} of {format_size(done.memory_limit_bytes)}, {done.device}")
    for name, found, passed in done.checks:
        print(f"{'✓' if passed else '✗'} {name:11} {found}")
    print(f"the gate accepted it: generation {done.generation} serves" if done.accepted else
          "the gate refused it: the previous generation still serves, nothing has changed")
    moved = [[name, percent(before), percent(after)] for name, (before, after) in done.accuracy.items()
             if before != after]
    if moved:
        print_table("changes of accuracy" + ("" if done.accepted else ", had it been accepted"),
                    ["class", "before", "after"], moved)


class RoundBar:
    """A bar on stderr, if it is a terminal: loss, samples per second, memory and its limit, time left."""

    def __init__(self, memory: int) -> None:
        self._memory, self._bar = memory, None

    def __call__(self, line: dict[str, float]) -> None:
        """A line of the worker's progress."""
        if self._bar is None:
            return
        self._bar.update(self._bar.task_ids[0], completed=line["share"], description=(
            f"loss {line['loss']:.3f}  {line['samples_per_second']:.0f} samples/s  {format_size(line['rss'])} of "
            f"{format_size(self._memory)}"), left=f"{max(line['left'], 0):.0f} s left at most")

    def __enter__(self) -> RoundBar:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

            bar: Any = Progress(BarColumn(24), TaskProgressColumn(), TextColumn("{task.description}", markup=False),
                                TextColumn("{task.fields[left]}"), console=Console(stderr=True), transient=True)
            bar.start()
            bar.add_task("the frozen part reads all stored samples", total=1.0, left="")
            self._bar = bar
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
