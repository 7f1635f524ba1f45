#!/usr/bin/env python3
"""Cuts the power of a simulated disk under edgecl, and checks that the state opens as it was before or after a step.

    tools/powerloss.py [--states 400] [--sequence forget] [--jobs 2] [--seed 0] [--folder DIR]

Each sequence of commands runs once under strace, which records every byte that it writes. The record is replayed on a
model of the disk (it must give the real folder, or the run ends), and cut off before each sync: see tools/power_cuts.py
for what is lost then. Each state that a cut may leave is opened. It must know what was known before or after the last
step that was acknowledged, without a false alarm, hold its quota, keep nothing of a class whose `forget` was
acknowledged; and learn, open again and forget. Prints a table; exits with 1 if a state does not. Needs strace
(`apt-get install strace`) and permission to trace its own children.

--folder: keep what was found wrong there, a state each.
"""
from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import crash
from cut_sequences import SEQUENCES, Sequence
from disk_model import Disk, Operation, Sync
from disk_trace import ACKNOWLEDGED, OPTIONS, Tracer
from power_cuts import Cut, chosen, cuts
from state_view import View, differences, go_on, in_fork, left_of, look, over_quota
from vector_states import vectors

from edgecl.errors import BudgetError
from edgecl.learner import Learner


SHOWN = 8   # violations of a sequence that are printed


@dataclass
class Recording:
    """What a sequence did to the disk. marks: number of operations before each acknowledgement, the step, and the
    classes that must be gone; views: what the state showed before all and at each mark."""

    start: Disk
    operations: list[Operation]
    marks: list[tuple[int, str, list[str]]]
    views: list[View]


@dataclass
class Outcome:
    """What came of a sequence: how many different states there were, how many were tried, and how they opened."""

    operations: int = 0
    candidates: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class SequenceFailed(Exception):
    """A sequence ends with an error without any cut."""


def view_of(state: Path) -> View:
    """What a state shows when it is opened; {} if there is none."""
    if not state.exists():
        return {}
    learner = Learner.open(state)
    try:
        return look(learner)
    finally:
        learner.close()


def examine(state: Path, gone: list[str], tight: bool) -> dict[str, Any]:
    """The view of a state, and what is wrong with it whatever it knows."""
    view = view_of(state)
    if not view:
        return {"view": view, "wrong": []}
    wrong = over_quota(state)
    for name in gone:
        wrong += left_of(state, name, vectors(name, 25))
    try:
        wrong += go_on(state)
    except BudgetError:
        if not tight:
            raise
    return {"view": view, "wrong": wrong}


def record(sequence: Sequence, origin: Path, folder: Path) -> Recording:
    """Run a sequence under strace, and check the model of the disk against the real folder."""
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
    if code != 0:
        raise SequenceFailed
    tracer = Tracer(str(work), start.after([]))
    tracer.follow(log)
    if tracer.disk.digest() != Disk.read(work).digest():
        raise SystemExit("the model of the disk is not what lies on the disk")
    log.unlink()
    shutil.rmtree(work)
    marks = [(place, *json.loads(text)) for place, text in tracer.marks]
    views = []
    for place in [0, *(place for place, *_ in marks)]:
        start.after(tracer.operations[:place]).write(folder / "then")
        views.append(in_fork(lambda: view_of(folder / "then" / sequence.place), folder / "answer"))
        shutil.rmtree(folder / "then")
    if broken := [view for view in views if "crashed" in view]:
        raise SystemExit(broken[0]["crashed"])
    return Recording(start, tracer.operations, marks, views)


def judge(found: dict[str, Any], allowed: list[View]) -> tuple[str, str]:
    """One word for what came of a cut, "before", "after" or what is wrong, and details. allowed: the views before and
    after the step."""
    if "crashed" in found:
        return "traceback", found["crashed"]
    if "refused" in found:
        same = [view for view in allowed if "refused" in view]      # it was so before
        return ("before", "") if same else ("refused", found["refused"])
    for word, view in zip(("before", "after"), allowed):
        apart = differences(found["view"], view)
        if not apart or (apart == ["damage"] and bool(view["damage"]) == bool(found["view"]["damage"])):
            return ("wrong", "; ".join(found["wrong"])) if found["wrong"] else (word, "")
        if apart == ["damage"]:
            return "alarm", "; ".join(map(str, found["view"]["damage"]))
    return "other", "; ".join(f"not as {word}: {', '.join(differences(found['view'], view))}"
                              for word, view in zip(("before", "after"), allowed))


def try_cut(cut: Cut, disk: Disk, recording: Recording, sequence: Sequence, folder: Path) -> tuple[str, str]:
    """Open what a cut left: see `judge`."""
    passed = sum(place <= cut.at for place, *_ in recording.marks)
    gone = recording.marks[passed - 1][2] if passed else []
    disk.write(folder / "then")
    found = in_fork(lambda: examine(folder / "then" / sequence.place, gone, sequence.tight), folder / "answer")
    shutil.rmtree(folder / "then")
    return judge(found, recording.views[passed:passed + 2])


def campaign_of(name: str, states: int, origin: Path, folder: Path, seed: int, keep: Path | None) -> Outcome:
    """Record one sequence, and try so many cuts."""
    sequence, rng = SEQUENCES[name], random.Random(f"{seed} {name}")
    folder.mkdir()
    try:
        recording = record(sequence, origin, folder)
    except SequenceFailed:
        return Outcome(counts=Counter(failed=1), wrong=[f"{name}: fails without a cut"])
    every = list(cuts(recording.operations, rng))
    outcome, seen, known = Outcome(len(recording.operations), len(every)), set(), recording.start.digests()
    gc.freeze()     # else a collection in a fork copies every page of this process
    for cut in chosen(every, rng):
        if outcome.counts.total() >= states:
            break
        disk = cut.disk(recording.start, recording.operations)
        passed = sum(place <= cut.at for place, *_ in recording.marks)
        key = (disk.digest(known), passed)
        if key in seen:
            continue
        seen.add(key)
        word, detail = try_cut(cut, disk, recording, sequence, folder)
        outcome.counts[word] += 1
        if word not in ("before", "after"):
            step = recording.marks[passed - 1][1] if passed else "nothing"
            outcome.wrong.append(f"{name}: cut before {describe(cut.at, recording)}, after {step} was acknowledged, "
                                 f"{cut.label}: {word}: {detail}")
            if keep is not None:
                disk.write(keep / f"{name.replace(' ', '_')}-{outcome.counts.total()}")
    shutil.rmtree(folder)
    return outcome


def describe(number: int, recording: Recording) -> str:
    """An operation in words."""
    if number == len(recording.operations):
        return "the end"
    operation = recording.operations[number]
    names = {inode: path for _, disk in enumerate((recording.start.after(recording.operations), recording.start))
             for path, inode in disk.paths()}
    kind = "the sync" if isinstance(operation, Sync) else type(operation).__name__.lower()
    return f"{kind} of {names.get(operation.inode) or 'the folder'}"


def campaign(states: int, names: list[str], jobs: int, seed: int = 0, keep: Path | None = None,
             report: Callable[[str], object] = print) -> dict[str, Outcome]:
    """All sequences, spread over `jobs` processes; what came of each."""
    memory, found = Path("/dev/shm"), dict[str, Outcome]()
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as temporary:
        root = Path(temporary)
        if crash.wait(crash.child(lambda: crash.prepare(root / "prepared"))[0]) != 0:
            raise SystemExit("the initial states could not be created")
        queue, filler = os.pipe()
        os.write(filler, bytes(range(len(names))))
        os.close(filler)

        def share() -> None:
            while number := os.read(queue, 1):
                name = names[number[0]]
                try:
                    done = campaign_of(name, -(-states // len(names)), root / "prepared", root / f"of{number[0]}", seed,
                                       keep)
                    answer = json.dumps(vars(done))
                except BaseException:
                    answer = json.dumps(traceback.format_exc())
                (root / f"outcome{number[0]}").write_text(answer)

        workers = [crash.child(share)[0] for _ in range(jobs)]
        os.close(queue)
        for worker in workers:
            crash.wait(worker)
        for number, name in enumerate(names):
            answer = root / f"outcome{number}"
            outcome = json.loads(answer.read_text()) if answer.exists() else "its worker has ended"
            if isinstance(outcome, str):
                raise SystemExit(f"{name}: {outcome}")
            found[name] = Outcome(**{**outcome, "counts": Counter(outcome["counts"])})
            for line in found[name].wrong[:SHOWN]:
                report(line.replace(f"{root}/", ""))
            if len(found[name].wrong) > SHOWN:
                report(f"{name}: {len(found[name].wrong) - SHOWN} more")
    return found


def main() -> int:
    """Run the campaign and print its table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--states", type=int, default=400, metavar="N", help="states that are opened, over all sequences")
    options.add_argument("--sequence", action="append", choices=list(SEQUENCES), help="only this one; may be repeated")
    options.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N")
    options.add_argument("--seed", type=int, default=0, metavar="N")
    options.add_argument("--folder", type=Path, metavar="DIR")
    given = options.parse_args()
    if shutil.which("strace") is None:
        print("powerloss: strace is missing; install it with `apt-get install strace`", file=sys.stderr)
        return 1
    started = time.monotonic()
    found = campaign(given.states, given.sequence or list(SEQUENCES), given.jobs, given.seed, given.folder)
    print(f"{'sequence':42}{'operations':>11}{'cuts':>8}{'tried':>7}{'before':>8}{'after':>7}{'violations':>12}")
    total = Counter[str]()
    for name, outcome in found.items():
        c = outcome.counts
        total.update(c)
        print(f"{name:42}{outcome.operations:11}{outcome.candidates:8}{c.total():7}{c['before']:8}{c['after']:7}"
              f"{c.total() - c['before'] - c['after']:12}  "
              f"{', '.join(f'{word} {n}' for word, n in sorted(c.items()) if word not in ('before', 'after'))}")
    wrong = total.total() - total["before"] - total["after"]
    print(f"{total.total()} states, {wrong} violations, in {time.monotonic() - started:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
