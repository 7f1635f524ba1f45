"""A long life in short: changes that take each other back leave nothing, and random ones what an oracle knows."""
from __future__ import annotations

from contextlib import closing

import long_life
import pytest
from long_life import Drift, Life, Size

from edgecl.errors import StateError
from edgecl.learner import Learner
from edgecl.state.history import HISTORY

SIZE = Size(24576, 118, 50, 4, 65536)


@pytest.mark.slow
def test_a_class_that_comes_and_goes_leaves_no_bias(fast_path):
    found = list(long_life.learn_and_forget(fast_path, long_life.marks_up_to(100), 16, seed=0))
    assert [each.cycles for each in found] == [10, 30, 100]
    assert long_life.biased(found) == []
    assert long_life.grown(found[1].size, found[-1].size, 0) == []


@pytest.mark.slow
def test_large_classes_that_come_and_go_in_turn_leave_no_more(fast_path):
    found = list(long_life.learn_and_forget(fast_path, long_life.marks_up_to(100), 16, seed=0, scale=30))
    assert found[-1].largest <= long_life.MAX_ERROR / 10    # after 100 of 10,000 cycles, of a random walk
    assert long_life.slope(found, "typical") <= long_life.MAX_SLOPE


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


def test_the_history_keeps_one_of_many_forgets_that_were_not_exact(fast_path):
    learner = long_life.create(fast_path / "state", exemplars=1000)
    learner.learn(long_life.vectors("ant", 20), "ant")
    exact = []
    for number in range(30):
        learner.learn(long_life.vectors("bee", 100, number), "bee")
        learner.learn(long_life.vectors("elk", 2500, number), "elk")    # the statistics are written, samples dropped
        exact += [learner.forget(name)["exact"] for name in ("bee", "elk")]
    assert exact.count(False) >= 30
    assert len(learner.history()) <= HISTORY + 2
    settle(learner)
    assert [g.detail["exact"] for g in learner.history() if "exact" in g.detail] == [False]
    assert not learner.status().exact
    learner.close()
    assert not Learner.open(fast_path / "state").status().exact


def settle(learner):
    """Make many generations, and write the statistics."""
    for number in range(1, HISTORY + 6):
        learner.learn(long_life.vectors("ant", 2, number), "ant")
    learner.learn(long_life.vectors("ant", 2500, HISTORY + 6), "ant")


def test_the_history_lets_go_of_merges_that_were_undone(fast_path):
    learner = long_life.create(fast_path / "state")
    learner.learn(long_life.vectors("ant", 20), "ant")
    with closing(long_life.create(fast_path / "other")) as other:
        other.learn(long_life.vectors("bee", 20), "bee")
    for _ in range(40):
        learner.merge([fast_path / "other"])
        learner.rollback()
    assert len(learner.history()) <= HISTORY + 12
    learner.merge([fast_path / "other"])
    settle(learner)
    assert [g.action for g in learner.history()].count("merge") == 1
    with pytest.raises(StateError, match="merged here before"):
        learner.merge([fast_path / "other"])


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
