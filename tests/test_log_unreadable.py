"""A disk that does not give the log back: what is intact answers, and only learning is refused."""
from __future__ import annotations

import errno
import os

import pytest
from helpers_log import record_of
from helpers_state import create, error_of, tree, vectors

from edgecl.cli import main
from edgecl.errors import StateError
from edgecl.learner import Learner
from edgecl.learning.repair import check
from edgecl.state import frozen, write_ahead_log
from edgecl.state.backup import backup
from edgecl.state.write_ahead_log import BLOCK, LOG_FILE

NAMES = ["ant", "bee", "cat", "dog"]     # ant is in a snapshot, the others are in the log


@pytest.fixture
def state(tmp_path):
    learner = create(tmp_path / "state", exemplars=40_000)
    for name in NAMES:
        learner.learn(vectors(name, 80), name)
    learner.close()
    return tmp_path / "state"


@pytest.fixture
def bad_blocks(state, monkeypatch):
    """Numbers of the blocks of the log that can't be read; None for the whole file, which can't even be opened."""
    bad, pread, opened = set[int | None](), os.pread, write_ahead_log.open_regular

    def failing_pread(descriptor, size, place):
        if os.readlink(f"/proc/self/fd/{descriptor}") == str(state / LOG_FILE):
            for block in range(place // BLOCK, (place + size - 1) // BLOCK + 1):
                if block in bad:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(descriptor, size, place)

    def failing_open(path, *flags):
        if path == state / LOG_FILE and None in bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return opened(path, *flags)

    monkeypatch.setattr(write_ahead_log.os, "pread", failing_pread)
    monkeypatch.setattr(write_ahead_log, "open_regular", failing_open)
    return bad


def shown(learner):
    return {each.name: each.samples for each in learner.classes()}


def blocks_of(state, label):
    begin, end = record_of(state / LOG_FILE, label)
    return begin // BLOCK, (end - 1) // BLOCK


@pytest.mark.parametrize(("which", "lost"), [
    ("all", NAMES[1:]), ("first", ["bee"]), ("in the middle", ["cat"]), ("in the last", ["dog"]), ("file", NAMES[1:])])
def test_what_can_be_read_answers_and_learning_is_refused(state, bad_blocks, capsys, which, lost):
    label = {"first": "bee", "in the middle": "cat", "in the last": "dog"}.get(which)
    first, last = blocks_of(state, label or "bee")
    bad_blocks |= {None} if which == "file" else {0} if which == "first" else {*range(100)} if which == "all" else \
        {first + 1 if first + 1 < last else last}
    before = tree(state)
    learner = Learner.open(state)
    assert set(NAMES) - set(lost) <= set(shown(learner))
    assert {each.label for each in learner.predict(vectors("ant", 3))} == {"ant"}
    assert any("learned.log can't be read (Input/output error)" in line for line in learner.damage)
    for change in (lambda: learner.learn(vectors("elk", 5), "elk"), lambda: learner.forget("ant"), learner.rollback):
        error = error_of(change)
        assert isinstance(error, StateError)
        assert "learned.log can't be read (Input/output error)" in error.what and "disk" in error.cure
    assert any(each.file == LOG_FILE and each.verdict == "damaged" for each in check(state).findings)
    learner.close()
    assert main(["status", "--state", str(state)]) == 0
    assert "can't be read (Input/output error)" in capsys.readouterr().err
    assert {name: digest for name, digest in tree(state).items() if name in before} == before
    bad_blocks.clear()      # the disk has recovered: nothing was lost
    learner = Learner.open(state)
    assert shown(learner) == dict.fromkeys(NAMES, 80) and learner.damage == []
    learner.learn(vectors("elk", 5), "elk")
    learner.close()


@pytest.mark.parametrize("bad", [{None}, {*range(100)}])
def test_an_open_learner_recovers_as_soon_as_the_disk_does(state, bad_blocks, bad):
    learner = Learner.open(state)
    assert set(shown(learner)) == set(NAMES)
    bad_blocks |= bad
    assert "can't be read" in str(error_of(lambda: learner.learn(vectors("elk", 5), "elk")))
    assert {each.label for each in learner.predict(vectors("ant", 3))} == {"ant"}
    bad_blocks.clear()
    learner.learn(vectors("elk", 5), "elk")
    assert shown(learner) == {**dict.fromkeys(NAMES, 80), "elk": 5}
    assert {each.label for each in learner.predict(vectors("dog", 3))} == {"dog"}
    assert learner.damage == []
    learner.close()


@pytest.mark.parametrize("which", ["first", "last", "all", "file"])
def test_a_backup_has_what_can_be_read(state, bad_blocks, tmp_path, which):
    bad_blocks |= {"first": {0}, "last": {blocks_of(state, "dog")[1]}, "all": {*range(100)},
                   "file": {None}}[which]
    copied = backup(state, tmp_path / "out", lambda _: None)
    assert any("learned.log can't be read (Input/output error)" in line for line in copied.damaged)
    bad_blocks.clear()
    learner = Learner.open(tmp_path / "out")
    known = shown(learner)
    assert learner.damage
    assert known["ant"] == 80 and set(known) == {"first": {"ant", "cat", "dog"}, "last": {"ant", "bee", "cat"}}.get(
        which, {"ant"})
    learner.learn(vectors("elk", 5), "elk")
    assert shown(learner) == {**known, "elk": 5}
    learner.close()
    learner = Learner.open(state)
    assert shown(learner) == dict.fromkeys(NAMES, 80) and learner.damage == []
    learner.close()


def test_a_backup_leaves_out_a_file_that_cannot_be_opened(state, tmp_path, monkeypatch):
    opened, victim = frozen.open_regular, next((state / "models").glob("*.npz"))

    def failing(path, *flags):
        if path == victim:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return opened(path, *flags)

    monkeypatch.setattr(frozen, "open_regular", failing)
    copied = backup(state, tmp_path / "out", lambda _: None)
    assert [line for line in copied.damaged if victim.name in line and "is not in the copy" in line] == copied.damaged
    assert not (tmp_path / "out" / "models" / victim.name).exists()


def test_what_could_not_be_read_for_a_while_is_not_left_out_of_what_is_written_then(state, bad_blocks):
    first, last = blocks_of(state, "cat")
    bad_blocks |= {first + 1 if first + 1 < last else last}
    learner = Learner.open(state)
    assert set(shown(learner)) == {"ant", "bee", "dog"}
    bad_blocks.clear()
    learner.learn(vectors("elk", 5), "elk")
    learner.forget("elk")
    assert shown(learner) == dict.fromkeys(NAMES, 80)
    learner.close()
    learner = Learner.open(state)
    assert shown(learner) == dict.fromkeys(NAMES, 80)
    learner.close()
