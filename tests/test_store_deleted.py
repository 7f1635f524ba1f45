"""Files of a state that are deleted while it is open: what is in memory serves, and is written again if it is the rest
of a state; nothing is made up in the place of one that is gone."""
from __future__ import annotations

import shutil

import pytest
from helpers_daemon import serving, until
from helpers_state import answers, error_of, fingerprint, refused, tree, vectors

from edgecl.errors import StateError
from edgecl.learner import Learner
from edgecl.learning.repair import check

ROWS = ("edgecl.db", "edgecl.copy")
ASKED = {"status": Learner.status, "damage": lambda learner: learner.damage, "classes": Learner.classes,
         "predict": lambda learner: learner.predict(vectors("ant", 2)), "forget": lambda learner: learner.forget("cat"),
         "learn": lambda learner: learner.learn(vectors("dog", 5), "dog"), "rollback": Learner.rollback,
         "close": Learner.close}


def delete(state, *names):
    for name in names:
        path = state / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def shown(state):
    with_copy = Learner.open(state)
    found = {each.name: each.samples for each in with_copy.classes()}
    with_copy.close()
    return found


@pytest.mark.parametrize("ask", ASKED)
@pytest.mark.parametrize("warm", [False, True])
def test_rows_that_are_nowhere_but_in_memory_are_written_again(learner, ask, warm):
    state, wanted = learner.store.path, {"ant": 25, "cat": 25, "wasp": 25}
    if warm:
        answers(learner)
        learner.learn(vectors("elk", 4), "elk")
        wanted["elk"] = 4
    delete(state, *ROWS)
    ASKED[ask](learner)
    if ask in ("status", "damage", "classes", "predict"):
        assert any("edgecl.db" in line and ("missing" in line or "lost" in line) for line in learner.damage)
    learner.close()
    assert all((state / name).exists() for name in ROWS)
    wanted |= {"dog": 5} if ask == "learn" else {}
    gone = {"forget": "cat", "rollback": "elk" if warm else "cat"}.get(ask)
    assert shown(state) == {name: count for name, count in wanted.items() if name != gone}
    (noted,) = [each for each in check(state).findings if each.verdict == "noted"]
    assert noted.problem == "edgecl.db was lost; it was built again from what this process has read before"


def test_what_another_process_had_changed_before_is_in_it(learner):
    state = learner.store.path
    answers(learner)
    other = Learner.open(state)
    other.forget("wasp")
    other.learn(vectors("much", 400), "much")
    other.close()
    delete(state, *ROWS)
    assert {each.name for each in learner.classes()} == {"ant", "cat", "much"}
    learner.close()
    assert shown(state) == {"ant": 25, "cat": 25, "much": 400}


def test_answers_and_history_are_as_before(learner):
    state = learner.store.path
    wanted = fingerprint(state, damage=False)
    opened = Learner.open(state)
    delete(state, *ROWS)
    opened.close()
    assert fingerprint(state, damage=False) == wanted


def test_a_process_that_may_not_write_serves_from_memory_and_writes_nothing(learner, monkeypatch):
    state = learner.store.path
    looking = Learner.open(state)
    before = answers(looking)
    monkeypatch.setattr("edgecl.state.open_database.os.access", lambda path, mode: mode != 2)
    delete(state, *ROWS)
    left = tree(state)
    assert answers(looking) == before
    assert any("edgecl.copy" in line for line in looking.damage)
    assert "read-only" in str(error_of(lambda: looking.learn(vectors("dog", 5), "dog")))
    looking.close()
    assert tree(state) == left


@pytest.mark.parametrize("gone", ["folder", "content", "all but the lock"])
@pytest.mark.parametrize("ask", [ask for ask in ASKED if ask != "close"])
def test_a_state_that_is_gone_is_said_and_nothing_is_made_in_its_place(learner, ask, gone):
    state = learner.store.path
    answers(learner)
    away = shutil.copytree(state, state.with_name("away"))
    if gone == "folder":
        shutil.rmtree(state)
    else:
        delete(state, *(path.name for path in state.iterdir() if gone == "content" or path.name != "reserved"))
    left = sorted(path.name for path in state.iterdir()) if state.exists() else None
    for _ in range(2):
        error = error_of(lambda: ASKED[ask](learner))
        assert isinstance(error, StateError)
        assert f"{state} is gone" in error.what and f"edgecl restore BACKUP --state {state}" in error.cure
        assert ("edgecl.db, edgecl.copy, learned.log, models are missing" in error.what) == (gone != "folder")
    assert (sorted(path.name for path in state.iterdir()) if state.exists() else None) == left
    shutil.rmtree(state, ignore_errors=True)
    away.rename(state)      # and it goes on as soon as the disk is back
    learner.learn(vectors("dog", 5), "dog")
    learner.close()
    assert shown(state) == {"ant": 25, "cat": 25, "dog": 5, "wasp": 25}


def test_a_log_that_is_deleted_as_well_is_said(learner):
    state = learner.store.path
    delete(state, *ROWS, "learned.log")
    assert any("learned.log is missing" in line for line in learner.damage)
    learner.close()
    assert any("learned.log is missing" in line for line in Learner.open(state).damage)


def test_without_the_folder_of_models_it_is_named(learner):
    state = learner.store.path
    delete(state, "models")
    assert learner.status().warnings == [
        f"{state}/models is missing, and with it all that was learned and is not in the log"]
    error = error_of(lambda: learner.learn(vectors("dog", 5), "dog"))
    assert f"{state}/models is missing" in error.what and "check --repair" in error.cure
    assert not (state / "models").exists()


def test_the_rest_of_a_state_is_not_taken_for_none(state, photos, capsys):
    delete(state, *ROWS)
    before = tree(state)
    for command in ("predict", "learn --class dog"):
        line = refused(capsys, *command.split(), "--state", state, photos)
        assert "edgecl.db and edgecl.copy are missing" in line and "edgecl restore" in line
    assert "exists already" in refused(capsys, "init", "--backbone", "identity", "--state", state)
    assert tree(state) == before


@pytest.mark.parametrize("gone", ["rows", "content"])
def test_a_daemon_writes_its_rows_again_or_says_that_its_state_is_gone(tmp_path, caplog, gone):
    state = tmp_path / "state"
    with serving(state) as (service, *_):
        service.learn("dog", vectors("dog", 9))
        if gone == "rows":
            delete(state, *ROWS)
            until(lambda: all((state / name).exists() for name in ROWS))
            (line,) = until(lambda: service.status()["warnings"])
            assert "edgecl.db was lost; it was built again" in line
            service.learn("elk", vectors("elk", 9))
        else:
            state.rename(tmp_path / "elsewhere")    # all at once: the daemon may look at any moment
            state.mkdir()
            (line,) = until(lambda: service.status()["warnings"])
            assert f"{state} is gone" in line
            assert "is gone" in str(error_of(lambda: service.learn("elk", vectors("elk", 9))))
            assert [each["label"] for each in service.predict(vectors("dog", 2))] == ["dog", "dog"]
            assert not any(state.iterdir())
    if gone == "rows":
        assert shown(state).items() >= {"dog": 9, "elk": 9}.items()
    else:
        assert not any(state.iterdir())
