"""A disk that does not give edgecl.db back: its copy answers, and only learning is refused."""
from __future__ import annotations

import sqlite3

import pytest
from helpers_state import answers, error_of, tree, vectors

from edgecl.cli import main
from edgecl.errors import StateError
from edgecl.learner import Learner
from edgecl.learning.repair import check
from edgecl.state import open_database
from edgecl.state.backup import backup

ERROR = "disk I/O error"


@pytest.fixture(params=["connect", "read_rows"])
def bad_disk(request, monkeypatch):
    """Whether reading the file fails, as it is opened or as its rows are read."""
    bad, work = [False], getattr(open_database, request.param)

    def failing(first, *rest):
        on_disk = request.param == "connect" or any(name for *_, name in first.execute("PRAGMA database_list"))
        if bad[0] and on_disk:
            raise sqlite3.OperationalError(ERROR)
        return work(first, *rest)

    monkeypatch.setattr(open_database, request.param, failing)
    return bad


def shown(learner):
    return {each.name: each.samples for each in learner.classes()}


def test_the_copy_answers_and_learning_is_refused(state, bad_disk, tmp_path, capsys):
    learner = Learner.open(state)
    wanted, answer = shown(learner), answers(learner, vectors("ant", 3))
    learner.close()
    before = tree(state)
    bad_disk[0] = True
    learner = Learner.open(state)
    assert shown(learner) == wanted
    assert answers(learner, vectors("ant", 3)) == answer
    line, = (line for line in learner.damage if ERROR in line)
    assert "edgecl.copy serves in its place, and nothing can be learned" in line
    for change in (lambda: learner.learn(vectors("elk", 5), "elk"), lambda: learner.forget("ant"), learner.rollback):
        error = error_of(change)
        assert isinstance(error, StateError)
        assert f"edgecl.db can't be read ({ERROR})" in error.what and "edgecl.copy" in error.cure
    assert any((each.file, each.verdict, each.problem) == ("edgecl.db", "damaged", ERROR)
               for each in check(state).findings)
    learner.close()
    assert main(["status", "--state", str(state)]) == 0
    assert ERROR in capsys.readouterr().err
    assert tree(state) == before
    assert not backup(state, tmp_path / "out", lambda _: None).damaged
    bad_disk[0] = False
    for path in (state, tmp_path / "out"):
        learner = Learner.open(path)
        assert shown(learner) == wanted and learner.damage == []
        learner.learn(vectors("elk", 5), "elk")
        learner.close()


@pytest.mark.parametrize("bad_disk", ["read_rows"], indirect=True)
def test_an_open_learner_recovers_as_soon_as_the_disk_does(state, bad_disk):
    learner, other = Learner.open(state), Learner.open(state)
    wanted = shown(learner)
    other.learn(vectors("elk", 2000), "elk")    # so that the rows must be read again
    other.close()
    bad_disk[0] = True
    assert shown(learner) == {**wanted, "elk": 2000}
    assert any(ERROR in line for line in learner.damage)
    assert ERROR in str(error_of(lambda: learner.learn(vectors("fox", 5), "fox")))
    bad_disk[0] = False
    learner.learn(vectors("fox", 5), "fox")
    assert shown(learner) == {**wanted, "elk": 2000, "fox": 5}
    assert learner.damage == []
    learner.close()


def test_what_the_disk_never_gives_back_can_be_moved_away(state, bad_disk, tmp_path):
    bad_disk[0] = True
    learner = Learner.open(state)
    wanted = shown(learner)
    (state / "edgecl.db").rename(tmp_path / "moved away")
    bad_disk[0] = False     # another file has other blocks
    learner.learn(vectors("elk", 5), "elk")
    assert shown(learner) == {**wanted, "elk": 5}
    learner.close()
    assert "it was built again from edgecl.copy" in str(Learner.open(state).damage)


def test_without_a_copy_the_disk_is_named(state, bad_disk, capsys):
    (state / "edgecl.copy").unlink()
    bad_disk[0] = True
    assert main(["status", "--state", str(state)]) == 1
    error = capsys.readouterr().err
    assert f"can't be used ({ERROR})" in error and "check the path and the disk" in error
