"""Locks of a state's database, its owner, and a directory that is gone."""
from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys

import pytest
from helpers_state import in_a_child, refused, tree, vectors

from edgecl.errors import StateError
from edgecl.learner import Learner
from edgecl.state.open_database import OpenDatabase
from edgecl.state.store import Store

ROOT = os.geteuid() == 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named(state, photos, monkeypatch, capsys, number):
    def lockf(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    before = tree(state)
    for command in (("predict", photos), ("learn", "--class", "dog", photos), ("status",)):
        error = refused(capsys, command[0], "--state", state, *command[1:])
        assert "without file locks" in error
        assert os.strerror(number) in error
        assert "mounted on /" in error
        assert "local disk" in error
        assert "another edgecl process" not in error
    assert tree(state) == before


def test_the_probe_of_locks_leaves_those_of_the_database_alone(state, monkeypatch):
    monkeypatch.setattr("edgecl.state.database.LOCK_TIMEOUT", 100)
    holder = Learner.open(state)
    with holder.store.exclusive():
        Learner.open(state).close()
        code = in_a_child(lambda: Learner.open(state).learn(vectors("dog", 5), "dog"))
        assert code == 1, "the lock was lost"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ENOLCK", "EACCES", "EOPNOTSUPP"])
@pytest.mark.parametrize("command", ["learn", "forget"])
def test_locks_that_the_kernel_refuses(state, command, name):
    from helpers_state import strace

    before = tree(state)
    code, err = strace(command, state, "fcntl", f"error={name}")
    assert code == 1
    assert "without file locks" in err
    assert tree(state) == before


def test_a_directory_that_is_gone_is_said(state, tmp_path):
    learner = Learner.open(state)
    state.rename(tmp_path / "away")
    for look in (learner.status, learner.store.used_bytes, lambda: learner.learn(vectors("dog", 5), "dog"),
                 lambda: Learner.open(state)):
        with pytest.raises(StateError):
            look()
    (tmp_path / "away").rename(state)
    assert learner.status().classes == 3
    learner.learn(vectors("dog", 5), "dog")


@pytest.mark.skipif(not ROOT, reason="takes root, who writes a state of another user")
def test_what_root_writes_belongs_to_the_owner_of_the_state(state):
    for path in (state, *state.rglob("*")):
        os.chown(path, 65534, 65533)
    (state / "reserved").unlink()
    (state / "edgecl.copy").unlink()
    learner = Learner.open(state)
    learner.learn(vectors("dog", 2000), "dog")
    learner.forget("ant")
    learner.learn(vectors("elk", 5), "elk")
    learner.close()
    data = bytearray((state / "edgecl.db").read_bytes())
    data[20] ^= 4
    (state / "edgecl.db").write_bytes(data)
    Learner.open(state).close()
    owners = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in state.rglob("*")}
    assert set(owners.values()) == {(65534, 65533)}, owners
    assert "edgecl.copy" in owners
    assert any(name.startswith("edgecl.db.") for name in owners)


def test_the_owner_is_not_given_through_another_name(tmp_path):
    """A file with a second name, or a link, in a folder of another user may be one of root's own."""
    from edgecl.files.atomic import write_atomically

    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / f".file.{os.getpid()}.tmp").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic"):
        write_atomically(tmp_path / "file", b"x")
    assert (tmp_path / "secret").read_bytes() == b"secret"


def test_old_and_new_connections_are_not_mixed(state):
    """Opening the database once more in the same process keeps the lock of the first."""
    holder = Store(state)
    with holder.exclusive():
        OpenDatabase(state).close()
        script = ("import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)\n"
                  "try:\n    c.execute('BEGIN IMMEDIATE')\nexcept sqlite3.OperationalError:\n    raise SystemExit(3)\n")
        assert subprocess.run([sys.executable, "-c", script, str(state / "edgecl.db")]).returncode == 3
    holder.close()
