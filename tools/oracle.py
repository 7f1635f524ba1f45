"""What a state must know, from the changes that it acknowledged: kept without edgecl, one entry per generation."""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from vector_states import DIMENSION, vectors

from edgecl.learner import Learner

Known = Mapping[str, Counter[tuple[int, int]]]     # class -> batches (count, seed), each as often as it was taught
MEAN_TOLERANCE = 1e-4       # of a mean, in standard deviations of a class


@lru_cache(maxsize=4096)
def batch_sum(label: str, count: int, seed: int, dimension: int) -> np.ndarray:
    """The sum of a batch of samples, float64 [dimension]."""
    return vectors(label, count, seed, dimension).sum(0, dtype=np.float64)


class Oracle:
    """The knowledge after each generation. A change is a dictionary: {"do": "learn", "class", "count", "seed"},
    {"do": "forget", "class"}, {"do": "rollback", "to"} or {"do": "merge", "taught": [[class, count, seed], ...]}."""

    def __init__(self, generation: int, known: Known, dimension: int = DIMENSION) -> None:
        self.generation, self.dimension = generation, dimension
        self.states: dict[int, Known] = {generation: known}

    @property
    def known(self) -> Known:
        """What the newest generation knows."""
        return self.states[self.generation]

    def apply(self, generation: int, change: Mapping[str, Any]) -> None:
        """Follow one change. Raises ValueError for a generation that is not newer than the last, or for a way back to
        one that was never there."""
        if generation <= self.generation:
            raise ValueError(f"generation {generation} came after {self.generation}")
        known = dict(self.known)
        if change["do"] == "learn":
            known = added(known, change["class"], change["count"], change["seed"])
        elif change["do"] == "merge":
            for label, count, seed in change["taught"]:
                known = added(known, label, count, seed)
        elif change["do"] == "forget":
            known.pop(change["class"], None)
        elif change["to"] in self.states:
            known = dict(self.states[change["to"]])
        else:
            raise ValueError(f"generation {generation} went back to {change['to']}, which never was")
        self.generation, self.states[generation] = generation, known

    def counts(self, generation: int | None = None) -> dict[str, int]:
        """Samples of each class at a generation, by default the newest."""
        known = self.known if generation is None else self.states[generation]
        return {label: total(batches) for label, batches in sorted(known.items())}

    def samples(self) -> dict[str, np.ndarray]:
        """All samples that are known now, by class, float32 [n, dimension]."""
        return {label: np.concatenate([np.tile(vectors(label, count, seed, self.dimension), (times, 1))
                                       for (count, seed), times in batches.items()])
                for label, batches in self.known.items()}

    def differences(self, learner: Learner) -> list[str]:
        """How a learner differs from what it must know: in its counts, or in the mean of a class."""
        counts = {each.name: each.samples for each in learner.classes()}
        if counts != self.counts():
            return [f"class {label!r}: {counts.get(label, 0)} samples, not {self.counts().get(label, 0)}"
                    for label in sorted({*counts, *self.known}) if counts.get(label) != self.counts().get(label)]
        found = []
        for label, batches in self.known.items():
            wanted = sum(times * batch_sum(label, *batch, self.dimension) for batch, times in batches.items())
            off = np.abs(learner.repository.known().plain.mean(label) - wanted / total(batches)).max()
            if not off <= MEAN_TOLERANCE:
                found.append(f"class {label!r}: its mean is off by {off:.1e}")
        return found


def added(known: Known, label: str, count: int, seed: int) -> dict[str, Counter[tuple[int, int]]]:
    """What is known after one more batch."""
    return {**known, label: known.get(label, Counter()) + Counter({(count, seed): 1})}


def total(batches: Counter[tuple[int, int]]) -> int:
    """Samples in some batches."""
    return sum(count * times for (count, _), times in batches.items())
