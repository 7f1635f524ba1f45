"""A sequence of commands, run once under strace: what it did to the disk, and what the state showed at each step."""
from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import crash
from cut_sequences import Sequence
from disk_model import Disk, Operation, Sync
from disk_trace import ACKNOWLEDGED, OPTIONS, Tracer
from state_view import View, in_fork, view_of


class SequenceFailed(Exception):
    """A sequence ends with an error without any cut."""


@dataclass
class Recording:
    """What a sequence did to the disk. marks: number of operations before each acknowledgement, the step, and the
    classes that must be gone; views: what the state showed before all and at each mark."""

    start: Disk
    operations: list[Operation]
    marks: list[tuple[int, str, list[str]]]
    views: list[View]

    def passed(self, at: int) -> int:
        """How many steps were acknowledged before operation `at`."""
        return sum(place <= at for place, *_ in self.marks)

    def step(self, passed: int) -> str:
        """The last of so many steps."""
        return self.marks[passed - 1][1] if passed else "nothing"

    def gone(self, passed: int) -> list[str]:
        """The classes that must be gone after so many steps."""
        return self.marks[passed - 1][2] if passed else []

    def describe(self, number: int) -> str:
        """An operation in words."""
        if number == len(self.operations):
            return "the end"
        operation = self.operations[number]
        disks = self.start.after(self.operations), self.start
        names = {inode: path for disk in disks for path, inode in disk.paths()}
        kind = "sync" if isinstance(operation, Sync) else type(operation).__name__.lower()
        return f"the {kind} of {names.get(operation.inode) or 'the folder'}"


def record(sequence: Sequence, origin: Path, folder: Path) -> Recording:
    """Run a sequence on a copy of `origin` under strace, and check the model of the disk against the real folder.
    Raises SequenceFailed; ends the program if the model is wrong."""
    work, log = folder / "work", folder / "strace"
    shutil.copytree(origin, work)
    state = work / sequence.place
    if sequence.first and crash.wait(crash.child(lambda: sequence.first(state))[0]) != 0:
        raise SystemExit("the state that the sequence starts from could not be made")
    start = Disk.read(work)

    def acknowledge(step: str, *gone: str) -> None:
        os.write(null, ACKNOWLEDGED + json.dumps([step, gone]).encode())

    null = os.open(os.devnull, os.O_WRONLY)
    code = crash.trace(lambda: sequence.run(state, acknowledge), "-o", str(log), *OPTIONS)
    os.close(null)
    if code == 0:
        tracer = Tracer(str(work), start.after([]))
        tracer.follow(log)
        if tracer.disk.digest() != Disk.read(work).digest():
            raise SystemExit("the model of the disk is not what lies on the disk")
    log.unlink()
    shutil.rmtree(work)
    if code != 0:
        raise SequenceFailed
    marks = [(place, *json.loads(text)) for place, text in tracer.marks]
    views = []
    for place in [0, *(place for place, *_ in marks)]:
        start.after(tracer.operations[:place]).write(folder / "then")
        views.append(in_fork(lambda: view_of(sequence.unpack(folder / "then" / sequence.place)), folder / "answer"))
        shutil.rmtree(folder / "then")
    if broken := [view for view in views if "crashed" in view]:
        raise SystemExit(broken[0]["crashed"])
    return Recording(start, tracer.operations, marks, views)
