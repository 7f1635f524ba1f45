"""edgecl.db under its digest, and edgecl.copy: damage is said, the newest intact rows serve, learning goes on."""
from __future__ import annotations

import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest
from helpers_database import noted, rows_of, shown
from helpers_needs import need
from helpers_state import answers, create, directory_bytes, refused, tree, vectors

from edgecl.cli import main
from edgecl.errors import EdgeclError, StateError
from edgecl.learner import Learner
from edgecl.state.open_database import read_copy


@pytest.fixture
def reading_only(monkeypatch):
    """Let this process take every state for read-only, as another user would."""
    access = os.access
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK and access(path, mode))
    return monkeypatch


def test_a_database_older_than_its_copy_is_set_aside_and_the_newest_state_goes_on(state):
    shutil.copy(state / "edgecl.db", state.parent / "old.db")
    learner = Learner.open(state)
    learner.learn(vectors("elk", 2000), "elk")
    wanted = shown(learner)
    learner.close()
    files = set(tree(state / "models"))
    shutil.copy(state.parent / "old.db", state / "edgecl.db")
    again = Learner.open(state)
    assert shown(again) == wanted
    assert "older than edgecl.copy" in str(again.store.meta["damage"])
    assert set(tree(state / "models")) >= files
    assert (state / "set-aside" / "edgecl.db.1").read_bytes() == (state.parent / "old.db").read_bytes()
    again.learn(vectors("dog", 5), "dog")
    again.close()
    assert not Learner.open(state).store.found


def test_a_database_and_its_copy_whose_names_were_exchanged(state):
    wanted = shown(Learner.open(state))
    database, copy = (state / "edgecl.db").read_bytes(), (state / "edgecl.copy").read_bytes()
    (state / "edgecl.db").write_bytes(copy)
    (state / "edgecl.copy").write_bytes(database)
    again = Learner.open(state)
    assert shown(again) == wanted
    assert again.damage
    again.learn(vectors("dog", 5), "dog")
    again.close()
    assert read_copy(state) is not None
    assert "dog" in {each.name for each in Learner.open(state).classes()}


def test_a_database_of_another_state_does_not_win(state, tmp_path):
    wanted = shown(Learner.open(state))
    other = create(tmp_path / "another")
    for name in ("one", "two", "three"):
        other.learn(vectors(name, 2000), name)
    other.close()
    files = set(tree(state / "models"))
    shutil.copy(tmp_path / "another" / "edgecl.db", state / "edgecl.db")
    again = Learner.open(state)
    assert shown(again) == wanted
    assert set(tree(state / "models")) >= files
    assert "of another state" in str(again.store.meta["damage"])


def test_ids_are_not_given_out_twice_by_a_database_that_was_built_again(state):
    learner = Learner.open(state)
    learner.learn(vectors("elk", 2000), "elk")
    learner.rollback()
    last = learner.store.current
    with learner.store.exclusive():
        learner.store.connection.execute("UPDATE sqlite_sequence SET seq = ?", (last + 5,))
        learner.store.step()
    learner.close()
    (state / "edgecl.db").unlink()
    again = Learner.open(state)
    assert again.learn(vectors("dog", 5), "dog").generation == last + 6


@pytest.mark.parametrize("hurt", [lambda path: path.write_bytes(b"hello " * 999), Path.unlink,
                                  lambda path: path.write_bytes(b"")], ids=["text", "gone", "empty"])
def test_without_an_intact_copy_the_error_names_the_cure_and_nothing_is_touched(state, photos, capsys, hurt):
    hurt(state / "edgecl.db")
    (state / "edgecl.copy").write_bytes(b"also damaged")
    before = tree(state)
    for command in (("status",), ("predict", photos), ("learn", "--class", "a", photos), ("rollback",)):
        error = refused(capsys, command[0], "--state", state, *command[1:])
        assert "edgecl restore" in error or not (state / "edgecl.db").exists()
    assert tree(state) == before


def test_a_reader_serves_from_the_copy_and_writes_nothing(state, reading_only):
    wanted = shown(Learner.open(state))
    (state / "edgecl.db").write_bytes(b"not a database" * 999)
    before = tree(state)
    learner = Learner.open(state)
    assert shown(learner) == wanted
    assert "edgecl.copy serves in its place" in learner.store.found[0]
    with pytest.raises(StateError, match="read-only"):
        learner.learn(vectors("dog", 5), "dog")
    assert tree(state) == before
    reading_only.undo()
    Learner.open(state).close()     # a writer builds it again,
    assert shown(learner) == wanted  # which the reader notices
    assert not learner.store.found


def test_a_damaged_database_that_another_process_holds_is_not_replaced(state, monkeypatch):
    monkeypatch.setattr("edgecl.state.database.LOCK_TIMEOUT", 100)
    holder = Learner.open(state)
    wanted = shown(holder)
    connection = sqlite3.connect(state / "edgecl.db", isolation_level=None)     # a row changed behind its digest
    connection.execute("UPDATE generations SET action = 'lexrn' WHERE id = 2")
    connection.execute("BEGIN IMMEDIATE")
    learner = Learner.open(state)
    assert shown(learner) == wanted
    assert learner.store.found
    with pytest.raises(StateError, match="in use by another edgecl process"):
        learner.learn(vectors("dog", 5), "dog")
    assert not (state / "set-aside").exists()
    connection.execute("ROLLBACK")
    connection.close()
    assert learner.learn(vectors("dog", 5), "dog").generation == 5
    assert [c.name for c in holder.classes()] == ["ant", "cat", "dog", "wasp"]


def test_a_process_that_has_the_old_file_open_goes_on_with_the_new_one(state):
    first = Learner.open(state)
    data = bytearray((state / "edgecl.db").read_bytes())
    data[data.index(b"settings") + 20] ^= 1
    (state / "edgecl.db").write_bytes(data)
    second = Learner.open(state)
    assert "damaged" in str(second.store.meta["damage"])
    second.learn(vectors("dog", 5), "dog")
    first.learn(vectors("elk", 5), "elk")
    first.learn(vectors("fly", 2000), "fly")
    second.learn(vectors("gnu", 5), "gnu")
    names = ["ant", "cat", "dog", "elk", "fly", "gnu", "wasp"]
    for learner in (first, second, Learner.open(state)):
        assert [c.name for c in learner.classes()] == names
    numbers = [g.id for g in second.history()]
    assert len(numbers) == len(set(numbers))


def test_a_database_that_is_damaged_while_it_is_open_is_built_again(state):
    learner = Learner.open(state)
    wanted = shown(learner)
    connection = sqlite3.connect(state / "edgecl.db", isolation_level=None)
    connection.execute("UPDATE generations SET detail = '{' WHERE id = 2")
    connection.close()
    assert answers(learner) == wanted[0]
    learner.learn(vectors("dog", 5), "dog")
    assert [c.name for c in learner.classes()] == ["ant", "cat", "dog", "wasp"]
    assert "edgecl.db" in str(learner.store.meta["damage"])
    assert rows_of(Learner.open(state).store)[1] == wanted[2][1]


def test_no_room_to_build_it_again(state):
    wanted = shown(Learner.open(state))
    data = bytearray((state / "edgecl.db").read_bytes())
    data[20] ^= 4
    (state / "edgecl.db").write_bytes(data)
    (state / "models" / "big.onnx").write_bytes(bytes(1_000_000))
    before = {name: digest for name, digest in tree(state).items() if name != "reserved"}
    learner = Learner.open(state)
    assert shown(learner) == wanted
    with pytest.raises(EdgeclError, match="quota"):
        learner.learn(vectors("dog", 5), "dog")
    assert {name: digest for name, digest in tree(state).items() if name != "reserved"} == before


@pytest.mark.parametrize("filled", ["set-aside", "foreign", "both"])
def test_without_room_the_cure_is_to_discard(state, capsys, filled):
    """The quota is full: the intact database takes the place of the damaged one, which only a person may delete."""
    learner = Learner.open(state)
    wanted, quota = shown(learner), learner.settings.quota
    learner.close()
    data = bytearray((state / "edgecl.db").read_bytes())
    data[data.index(b"settings") + 20] ^= 1
    (state / "edgecl.db").write_bytes(data)
    left = quota - directory_bytes(state, reserve=False) - 2 * 4096
    aside = 8192 if filled == "both" else left if filled == "set-aside" else 0
    if aside:
        (state / "set-aside").mkdir()
        (state / "set-aside" / "old.1").write_bytes(bytes(aside // 4096 * 4096 - 4096))
    if filled != "set-aside":
        (state / "models" / "mine.bin").write_bytes(bytes((left - aside) // 4096 * 4096))
    assert len(data) > quota - directory_bytes(state, reserve=False) >= 0
    for command in (["check", "--repair"], ["forget", "--class", "ant"]):
        assert main([*command, "--state", str(state)]) == 1
        assert "`edgecl check --discard`" in capsys.readouterr().err
    assert (state / "edgecl.db").read_bytes() == data
    assert main(["check", "--discard", "--json", "--state", str(state)]) == 0
    deleted = json.loads(capsys.readouterr().out)["discarded"]
    assert deleted == {"set-aside": 2, "foreign": 1, "both": 2}[filled]
    assert directory_bytes(state, reserve=False) <= quota and not (state / "set-aside").exists()
    again = Learner.open(state)
    assert shown(again) == wanted and again.store.database.damage is None
    if filled == "set-aside":
        again.forget("ant")
    again.close()


@pytest.mark.slow
def test_a_kill_while_the_database_is_built_again_leaves_the_state_as_it_was(state):
    need("strace", "strace")
    wanted, copies = shown(Learner.open(state)), state.parent / "copies"
    shutil.copytree(state, copies)
    damaged = bytes(100) + (copies / "edgecl.db").read_bytes()[100:]
    (copies / "edgecl.db").write_bytes(damaged)
    import crash

    calls = ("openat", "write", "pwrite64", "fsync", "rename", "unlink", "mkdir", "ftruncate")
    for call in calls:
        for number in range(1, 60):
            target = state.parent / "killed"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(copies, target)
            code = crash.trace(lambda target=target: Learner.open(target), "-o", "/dev/null", "-e", f"trace={call}",
                               "-e", f"inject={call}:signal=SIGKILL:when={number}")
            if code == 0:
                break
            learner = Learner.open(target)
            assert shown(learner) == wanted, (call, number)
            assert noted(target), (call, number)
            aside = {path.read_bytes() for path in (target / "set-aside").glob("edgecl.db.*")}
            assert aside == {damaged}, (call, number)
            learner.close()
