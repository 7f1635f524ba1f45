#!/usr/bin/env python3
"""Measures false alarms and delay on streams: recordings of people who were not taught, one behind the other, with
activities between them that were not taught either; with and without a class `nothing`.

    python tools/streams.py FOLDER [--rate HZ] [--window SECONDS] [--taught N] [--nothing N] [--draws N]

FOLDER holds {train,test}/<class>/<recording>.csv, as `edgecl demo` leaves in edgecl-demo/recordings. In each draw N
classes are taught, half of the others give the windows of `nothing`, and the rest is never shown. Prints a table:
`Debounce` beside equal answers in a row.
"""
from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from edgecl.learner import Learner
from edgecl.learning.foundation import CALIBRATION_SAMPLES
from edgecl.results import Prediction
from edgecl.runtime.debounce import Debounce, evidence_of
from edgecl.samples import NOTHING, Sample
from edgecl.settings import Settings
from edgecl.sources import read, stack
from edgecl.sources.spec import Spec

MOST_WINDOWS = 200     # of a class that are taught
QUOTA = 64 * 10**6

Answers = list[tuple[str, list[Prediction]]]      # of the recordings of a stream: class, and an answer per window
Filter = Callable[[Prediction], bool]


class InARow:
    """What `Debounce` is compared with: `times` equal answers in a row make a label stable."""

    def __init__(self, times: int) -> None:
        self._times, self._run = times, 0
        self._last: object = self
        self._stable: object = self

    def __call__(self, label: str | None, _: float) -> bool:
        self._run = self._run + 1 if label == self._last else 1
        self._last = label
        if self._run < self._times or label == self._stable:
            return False
        self._stable = label
        return True


class Measured(NamedTuple):
    """Of some streams. false: labels per hour that became stable and name another class than the one that is shown;
    untaught: the same per hour of classes that were not taught; delay: windows until the label of a taught recording is
    stable; missed: share of those whose label never is; right: share of their windows at which it is."""

    false: float
    untaught: float
    delay: float
    missed: float
    right: float


def measured(streams: list[tuple[set[str], Answers]], make: Callable[[], Debounce | InARow], hop: float) -> Measured:
    """streams: (classes taught, answers); hop: seconds from one window to the next."""
    false, wrong_of_untaught, hours, untaught_hours = 0, 0, 0.0, 0.0
    delays: list[int] = []
    recordings = windows = right = 0
    for taught, answers in streams:
        changed, stable = make(), None
        for truth, said in answers:
            known, delay = truth in taught, 0
            for place, answer in enumerate(said, 1):
                label, confidence = evidence_of(answer)
                if changed(label, confidence):
                    stable = label
                    false += label not in (None, truth)
                    wrong_of_untaught += not known and label is not None
                delay = delay or place * (stable == truth)
                right += known and stable == truth
            hours += len(said) * hop / 3600
            untaught_hours += (not known) * len(said) * hop / 3600
            recordings, windows = recordings + known, windows + known * len(said)
            delays += [delay] if delay else []
    return Measured(false / hours, wrong_of_untaught / untaught_hours, float(np.mean(delays)),
                    1 - len(delays) / recordings, right / windows)


def windows_of(folder: Path, spec: Spec) -> dict[str, list[list[Sample]]]:
    """The recordings of each class, each as its windows."""
    found: dict[str, list[list[Sample]]] = {}
    for place in sorted(path for path in folder.iterdir() if path.is_dir()):
        recordings: dict[str, list[Sample]] = {}
        for item in read(place, spec):
            if isinstance(item, Sample):
                recordings.setdefault(item.group, []).append(item)
        found[place.name] = list(recordings.values())
    return found


def some(recordings: list[list[Sample]], most: int, rng: np.random.Generator) -> list[Sample]:
    """At most so many windows, drawn from all recordings, in order."""
    every = [window for recording in recordings for window in recording]
    return [every[i] for i in np.sort(rng.permutation(len(every))[:most])]


def answered(learner: Learner, recordings: list[tuple[str, list[Sample]]]) -> Answers:
    return [(truth, learner.predict(iter(windows))) for truth, windows in recordings]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--window", type=float, default=5.0)
    parser.add_argument("--taught", type=int, default=6)
    parser.add_argument("--nothing", type=int, default=300, help="windows of it")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="number of the first draw")
    options = parser.parse_args()
    spec = Spec(rate=options.rate, window=options.window, hop=options.window / 2)
    train, test = (windows_of(options.folder / part, spec) for part in ("train", "test"))
    streams: dict[str, list[tuple[set[str], Answers]]] = {"without": [], "with": []}
    for draw in range(options.first, options.first + options.draws):
        rng = np.random.default_rng(draw)
        order = [sorted(train)[i] for i in rng.permutation(len(train))]
        taught, others = order[:options.taught], order[options.taught:]
        rest, unseen = others[:len(others) // 2], others[len(others) // 2:]
        shown = {name: some(train[name], MOST_WINDOWS, rng) for name in taught}
        calibration = stack(iter([w for windows in shown.values() for w in windows]), CALIBRATION_SAMPLES)
        recordings = [(name, recording) for name in taught + unseen for recording in test[name]]
        recordings = [recordings[i] for i in rng.permutation(len(recordings))]
        with tempfile.TemporaryDirectory() as folder:
            learner = Learner.create(Path(folder) / "state", Settings(
                backbone="rocket", quota=QUOTA, rate=spec.rate, window=spec.window, hop=spec.hop), calibration)
            for name, samples in shown.items():
                learner.learn(iter(samples), name)
            streams["without"].append((set(taught), answered(learner, recordings)))
            learner.learn(iter([w for name in rest for w in some(train[name], options.nothing // len(rest), rng)]),
                          NOTHING)
            streams["with"].append((set(taught), answered(learner, recordings)))
            learner.close()
        print(f"draw {draw}: {', '.join(taught)}", file=sys.stderr)
    for kind, heard in streams.items():
        known = [answer.right(truth) and not answer.unknown for taught, answers in heard for truth, said in answers
                 if truth in taught for answer in said]
        named = [not answer.unknown for taught, answers in heard for truth, said in answers if truth not in taught
                 for answer in said]
        print(f"\n**{kind} `nothing`**: taught windows right and answered {100 * np.mean(known):.1f} %, untaught "
              f"windows that get a taught name {100 * np.mean(named):.1f} %\n")
        print("| | false/h | of untaught, false/h | delay, windows | missed | label right |\n|---|---|---|---|---|---|")
        for times in (2, 3, 4, 5):
            for what, make in ((f"{times} in a row", lambda times=times: InARow(times)),
                               (f"`debounce = {times}`", lambda times=times: Debounce(times))):
                m = measured(heard, make, spec.hop or 0.0)
                print(f"| {what} | {m.false:.1f} | {m.untaught:.1f} | {m.delay:.2f} | {100 * m.missed:.1f} % | "
                      f"{100 * m.right:.1f} % |")


if __name__ == "__main__":
    main()
