"""Formats of a state directory: states of format 2 are brought over, or read as they are; newer ones are left alone."""
from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from helpers_needs import need
from helpers_recorded import NAMES, unpack
from helpers_state import answers, create, directory_bytes, knowledge, refused, tree, vectors

from edgecl.errors import BudgetError, StateError
from edgecl.learner import Learner
from edgecl.state.open_database import read_copy
from edgecl.state.rows import FORMAT

SMALL = ("reserved", "acknowledged")    # files without knowledge


def format_of(state):
    """The format that a state says it has, and the columns of table files."""
    with closing(sqlite3.connect(f"{(state / 'edgecl.db').as_uri()}?mode=ro", uri=True)) as connection:
        [(found,)] = connection.execute("SELECT value FROM meta WHERE key = 'format'")
        return int(found), [name for _, name, *_ in connection.execute("PRAGMA table_info(files)")]


def whole(state, probe):
    """Everything that a state shows and knows: answers and statistics bit for bit, samples, history, ways back. The
    newest head of format 2 was judged otherwise, and is solved again."""
    learner = Learner.open(state)
    try:
        history = [g._replace(logged=False) for g in learner.history()]
        taught = {key: history[-1].detail[key] for key in ("class", "samples", "classes")}
        history[-1] = history[-1]._replace(head=None, detail=taught)
        return (answers(learner, probe), [(c.name, c.samples) for c in learner.classes()], knowledge(learner), history,
                sorted(learner.store.restorable()), learner.status().exemplars, learner.damage)
    finally:
        learner.close()


def asked(named):
    with np.load(named["ask"]) as arrays:
        return arrays["x_test"][:6]


@pytest.fixture
def as_reader(monkeypatch):
    """A function: do something while this process takes every state for read-only."""
    access = os.access

    def do(work):
        with monkeypatch.context() as patch:
            patch.setattr("os.access", lambda path, mode: mode != os.W_OK and access(path, mode))
            return work()

    return do


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_state_is_read_as_it_is_and_brought_over_when_it_is_written(name, tmp_path, as_reader):
    named = unpack(name, tmp_path)
    state, probe, before = Path(named["state"]), asked(named), tree(Path(named["state"]))
    assert format_of(state) == (2, ["name", "oldest", "newest"])
    shown, newest = as_reader(lambda: (whole(state, probe), Learner.open(state).store.newest))
    assert tree(state) == before
    assert whole(state, probe) == shown
    assert format_of(state) == (FORMAT, ["name", "oldest", "newest", "origin"])
    assert read_copy(state).revision >= 1
    kept = {Path(path).name for path in before if path.endswith((".onnx", ".npz"))} - {newest.head}
    assert set(tree(state / "models")) >= kept
    assert as_reader(lambda: whole(state, probe)) == shown
    with closing(sqlite3.connect(state / "edgecl.db")) as connection:
        assert {origin for origin, in connection.execute("SELECT origin FROM files")} <= {None}


def test_new_states_are_of_the_current_format(tmp_path):
    create(tmp_path / "state").close()
    assert format_of(tmp_path / "state") == (3, ["name", "oldest", "newest", "origin"])
    assert read_copy(tmp_path / "state").format == 3


@pytest.mark.parametrize("number", ["4", "99", "-3", "0", "12345678901234567890"])
@pytest.mark.parametrize("drop", ["", "DROP TABLE files"])
def test_a_format_that_is_not_known_is_refused_and_left_alone(state, capsys, photos, number, drop):
    with closing(sqlite3.connect(state / "edgecl.db", isolation_level=None)) as connection:
        connection.executescript(f"UPDATE meta SET value = '{number}' WHERE key = 'format'; {drop}")
    (state / "models" / "new-kind.bin").write_bytes(b"x")
    before = tree(state)
    for command in (("status",), ("predict", photos), ("forget", "--class", "wasp")):
        error = refused(capsys, command[0], "--state", state, *command[1:])
        assert f"has format {number}, this edgecl reads formats 2 and 3" in error
        assert ("upgrade edgecl" in error) == (int(number) > 3)
    assert tree(state) == before


@pytest.mark.parametrize("number", ["1", "2", "7", ";", "#"])
def test_a_flipped_bit_in_the_format_is_damage_not_another_format(state, number):
    shown = answers(Learner.open(state))
    with closing(sqlite3.connect(state / "edgecl.db", isolation_level=None)) as connection:
        connection.execute("UPDATE meta SET value = ? WHERE key = 'format'", (number,))
    learner = Learner.open(state)
    assert answers(learner) == shown
    assert "edgecl.db" in str(learner.store.meta["damage"])
    learner.learn(vectors("dog", 5), "dog")
    learner.close()
    assert format_of(state)[0] == FORMAT


def test_an_old_database_beside_a_newer_copy_is_set_aside(tmp_path):
    named = unpack("vectors", tmp_path)
    state = Path(named["state"])
    shutil.copy(state / "edgecl.db", tmp_path / "old.db")
    learner = Learner.open(state)
    learner.learn(np.random.default_rng(0).normal(size=(30, 64)).astype(np.float32), "more")
    wanted = [(c.name, c.samples) for c in learner.classes()]
    learner.close()
    shutil.copy(tmp_path / "old.db", state / "edgecl.db")
    again = Learner.open(state)
    assert [(c.name, c.samples) for c in again.classes()] == wanted
    assert (state / "set-aside" / "edgecl.db.1").read_bytes() == (tmp_path / "old.db").read_bytes()


def test_damage_of_an_old_state_that_has_no_copy_is_said_and_nothing_is_touched(tmp_path, capsys):
    named = unpack("vectors", tmp_path)
    state = Path(named["state"])
    data = (state / "edgecl.db").read_bytes()
    for hurt in (data[:5000], data.replace(b"settings", b"\xfeettings"), data.replace(b'{"backbone"', b'["backbone"'),
                 data.replace(b"CREATE TABLE files", b"CREATE TABLE fil\xffs"), bytes(100) + data[100:]):
        assert hurt != data
        (state / "edgecl.db").write_bytes(hurt)
        before = tree(state)
        error = refused(capsys, "status", "--state", state)
        assert "damaged" in error
        assert "edgecl restore" in error
        assert tree(state) == before


def test_a_quota_without_room_leaves_the_old_format_which_answers(tmp_path):
    named = unpack("vectors", tmp_path)
    state, probe = Path(named["state"]), asked(named)
    quota = directory_bytes(state, reserve=False) + 4096
    with closing(sqlite3.connect(state / "edgecl.db", isolation_level=None)) as connection:
        [(settings,)] = connection.execute("SELECT value FROM meta WHERE key = 'settings'")
        connection.execute("UPDATE meta SET value = ? WHERE key = 'settings'",
                           (json.dumps({**json.loads(settings), "quota": quota}),))
    (state / "reserved").unlink(missing_ok=True)
    before = {name: digest for name, digest in tree(state).items() if name not in SMALL}
    learner = Learner.open(state)
    assert len(answers(learner, probe)) == len(probe)
    with pytest.raises(BudgetError, match="to bring the state to format 3"):
        learner.learn(np.zeros((5, 64), np.float32), "more")
    learner.close()
    assert {name: digest for name, digest in tree(state).items() if name not in SMALL} == before
    assert format_of(state)[0] == 2
    assert directory_bytes(state) <= quota


def test_bringing_over_waits_for_another_process(tmp_path, monkeypatch):
    monkeypatch.setattr("edgecl.state.database.LOCK_TIMEOUT", 100)
    named = unpack("vectors", tmp_path)
    state, probe = Path(named["state"]), asked(named)
    with closing(sqlite3.connect(state / "edgecl.db", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        learner = Learner.open(state)
        shown = answers(learner, probe)
        assert format_of(state)[0] == 2
        with pytest.raises(StateError, match="in use by another edgecl process"):
            learner.forget("class 1")
        connection.execute("ROLLBACK")
    learner.forget("class 1")
    assert format_of(state)[0] == FORMAT
    assert answers(learner, probe) != shown


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vectors", "round"])
def test_a_kill_while_a_state_is_brought_over_leaves_one_format_or_the_other(name, tmp_path, as_reader):
    need("strace", "strace")
    import crash

    named = unpack(name, tmp_path / "origin")
    origin, probe = Path(named["state"]), asked(named)
    wanted, formats = as_reader(lambda: whole(origin, probe)), set()
    assert format_of(origin)[0] == 2
    for call in ("openat", "write", "pwrite64", "fsync", "fdatasync", "rename", "link", "linkat", "unlink"):
        for number in range(1, 200):
            state = tmp_path / "killed"
            shutil.rmtree(state, ignore_errors=True)
            shutil.copytree(origin, state)
            code = crash.trace(lambda state=state: Learner.open(state), "-o", "/dev/null", "-e", f"trace={call}",
                               "-e", f"inject={call}:signal=SIGKILL:when={number}")
            if code == 0:
                break
            if not (state / "edgecl.db-journal").exists():
                formats.add(format_of(state)[0])
            found = whole(state, probe)
            assert found == wanted, (call, number)
            assert format_of(state)[0] == FORMAT, (call, number)
    assert formats == {2, 3}
