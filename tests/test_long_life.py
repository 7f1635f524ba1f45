"""A long life in short: changes that take each other back leave nothing, and random ones what an oracle knows."""
from __future__ import annotations

import long_life
import pytest
from long_life import Drift, Life, Size

SIZE = Size(24576, 118, 50, 4, 65536)


@pytest.mark.slow
def test_a_class_that_comes_and_goes_leaves_no_bias(fast_path):
    found = list(long_life.learn_and_forget(fast_path, long_life.marks_up_to(100), 16, seed=0))
    assert [each.cycles for each in found] == [10, 30, 100]
    assert long_life.biased(found) == []
    assert long_life.grown(found[1].size, found[-1].size, 0) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_random_commands_leave_what_an_oracle_knows(fast_path, seed):
    life, sizes = Life(fast_path, 16, seed), []
    for _ in range(4):
        for _ in range(60):
            life.step()
        assert life.check() == []
        sizes.append(Size.of(life.learner))
    assert {"learn", "forget", "rollback", "merge"} <= life.done.keys()
    assert long_life.grown(sizes[0], sizes[-1], life.done["merge"]) == []


def drifts(error):
    return [Drift(cycles, error(cycles), error(cycles), 1e-9, SIZE) for cycles in (1, 10, 100, 1000, 10_000)]


def test_a_bias_is_told_from_a_random_walk():
    assert long_life.biased(drifts(lambda cycles: 1e-8 * cycles ** 0.5)) == []
    assert long_life.biased(drifts(lambda cycles: 1e-8)) == []
    assert long_life.biased(drifts(lambda cycles: 1e-10 * cycles)) == ["the error of the scatter has the slope 1.00"]
    assert long_life.biased(drifts(lambda cycles: 2e-7 * cycles ** 0.5)) == [
        "the scatter is off by 2.0e-05 after 10000 cycles"]


def test_what_grows_is_told():
    assert long_life.grown(SIZE, SIZE._replace(database=40_000, history=90), 0) == []
    assert long_life.grown(SIZE, SIZE._replace(database=140_000, history=190), 100) == []
    assert long_life.grown(SIZE, SIZE._replace(database=90_000), 0) == ["database grew from 24576 to 90000"]
    assert long_life.grown(SIZE, SIZE._replace(files=100), 0) == ["files grew from 4 to 100"]


def test_a_life_that_differs_from_its_oracle_is_told(fast_path):
    life = Life(fast_path, 16, 0)
    life._learn("ant")
    life._learn("bee")
    assert life.check() == []
    life.learner.learn(long_life.vectors("ant", 3, 5), "ant")
    (wrong,) = life.check()
    assert wrong.startswith("class 'ant': ")
