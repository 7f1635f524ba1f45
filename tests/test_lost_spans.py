"""Generations that can't be gone back to since samples are lost: what is noted stays short, and says the same."""
from __future__ import annotations

import random

from helpers_log import records
from helpers_state import create, flip, vectors

from edgecl.learner import Learner
from edgecl.state.history import HISTORY
from edgecl.state.log_damage import joined


def hurt(spans, alive, bases):
    """The generations that need a sample of the spans, told as `StateReader.computable` tells it."""
    found = set()
    for number in alive:
        base = max(base for base in bases if base <= number)
        if any(base < first <= number <= last for first, last in spans):
            found.add(number)
    return found


def test_joined_spans_say_the_same():
    numbers = random.Random(0)
    for case in range(2000):
        alive = sorted(numbers.sample(range(1, 100), numbers.randrange(2, 30)))
        bases = sorted({alive[0], *numbers.sample(alive, numbers.randrange(len(alive)) // 3)})
        firsts = numbers.choices(range(1, 100), k=numbers.randrange(40))
        spans = [[first, first + numbers.randrange(30)] for first in firsts]
        short = joined(spans, alive, bases)
        assert hurt(short, alive, bases) == hurt(spans, alive, bases), case
        assert len(short) <= len(alive) + len(bases), case


def test_a_log_that_is_damaged_again_and_again_is_noted_in_bounded_bytes(tmp_path):
    learner, times = create(tmp_path / "state", exemplars=20_000), 0
    learner.learn(vectors("ant", 80), "ant")
    log = learner.store.log.path
    for number in range(2 * HISTORY):
        learner.learn(vectors("bee", 1, number), "bee")
        learner.close()
        ends = [end for _, end, about in records(log) if about["labels"] == ["bee"]]
        if ends:    # else the log has moved
            flip(log, ends[-1] - 10)
        learner, times = Learner.open(tmp_path / "state"), times + bool(ends)
        lost = learner.store.value("lost", [])
        assert len(lost) <= HISTORY + 2
        assert not ends or lost[-1][1] == learner.store.current
        assert not ends or learner.store.current not in learner.store.restorable()
    assert times > HISTORY + 10
    learner.close()
