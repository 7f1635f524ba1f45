"""What is not a regular file in the place of a file of a state: nothing waits for it, nothing is written through it."""
from __future__ import annotations

import os
import shutil
import signal
import socket
import stat

import pytest
from helpers_state import error_of, vectors

from edgecl.errors import StateError
from edgecl.learner import Learner
from edgecl.learning.repair import check, discard, repair
from edgecl.state.backup import backup
from edgecl.state.reader import StateReader

PRECIOUS = b"precious" * 1000


def fifo(path, target):
    os.mkfifo(path)


def link(path, target):
    path.symlink_to(target)


def link_to_itself(path, target):
    path.symlink_to(path.name)


def file(path, target):
    path.write_bytes(b"1")


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


def place_of(state, what):
    """The path of what in a state."""
    if what not in ("head", "exemplars"):
        return state / what
    store = StateReader(state)
    path = store.blobs.folder / (store.newest.head if what == "head" else store.files(what)[0][0])
    store.close()
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
    here, name = place_of(state, what), what if "." in what or what in ("acknowledged", "reserved") else None
    here.unlink(missing_ok=True)
    kind(here, target)
    about = os.lstat(here)
    assert any(each.file in str(here) and each.verdict == "damaged" for each in check(state).findings)
    assert error_of(lambda: Learner.open(state).predict(vectors("ant", 3))) is None
    learner = Learner.open(state)
    if name:    # it is set aside as it is, which is said
        kept = os.lstat(state / "set-aside" / f"{name}.1")
        assert (kept.st_ino, kept.st_mode) == (about.st_ino, about.st_mode)
        assert stat.S_ISREG(os.lstat(here).st_mode)
        assert any("set aside" in line for line in learner.damage)
    assert error_of(lambda: backup(state, tmp_path / "out", lambda _: None)) is None
    error_of(lambda: learner.learn(vectors("dog", 20), "dog"))
    error_of(lambda: learner.forget("cat"))
    assert {answer.label for answer in learner.predict(vectors("ant", 3))} == {"ant"}
    assert error_of(lambda: discard(learner.store)) is None
    learner.close()
    assert target.read_bytes() == PRECIOUS


@pytest.mark.parametrize("what", ["acknowledged", "edgecl.copy", "edgecl.db", "reserved"])
def test_a_link_to_what_was_there_is_not_written_through(state, tmp_path, what):
    """Somebody has moved the file elsewhere, and left a link: it is set aside, and what it leads to stays as it was."""
    (state / what).rename(tmp_path / "elsewhere")
    (state / what).symlink_to(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    learner = Learner.open(state)
    learner.learn(vectors("dog", 20), "dog")
    learner.learn(vectors("much", 400), "much")
    learner.forget("ant")
    learner.close()
    assert (tmp_path / "elsewhere").read_bytes() == before
    assert not (state / what).is_symlink()
    assert not {each.verdict for each in check(state).findings} & {"damaged", "missing"}


@pytest.mark.parametrize("kind", [fifo, link, link_to_itself, unix_socket, zeros_without_end])
def test_a_file_that_nobody_names_is_cleared_without_being_waited_for(state, tmp_path, no_waiting, kind):
    path = state / "models" / f"{'0' * 64}.onnx"
    kind(path, tmp_path)
    Learner.open(state).close()
    assert not os.path.lexists(path) or kind is link


@pytest.mark.parametrize("kind", [fifo, link, link_to_itself, unix_socket, file])
def test_what_is_not_a_folder_in_place_of_models_is_named_and_a_repair_sets_it_aside(state, tmp_path, no_waiting, kind):
    (tmp_path / "target").write_bytes(PRECIOUS)
    models = state / "models"
    shutil.rmtree(models)
    kind(models, tmp_path / "target")
    about, learner = os.lstat(models), Learner.open(state)
    assert any(each.file == "models" and each.problem == "not a folder" for each in check(state).findings)
    assert learner.damage[0] == f"{models} is not a folder, and with it all that was learned and is not in the log"
    for change in (lambda: learner.learn(vectors("dog", 5), "dog"), learner.status):
        error = error_of(change)
        assert error is None or ("models" in error.what and "--repair" in error.cure)
    report = repair(learner.repository)
    assert not any(each.file == "models" for each in report.findings)
    kept = os.lstat(state / "set-aside" / "models.1")
    assert (kept.st_ino, kept.st_mode) == (about.st_ino, about.st_mode)
    learner.learn(vectors("dog", 5), "dog")
    assert "dog" in {each.name for each in learner.classes()}
    learner.close()
    assert (tmp_path / "target").read_bytes() == PRECIOUS


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
