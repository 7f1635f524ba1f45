#!/usr/bin/env python3
"""What thousands of changes leave of a state: rounding errors, and what grows.

    tools/long_life.py [--cycles 10000] [--scale 1] [--commands 3000] [--dimension 64] [--seed 0] [--folder /dev/shm]

cycles: a class is learned and forgotten again and again; forgetting writes the statistics, so that they are at rest
between two cycles. With a scale, the class is that many times larger than those that stay, and one of two is always
there when the statistics are written. Their scatter is compared with that of a state that never had the class. The
error's slope over the cycles, both as logarithms, is 0.5 if each rounding is as likely up as down, and 1.0 if they have
a bias.
commands: random ones, compared with an oracle: counts, means, scatter, and the head of a state that learned the same at
once. Database, history, log and number of files must stay flat. Exits with 1 if a check fails.
"""
from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np  # noqa: E402
from folders import directory_bytes, fast_folder  # noqa: E402
from oracle import Oracle  # noqa: E402
from vector_states import create, vectors  # noqa: E402

from edgecl.errors import EdgeclError  # noqa: E402
from edgecl.learner import Learner  # noqa: E402

CLASSES = ("ant", "bee", "cat", "dog")
MAX_ERROR, MAX_SLOPE = 1e-5, 0.75      # of the scatter after all cycles, relative; of the slope of its logarithm
SHARES = {"learn": 80, "learn much": 2, "forget": 7, "rollback": 7, "merge": 2, "reopen": 2}
QUOTA, EXEMPLARS = 32_000_000, 8_000_000
MERGE_ROW = 1024        # bytes of the database for each merge, which the history keeps for good


class Size(NamedTuple):
    """What a state consists of, in bytes and numbers."""

    database: int
    log: int
    history: int
    files: int
    total: int

    @classmethod
    def of(cls, learner: Learner) -> Size:
        path = learner.store.path
        return cls((path / "edgecl.db").stat().st_size, (path / "learned.log").stat().st_size, len(learner.history()),
                   len(list((path / "models").iterdir())), directory_bytes(path, reserve=False))


class Drift(NamedTuple):
    """How far the statistics are off after some cycles, relative to the largest value: of the scatter, at most and as
    the root of the mean square; of a class mean, in standard deviations."""

    cycles: int
    largest: float
    typical: float
    mean: float
    size: Size


def drift(learner: Learner, wanted: Learner, cycles: int) -> Drift:
    """How far a learner's statistics are from another's."""
    here, there = learner.repository.known().plain, wanted.repository.known().plain
    truth = there.scatter()
    off = (here.scatter() - truth) / np.abs(truth).max()
    means = max(float(np.abs(here.mean(label) - there.mean(label)).max()) for label in CLASSES)
    return Drift(cycles, float(np.abs(off).max()), float(np.sqrt((off ** 2).mean())), means, Size.of(learner))


def learn_and_forget(folder: Path, marks: list[int], dimension: int, seed: int, scale: float = 1.0) -> Iterator[Drift]:
    """Learn a class and forget it, and look after each number of cycles in `marks`. scale: how many times larger than
    the others it is; if not 1, it is forgotten only when another one like it has been learned."""
    rng = np.random.default_rng(seed)
    learner, wanted = (create(folder / name, quota=QUOTA, exemplars=EXEMPLARS) for name in ("state", "never"))
    for each in (learner, wanted):
        for label in CLASSES:
            each.learn(vectors(label, 40, dimension=dimension), label)
    there = list[str]()
    for cycle in range(1, marks[-1] + 1):
        there.append(f"passing {cycle}")
        learner.learn(scale * vectors("passing", int(rng.integers(1, 6)), cycle, dimension), there[-1])
        while len(there) > (scale != 1 and cycle not in marks):
            if not learner.forget(there.pop(0))["exact"]:
                raise SystemExit(f"cycle {cycle}: what is stored was not forgotten exactly")
        if cycle in marks:
            learner.close()
            learner = Learner.open(folder / "state")
            yield drift(learner, wanted, cycle)
    learner.close()
    wanted.close()


def slope(found: list[Drift], which: str) -> float:
    """The slope of the logarithm of an error, "typical" or "mean", over that of the cycles, from 10 cycles on."""
    rows = [each for each in found if each.cycles >= 10]
    errors = [max(getattr(each, which), 1e-300) for each in rows]
    return float(np.polyfit(np.log([each.cycles for each in rows]), np.log(errors), 1)[0])


def biased(found: list[Drift]) -> list[str]:
    """What of the errors is too large, or grows faster than a random walk."""
    wrong = [f"the {name} has the slope {slope(found, which):.2f}" for which, name in
             (("typical", "error of the scatter"), ("mean", "error of the means")) if slope(found, which) > MAX_SLOPE]
    last = found[-1]
    return wrong + [f"the scatter is off by {last.largest:.1e} after {last.cycles} cycles"] * (last.largest > MAX_ERROR)


def marks_up_to(last: int) -> list[int]:
    """1, 3, 10, 30 ... as numbers of cycles, from 10 on, and the last one."""
    return sorted({mark for power in range(1, 9) for mark in (10 ** power, 3 * 10 ** power) if mark < last} | {last})


class Life:
    """A state that random commands change, and an oracle."""

    def __init__(self, folder: Path, dimension: int, seed: int) -> None:
        self.folder, self.dimension, self.random = folder, dimension, random.Random(seed)
        self.learner = create(folder / "state", quota=QUOTA, exemplars=EXEMPLARS)
        self.oracle = Oracle(self.learner.store.current, {}, dimension)
        self.done, self.refused = Counter[str](), Counter[str]()

    def step(self) -> None:
        """One random command."""
        kind = self.random.choices(list(SHARES), list(SHARES.values()))[0]
        label = f"class {self.random.randrange(8)}"
        try:
            getattr(self, f"_{kind.replace(' ', '_')}")(label)
            self.done[kind] += 1
        except EdgeclError as error:
            self.refused[re.sub(r"\d+", "N", f"{kind}: {error.what}".replace(str(self.folder), ""))[:60]] += 1

    def _learn(self, label: str, count: int | None = None) -> None:
        count, seed = count or self.random.randrange(1, 6), self.random.randrange(1000)
        number = self.learner.learn(vectors(label, count, seed, self.dimension), label, again=True).generation
        self.oracle.apply(number, {"do": "learn", "class": label, "count": count, "seed": seed})

    def _learn_much(self, label: str) -> None:
        self._learn(label, 300)

    def _forget(self, label: str) -> None:
        self.oracle.apply(self.learner.forget(label)["generation"], {"do": "forget", "class": label})

    def _rollback(self, _: str) -> None:
        offered = self.learner.store.restorable() - {self.learner.store.current}
        to = self.random.choice(sorted(offered)) if offered else None
        self.oracle.apply(self.learner.rollback(to), {"do": "rollback", "to": to})

    def _merge(self, label: str) -> None:
        path, seed = self.folder / "other", self.random.randrange(1000, 10 ** 9)     # nothing that is known here
        shutil.rmtree(path, ignore_errors=True)
        with closing(create(path, quota=QUOTA, exemplars=EXEMPLARS)) as other:
            other.learn(vectors(label, 4, seed, self.dimension), label)
        self.oracle.apply(self.learner.merge([path]), {"do": "merge", "taught": [[label, 4, seed]]})

    def _reopen(self, _: str) -> None:
        self.learner.close()
        self.learner = Learner.open(self.folder / "state")

    def check(self) -> list[str]:
        """What differs from the oracle, and from a state that learned the same at once."""
        self._reopen("")
        wrong = self.oracle.differences(self.learner)
        if wrong or not self.oracle.known:
            return wrong
        shutil.rmtree(self.folder / "fresh", ignore_errors=True)
        with closing(create(self.folder / "fresh", quota=QUOTA, exemplars=EXEMPLARS)) as fresh:
            for label, samples in sorted(self.oracle.samples().items()):
                fresh.learn(samples, label, again=True)
            truth = fresh.repository.known().plain.scatter()
            off = np.abs(self.learner.repository.known().plain.scatter() - truth).max() / (np.abs(truth).max() or 1)
            if off > MAX_ERROR:
                wrong.append(f"the scatter is off by {off:.1e}")
            probe = np.concatenate([vectors(label, 10, 9999, self.dimension) for label in self.oracle.known])
            for here, there in zip(self.learner.predict(probe), fresh.predict(probe)):
                if here.label != there.label or abs(here.confidence - there.confidence) > 1e-3:
                    wrong.append(f"answers {here.label!r} ({here.confidence:.4f}), another state that learned the same "
                                 f"{there.label!r} ({there.confidence:.4f})")
                    break
        return wrong


def grown(first: Size, last: Size, merges: int) -> list[str]:
    """What of a state has grown though it should be flat. merges: how many came between."""
    allowed = first._replace(database=2 * first.database + merges * MERGE_ROW, log=max(2 * first.log, QUOTA // 2),
                             history=max(2 * first.history, 100) + merges, files=2 * first.files + 20, total=QUOTA)
    return [f"{name} grew from {before} to {now}" for name, before, now, most
            in zip(Size._fields, first, last, allowed) if now > most]


def show_cycles(cycles: int, dimension: int, seed: int, folder: Path, scale: float) -> list[str]:
    """Print how the error grows; what is wrong. scale: of `learn_and_forget`."""
    print(f"{'cycles':>8}{'scatter, most':>15}{'scatter, rms':>14}{'means':>10}{'database':>10}{'history':>9}{'s':>7}")
    found, began = list[Drift](), time.monotonic()
    for each in learn_and_forget(folder, marks_up_to(cycles), dimension, seed, scale):
        found.append(each)
        print(f"{each.cycles:8}{each.largest:15.1e}{each.typical:14.1e}{each.mean:10.1e}{each.size.database:10}"
              f"{each.size.history:9}{time.monotonic() - began:7.0f}", flush=True)
    print(f"slopes: of the scatter {slope(found, 'typical'):.2f}, of the means {slope(found, 'mean'):.2f}")
    return biased(found) + grown(found[0].size, found[-1].size, 0)


def show_commands(commands: int, dimension: int, seed: int, folder: Path) -> list[str]:
    """Print what random commands leave; what is wrong."""
    life, wrong, first = Life(folder, dimension, seed), list[str](), None
    print(f"{'commands':>8}{'database':>10}{'log':>8}{'history':>9}{'files':>7}{'bytes':>10}{'ms each':>9}")
    every = max(commands // 10, 1)
    for number in range(every, commands + 1, every):
        began = time.process_time()
        for _ in range(every):
            life.step()
        each = 1000 * (time.process_time() - began) / every
        wrong += life.check()
        size = Size.of(life.learner)
        first = first or size
        print(f"{number:8}" + f"{size.database:10}{size.log:8}{size.history:9}{size.files:7}{size.total:10}{each:9.1f}",
              flush=True)
    print(", ".join(f"{kind} {count}" for kind, count in sorted(life.done.items())), dict(life.refused))
    return wrong + (grown(first, size, life.done["merge"]) if first else [])


def main() -> int:
    """Print both tables."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cycles", type=int, default=10_000, metavar="N", help="100 or more, or 0 for none")
    options.add_argument("--scale", type=float, default=1.0, metavar="S", help="of the class that comes and goes")
    options.add_argument("--commands", type=int, default=3_000, metavar="N")
    options.add_argument("--dimension", type=int, default=64, metavar="D")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--folder", type=Path, default=fast_folder(), help="where the states are made")
    given = options.parse_args()
    wrong = list[str]()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        if given.cycles:
            wrong += show_cycles(given.cycles, given.dimension, given.seed, Path(folder, "cycles"), given.scale)
        if given.commands:
            wrong += show_commands(given.commands, given.dimension, given.seed, Path(folder, "commands"))
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
