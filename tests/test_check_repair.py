"""`edgecl check --repair`: what is lost is built from what is stored; damaged files are kept until discarded."""
from __future__ import annotations

import fcntl
import os
import shutil

import numpy as np
import pytest
from helpers_check import checked, files_of, vector_state, zeros
from helpers_state import answers, flip, refused, tree, vectors

from edgecl.cli import main
from edgecl.errors import EdgeclError
from edgecl.learner import Learner
from edgecl.learning.repair import check, repair
from edgecl.state.database import DATABASE_FILE


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A state of vectors, closed."""
    folder = tmp_path_factory.mktemp("states")
    vector_state(folder / "vectors").close()
    return folder


@pytest.fixture
def vectors_state(made, fast_path):
    return shutil.copytree(made / "vectors", fast_path / "vectors")


def test_statistics_that_are_lost_are_built_from_all_that_is_stored(vectors_state, capsys, monkeypatch):
    learner = Learner.open(vectors_state)
    base = [g for g in learner.store.alive() if g.snapshot][-1]
    names = [g.snapshot for g in learner.store.alive() if g.snapshot]
    rows = learner.store.samples(learner.store.current)
    learner.close()
    for name in names:
        flip(vectors_state / "models" / name)
    code, report = checked(capsys, vectors_state)
    told = next(each for each in report["files"] if base.snapshot in each["file"])
    figures = f"approximate, from {len(rows)} of 1275 samples"
    assert code == 1 and figures in told["cure"] and told["lost"]
    code, report = checked(capsys, vectors_state, "--repair")
    assert code == 0 and any(figures in line for line in report["done"])
    learner = Learner.open(vectors_state)
    assert learner.status().exact is False
    known = learner.repository.known()
    for label in ("ant", "bee", "cat", "dog"):
        mine = np.stack([row.feature for row in rows if row.label == label])
        assert known.plain.counts[label] == len(mine)
        assert np.allclose(known.plain.mean(label), mine.mean(0), atol=1e-4)
    scatter = sum(((mine - mine.mean(0)).T @ (mine - mine.mean(0)) for mine in (
        np.stack([row.feature for row in rows if row.label == label]).astype(np.float64) for label in known.labels)),
        np.zeros((16, 16)))
    assert np.allclose(known.plain.scatter(), scatter, rtol=1e-3, atol=1e-2)
    assert learner.predict(vectors("cat", 20, 7)) and {
        each.label for each in learner.predict(vectors("cat", 20, 7))} == {"cat"}
    monkeypatch.setenv("COLUMNS", "120")
    assert main(["history", "--state", str(vectors_state)]) == 0
    assert f"repair from {len(rows)} of 1275" in capsys.readouterr().out


def test_what_can_be_repaired_is_even_if_the_backbone_can_not_be_had_again(vectors_state, capsys, monkeypatch):
    learner = Learner.open(vectors_state)
    backbone, counts = learner.store.newest.backbone, dict(learner.repository.known().plain.counts)
    content = (vectors_state / "models" / backbone).read_bytes()
    learner.close()
    flip(vectors_state / "models" / backbone)
    for path in (vectors_state / "models").glob("*.exemplars"):
        flip(path)
    monkeypatch.setattr("edgecl.learning.backbone_file._built", lambda _: [])
    code, report = checked(capsys, vectors_state, "--repair")
    assert code == 1 and files_of(report) == {f"models/{backbone}"}
    assert backbone in next(each["lost"] for each in report["files"] if backbone in each["file"])
    (vectors_state / "models" / backbone).write_bytes(content)      # from another board
    assert checked(capsys, vectors_state)[0] == 0
    learner = Learner.open(vectors_state)
    assert learner.repository.known().plain.counts == counts
    assert {each.label for each in learner.predict(vectors("ant", 5))} == {"ant"}


def test_set_aside_files_are_listed_and_discarded_only_when_asked(vectors_state, capsys):
    [victim] = (vectors_state / "models").glob("*.exemplars")
    flip(victim)
    hurt = victim.read_bytes()
    assert checked(capsys, vectors_state, "--repair")[0] == 0
    code, report = checked(capsys, vectors_state)
    [name] = files_of(report, "set aside")
    assert code == 0 and (vectors_state / name).read_bytes() == hurt
    assert checked(capsys, vectors_state, "--discard") == (0, {"discarded": 1})
    assert not files_of(checked(capsys, vectors_state)[1], "set aside")
    assert not (vectors_state / "set-aside").exists()


def test_what_is_not_edgecls_is_named_and_left_alone(vectors_state, capsys):
    (vectors_state / "models" / "notes.txt").write_text("mine")
    (vectors_state / "models" / "folder").mkdir()
    (vectors_state / "photo.jpg").write_text("mine")
    code, report = checked(capsys, vectors_state, "--repair")
    assert code == 0 and files_of(report, "foreign") == {"models/notes.txt", "models/folder", "photo.jpg"}
    assert (vectors_state / "models" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("place", [shutil.rmtree, lambda path: (shutil.rmtree(path), path.write_text("x"))])
def test_the_folder_of_models_is_made_again(vectors_state, capsys, place):
    place(vectors_state / "models")
    code, report = checked(capsys, vectors_state)
    assert code == 1 and set(files_of(report)) >= {f["file"] for f in report["files"] if "backbone" in f["what"]}
    checked(capsys, vectors_state, "--repair")
    assert (vectors_state / "models").is_dir()
    learner = Learner.open(vectors_state)
    assert learner.store.blobs.intact(learner.store.newest.backbone)
    learner.close()


def test_a_database_is_built_again_while_a_daemon_holds_the_lock_of_the_folder(vectors_state, capsys):
    lock = os.open(vectors_state, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (vectors_state / DATABASE_FILE).unlink()
        assert checked(capsys, vectors_state, "--repair")[0] == 0
        assert (vectors_state / DATABASE_FILE).is_file()
    finally:
        os.close(lock)


def test_a_log_that_rots_after_it_was_read_is_written_again_with_all_that_was_read(vectors_state):
    learner = Learner.open(vectors_state)
    learner.learn(vectors("new", 30, dimension=16), "new")
    counts = learner.repository.known().plain.counts
    flip(vectors_state / "learned.log", 300)
    assert not check(vectors_state).intact
    report = repair(learner.repository)
    assert report.intact and report.done
    learner.close()
    again = Learner.open(vectors_state)
    assert again.repository.known().plain.counts == counts and again.damage == []
    again.close()


def test_a_folder_in_the_place_of_acknowledged_is_set_aside(vectors_state, capsys):
    path = vectors_state / "acknowledged"
    path.unlink()
    path.mkdir()
    (path / "mine").write_text("x")
    assert checked(capsys, vectors_state)[0] == 1
    assert checked(capsys, vectors_state, "--repair")[0] == 0
    assert path.is_file() and (vectors_state / "set-aside" / "acknowledged.1" / "mine").read_text() == "x"


def test_a_link_in_the_place_of_set_aside_is_not_followed(vectors_state, tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine").write_text("x")
    (vectors_state / "set-aside").symlink_to(tmp_path / "elsewhere")
    code, report = checked(capsys, vectors_state)
    assert code == 0 and files_of(report, "set aside") == set() and files_of(report, "foreign") == {"set-aside"}


def test_it_is_said_which_samples_a_missing_file_has_cost(vectors_state, capsys):
    [victim] = (vectors_state / "models").glob("*.exemplars")
    victim.unlink()
    report = checked(capsys, vectors_state)[1]
    assert all("samples" in f["lost"] for f in report["files"] if f["what"].startswith("exemplars"))
    assert any(f["verdict"] == "missing" for f in report["files"])


def test_database_and_copy_damaged_is_told_with_the_cure_and_touches_nothing(vectors_state, capsys):
    for name in (DATABASE_FILE, "edgecl.copy"):
        zeros(vectors_state / name)
    before = tree(vectors_state)
    code, report = checked(capsys, vectors_state)
    assert code == 1 and files_of(report) == {DATABASE_FILE}
    assert "edgecl restore" in report["files"][0]["lost"]
    assert main(["check", "--state", str(vectors_state)]) == 1
    assert "--repair" not in capsys.readouterr().err    # it has no rows to repair from
    assert "edgecl restore" in refused(capsys, "check", "--repair", "--state", vectors_state)
    assert tree(vectors_state) == before
    refused(capsys, "check", "--state", vectors_state.parent / "nothing")
    (vectors_state.parent / "empty").mkdir()
    refused(capsys, "check", "--state", vectors_state.parent / "empty")


def test_a_repair_without_room_says_how_to_get_it_and_leaves_the_state(vectors_state, capsys, monkeypatch):
    for path in (vectors_state / "models").glob("*.npz"):
        flip(path)
    shown = answers(Learner.open(vectors_state))
    learner = Learner.open(vectors_state)
    monkeypatch.setattr(learner.store.ledger, "quota", learner.store.used_bytes())
    with pytest.raises(EdgeclError, match="--discard"):
        repair(learner.repository)
    learner.close()
    assert answers(Learner.open(vectors_state)) == shown


def test_a_file_that_this_user_may_not_read_is_not_taken_for_damaged(vectors_state, capsys, monkeypatch):
    access, before = os.access, tree(vectors_state)
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.R_OK and access(path, mode))
    for options in ([], ["--repair"]):
        assert "by this user" in refused(capsys, "check", "--state", vectors_state, *options)
    assert tree(vectors_state) == before


def test_people_see_what_is_wrong(vectors_state, capsys):
    [victim] = (vectors_state / "models").glob("*.exemplars")
    flip(victim)
    assert main(["check", "--state", str(vectors_state)]) == 1
    out, err = capsys.readouterr()
    assert f"✗ models/{victim.name[:8]}" in out and "lost: " in out and "1 damaged" in out
    assert "--repair" in err
    assert main(["check", "--repair", "--state", str(vectors_state)]) == 0
    out, err = capsys.readouterr()
    assert "done: " in out and "intact" in out and "--discard" in err
    assert main(["check", "--discard", "--state", str(vectors_state)]) == 0
    assert capsys.readouterr().out == "1 damaged file deleted\n"
