"""What a state must know sample by sample, from the changes that it acknowledged, and the state that was taught only
that."""
from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from vector_states import create, vectors

from edgecl.exemplars.sample_ids import sample_id
from edgecl.learner import Learner

SCENES = 0.3    # of the samples of a recording hardly differ from the one before


@dataclass(frozen=True)
class Piece:
    """A sample that is known. label: the class that it is of; batch: it was taught with, as the class that it showed;
    place: in the batch; command, order: the generation that made it what it is, and where it came among the others of
    that, so that samples of one batch and command count as taught together, in that order."""

    label: str
    shown: str
    batch: int
    count: int
    place: int
    command: int
    order: int


@lru_cache(maxsize=4096)
def recording(shown: str, batch: int, count: int, dimension: int) -> np.ndarray:
    """The samples of a batch, float32 [count, dimension], of which some nearly repeat the one before."""
    made = vectors(shown, count, batch, dimension)
    random_ = np.random.default_rng(batch)
    for place in np.flatnonzero(random_.random(count) < SCENES):
        if place:
            made[place] = made[place - 1] * np.float32(1 + 1e-3 * random_.random())
    return made


def session(batch: int) -> str:
    """The name of the session that a batch is."""
    return f"session {batch}"


class SampleOracle:
    """The samples that are known at each generation."""

    def __init__(self, generation: int, dimension: int) -> None:
        self.generation, self.dimension = generation, dimension
        self.states: dict[int, frozenset[Piece]] = {generation: frozenset()}

    @property
    def known(self) -> frozenset[Piece]:
        """What is known now."""
        return self.states[self.generation]

    def become(self, generation: int, known: Iterable[Piece]) -> None:
        """A generation after which this is known."""
        self.generation, self.states[generation] = generation, frozenset(known)

    def learn(self, generation: int, label: str, batch: int, count: int) -> None:
        """A batch was taught, or came by a merge."""
        self.become(generation, [*self.known, *(Piece(label, label, batch, count, place, generation, place)
                                                for place in range(count))])

    def remove(self, generation: int, gone: Iterable[Piece]) -> None:
        """Samples were removed."""
        self.become(generation, self.known - {*gone})

    def move(self, generation: int, moved: Iterable[Piece], label: str) -> None:
        """Samples are of another class; those that were moved at once count as taught together."""
        here = sorted({*moved}, key=_age)
        self.become(generation, [*(self.known - {*here}), *(
            replace(each, label=label, command=generation, order=order) for order, each in enumerate(here))])

    def rename(self, generation: int, old: str, new: str) -> None:
        """A class has another name, or is part of another one."""
        self.move(generation, [each for each in self.known if each.label == old], new)

    def forget(self, generation: int, label: str) -> None:
        """A class was forgotten, and with it every way back."""
        known = [each for each in self.known if each.label != label]
        self.states = {number: state for number, state in self.states.items() if not state}
        self.become(generation, known)

    def rollback(self, generation: int, to: int) -> None:
        """What was known then is known again."""
        self.become(generation, self.states[to])

    def labels(self) -> list[str]:
        """The known classes."""
        return sorted({each.label for each in self.known})

    def sample(self, each: Piece) -> np.ndarray:
        """The sample itself."""
        return recording(each.shown, each.batch, each.count, self.dimension)[each.place]

    def ids(self, learner: Learner) -> dict[Piece, str]:
        """The id of each known sample that a state has stored as it was learned; one that it should not know is a
        KeyError."""
        by_content = {(each.label, self.sample(each).tobytes()): each for each in self.known}
        return {by_content[row.label, row.feature.tobytes()]: sample_id(row)
                for row in learner.repository.known().stored if not row.coded}

    def commands(self, random_: random.Random) -> Iterator[tuple[str, list[Piece]]]:
        """What is known as commands that teach it, in a random order: (class, samples that are taught together)."""
        taught: dict[tuple[str, int, int], list[Piece]] = {}
        for each in self.known:
            taught.setdefault((each.label, each.command, each.batch), []).append(each)
        keys = sorted(taught)
        random_.shuffle(keys)
        for key in keys:
            yield key[0], sorted(taught[key], key=_age)

    def taught(self, path: Path, random_: random.Random, **settings: Any) -> Learner:
        """A new state that was taught all that is known, and nothing else, in a random order."""
        learner = create(path, **settings)
        for label, mine in self.commands(random_):
            learner.learn(np.stack([self.sample(each) for each in mine]), label,
                          [session(each.batch) for each in mine])
        return learner


def _age(each: Piece) -> tuple[int, int]:
    return each.command, each.order
