"""What is not a regular file in the place of a file of a state: nothing waits for it, nothing is written through it."""
from __future__ import annotations

import os
import shutil
import signal
import socket

import pytest
from helpers_state import error_of, vectors

from edgecl.errors import StateError
from edgecl.learner import Learner
from edgecl.learning.repair import check, discard
from edgecl.state.backup import backup
from edgecl.state.reader import StateReader

PRECIOUS = b"precious" * 1000


def fifo(path, target):
    os.mkfifo(path)


def link(path, target):
    path.symlink_to(target)


def link_to_itself(path, target):
    path.symlink_to(path.name)


def folder(path, target):
    path.mkdir()
    (path / "inside").write_bytes(b"1")


def unix_socket(path, target):
    here = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


def zeros_without_end(path, target):
    path.symlink_to("/dev/zero")


def place(state, what):
    """The path of what in a state, gone."""
    if what in ("head", "exemplars"):
        store = StateReader(state)
        path = store.blobs.folder / (store.newest.head if what == "head" else store.files(what)[0][0])
        store.close()
    else:
        path = state / what
    path.unlink(missing_ok=True)
    return path


@pytest.fixture
def no_waiting():
    """Ends the test that waits for a FIFO."""
    def late(*_):
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(300)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("what", ["learned.log", "acknowledged", "edgecl.copy", "edgecl.db", "reserved", "head",
                                  "exemplars"])
@pytest.mark.parametrize("kind", [fifo, link, link_to_itself, folder, unix_socket, zeros_without_end])
def test_nothing_waits_for_it_and_nothing_is_written_through_it(state, tmp_path, no_waiting, what, kind):
    target = tmp_path / "target"
    target.write_bytes(PRECIOUS)
    kind(place(state, what), target)
    assert what in ("acknowledged", "edgecl.copy", "reserved") or not check(state).intact
    assert error_of(lambda: Learner.open(state).predict(vectors("ant", 3))) is None
    learner = Learner.open(state)
    assert error_of(lambda: backup(state, tmp_path / "out", lambda _: None)) is None
    error_of(lambda: learner.learn(vectors("dog", 20), "dog"))
    error_of(lambda: learner.forget("cat"))
    assert {answer.label for answer in learner.predict(vectors("ant", 3))} == {"ant"}
    assert error_of(lambda: discard(learner.store)) is None
    learner.close()
    assert target.read_bytes() == PRECIOUS


@pytest.mark.parametrize("kind", [fifo, link, link_to_itself, unix_socket, zeros_without_end])
def test_a_file_that_nobody_names_is_cleared_without_being_waited_for(state, tmp_path, no_waiting, kind):
    path = state / "models" / f"{'0' * 64}.onnx"
    kind(path, tmp_path)
    Learner.open(state).close()
    assert not os.path.lexists(path) or kind is link


def test_a_link_in_place_of_the_folder_of_what_is_set_aside_leads_nowhere(state, tmp_path):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "keep").write_bytes(PRECIOUS)
    (state / "set-aside").symlink_to(foreign)
    learner = Learner.open(state)
    assert learner.status().warnings == []
    assert discard(learner.store) == 0
    learner.forget("cat")
    learner.close()
    assert (foreign / "keep").read_bytes() == PRECIOUS
    (state / "learned.log").write_bytes(b"rot")
    learner = Learner.open(state)
    error = error_of(lambda: learner.learn(vectors("dog", 5), "dog"))
    assert "nothing can be set aside" in str(error)
    learner.close()
    assert (state / "learned.log").read_bytes() == b"rot"
    assert (foreign / "keep").read_bytes() == PRECIOUS


@pytest.mark.parametrize("copy", [None, b"{}", b"[" * 100_000, b"\xff" * 100])
def test_an_open_learner_whose_database_and_copy_are_both_damaged_refuses_in_words_each_time(learner, copy):
    path = learner.store.path
    spoilt = path / "spoilt"
    spoilt.write_bytes(bytes(100) + (path / "edgecl.db").read_bytes()[100:])
    spoilt.replace(path / "edgecl.db")
    if copy is None:
        (path / "edgecl.copy").unlink()
    else:
        (path / "edgecl.copy").write_bytes(copy)
    for work in (learner.status, lambda: learner.damage, learner.classes, lambda: learner.predict(vectors("ant", 3)),
                 lambda: learner.learn(vectors("dog", 5), "dog"), lambda: learner.forget("ant")) * 2:
        error = error_of(work)
        assert isinstance(error, StateError)
        assert "is damaged" in str(error)
        assert "edgecl restore" in str(error)


def test_an_open_learner_goes_on_when_both_are_brought_back(learner, tmp_path):
    path = learner.store.path
    shutil.copy(path / "edgecl.db", tmp_path)
    (path / "edgecl.copy").unlink()
    (path / "spoilt").write_bytes(b"spoilt")
    (path / "spoilt").replace(path / "edgecl.db")
    assert isinstance(error_of(learner.status), StateError)
    shutil.copy(tmp_path / "edgecl.db", path / "brought back")
    (path / "brought back").replace(path / "edgecl.db")
    assert {c.name for c in learner.classes()} == {"ant", "wasp", "cat"}
    learner.learn(vectors("dog", 5), "dog")
