"""Random parts of a pool of samples, taught, corrected, merged and taken back: each counts once, whatever the buffer
still holds."""
from __future__ import annotations

import os
import random
from contextlib import closing

import numpy as np
import pytest
from helpers_state import create, vectors

from edgecl.learner import Learner

OPERATIONS = int(os.environ.get("EDGECL_OPERATIONS", 90))
POOL = np.concatenate([vectors(name, 80) for name in ("ant", "bee", "cat", "dog")])     # 320 samples
CLASSES, FLOOD = ("one", "two", "three", "four"), 900


class Career:
    """A state, and what it must know: class -> places in the pool, for each generation."""

    def __init__(self, folder, seed, exemplars):
        self.folder, self.random = folder, random.Random(seed)
        self.learner = create(folder / "state", exemplars=exemplars, quota=2_000_000)
        self.now, self.at, self.floods = {}, {self.learner.store.current: {}}, 0

    def became(self, now=None, **classes):
        """Note what is known from now on: class -> places, by default apart from what was."""
        known = {**self.now, **classes} if now is None else now
        self.now = {name: places for name, places in known.items() if places}
        self.at[self.learner.store.current] = self.now

    def part(self):
        start = self.random.randrange(len(POOL))
        return [*range(start, min(start + self.random.choice((1, 5, 40)), len(POOL)))]

    def learn(self):
        label, places = self.random.choice(CLASSES), self.part()
        here = self.now.get(label, frozenset())
        learned = self.learner.learn(POOL[places], label)
        new = {*places} - here
        assert (learned.samples, learned.known) == (len(new), len(places) - len(new))
        assert learned.unrecognised == 0
        also = {name: len(new & theirs) for name, theirs in self.now.items() if name != label and new & theirs}
        assert {name: len(sources) for name, sources in learned.also_in.items()} == also
        if new:
            self.became(**{label: here | new})

    def learn_much(self):
        """So much else that statistics are written and samples dropped."""
        self.floods += 1
        self.learner.learn(vectors("flood", FLOOD, self.floods), "flood")
        begin = len(POOL) + self.floods * FLOOD
        self.became(flood=self.now.get("flood", frozenset()) | {*range(begin, begin + FLOOD)})

    def forget(self):
        taught = [name for name in self.now if self.random.random() < 0.5]
        if taught:
            self.learner.forget(taught[0])
            self.at = {}
            self.became({name: places for name, places in self.now.items() if name != taught[0]})

    def roll_back(self):
        offered = sorted((self.learner.store.restorable() & self.at.keys()) - {self.learner.store.current})
        if offered:
            to = self.random.choice(offered)
            self.learner.rollback(to)
            self.became(self.at[to])

    def stored(self, label):
        """(id, place in the pool) of stored samples of a class that can be corrected."""
        places = {sample.tobytes(): place for place, sample in enumerate(POOL)}
        return [(row.id, places[row.feature.tobytes()]) for row in self.learner.repository.known().stored
                if row.label == label and not row.coded]

    def remove(self):
        label = self.random.choice(CLASSES)
        some = self.random.sample(mine := self.stored(label), min(len(mine), 3))
        if some:
            here = self.now[label]
            self.learner.remove([each for each, _ in some])
            self.became(**{label: here - {place for _, place in some}})

    def move(self):
        label, other = self.random.sample(CLASSES, 2)
        there = self.now.get(other, frozenset())
        some = [pair for pair in self.stored(label) if pair[1] not in there][:3]
        if some:
            here, places = self.now[label], {place for _, place in some}
            self.learner.move([each for each, _ in some], other)
            self.became(**{label: here - places, other: there | places})

    def rename(self):
        label, other = self.random.sample(CLASSES, 2)
        if label in self.now and other not in self.now:
            here = self.now[label]
            self.learner.rename(label, other)
            self.became(**{label: frozenset(), other: here})

    def merge(self):
        label, places = self.random.choice(CLASSES), self.part()
        path = self.folder / f"other {self.learner.store.current}"
        with closing(create(path, exemplars=100_000, quota=2_000_000)) as other:
            other.learn(POOL[places], label)
        here = self.now.get(label, frozenset())
        self.learner.merge([path])      # theirs are all stored there
        assert self.learner.store.newest.detail.get("already_known", 0) == len(here & {*places})
        self.became(**{label: here | {*places}})

    def reopen(self):
        self.learner.close()
        self.learner = Learner.open(self.folder / "state")

    def check(self):
        assert {each.name: each.samples for each in self.learner.classes()} == {
            name: len(places) for name, places in self.now.items()}


@pytest.mark.parametrize(("seed", "exemplars"), [(0, 100_000), (1, 2_500), (2, 2_500)])
def test_each_sample_counts_once(fast_path, seed, exemplars):
    career = Career(fast_path, seed, exemplars)
    shares = {career.learn: 12, career.learn_much: 1, career.forget: 1, career.roll_back: 2, career.remove: 2,
              career.move: 2, career.rename: 1, career.merge: 1, career.reopen: 2}
    for number in range(OPERATIONS):
        career.random.choices(list(shares), list(shares.values()))[0]()
        if number % 10 == 9:
            career.check()
    with closing(create(fast_path / "fresh", exemplars=exemplars, quota=2_000_000)) as fresh:
        for label, places in sorted(career.now.items()):
            if label == "flood":
                for number in sorted({(place - len(POOL)) // FLOOD for place in places}):
                    fresh.learn(vectors("flood", FLOOD, number), label)
            else:
                fresh.learn(POOL[sorted(places)], label)
        for transform, statistics in career.learner.repository.known().statistics.items():
            truth = fresh.repository.known().statistics[transform]
            assert statistics.counts == truth.counts
            for label in truth.counts:
                assert np.allclose(statistics.mean(label), truth.mean(label), rtol=1e-4, atol=1e-4)
    career.learner.close()
