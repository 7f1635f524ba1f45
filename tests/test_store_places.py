"""A state whose folder goes away, comes back, or is replaced by another one while it is open."""
from __future__ import annotations

import shutil

import pytest
from helpers_daemon import serving, until
from helpers_state import PROBE, answers, create, tree, vectors

from edgecl.errors import StateError
from edgecl.learner import Learner
from edgecl.state.backup import backup
from edgecl.state.restore import parts_of, restore

CHANGES = {"learn": lambda learner: learner.learn(vectors("dog", 9), "dog"),
           "forget": lambda learner: learner.forget("ant"),
           "rollback": lambda learner: learner.rollback()}
LOOKS = {"status": Learner.status, "used": lambda learner: learner.store.used_bytes(),
         "export": lambda learner: learner.export(learner.store.path.parent / "out.onnx")}


def shown(learner):
    return {each.name: each.samples for each in learner.classes()}


@pytest.mark.parametrize("ask", [*CHANGES, *LOOKS])
def test_a_state_whose_folder_has_gone_says_so(learner, ask):
    state = learner.store.path
    answers(learner)
    away = state.rename(state.with_name("away"))
    before = tree(away)
    with pytest.raises(StateError, match=str(state)):
        {**CHANGES, **LOOKS}[ask](learner)
    assert not state.exists()
    assert tree(away) == before
    away.rename(state)
    assert shown(learner) == {"ant": 25, "cat": 25, "wasp": 25}
    learner.learn(vectors("dog", 9), "dog")
    assert shown(Learner.open(state)) == {"ant": 25, "cat": 25, "dog": 9, "wasp": 25}


@pytest.mark.parametrize("ask", [*CHANGES, "status", "export", "classes", "close"])
@pytest.mark.parametrize("looked", [False, True])
def test_another_state_in_its_place_is_left_alone(learner, ask, looked):
    state = learner.store.path
    if looked:
        answers(learner), learner.classes()
    shutil.rmtree(state)
    other = create(state)
    for name in ("elk", "fox", "gnu"):  # as many generations as the old one
        other.learn(vectors(name, 25), name)
    other.close()
    before = tree(state)
    for _ in range(2):
        if ask == "close":
            learner.close()
        else:
            with pytest.raises(StateError, match="another state"):
                {**CHANGES, **LOOKS, "classes": Learner.classes}[ask](learner)
    assert tree(state) == before
    assert shown(Learner.open(state)) == {"elk": 25, "fox": 25, "gnu": 25}


def test_what_can_not_be_gone_back_to_is_named(learner, tmp_path):
    current = learner.store.current
    with pytest.raises(StateError, match=f"generation {current} is the current one; restorable are: 1, 2, 3 "):
        learner.rollback(current)
    for number in (0, 99):
        with pytest.raises(StateError, match=f"generation {number} can't be restored; restorable are: 1, 2, 3 "):
            learner.rollback(number)
    empty = create(tmp_path / "empty")
    with pytest.raises(StateError, match="there is no generation before this one; restorable are: none "):
        empty.rollback()


def test_an_earlier_copy_in_its_place_is_followed(learner):
    """A person restores a backup while a process has the state open; what that one remembers is of another history."""
    state, copy = learner.store.path, learner.store.path.with_name("copy")
    backup(state, copy, lambda _: None)
    learner.learn(vectors("dog", 9), "dog")
    assert shown(learner)["dog"] == 9
    answers(learner)
    shutil.rmtree(state)
    with parts_of(copy) as parts:
        restore(parts, "copy", state, lambda _: None)
    other = Learner.open(state)
    other.learn(vectors("elk", 9), "elk")   # the generation that was the dog's
    assert shown(learner) == {"ant": 25, "cat": 25, "elk": 9, "wasp": 25}
    assert {each.label for each in learner.predict(vectors("elk", 9))} == {"elk"}
    assert learner.learn(vectors("fox", 9), "fox").generation == other.store.current
    known = {"ant": 25, "cat": 25, "elk": 9, "fox": 9, "wasp": 25}
    assert shown(other) == shown(Learner.open(state)) == known
    fresh = create(state.with_name("fresh"))
    for name in ("ant", "wasp", "cat"):
        fresh.learn(vectors(name, 25), name)
    fresh.learn(vectors("elk", 9), "elk")
    fresh.learn(vectors("fox", 9), "fox")
    assert answers(Learner.open(state), PROBE) == answers(fresh, PROBE)


@pytest.mark.parametrize("gone", ["moved", "replaced"])
def test_a_daemon_says_that_its_state_has_gone(tmp_path, caplog, gone):
    state, away = tmp_path / "state", tmp_path / "away"
    with serving(state) as (service, *_):
        assert service.status()["warnings"] == []
        state.rename(away)
        if gone == "replaced":
            create(state).close()
        before = tree(away)
        (warning,) = until(lambda: service.status()["warnings"])
        assert str(state) in warning and ("another state" in warning) == (gone == "replaced")
        with pytest.raises(StateError, match=str(state)):
            service.learn("dog", vectors("dog", 9))
        assert [each["label"] for each in service.predict(vectors("wasp", 2))] == ["wasp", "wasp"]
        assert tree(away) == before
        if gone == "replaced":
            assert Learner.open(state).classes() == []
            shutil.rmtree(state)
        away.rename(state)
        until(lambda: not service.status()["warnings"])
        service.learn("dog", vectors("dog", 9))
    assert shown(Learner.open(state)) == {"ant": 25, "dog": 9, "wasp": 25}
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == [warning]
