"""Heads that a sweep removed stay named in the log; if a part of the log is lost, they are not reported as missing."""
from __future__ import annotations

import os

import pytest
from helpers_log import records, remove
from helpers_state import create, flip, vectors

from edgecl.learner import Learner
from edgecl.learning.repair import check
from edgecl.state.reader import KEPT_HEADS
from edgecl.state.write_ahead_log import LOG_FILE


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The bytes of a state in whose log there are many more heads than are kept."""
    learner = create(tmp_path_factory.mktemp("swept") / "state")
    for number in range(2 * KEPT_HEADS):
        learner.learn(vectors(f"class {number % 5}", 3, number), f"class {number % 5}")
        learner.classes()   # which solves and writes the head
    assert len(learner.store.logged()) > KEPT_HEADS + 4
    learner.close()
    path = learner.store.path
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def state(swept, fast_path):
    for name, data in swept.items():
        (fast_path / "state" / name).parent.mkdir(parents=True, exist_ok=True)
        (fast_path / "state" / name).write_bytes(data)
    return fast_path / "state"


def missing_heads(state):
    return [each.what for each in check(state).findings if each.verdict == "missing" and "head" in each.what]


def cut(share):
    return lambda log: os.truncate(log, int(share * log.stat().st_size))


def at_a_record(log):
    os.truncate(log, records(log)[-6][0])


def out_of_the_middle(log):
    remove(log, records(log)[-9][0], records(log)[-5][0])


def flipped(log):
    for place in [records(log)[number][0] for number in (-9, -5)]:
        flip(log, place + 20)   # in the digest of its JSON


HURT = {"a quarter": cut(0.25), "half": cut(0.5), "nearly all": cut(0.9), "at a record": at_a_record,
        "out of the middle": out_of_the_middle, "flipped": flipped}


@pytest.mark.parametrize("hurt", HURT)
def test_heads_that_a_sweep_removed_are_not_missing(state, hurt):
    assert check(state).intact
    HURT[hurt](state / LOG_FILE)
    assert not check(state).intact and missing_heads(state) == []
    learner = Learner.open(state)
    assert not any(".onnx" in line for line in learner.damage)
    possible = learner.store.restorable()
    for number in range(3):
        learner.learn(vectors("class 1", 3, 100 + number), "class 1")
        assert missing_heads(state) == []
    learner.rollback(min(possible - {1}))
    learner.learn(vectors("new", 400), "new")    # a rewrite: the generations of the log move into the database
    learner.close()
    assert missing_heads(state) == []
    assert not any(".onnx" in line for line in Learner.open(state).damage)


@pytest.mark.parametrize("hurt", HURT)
def test_a_head_that_was_written_after_the_damage_is_missing_if_it_is_gone(state, hurt):
    HURT[hurt](state / LOG_FILE)
    learner = Learner.open(state)
    learner.learn(vectors("new", 3), "new")
    learner.close()
    learner = Learner.open(state)
    newest = learner.store.newest
    learner.close()
    assert newest.logged
    (state / "models" / newest.head).unlink()
    assert missing_heads(state) == [f"head of generation {newest.id}"]


def test_a_head_that_is_gone_beside_a_whole_log_is_missing(state):
    learner = Learner.open(state)
    newest = learner.store.newest
    learner.close()
    (state / "models" / newest.head).unlink()
    assert missing_heads(state) == [f"head of generation {newest.id}"]
