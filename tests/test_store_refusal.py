"""Refused commands leave every byte as it was, and no name in the database is ever without its file."""
from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers_state import create, fast_folder, tree, vectors
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from edgecl.errors import BudgetError, EdgeclError, StateError
from edgecl.heads.solvers import forms
from edgecl.learner import Learner
from edgecl.learning.plan import state_bytes
from edgecl.learning.repository import Repository
from edgecl.state.compaction import packed_database, prune
from edgecl.state.quota import PAGE
from edgecl.state.space import Space, pruned
from edgecl.state.store import Store

EXAMPLES = 10 * int(os.environ.get("EDGECL_TIMES", "1"))
SETTINGS = settings(max_examples=EXAMPLES, phases=[Phase.generate], deadline=None, derandomize=True, database=None,
                    suppress_health_check=list(HealthCheck))
LABELS = [f"class {number}" for number in range(60)]
OTHERS = [f"other {number}" for number in range(60)]
NAMES = ("SELECT backbone FROM generations WHERE NOT undone UNION SELECT head FROM generations WHERE NOT undone "
         "UNION SELECT snapshot FROM generations WHERE NOT undone UNION SELECT name FROM files")


def lost_names(state):
    """Names in the database that have no file."""
    database = sqlite3.connect(f"{(state / 'edgecl.db').as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        named = {name for name, in database.execute(NAMES) if name}
        books = database.execute("SELECT value FROM meta WHERE key = 'codebooks'").fetchall()
        named |= {name for value, in books for name, _ in json.loads(value)}
    finally:
        database.close()
    return named - set(os.listdir(state / "models"))


class Watched:
    """An open state whose names are compared with its files after each commit of each change."""

    def __init__(self, learner):
        self.learner, self.state, self.commits, self.lost = learner, learner.store.path, 0, set()
        self._committed = False
        learner.store.connection.set_trace_callback(self._look)

    def _look(self, statement):
        """Called before each statement."""
        if self._committed:
            self.lost |= lost_names(self.state)
        self._committed = statement == "COMMIT"
        self.commits += self._committed


def small(folder, data):
    """A state on a quota that has little more than what its plan takes."""
    head = data.draw(st.sampled_from(["slda", "auto", "nearest-mean", "cosine"]), "head")
    dimension = data.draw(st.sampled_from([128, 200, 300, 500]), "dimension")
    exemplars = data.draw(st.sampled_from([0, 8_000, 10_000, 20_000, 30_000]), "exemplars")
    form = data.draw(st.sampled_from(forms(head, dimension)), "form")
    quota = state_bytes(400, exemplars, dimension, 2, form) + PAGE * data.draw(st.integers(0, 5), "pages")
    codec = data.draw(st.sampled_from(["auto", "pq", "raw"]), "codec")
    return create(folder / "state", quota, exemplars, head, codec=codec), dimension


def goes_on(learner, dimension, known, folder):
    """A copy of the state opens with the same classes, of which some can be forgotten, and it learns or refuses."""
    shutil.copytree(learner.store.path, folder / "copy")
    copy = Learner.open(folder / "copy")
    assert {each.name for each in copy.classes()} == known
    for name in sorted(known)[:2]:
        copy.forget(name)
        assert lost_names(folder / "copy") == set()
    left = known - set(sorted(known)[:2])
    before = tree(folder / "copy")
    try:
        copy.learn(vectors("again", 4, dimension=dimension), "again")
        left |= {"again"}
    except BudgetError:
        assert tree(folder / "copy") == before
    assert {each.name for each in copy.classes()} == left
    copy.close()
    shutil.rmtree(folder / "copy")


def other_state(folder, learner, names, dimension):
    """A state to merge, on a quota that holds it."""
    shutil.rmtree(folder / "other", ignore_errors=True)
    mine = learner.settings
    other = create(folder / "other", 4 * mine.quota, mine.exemplars, mine.head, codec=mine.codec)
    for name in names:
        other.learn(vectors(name, 30, 7, dimension), name)
    other.close()
    return folder / "other"


def test_a_refused_command_leaves_every_byte_as_it_was():
    refused, done = Counter(), Counter()

    @SETTINGS
    @given(st.data())
    def run(data):
        folder = Path(tempfile.mkdtemp(prefix="edgecl-refusal-", dir=fast_folder()))
        try:
            learner, dimension = small(folder, data)
            watched, known = Watched(learner), set()
            size, refusals = data.draw(st.sampled_from([3, 20, 60, 200]), "samples"), 0
            for number in range(40):
                commands = ["learn"] * (3 if refusals else 9) + ["forget", "rollback", "merge"]
                what = data.draw(st.sampled_from(commands), "command")
                before = tree(learner.store.path)
                try:
                    if what == "learn":
                        learner.learn(vectors(LABELS[number], size, 0, dimension), LABELS[number])
                    elif what == "forget":
                        learner.forget(data.draw(st.sampled_from([*sorted(known), "never"]), "class"))
                    elif what == "rollback":
                        learner.rollback(data.draw(st.sampled_from([None, 1, learner.store.current - 2]), "to"))
                    else:
                        learner.merge([other_state(folder, learner, OTHERS[number:number + 2], dimension)])
                    done[what] += 1
                    known = {each.name for each in learner.classes()}
                except EdgeclError as error:
                    assert tree(learner.store.path) == before, error  # noqa: PT017
                    assert what != "forget" or "no class is called" in error.what or not known, error  # noqa: PT017
                    refused[what, type(error)] += 1
                    goes_on(learner, dimension, known, folder)
                    refusals += isinstance(error, BudgetError)
                assert watched.lost == lost_names(learner.store.path) == set()
                if refusals == 4:
                    break
            assert watched.commits or not done
            learner.close()
        finally:
            shutil.rmtree(folder)

    run()
    print(dict(done), {f"{what} {kind.__name__}": number for (what, kind), number in refused.items()})
    assert refused["learn", BudgetError] > 20
    assert refused["merge", BudgetError]
    assert refused["rollback", StateError]


def test_a_second_codebook_on_a_quota_without_room_for_it(fast_path):
    learner = create(fast_path / "state", 270_000, 30_000, "auto", codec="auto")
    watched, known, before, books = Watched(learner), 0, {}, set()

    def teach():
        nonlocal known, before
        while known < 99:
            before = tree(learner.store.path)
            learner.learn(vectors(f"class {known}", 60, dimension=64), f"class {known}")
            books.update(name for name in before if name.endswith(".codebook"))
            known += 1

    with pytest.raises(BudgetError, match="--quota"):
        teach()
    assert len(books) > 0, "otherwise this test says nothing"
    assert tree(learner.store.path) == before
    assert watched.lost == set()
    assert known > 12
    for state in (learner, Learner.open(fast_path / "state")):
        assert len(state.classes()) == known
    learner.forget("class 0")
    learner.rollback(1) if 1 in learner.store.restorable() else None
    learner.close()


@pytest.mark.parametrize("quota", [240_000, 300_000, 400_000])
def test_a_kill_before_the_commit_that_brings_a_codebook_leaves_the_state_as_it_was(fast_path, quota, monkeypatch):
    learner = create(fast_path / "state", quota, 10_000, codec="auto")
    commit, seen = Store.commit, []

    def look(store, change):
        if getattr(change, "codebook", None):
            seen.append((lost_names(store.path), {row.label for row in Repository(
                Store(store.path), store.settings).known().exemplars()}))
        return commit(store, change)

    monkeypatch.setattr(Store, "commit", look)
    known = []
    try:
        for number in range(40):
            learner.learn(vectors(f"class {number}", 30, dimension=64), f"class {number}")
            known.append(f"class {number}")
    except BudgetError:
        pass
    assert seen
    for lost, labels in seen:
        assert lost == set()
        assert labels == set(known[:len(labels)])


def test_codebooks_that_still_code_something_are_kept(fast_path, monkeypatch):
    """Two in a row, and nothing recoded in between: as if another process had held the state after each commit."""
    learner = create(fast_path / "state", 2_000_000, 9_000, codec="auto")
    evict, features = Store.evict, {}
    for number in range(20):
        monkeypatch.setattr(Store, "evict", evict if number < 8 else lambda *_: None)
        features[f"class {number}"] = vectors(f"class {number}", 60, dimension=64)
        learner.learn(features[f"class {number}"], f"class {number}")
    assert len(learner.store.meta["codebooks"]) > 1
    learner.close()
    monkeypatch.undo()
    learner = Learner.open(fast_path / "state")
    learner.rollback()
    assert lost_names(fast_path / "state") == set()
    learner.close()
    again = Learner.open(fast_path / "state")
    rows = again.repository.known().exemplars()
    centres = {label: mine.mean(0) for label, mine in features.items()}
    for row in rows:
        assert min(centres, key=lambda label: np.square(centres[label] - row.feature).sum()) == row.label
    assert {row.coded for row in rows} >= {again.store.codebook.name}
    again.close()


@pytest.mark.parametrize("head", ["slda", "cosine"])
def test_what_prune_leaves_is_known_before(fast_path, head):
    """A full log moves into the database, whose rows shrink when their heads are dropped: no page stays half empty."""
    learner = create(fast_path / "state", 3_000_000, 20_000, head)
    for number in range(45):
        learner.learn(vectors(LABELS[number], 6), LABELS[number])
        if number % 4 == 0:
            learner.serving()
    store = learner.store
    with store.exclusive():
        told, before = pruned(store, Space.now(store)), Space.now(store)
        assert told is not None
        while prune(store):
            pass
        left = Space.now(store)
        assert (left.used, left.database) == (told.used, told.database)
        assert left.used < before.used
        length, packed = packed_database(store)
        assert length == packed
        assert {each.label for each in learner.repository.known().exemplars()} == set(LABELS[:45])
    learner.close()
