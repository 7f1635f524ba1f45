"""Full disks, signals, interrupts."""
from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
from contextlib import suppress

import pytest
from helpers_state import (
    answers,
    create,
    directory_bytes,
    error_of,
    fingerprint,
    in_a_child,
    refused,
    strace,
    traces,
    tree,
    vectors,
)

from edgecl.errors import BudgetError
from edgecl.learner import Learner
from edgecl.settings import Settings
from edgecl.state import compaction
from edgecl.state.quota import PAGE

ROOT = os.geteuid() == 0


@pytest.mark.slow
@pytest.mark.parametrize("command", ["learn", "forget"])
@pytest.mark.parametrize(("call", "when"), [("write", "1"), ("pwrite64", "1+"), ("pwrite64", "6"), ("fsync", "1+"),
                                            ("fdatasync", "2"), ("openat", "30+")])
def test_no_space_left(state, command, call, when):
    before, shown = fingerprint(state), answers(Learner.open(state))
    code, err = strace(command, state, call, f"error=ENOSPC:when={when}")
    after = fingerprint(state)
    if code == 0:
        assert after != before
        return
    assert code == 1
    assert err.count("\n") == 1
    assert "; " in err
    if call == "write":  # SQLite does not tell why its own call failed, and this disk is not full
        assert err.startswith("BudgetError: the disk that holds")
    if after != before:  # a forget that could not be erased any more: said so, and finished at the next opening
        assert command == "forget"
        assert "could not be erased yet" in err
        assert not traces(state, vectors("wasp", 25), ["wasp"])
    else:
        assert answers(Learner.open(state)) == shown


@pytest.mark.skipif(not ROOT, reason="mounting a small tmpfs takes root")
def test_what_was_reserved_lets_learning_go_on_on_a_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1400k", "edgecl-test", disk],
                      capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")
    try:
        learner = create(disk / "state", quota=1_000_000, exemplars=100_000)
        slack = learner.store.ledger.slack
        assert slack <= 1_000_000 // 64 and directory_bytes(disk / "state") > 1_000_000 - PAGE - slack
        with suppress(OSError), (disk / "other").open("wb", buffering=0) as other:
            while other.write(bytes(4096)):
                pass
        assert shutil.disk_usage(disk).free < PAGE
        for number in range(40):
            learner.learn(vectors(f"class {number % 8}", 60, number), f"class {number % 8}")
        learner.learn(vectors("flood", 3000), "flood")
        learner.forget("class 3")
        learner.rollback() if len(learner.store.restorable()) > 2 else None
        assert learner.status().exemplar_bytes > 88_000     # full, but for the share of the class that was forgotten
        assert shutil.disk_usage(disk).free < 2 * PAGE + slack
        with pytest.raises(BudgetError, match=r"the disk that holds .*/out\.onnx is full; free some space"):
            learner.export(disk / "out.onnx")
        assert sorted(path.name for path in disk.iterdir()) == ["other", "state"]
        learner.close()
        assert len(Learner.open(disk / "state").classes()) == 8
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_file_system_that_can_not_reserve_is_no_obstacle(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    learner = create(tmp_path / "state")
    learner.learn(vectors("ant", 20), "ant")
    assert learner.status().reserved_bytes == 0


@pytest.mark.skipif(not ROOT, reason="mounting a small tmpfs takes root")
@pytest.mark.parametrize("free", [0, 1, 2, 3, 5, 8, 12])
def test_a_full_disk_is_named_and_the_old_generation_serves(tmp_path, state, free, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    (state / "reserved").unlink()  # as on a file system that can't reserve
    need = sum(-(-path.stat().st_size // 4096) for path in state.rglob("*") if path.is_file())
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={4096 * (need + free)}", "edgecl-test", disk],
                      capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")
    try:
        shutil.copytree(state, disk / "state")
        learner = Learner.open(disk / "state")
        shown, before = answers(learner), fingerprint(disk / "state")
        failed = []
        for change in (lambda: learner.learn(vectors("dog", 60), "dog"), lambda: learner.forget("wasp")):
            error = error_of(change)
            if error is not None and "could not be erased yet" not in error.what:
                failed.append(error.what)
                assert answers(learner) == shown
                assert answers(Learner.open(disk / "state")) == shown
                assert fingerprint(disk / "state") == before
            shown, before = answers(learner), fingerprint(disk / "state")
        assert all(f"the disk that holds {disk / 'state'} is full" == what for what in failed)
        assert len(failed) == 2 if free < 1 else True
        learner.close()
        if free == 0:
            assert "is full" in refused(capsys, "forget", "--state", disk / "state", "--class", "wasp")
            assert "has only 0 B free" in refused(capsys, "init", "--backbone", "identity", "--state", disk / "more")
            assert sorted(path.name for path in disk.iterdir()) == ["state"]
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def tree_of(files, prefix):
    """The part of a `tree` below a folder."""
    return {name.removeprefix(prefix): digest for name, digest in files.items() if name.startswith(prefix)}


def test_a_signal_between_the_file_and_the_commit_leaves_nothing(learner, monkeypatch):
    learner.status()    # which solves the head of what was learned last
    state, before = learner.store.path, tree(learner.store.path)

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(compaction, "retire", die)
    assert in_a_child(lambda: learner.learn(vectors("dog", 2000), "dog")) == -signal.SIGKILL
    monkeypatch.undo()
    assert len(tree(state)) > len(before)
    learner.close()
    Learner.open(state).close()
    assert tree(state / "models") == tree_of(before, "models/")
    assert set(tree(state)) == set(before)


def test_an_interrupt_leaves_nothing(learner, monkeypatch):
    before = tree(learner.store.path)
    monkeypatch.setattr(compaction, "retire", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        learner.learn(vectors("dog", 2000), "dog")
    monkeypatch.undo()
    assert tree(learner.store.path) == before
    learner.learn(vectors("dog", 20), "dog")


def test_settings_are_kept(tmp_path):
    wanted = Settings(backbone="identity", quota=777_777, exemplars=9_999, head="cosine", seed=3)
    Learner.create(tmp_path / "state", wanted).close()
    assert Learner.open(tmp_path / "state").settings == wanted
