"""The commands of the control socket: their names, the types of their values, and whether they change something."""
from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

from edgecl.errors import BadInput
from edgecl.files import tar
from edgecl.files.tables import Rule, read
from edgecl.runtime.protocol import MOST_LINE, Refused, encode
from edgecl.runtime.review_json import packed
from edgecl.samples import UNITS, Place, Sample
from edgecl.settings import counted
from edgecl.state.backup_tar import tar_bytes, tar_of
from edgecl.state.frozen import frozen

if TYPE_CHECKING:
    from edgecl.runtime.service import Service

EXACT = 2 ** 53       # beyond it, JSON numbers are not exact everywhere
TEXT, NUMBER, WHOLE = Rule(str), Rule(float, -EXACT, EXACT), Rule(int, -EXACT, EXACT)
LIST, TABLE, TRUTH = Rule(list), Rule(dict), Rule(bool)
CHUNK_SAMPLES = 16                       # read at a time
UNNAMED = Place("control socket")        # where samples came from, if the client does not say it
MOST_BYTES, MOST_SAMPLE = 2 ** 32, 2 ** 26   # bytes of all samples of one request, and of one of them


@dataclass(frozen=True)
class Command:
    """A command. call: takes the service, the values and the descriptor of the samples; needs, takes: types of required
    and optional values; writes: changes the state, so that not everybody may; waits: takes long; samples: needs
    some; streams: gives the answer in blocks, all that is stored, which not everybody may have; private: gives pictures
    or recordings, which not everybody may have; vouched: name of the value that says whether the
    client is the daemon's own user, "" for none."""

    call: Callable[[Service, dict[str, Any], int | None], Any]
    needs: Mapping[str, Rule] = field(default_factory=dict)
    takes: Mapping[str, Rule] = field(default_factory=dict)
    writes: bool = False
    waits: bool = False
    samples: bool = False
    streams: bool = False
    private: bool = False
    vouched: str = ""

    def check(self, values: dict[str, Any], file: int | None) -> None:
        """Raises Refused for values that it does not take, and if it lacks values or samples."""
        try:
            read({**self.needs, **self.takes}, values, "the request", self.needs)
        except BadInput as error:
            raise Refused("bad-request", error.what, error.cure) from None
        if file is None and self.samples:
            raise Refused("bad-request", "the request has no samples", "send a descriptor of them beside the line")


def samples_of(file: int, groups: list[Any] | None = None,
               sessions: Mapping[str, str] | None = None) -> Iterator[Sample]:
    """The samples of an .npy file [n, ...], read one chunk at a time, and their places behind the array, if there are
    any. groups: [[name, samples]] of recordings; sessions: the session of those that are part of one. Raises BadInput,
    Refused."""
    with os.fdopen(os.dup(file), "rb") as stream:
        try:
            stream.seek(0)
            if npy.read_magic(stream) != (1, 0):
                raise ValueError("not of version 1.0")
            shape, fortran, dtype = npy.read_array_header_1_0(stream)
        except (ValueError, OSError) as error:
            raise BadInput(f"the samples are not an .npy file ({str(error)[:80]})",
                           "send an .npy file of version 1.0") from None
        each = math.prod(shape[1:]) * dtype.itemsize
        if dtype.kind not in "fiu" or fortran or len(shape) < 2 or not (
                0 < each <= MOST_SAMPLE and shape[0] * each <= MOST_BYTES):
            raise BadInput(f"samples of dtype {dtype} and shape {list(shape)}", "send uint8 photos or float32 windows")
        names, places = _names(groups, shape[0]), _places(file, stream.tell() + shape[0] * each)
        for start in range(0, shape[0], CHUNK_SAMPLES):
            count = min(CHUNK_SAMPLES, shape[0] - start)
            data = stream.read(count * each)
            if len(data) < count * each:
                raise BadInput(f"{counted(start + len(data) // each, 'sample')} came, the header says {shape[0]}",
                               "send all of them")
            for number, sample in enumerate(np.frombuffer(data, dtype).reshape(count, *shape[1:]), start):
                name, at, unit = next(places, UNNAMED)
                group = names[number] if names else ""
                yield Sample(sample, name, group, None, at, unit, str((sessions or {}).get(group, "")))


def _places(file: int, begin: int) -> Iterator[Place]:
    """The places that stand in a file from a byte on, a line [name, position | null, unit] for each. Raises
    BadInput."""
    rest = b""
    while data := os.pread(file, MOST_LINE, begin):
        begin += len(data)
        *lines, rest = (rest + data).split(b"\n")
        yield from map(_place, lines if len(rest) < MOST_LINE else [rest])


def _place(line: bytes) -> Place:
    try:
        name, at, unit = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        name = at = unit = None
    if not (isinstance(name, str) and isinstance(unit, str) and (
            unit in UNITS if isinstance(at, (int, float)) else (at, unit) == (None, ""))):
        raise BadInput(f"the place of a sample is {line[:80]!r}", 'send ["walk.csv", 12.5, "s"], or null and ""')
    return Place(name, at, unit)


def _names(groups: list[Any] | None, count: int) -> list[str]:
    if groups is None:
        return []
    try:
        pairs = [(str(name), int(number)) for name, number in groups]
    except (TypeError, ValueError):
        raise Refused("bad-request", "groups are not pairs", "give [[name, samples], ...]") from None
    if any(number < 0 for _, number in pairs) or sum(number for _, number in pairs) != count:
        raise Refused("bad-request", f"groups do not add up to {counted(count, 'sample')}",
                      "give [[name, samples], ...]")
    return [name for name, number in pairs for _ in range(number)]


def _learn(service: Service, values: dict[str, Any], file: int | None) -> Any:
    assert file is not None
    return service.learn_samples(values["label"], samples_of(file, values.get("groups"), values.get("sessions")),
                                 os.fstat(file).st_size, values.get("again", False), values.get("distinct", False))


def _predict(service: Service, values: dict[str, Any], file: int | None) -> Any:
    assert file is not None
    why = values.get("why", False)
    return [answer for sample in samples_of(file) for answer in service.predict(sample.data[None], why)]


def _backup(service: Service, values: dict[str, Any], file: int | None) -> Iterator[bytes]:
    """A line that says how long the tar is, the tar, and a line that says what was copied."""
    with frozen(service.path) as state:
        yield encode({"ok": True, "result": {"size": state.size, "tar_bytes": tar_bytes(state)}})
        yield from tar_of(state)
        yield encode({"ok": True, "result": state.copied()._asdict()})


def _export_samples(service: Service, values: dict[str, Any], file: int | None) -> Iterator[bytes]:
    """A line about the export and its tar, and the tar."""
    about, files = service.export_samples(values.get("label"))
    yield encode({"ok": True, "result": {"about": about, "tar_bytes": tar.length(len(each.content) for each in files)}})
    when = int(time.time())
    for name, content in files:
        yield tar.header(name, len(content), when)
        yield content
        yield tar.padding(len(content))
    yield tar.END


def _plain(name: str) -> Callable[[Service, dict[str, Any], int | None], Any]:
    return lambda service, values, file: getattr(service, name)(**values)


ROUND_VALUES = {"method": TEXT, "time": NUMBER, "memory": WHOLE, "blocks": WHOLE, "epochs": WHOLE, "threads": WHOLE,
                "max_regression": NUMBER}
COMMANDS = {
    **{name: Command(_plain(name)) for name in ("info", "status", "classes", "history", "latest", "budget", "counters",
                                              "rounds", "round_result", "review")},
    "samples": Command(_plain("samples"), {}, {"label": TEXT, "suspicious": TRUTH, "start": WHOLE}, waits=True),
    "advise": Command(_plain("advise"), waits=True),
    "check": Command(_plain("check"), waits=True),
    "repair": Command(_plain("repair"), writes=True, waits=True),
    "discard": Command(_plain("discard"), writes=True, waits=True),
    "backup": Command(_backup, streams=True),
    "export_samples": Command(_export_samples, {}, {"label": TEXT}, streams=True),
    "predict": Command(_predict, takes={"why": TRUTH}, waits=True, samples=True),
    "learn": Command(_learn, {"label": TEXT}, {"groups": LIST, "sessions": TABLE, "again": TRUTH, "distinct": TRUTH},
                     writes=True, waits=True, samples=True),
    "learn_last": Command(_plain("learn_last"), {"label": TEXT, "seconds": NUMBER},
                          {"source": TEXT, "session": TEXT, "again": TRUTH, "distinct": TRUTH}, writes=True,
                          waits=True),
    "forget": Command(_plain("forget"), {"label": TEXT}, {"certify": TRUTH}, writes=True, waits=True),
    "remove": Command(_plain("remove"), {"ids": LIST}, {"erase": TRUTH}, writes=True, waits=True),
    "move": Command(_plain("move"), {"ids": LIST, "label": TEXT}, writes=True, waits=True),
    "rename": Command(_plain("rename"), {"old": TEXT, "new": TEXT}, {"into": TRUTH}, writes=True, waits=True),
    "rollback": Command(_plain("rollback"), {}, {"generation": WHOLE}, writes=True, waits=True),
    "start_round": Command(_plain("start_round"), {}, ROUND_VALUES, writes=True, waits=True, vouched="own_code"),
    "review_frames": Command(_plain("review_frames"), {"number": WHOLE}),
    "review_sample": Command(lambda service, values, _: packed(service.review_sample(**values)), {"number": WHOLE},
                             private=True),
    "review_name": Command(_plain("review_name"), {"number": WHOLE, "label": TEXT},
                           {"frames": LIST, "distinct": TRUTH}, writes=True, waits=True),
    "review_drop": Command(_plain("review_drop"), {"number": WHOLE}, writes=True, waits=True),
    "review_drop_frames": Command(_plain("review_drop_frames"), {"frames": LIST}, writes=True, waits=True),
    "review_clear": Command(_plain("review_clear"), writes=True, waits=True),
}
