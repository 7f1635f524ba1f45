"""A log, or a database, of another time: nothing is erased, and no generation number is given out twice."""
from __future__ import annotations

from helpers_log import NAMES
from helpers_state import vectors

from edgecl.learner import Learner
from edgecl.state.acknowledged import ACKNOWLEDGED_FILE
from edgecl.state.write_ahead_log import LOG_FILE


def test_an_older_database_erases_nothing(logged):
    old = {name: (logged / name).read_bytes() for name in ("edgecl.db", "edgecl.copy")}
    learner = Learner.open(logged)
    learner.learn(vectors("fox", 2000), "fox")  # the log moves
    numbers = [learner.learn(vectors(name, 20), name).generation for name in ("gnu", "hen")]
    learner.close()
    log = (logged / LOG_FILE).read_bytes()
    (logged / "edgecl.db").write_bytes(old["edgecl.db"])
    again = Learner.open(logged)
    assert {"fox", "gnu", "hen"} < {c.name for c in again.classes()}  # the copy of its rows is newer
    again.close()
    for name, content in old.items():
        (logged / name).write_bytes(content)
    files = {path.name: path.read_bytes() for path in (logged / "models").iterdir()}
    again = Learner.open(logged)
    kept = [path.read_bytes() for name in ("models", "set-aside") for path in (logged / name).iterdir()]
    assert all(content in kept for content in files.values())   # the newer statistics among them
    assert any("learned.log is not the log of this database" in line for line in again.damage)
    assert any(f"generations {numbers[0]} to {numbers[1]} are in it" in line for line in again.damage)
    assert again.learn(vectors("ibis", 20), "ibis").generation > numbers[1]
    assert (logged / "set-aside" / f"{LOG_FILE}.1").read_bytes() == log


def test_an_older_database_and_log_erase_nothing(logged):
    old = {name: (logged / name).read_bytes() for name in ("edgecl.db", "edgecl.copy", LOG_FILE, ACKNOWLEDGED_FILE)}
    learner = Learner.open(logged)
    learner.forget("ant")   # which leaves none of the files that the old rows name
    learner.close()
    for name, content in old.items():
        (logged / name).write_bytes(content)
    files = {path.name: path.read_bytes() for path in (logged / "models").iterdir()}
    Learner.open(logged).close()
    kept = [path.read_bytes() for name in ("models", "set-aside") for path in (logged / name).iterdir()]
    assert files and all(content in kept for content in files.values())


def test_a_log_of_the_epoch_before_is_replaced_only_if_it_is_what_moved(logged, tmp_path):
    log = logged / LOG_FILE
    before = log.read_bytes()
    learner = Learner.open(logged)
    learner.learn(vectors("fox", 2000), "fox")
    learner.close()
    log.write_bytes(before)  # as a kill between the commit and the beginning of the next log leaves it
    learner = Learner.open(logged)
    assert learner.damage == []
    assert not (logged / "set-aside").exists()
    learner.close()
    log.write_bytes(before[:-1] + b"x")
    learner = Learner.open(logged)
    assert any("learned.log is not the log of this database" in line for line in learner.damage)
    assert (logged / "set-aside" / f"{LOG_FILE}.1").read_bytes() == before[:-1] + b"x"
    assert [c.name for c in learner.classes()] == [*NAMES, "fox"]


def test_a_log_of_the_epoch_before_is_damage_if_the_next_one_was_acknowledged(logged):
    log = logged / LOG_FILE
    before = log.read_bytes()
    learner = Learner.open(logged)
    learner.learn(vectors("fox", 2000), "fox")
    number = learner.learn(vectors("gnu", 20), "gnu").generation
    learner.close()
    log.write_bytes(before)  # somebody restored this one file
    learner = Learner.open(logged)
    assert any("learned.log is not the log of this database" in line for line in learner.damage)
    assert [c.name for c in learner.classes()] == [*NAMES, "fox"]
    assert learner.learn(vectors("hen", 20), "hen").generation > number
    learner.close()


def test_the_same_damage_a_second_time_is_said_and_counted_again(logged):
    for number in range(3):
        given = Learner.open(logged).learn(vectors(f"class {number}", 20), f"class {number}").generation
        (logged / LOG_FILE).unlink()
        learner = Learner.open(logged)
        assert sum("learned.log is missing" in line for line in learner.damage) == 1
        assert learner.learn(vectors("fox", 20), "fox").generation > given
        learner.close()


def test_numbers_are_not_given_out_twice_if_nothing_tells_which_were(logged):
    (logged / LOG_FILE).unlink()
    (logged / ACKNOWLEDGED_FILE).unlink()
    assert Learner.open(logged).learn(vectors("fox", 20), "fox").generation > 6
