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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import crash
from crash_commands import prepare
from cut_recording import Recording, SequenceFailed, record
from cut_sequences import SEQUENCES, Acknowledge, Sequence
from power_cuts import chosen, cuts
from state_view import View, differences, go_on, in_fork, left_of, only_look, over_quota, view_of
from vector_states import vectors

from edgecl.errors import BudgetError
from edgecl.learner import Learner

FINE = ("before", "after")
SECOND, AFTER_SECOND = 10, 3    # of one cut in so many the recovery is cut off too, so many times
SHOWN = 8   # violations of a sequence that are printed


@dataclass
class Outcome:
    """What came of a sequence: how many operations and cuts it has, and how the states that cuts left opened."""

    operations: int = 0
    cuts: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def examine(state: Path, gone: list[str], tight: bool) -> dict[str, Any]:
    """The view of a state, what a process that may not write sees, and what is wrong whatever the state knows."""
    if not state.exists():
        return {"view": {}, "seen": {}, "wrong": []}
    seen, wrong = only_look(state)
    view = view_of(state)
    wrong += over_quota(state)
    for name in gone:
        wrong += left_of(state, name, vectors(name, 25))
    try:
        wrong += go_on(state)
    except BudgetError:
        if not tight:
            raise
    return {"view": view, "seen": seen, "wrong": wrong}


def judge(found: dict[str, Any], allowed: list[View]) -> tuple[str, str]:
    """One word for what came of a cut, "before", "after" or what is wrong, and details. allowed: the views before and
    after the step."""
    if "crashed" in found:
        return "traceback", found["crashed"]
    if "refused" in found:
        same = [view for view in allowed if "refused" in view]      # it was so before
        return ("before", "") if same else ("refused", found["refused"])
    word, detail = compare(found["view"], allowed)
    if word in FINE and found["wrong"]:
        return "wrong", "; ".join(found["wrong"])
    if word in FINE and "refused" not in found["seen"]:
        rest = [*map(but_history, allowed)]     # which names a forgotten class until a writer erases it
        seen, why = compare(but_history(found["seen"]), rest)
        if seen not in FINE:
            return f"{seen} to a reader", why
    return word, detail


def but_history(view: View) -> View:
    """A view without the history."""
    return {name: value for name, value in view.items() if name != "history"}


NOT_KNOWN = "it is not known whether they were acknowledged"    # of a cut tail, before a new log's first append


def compare(found: View, allowed: list[View]) -> tuple[str, str]:
    """Which of the views before and after a step a view is: see `judge`."""
    for word, view in zip(FINE, allowed):
        apart = differences(found, view)
        said = [line for line in found.get("damage", []) if NOT_KNOWN not in str(line)]
        if not apart or (apart == ["damage"] and bool(view["damage"]) == bool(said)):
            return word, ""
        if apart == ["damage"]:
            return "alarm", "; ".join(map(str, found["damage"]))
    return "other", "; ".join(f"not as {word}: {', '.join(differences(found, view))}" for word, view in
                              zip(FINE, allowed))


@dataclass
class Trials:
    """The cuts of one sequence. folder: for the states; keep: where to leave what is wrong; all cuts are counted in
    `outcome`, those of recoveries too."""

    folder: Path
    rng: random.Random
    keep: Path | None
    outcome: Outcome = field(default_factory=Outcome)

    def run(self, name: str, sequence: Sequence, origin: Path, states: int, deeper: bool = True) -> None:
        """Record a sequence on the folder `origin`, and open up to so many different states that a cut may leave;
        deeper: cut off what opening them does as well."""
        try:
            recording = record(sequence, origin, self.folder)
        except SequenceFailed:
            self.count("failed", f"{name}: fails without a cut")
            return
        every = list(cuts(recording.operations, self.rng))
        self.outcome.operations += len(recording.operations)
        self.outcome.cuts += len(every)
        seen, known = set[tuple[bytes, int]](), recording.start.digests()
        end = self.outcome.counts.total() + states
        for cut in chosen(every, self.rng):
            if self.outcome.counts.total() >= end:
                break
            disk, passed = cut.disk(recording.start, recording.operations), recording.passed(cut.at)
            key = (disk.digest(known), passed)
            if key in seen:
                continue
            seen.add(key)
            disk.write(self.folder / "cut")
            what = f"{name}: cut before {recording.describe(cut.at)}, after {recording.step(passed)}, {cut.label}"
            word = self.open(what, sequence, recording, passed)
            if deeper and word in FINE and len(seen) % SECOND == 0 and (self.folder / "cut" / sequence.place).is_dir():
                (self.folder / "cut").rename(self.folder / "first cut")
                self.run(f"{what}; opened", replace(sequence, run=recovery, first=None), self.folder / "first cut",
                         min(AFTER_SECOND, end - self.outcome.counts.total()), deeper=False)
                shutil.rmtree(self.folder / "first cut")
            else:
                shutil.rmtree(self.folder / "cut")

    def open(self, what: str, sequence: Sequence, recording: Recording, passed: int) -> str:
        """Open what a cut left, and count what came of it: see `judge`."""
        shutil.copytree(self.folder / "cut", self.folder / "then")
        gone = recording.gone(passed)
        found = in_fork(lambda: examine(sequence.unpack(self.folder / "then" / sequence.place), gone, sequence.tight),
                        self.folder / "answer")
        shutil.rmtree(self.folder / "then")
        allowed = recording.views[passed:passed + 2]
        if sequence.repeats and "view" in found:
            found, allowed = {**found, "view": but_history(found["view"])}, [*map(but_history, allowed)]
        word, detail = judge(found, allowed)
        self.count(word, f"{what}: {word}: {detail}")
        return word

    def count(self, word: str, line: str) -> None:
        """Count how a state opened, and keep it if that is wrong."""
        self.outcome.counts[word] += 1
        if word not in FINE:
            self.outcome.wrong.append(line)
            if self.keep is not None and (self.folder / "cut").exists():
                shutil.copytree(self.folder / "cut", self.keep / str(len(self.outcome.wrong)))
                (self.keep / str(len(self.outcome.wrong)) / "why").write_text(line)


def recovery(state: Path, acknowledge: Acknowledge) -> None:
    """Open a state, which brings it in order."""
    Learner.open(state).close()
    acknowledge("open")


def campaign(states: int, names: list[str], jobs: int, seed: int = 0, keep: Path | None = None,
             report: Callable[[str], object] = print) -> dict[str, Outcome]:
    """All sequences, spread over `jobs` processes; what came of each."""
    memory, found = Path("/dev/shm"), dict[str, Outcome]()
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as temporary:
        root = Path(temporary)
        if crash.wait(crash.child(lambda: prepare(root / "prepared"))[0]) != 0:
            raise SystemExit("the initial states could not be created")
        queue, filler = os.pipe()
        os.write(filler, bytes(range(len(names))))
        os.close(filler)

        def share() -> None:
            gc.freeze()     # else a collection in a fork copies every page of this process
            while number := os.read(queue, 1):
                name = names[number[0]]
                trials = Trials(root / f"of{number[0]}", random.Random(f"{seed} {name}"),
                                keep and keep / name.replace(" ", "_"))
                trials.folder.mkdir()
                try:
                    trials.run(name, SEQUENCES[name], root / "prepared", -(-states // len(names)))
                    answer = json.dumps(vars(trials.outcome))
                except BaseException:
                    answer = json.dumps(traceback.format_exc())
                shutil.rmtree(trials.folder)
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
    options.add_argument("--states", type=int, default=400, metavar="N", help="over all sequences")
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
        print(f"{name:42}{outcome.operations:11}{outcome.cuts:8}{c.total():7}{c['before']:8}{c['after']:7}"
              f"{c.total() - c['before'] - c['after']:12}  "
              f"{', '.join(f'{word} {n}' for word, n in sorted(c.items()) if word not in ('before', 'after'))}")
    wrong = total.total() - total["before"] - total["after"]
    print(f"{total.total()} states, {wrong} violations, in {time.monotonic() - started:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
