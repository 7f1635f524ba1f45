"""Several processes, files that are no state, read-only states."""
from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers_state import (
    PROBE,
    answers,
    create,
    in_a_child,
    refused,
    strace,
    tree,
    vectors,
)

from edgecl.cli import main
from edgecl.learner import Learner
from edgecl.state.rows import read_rows

ROOT = os.geteuid() == 0


def test_writers_and_readers_at_once(state):
    def write(kind):
        mine = Learner.open(state)
        for number in range(12):
            name = f"{kind}-{number % 5}"
            mine.learn(vectors(name, 40, number), name)
            if number % 4 == 3:
                mine.forget(name)

    def read():
        end = time.monotonic() + 240
        while not (state.parent / "done").exists() and time.monotonic() < end:
            mine = Learner.open(state)
            for _ in range(5):
                mine.predict(PROBE)
                mine.classes()
                mine.store.restorable()
                assert not mine.damage
            mine.close()

    pids = []
    for work in (lambda: write("left"), lambda: write("right"), read, read):
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                work()
                code = 0
            except BaseException:
                import traceback
                traceback.print_exc()
            finally:
                os._exit(code)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids[:2]]
    (state.parent / "done").touch()
    codes += [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids[2:]]
    assert codes == [0, 0, 0, 0]
    learner = Learner.open(state)
    samples = {c.name: c.samples for c in learner.classes()}
    wanted = {"ant": 25, "wasp": 25, "cat": 25}
    for kind in ("left", "right"):
        counts = {}
        for number in range(12):
            counts[f"{kind}-{number % 5}"] = counts.get(f"{kind}-{number % 5}", 0) + 40
            if number % 4 == 3:
                counts.pop(f"{kind}-{number % 5}")
        wanted |= counts
    assert samples == wanted
    assert not (state / "edgecl.db-journal").exists()


def test_another_writer_is_waited_for_and_then_named(state, monkeypatch, capsys):
    monkeypatch.setattr("edgecl.state.database.LOCK_TIMEOUT", 100)
    other = Learner.open(state)
    with other.store.exclusive():
        assert "in use by another edgecl process" in refused(capsys, "forget", "--state", state, "--class", "wasp")
        assert answers(Learner.open(state)) == answers(other)
    assert main(["forget", "--state", str(state), "--class", "wasp"]) == 0


def test_two_processes_teach_an_empty_state(tmp_path):
    first, second = create(tmp_path / "state"), Learner.open(tmp_path / "state")
    assert second.foundation is None
    first.learn(vectors("ant", 20), "ant")
    learned = second.learn(vectors("wasp", 20), "wasp")
    assert learned.generation == 3
    third = create(tmp_path / "other")
    fourth = Learner.open(tmp_path / "other")
    race(third, fourth)
    assert [c.name for c in fourth.classes()] == ["ant", "wasp"]


def race(first, second):
    """`first` teaches while `second` has already founded its own backbone."""
    teaching = second._teaching
    found = teaching._founded

    def slowly(*arguments):
        answer = found(*arguments)
        first.learn(vectors("ant", 20), "ant")
        return answer

    teaching._founded = slowly
    try:
        second.learn(vectors("wasp", 20), "wasp")
    finally:
        teaching._founded = found


def foreign(path):
    connection = sqlite3.connect(path)
    connection.executescript("CREATE TABLE notes (text TEXT); INSERT INTO notes VALUES ('mine');")
    connection.close()


def foreign_meta(path):
    connection = sqlite3.connect(path)
    connection.executescript("CREATE TABLE meta (name TEXT, amount REAL); INSERT INTO meta VALUES ('mine', 2);")
    connection.close()


DATABASES = {"empty": lambda path: path.write_bytes(b""), "text": lambda path: path.write_text("hello " * 999),
             "foreign": foreign, "foreign meta": foreign_meta, "folder": Path.mkdir}


@pytest.mark.parametrize("make", DATABASES.values(), ids=DATABASES)
@pytest.mark.parametrize("command", [["status"], ["predict", "ASK"], ["learn", "--class", "a", "ASK"],
                                     ["forget", "--class", "ant"], ["rollback"]], ids=lambda words: words[0])
def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path, photos, capsys, make, command):
    state = tmp_path / "state"
    (state / "models").mkdir(parents=True)
    (state / "models" / "precious.onnx").write_bytes(b"mine")
    make(state / "edgecl.db")
    before = tree(state)
    refused(capsys, command[0], "--state", state, *(str(photos) if word == "ASK" else word for word in command[1:]))
    assert tree(state) == before


def test_a_state_of_a_newer_format_is_refused_and_left_alone(state, capsys):
    connection = sqlite3.connect(state / "edgecl.db")
    connection.executescript("UPDATE meta SET value = '99' WHERE key = 'format'; DROP TABLE files;")
    connection.close()
    (state / "models" / "new-kind.bin").write_bytes(b"x")
    before = tree(state)
    assert "upgrade edgecl" in refused(capsys, "forget", "--state", state, "--class", "wasp")
    assert tree(state) == before


@pytest.mark.parametrize("settings", [{"quota": "much"}, {}, {"quota": 10**6, "shiny": 1}],
                         ids=["type", "missing", "unknown"])
def test_settings_that_make_no_sense_are_damage(state, capsys, settings):
    connection = sqlite3.connect(state / "edgecl.db", isolation_level=None)
    rows = read_rows(connection)
    rows.meta["settings"] = json.dumps(settings)
    connection.executemany("UPDATE meta SET value = ? WHERE key = ?",
                           [(value, key) for key, value in rows.sealed().meta.items()])
    connection.close()
    before = tree(state)
    assert "damaged" in refused(capsys, "status", "--state", state)
    assert tree(state) == before


def test_paths_that_are_no_state(tmp_path, photos, capsys):
    (tmp_path / "file").write_text("hello")
    (tmp_path / "folder").mkdir()
    for place in ("file", "folder", "nowhere", "file/below"):
        assert "no edgecl state" in refused(capsys, "predict", "--state", tmp_path / place, photos)
    (tmp_path / "folder" / "mine").write_text("hello")
    for place in ("file", "folder", "file/below"):
        refused(capsys, "init", "--backbone", "identity", "--state", tmp_path / place)
    assert (tmp_path / "file").read_text() == "hello"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ask.npz", "file", "folder"]


def test_init_clears_what_a_killed_init_left(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f".state.{dead.pid}.new", f".state.{os.getpid()}.new"):
        (tmp_path / name / "models").mkdir(parents=True)
        (tmp_path / name / "edgecl.db").write_bytes(b"half")
    kept = [".state.1.new", ".other.2.new", ".state.words.new"]
    for name in kept:
        (tmp_path / name).mkdir()
    create(tmp_path / "state").close()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "state"])
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


@contextmanager
def read_only(state):
    """The state, for a child that may not write it: by its user's id, or by its mode where this is no root."""
    for path in (state, *state.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    opened = []
    for parent in state.parents:
        if ROOT and parent.stat().st_mode & 0o005 != 0o005:
            opened.append((parent, parent.stat().st_mode))
            parent.chmod(0o755)
    try:
        yield lambda: ROOT and (os.setgid(65534), os.setuid(65534))
    finally:
        for parent, mode in opened:
            parent.chmod(mode)
        for path in (state, *state.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_read_only_state_answers_and_refuses_to_learn(state, capfd):
    before = tree(state)
    shown = answers(Learner.open(state))

    def ask():
        learner = Learner.open(state)
        assert answers(learner) == shown
        assert learner.store.restorable() == {1, 2, 3, 4}
        assert len(learner.classes()) == 3

    ask()  # imports what it needs while it may: Python itself may lie where the other user can't read
    with read_only(state) as drop:
        assert in_a_child(lambda: (drop(), ask())) == 0
        for change in (lambda learner: learner.learn(vectors("dog", 9), "dog"), Learner.rollback,
                       lambda learner: learner.forget("ant")):
            assert in_a_child(lambda change=change: (drop(), change(Learner.open(state)))) == 1
            assert "is read-only; make it writable" in capfd.readouterr().err
    assert tree(state) == before


@pytest.mark.skipif(not ROOT, reason="takes a user that may not look into the folder")
def test_a_state_that_may_not_be_read(state, capfd):
    with read_only(state) as drop:
        state.chmod(0o700)
        assert in_a_child(lambda: (drop(), Learner.open(state))) == 1
        assert "Permission denied" in capfd.readouterr().err
        state.chmod(0o555)
        (state / "edgecl.db").chmod(0o600)
        assert in_a_child(lambda: (drop(), Learner.open(state))) == 1
        assert "; " in capfd.readouterr().err


@pytest.mark.skipif(not ROOT, reason="takes a user that may not look into the folder")
@pytest.mark.parametrize("command", ["status", "classes", "history"])
def test_the_command_line_names_a_folder_that_may_not_be_looked_into(state, capfd, command):
    with read_only(state) as drop:
        state.chmod(0o700)
        assert in_a_child(lambda: (drop(), os._exit(main([command, "--state", str(state)])))) == 1
        err = capfd.readouterr().err
        assert f"this user may not look into {state}; run it as the user that owns it" in err
        assert "socket" not in err


def test_an_interrupted_change_on_a_read_only_state_is_told(state, capfd):
    told = []
    for call in range(1, 10):  # not every kill leaves a journal that has to be played back
        strace("forget", state, "fdatasync", f"signal=SIGKILL:when={call}")
        with read_only(state) as drop:
            told.append(in_a_child(lambda drop=drop: (drop(), Learner.open(state))))
        if told[-1]:
            break
    assert told[-1] == 1, told
    assert "left in the middle of a change" in capfd.readouterr().err
    assert [c.name for c in Learner.open(state).classes()] == ["ant", "cat", "wasp"]
