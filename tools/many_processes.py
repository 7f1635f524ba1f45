#!/usr/bin/env python3
"""Many processes change one state at once and are killed at random; what is left must equal an oracle.

    tools/many_processes.py [--processes 8] [--minutes 10] [--folder FOLDER] [--quota 600KB] [--seed 0]

Each process learns, forgets, rolls back, merges, asks, looks, copies and reopens, and notes what it begins and what was
acknowledged. One at a time is killed with SIGKILL and started again: a generation that nobody was acknowledged for is
its last change. In the end all changes are applied to an oracle in the order of their generations. Checked: the final
knowledge; that no generation was acknowledged twice, and none is nobody's; that whoever looked, or made a copy, saw
what was known at that moment; that no process found damage; and the quota, while all processes are stopped. FOLDER
should be on a disk: memory doesn't meet what a file system does. Exits with 1 if a check fails.
"""
from __future__ import annotations

import argparse
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import onnx.helper  # noqa: E402, F401
from folders import directory_bytes, file_system  # noqa: E402
from oracle import Oracle  # noqa: E402
from state_worker import CLASSES, WorkerProcess  # noqa: E402
from vector_states import create, fingerprint, vectors  # noqa: E402

from edgecl.backbones import graph, onnx_runtime  # noqa: E402, F401  (before the forks; children open the sessions)
from edgecl.errors import EdgeclError  # noqa: E402
from edgecl.learner import Learner  # noqa: E402
from edgecl.settings import parse_size  # noqa: E402

CHANGES = {"learn", "forget", "rollback", "merge"}
EXEMPLARS = 12_000
NOT_ERASED = "has forgotten the class"  # of a `forget` that is made, but not all samples could be erased yet
LOOK = 0.05             # seconds between two looks at the quota
KILL_EVERY = 0.0, 0.5   # seconds between two kills


@dataclass
class Found:
    """What a campaign found. changes: generation -> what it was, each as often as it was acknowledged."""

    kills: int = 0
    unacknowledged: int = 0     # changes that were made all the same
    largest: int = 0            # bytes of the state, most seen
    looks: int = 0
    commands: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    changes: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    seen: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Campaign:
    """Processes on one state in a folder."""

    def __init__(self, folder: Path, processes: int, quota: int, seed: int) -> None:
        self.folder, self.state, self.quota, self.random = folder, folder / "state", quota, random.Random(seed)
        self.found = Found()
        self.folder.mkdir(exist_ok=True)
        learner = create(self.state, quota=quota, exemplars=EXEMPLARS)
        first = learner.learn(vectors(CLASSES[0], 12, 0), CLASSES[0]).generation
        learner.close()
        self.oracle = Oracle(1, {})
        self.oracle.apply(first, {"do": "learn", "class": CLASSES[0], "count": 12, "seed": 0})
        self.unsure = list[dict[str, Any]]()    # changes that may have been made, though nobody was told so
        self.made = list[dict[str, Any]]()      # changes that were made, whose number nobody was told
        self.settled = first        # up to this generation, it is known whose each is
        self.processes = [WorkerProcess(number, folder / f"process {number}") for number in range(processes)]

    def run(self, over: Callable[[Found], bool]) -> Found:
        """Start the processes, kill them one at a time until `over` says so, and compare."""
        try:
            for process in self.processes:
                self.start(process)
            while not over(self.found) and not self.found.wrong:
                self.watch(self.random.uniform(*KILL_EVERY))
                self.kill(self.random.choice(self.processes))
            (self.folder / "stop").touch()
            for process in self.processes:
                if process.pid and (code := os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1])):
                    self.found.wrong.append(f"a process ended with {code}")
                process.pid = 0
            self.read()
        finally:
            for process in self.processes:
                process.kill()
        self.settle(self.newest())
        self.compare()
        return self.found

    def start(self, process: WorkerProcess) -> None:
        process.start(self.state, self.random.randrange(1 << 32), self.folder / "stop")

    def watch(self, seconds: float) -> None:
        """Look at the quota again and again, and read the journals."""
        until = time.monotonic() + seconds
        while True:
            with self.stopped():
                used = directory_bytes(self.state)
                if used > self.quota:   # what it was, for whoever looks for the cause
                    files = {str(path.relative_to(self.state)): path.lstat().st_size for path in self.state.rglob("*")}
                    begun = [process.begun for process in self.processes]
                    self.found.wrong.append(f"{used} bytes, the quota is {self.quota}: {files}, {begun}")
            self.found.largest, self.found.looks = max(self.found.largest, used), self.found.looks + 1
            self.read()
            if time.monotonic() >= until or self.found.wrong:
                return
            time.sleep(LOOK)

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """No process runs: a look at a folder that changes meanwhile would count a file twice, or not at all."""
        for process in self.processes:
            os.kill(process.pid, signal.SIGSTOP)
        for process in self.processes:
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            if not os.WIFSTOPPED(status):
                self.found.wrong.append(f"a process ended: {(process.folder / 'errors').read_text()[-2000:]}")
                process.pid = 0
        yield
        for process in self.processes:
            if process.pid:
                os.kill(process.pid, signal.SIGCONT)

    def kill(self, victim: WorkerProcess) -> None:
        """Kill one process, and find out whether its last change was made: once the commands that the others were in
        have ended, only that one is left that was not acknowledged."""
        if self.found.wrong:
            return
        victim.kill()
        self.found.kills += 1
        self.read()
        if victim.begun is not None:
            self.unsure.append(victim.begun)
            victim.begun = None
        newest = self.newest()
        self.read()     # whose command began meanwhile may have made one of these
        self.start(victim)
        waiting = {process.number: process.ended for process in self.processes
                   if process is not victim and process.begun is not None}
        while not self.found.wrong and any(self.processes[number].ended == ended for number, ended in waiting.items()):
            self.watch(LOOK)
        self.settle(newest)

    def newest(self) -> dict[int, dict[str, Any]]:
        """The newest generations by number, as the history has them."""
        while True:
            try:
                with closing(Learner.open(self.state)) as learner:
                    return {g.id: {"do": g.action, **g.detail} for g in learner.history()}
            except EdgeclError as error:
                if "in use" not in str(error):
                    raise

    def settle(self, history: dict[int, dict[str, Any]]) -> None:
        """Find whose the generations are that came since the last time and that nobody was acknowledged for: of a
        process that was killed, or of a `forget` that was made but could not erase everything yet."""
        for number in range(self.settled + 1, max(history) + 1):
            if number in self.found.changes:
                continue
            row = history.get(number, {"do": "nothing that the history has"})
            mine = next((change for change in [*self.made, *self.unsure] if change["do"] == row["do"]
                         and change.get("count", 0) == (row["samples"] if row["do"] == "learn" else 0)), None)
            if mine is None:
                self.found.wrong.append(f"generation {number} is nobody's: {row}")
                continue
            (self.made if mine in self.made else self.unsure).remove(mine)
            self.found.unacknowledged += 1
            self.found.changes[number] = [{**mine, "to": row.get("to")}]
        self.settled, self.unsure = max(self.settled, max(history)), []

    def read(self) -> None:
        """Take what the processes have added to their journals."""
        for process in self.processes:
            for line in process.lines():
                self.take(process, line)

    def take(self, process: WorkerProcess, line: dict[str, Any]) -> None:
        """Take one line of a journal."""
        if "begun" in line:
            process.begun = line["begun"]
            return
        change, process.begun = process.begun or {}, None
        process.ended += 1
        if "done" in line:
            done = {**change, **line["done"]}
            self.found.commands[done["do"]] += 1
            if done["do"] in CHANGES:
                self.found.changes.setdefault(done["generation"], []).append(done)
            elif "known" in done:
                self.found.seen.append(done)
        elif "refused" in line:
            what = line["refused"].partition(";")[0].replace(str(self.state), "STATE")
            self.found.refusals[re.sub(r"\d+", "N", what)] += 1
            if NOT_ERASED in line["refused"]:
                self.made.append(change)
            if "damage" in line["refused"]:
                self.found.wrong.append(line["refused"])
        elif "failed" in line:
            self.found.wrong.append(line["failed"])

    def compare(self) -> None:
        """Apply all changes to the oracle, and compare what was seen, and what is known in the end."""
        found, seen = self.found, sorted(self.found.seen, key=lambda each: each["from"])
        counts = {self.oracle.generation: self.oracle.counts()}
        for number, changes in sorted(found.changes.items()):
            if len(changes) > 1:
                found.wrong.append(f"generation {number} was acknowledged {len(changes)} times: {changes}")
            try:
                self.oracle.apply(number, changes[0])
            except ValueError as error:
                found.wrong.append(str(error))
                return
            counts[number] = self.oracle.counts()
        for each in seen:
            if not any(counts.get(number) == each["known"] for number in range(each["from"], each["until"] + 1)):
                found.wrong.append(f"seen between generations {each['from']} and {each['until']}, but never known: "
                                   f"{each['known']}; known was {counts.get(each['from'])}")
        with closing(Learner.open(self.state)) as learner:
            found.wrong += self.oracle.differences(learner) + learner.damage
        if fingerprint(self.state) != fingerprint(self.state):
            found.wrong.append("the state is another one when it is opened again")


def main() -> int:
    """Run the campaign and print what it found."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--processes", type=int, default=8, metavar="N")
    options.add_argument("--minutes", type=float, default=10, metavar="M")
    options.add_argument("--folder", type=Path, default=Path.cwd(), help="where the state is made (default: here)")
    options.add_argument("--quota", type=parse_size, default=600_000)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir=given.folder, prefix="many-processes-") as folder:
        found = Campaign(Path(folder), given.processes, given.quota, given.seed).run(
            lambda _: time.monotonic() - started > 60 * given.minutes)
        show(found, given)
    return 1 if found.wrong else 0


def show(found: Found, given: argparse.Namespace) -> None:
    """Print what a campaign found."""
    print(f"{given.processes} processes on {file_system(given.folder)}, {given.minutes:g} minutes, {found.kills} kills,"
          f" {len(found.changes)} generations, of which {found.unacknowledged} were made by a process that was killed "
          f"before it could say so; at most {found.largest} of {given.quota} bytes in {found.looks} looks")
    print("acknowledged: " + ", ".join(f"{name} {count}" for name, count in sorted(found.commands.items())))
    for refusal, count in found.refusals.most_common():
        print(f"  refused {count:5} times: {refusal}")
    for wrong in found.wrong:
        print(f"WRONG: {wrong}")
    print("wrong" if found.wrong else "equal to the oracle")


if __name__ == "__main__":
    sys.exit(main())
