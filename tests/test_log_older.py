"""A log, or a database, of another time: nothing is erased, and no generation number is given out twice."""
from __future__ import annotations

import shutil

import pytest
from helpers_log import NAMES, log_states
from helpers_state import vectors

from edgecl.learner import Learner
from edgecl.state.acknowledged import ACKNOWLEDGED_FILE
from edgecl.state.write_ahead_log import LOG_FILE


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return log_states(tmp_path_factory.mktemp("made"))


@pytest.fixture
def state(made, tmp_path):
    shutil.copytree(made / "state", tmp_path / "state")
    return tmp_path / "state"


def test_an_older_database_erases_nothing(state):
    old = {name: (state / name).read_bytes() for name in ("edgecl.db", "edgecl.copy")}
    learner = Learner.open(state)
    learner.learn(vectors("fox", 2000), "fox")  # the log moves
    numbers = [learner.learn(vectors(name, 20), name).generation for name in ("gnu", "hen")]
    learner.close()
    log = (state / LOG_FILE).read_bytes()
    (state / "edgecl.db").write_bytes(old["edgecl.db"])
    again = Learner.open(state)
    assert {"fox", "gnu", "hen"} < {c.name for c in again.classes()}  # the copy of its rows is newer
    again.close()
    for name, content in old.items():
        (state / name).write_bytes(content)
    files = {path.name: path.read_bytes() for path in (state / "models").iterdir()}
    again = Learner.open(state)
    kept = [path.read_bytes() for name in ("models", "set-aside") for path in (state / name).iterdir()]
    assert all(content in kept for content in files.values())   # the newer statistics among them
    assert any("learned.log is not the log of this database" in line for line in again.damage)
    assert any(f"generations {numbers[0]} to {numbers[1]} are in it" in line for line in again.damage)
    assert again.learn(vectors("ibis", 20), "ibis").generation > numbers[1]
    assert (state / "set-aside" / f"{LOG_FILE}.1").read_bytes() == log


def test_an_older_database_and_log_erase_nothing(state):
    old = {name: (state / name).read_bytes() for name in ("edgecl.db", "edgecl.copy", LOG_FILE, ACKNOWLEDGED_FILE)}
    learner = Learner.open(state)
    learner.forget("ant")   # which leaves none of the files that the old rows name
    learner.close()
    for name, content in old.items():
        (state / name).write_bytes(content)
    files = {path.name: path.read_bytes() for path in (state / "models").iterdir()}
    Learner.open(state).close()
    kept = [path.read_bytes() for name in ("models", "set-aside") for path in (state / name).iterdir()]
    assert files and all(content in kept for content in files.values())


def test_a_log_of_the_epoch_before_is_replaced_only_if_it_is_what_moved(state, tmp_path):
    log = state / LOG_FILE
    before = log.read_bytes()
    learner = Learner.open(state)
    learner.learn(vectors("fox", 2000), "fox")
    learner.close()
    log.write_bytes(before)  # as a kill between the commit and the beginning of the next log leaves it
    learner = Learner.open(state)
    assert learner.damage == []
    assert not (state / "set-aside").exists()
    learner.close()
    log.write_bytes(before[:-1] + b"x")
    learner = Learner.open(state)
    assert any("learned.log is not the log of this database" in line for line in learner.damage)
    assert (state / "set-aside" / f"{LOG_FILE}.1").read_bytes() == before[:-1] + b"x"
    assert [c.name for c in learner.classes()] == [*NAMES, "fox"]


def test_a_log_of_the_epoch_before_is_damage_if_the_next_one_was_acknowledged(state):
    log = state / LOG_FILE
    before = log.read_bytes()
    learner = Learner.open(state)
    learner.learn(vectors("fox", 2000), "fox")
    number = learner.learn(vectors("gnu", 20), "gnu").generation
    learner.close()
    log.write_bytes(before)  # somebody restored this one file
    learner = Learner.open(state)
    assert any("learned.log is not the log of this database" in line for line in learner.damage)
    assert [c.name for c in learner.classes()] == [*NAMES, "fox"]
    assert learner.learn(vectors("hen", 20), "hen").generation > number
    learner.close()


def test_the_same_damage_a_second_time_is_said_and_counted_again(state):
    for number in range(3):
        given = Learner.open(state).learn(vectors(f"class {number}", 20), f"class {number}").generation
        (state / LOG_FILE).unlink()
        learner = Learner.open(state)
        assert sum("learned.log is missing" in line for line in learner.damage) == 1
        assert learner.learn(vectors("fox", 20), "fox").generation > given
        learner.close()


def test_numbers_are_not_given_out_twice_if_nothing_tells_which_were(state):
    (state / LOG_FILE).unlink()
    (state / ACKNOWLEDGED_FILE).unlink()
    assert Learner.open(state).learn(vectors("fox", 20), "fox").generation > 6
