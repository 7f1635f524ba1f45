"""Backups through pipes and through the daemon."""
from __future__ import annotations

import json
import os
import pty
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
from helpers_backup import back
from helpers_daemon import serving, until
from helpers_state import answers, fingerprint, flip, refused, vectors

from edgecl.cli import main
from edgecl.learner import Learner
from edgecl.runtime import control
from edgecl.runtime.client import Client
from edgecl.runtime.protocol import Refused
from edgecl.settings import short_names
from edgecl.state.backup_tar import tar_of

# streams ------------------------------------------------------------------------------------------


def edgecl(*arguments, **more):
    command = [sys.executable, "-m", "edgecl", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, **more)


def test_a_tar_goes_through_a_pipe(taught, tmp_path):
    made = edgecl("backup", "--state", taught, "-")
    assert made.returncode == 0
    assert b"copied generation 6" in made.stderr and b"\r" not in made.stderr    # no bar
    done = edgecl("restore", "--json", "--state", tmp_path / "restored", "-", input=made.stdout)
    assert done.returncode == 0 and done.stderr == b""
    assert json.loads(done.stdout)["generation"] == 6
    assert fingerprint(tmp_path / "restored") == fingerprint(taught)
    cut = edgecl("restore", "--state", tmp_path / "cut", "-", input=made.stdout[:5000])
    assert cut.returncode == 1 and b"ends too early" in cut.stderr


def test_a_reader_that_stops_is_told_without_a_traceback(taught):
    with subprocess.Popen([sys.executable, "-m", "edgecl", "backup", "--state", str(taught), "-"],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        err = process.stderr.read().decode()
    assert process.returncode == 1
    assert "not whole" in err and err.count("\n") == 1


def test_stdout_that_is_closed_full_or_a_terminal_is_refused(taught):
    command = [sys.executable, "-m", "edgecl", "backup", "--state", str(taught), "-"]
    closed = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], stderr=subprocess.PIPE, text=True, check=False)
    assert closed.returncode == 1 and "stdout is closed" in closed.stderr and closed.stderr.count("\n") == 1
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and "is full" in done.stderr and done.stderr.count("\n") == 1
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 1 and "terminal" in done.stderr and done.stderr.count("\n") == 1
        done = subprocess.run([*command[:3], "restore", "--state", str(taught) + "2", "-"], stdin=theirs,
                              capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "no backup on stdin" in done.stderr
    finally:
        os.close(ours)
        os.close(theirs)
    both = edgecl("backup", "--json", "--state", taught, "-")
    assert both.returncode == 1 and both.stdout == b""


# through the daemon -------------------------------------------------------------------------------


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    """A daemon whose folder this user may not read."""
    with serving(tmp_path / "state", control=(240.0, 240.0)) as (service, _, _):
        monkeypatch.setattr("edgecl.commands.backup.readable", lambda path: False)
        yield service


@pytest.mark.parametrize("out", ["out", "out.tar"])
def test_a_user_that_may_not_read_the_folder_gets_a_backup_from_the_daemon(daemon, tmp_path, capsys, out):
    assert main(["backup", "--json", "--state", str(tmp_path / "state"), str(tmp_path / out)]) == 0
    assert json.loads(capsys.readouterr().out)["generation"] == daemon.status()["generation"]
    back(tmp_path / out, tmp_path / "restored")
    restored = Learner.open(tmp_path / "restored")
    assert {each.name for each in restored.classes()} == {"ant", "wasp"}
    assert [each.label for each in restored.predict(vectors("ant", 3))] == ["ant"] * 3


def test_the_daemon_tells_what_is_damaged(daemon, tmp_path, capsys):
    victim = sorted((tmp_path / "state/models").iterdir())[0]
    flip(victim)
    assert main(["backup", "--state", str(tmp_path / "state"), str(tmp_path / "out.tar")]) == 1
    assert short_names(victim.name) in capsys.readouterr().err


def test_a_backup_is_for_those_who_may_change_the_state(daemon, tmp_path, monkeypatch):
    monkeypatch.setattr(control.control_clients, "user_of", lambda _: 12345)
    with Client(tmp_path / "state/control.sock") as client:
        with pytest.raises(Exception, match="user 12345 may not copy this state"):
            client.ask("backup")
        assert client.ask("status")["classes"] == 2


def test_one_backup_at_a_time_and_one_that_is_left_ends(daemon, tmp_path):
    path = tmp_path / "state/control.sock"
    with Client(path) as first:
        about = first.ask("backup")
        assert about["tar_bytes"] % 512 == 0
        blocks = first.blocks(about["tar_bytes"])
        next(blocks)
        whole = 1 + sum(1 for _ in blocks)
        assert whole and first.result()["generation"] == daemon.status()["generation"]
        assert first.ask("status")["classes"] == 2     # the connection goes on
    with socket.socket(socket.AF_UNIX) as rude:
        rude.connect(str(path))
        rude.sendall(b'{"command":"backup"}\n')
    with Client(path) as after:
        assert until(lambda: _size(after)) == about["size"]     # once the daemon has seen that the rude one has left


def _size(client):
    try:
        return client.ask("backup")["size"]
    except Refused:
        return None


def test_a_daemon_that_stops_in_the_middle_is_told_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    begun, go = threading.Event(), threading.Event()

    def slow(state):
        yield from list(tar_of(state))[:3]
        begun.set()
        go.wait(240)
        raise OSError("the disk has gone")

    monkeypatch.setattr("edgecl.runtime.commands.tar_of", slow)
    monkeypatch.setattr("edgecl.commands.backup.readable", lambda path: False)
    with serving(tmp_path / "state", control=(240.0, 240.0)):
        with Client(tmp_path / "state/control.sock") as other:
            threading.Thread(target=lambda: (begun.wait(240), _busy(other), go.set())).start()
            line = refused(capsys, "backup", "--state", tmp_path / "state", tmp_path / "out.tar")
        assert "did not answer" in line
    assert {path.name for path in tmp_path.iterdir()} == {"state"}


def _busy(client):
    with pytest.raises(Exception, match="another client reads a backup"):
        client.ask("backup")


def test_learning_goes_on_in_the_daemon_while_a_slow_client_reads(daemon, tmp_path):
    with Client(tmp_path / "state/control.sock") as client:
        about = client.ask("backup")
        daemon.learn("bee", vectors("bee", 30))
        daemon.forget("ant")
        (tmp_path / "out.tar").write_bytes(b"".join(client.blocks(about["tar_bytes"])))
        assert client.result()["damaged"] == []
    back(tmp_path / "out.tar", tmp_path / "restored")
    assert {each.name for each in Learner.open(tmp_path / "restored").classes()} == {"ant", "wasp"}


def test_answers_of_a_restored_state_are_those_of_the_daemon(daemon, tmp_path):
    probe = np.concatenate([vectors(name, 5, seed=3) for name in ("ant", "wasp", "bee")])
    main(["backup", "--state", str(tmp_path / "state"), str(tmp_path / "out")])
    there = answers(Learner.open(tmp_path / "out"), probe)
    assert there == [(each["label"], each["confidence"], each["unknown"]) for each in daemon.predict(probe)]
