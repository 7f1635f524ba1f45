"""edgecl.copy: the rows of edgecl.db after each commit, within the quota, written again when lost."""
from __future__ import annotations

from pathlib import Path

import pytest
from helpers_database import noted, shown
from helpers_state import create, traces, vectors

from edgecl.errors import EdgeclError, StateError
from edgecl.learner import Learner
from edgecl.state.open_database import read_copy
from edgecl.state.rows import rows_of_copy


def test_the_copy_holds_the_rows_after_each_commit_and_no_forgotten_class(state):
    learner = Learner.open(state)
    other = create(state.parent / "other")
    other.learn(vectors("fox", 25), "fox")
    for change in (lambda: learner.learn(vectors("dog", 25), "dog"), lambda: learner.forget("wasp"),
                   lambda: learner.rollback(), lambda: learner.merge([state.parent / "other"]),
                   lambda: learner.learn(vectors("elk", 2000), "elk")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("edgecl.learner.clear_killed", lambda *_: None)
            try:
                change()
            except StateError:      # nothing to go back to, after a forget
                continue
        learner.store.refresh()
        assert read_copy(state) == learner.store.database.rows
    assert traces(state, vectors("wasp", 25), ["wasp"]) == []


def test_a_commit_that_only_appends_leaves_database_and_copy_alone(state):
    learner = Learner.open(state)
    learner.learn(vectors("dog", 5), "dog")
    before = {name: ((state / name).stat(), (state / name).read_bytes()) for name in ("edgecl.db", "edgecl.copy")}
    for number in range(3):
        learner.learn(vectors("dog", 5, number), "dog")
    for name, (about, content) in before.items():
        assert (state / name).stat().st_mtime_ns == about.st_mtime_ns
        assert (state / name).read_bytes() == content
    learner.close()


@pytest.mark.parametrize("hurt", [Path.unlink, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"{}"),
                                  lambda path: path.write_bytes(path.read_bytes()[:-9]),
                                  lambda path: path.write_bytes(path.read_bytes().replace(b"wasp", b"cake"))],
                         ids=["gone", "empty", "other", "cut", "changed"])
def test_a_lost_or_damaged_copy_is_written_again_without_a_word(state, hurt):
    learner = Learner.open(state)
    learner.learn(vectors("elk", 2000), "elk")  # so that names stand in the database
    learner.close()
    hurt(state / "edgecl.copy")
    assert not noted(state)
    learner = Learner.open(state)
    assert read_copy(state) == learner.store.database.rows
    assert not noted(state)


def test_a_flip_anywhere_in_the_copy_is_found(state):
    data = (state / "edgecl.copy").read_bytes()
    wanted = rows_of_copy(data)
    for place in range(len(data)):
        hurt = bytearray(data)
        hurt[place] ^= 1 << place % 8
        (state / "edgecl.copy").write_bytes(hurt)
        assert read_copy(state) in (None, wanted), place


def test_a_copy_without_room_in_the_quota_is_left_out(state):
    learner = Learner.open(state)
    wanted = shown(learner)
    learner.store.ledger.quota = learner.store.usage().total - 4096
    with learner.store.exclusive():
        learner.store.set_meta("note", "x")
        learner.store.step()
    assert not (state / "edgecl.copy").exists()
    assert learner.store.usage().total <= learner.store.ledger.quota
    with learner.store.exclusive():
        learner.store.connection.execute("DELETE FROM meta WHERE key = 'note'")
        learner.store.step()
    learner.close()
    again = Learner.open(state)
    assert shown(again) == wanted
    assert read_copy(state) == again.store.database.rows


def test_the_copy_gives_way_to_a_change_and_comes_back(state):
    learner = Learner.open(state)
    used = learner.store.usage().total
    learner.store.ledger.quota = used + 8192
    learner.store.ledger.ask(8192, "a change")
    assert (state / "edgecl.copy").exists()
    with pytest.raises(EdgeclError, match="needs 16384 bytes but only 12288"):
        learner.store.ledger.ask(16384, "a change")
    assert (state / "edgecl.copy").exists()
    learner.store.ledger.ask(12288, "a change")
    assert not (state / "edgecl.copy").exists()
    learner.close()
    Learner.open(state).close()
    assert (state / "edgecl.copy").exists()
