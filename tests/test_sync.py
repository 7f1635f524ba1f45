"""The state follows a folder: what is new is learned, what is gone removed, what moved moved, and nothing else."""
from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
from helpers_daemon import serving
from helpers_state import create, refused, vectors
from PIL import Image
from round_states import conv_backbone
from test_corrections import assert_same, counts

from edgecl.cli import main
from edgecl.learner import Learner
from edgecl.learning.sync import Within
from edgecl.samples import Sample
from edgecl.settings import Settings

CLASSES = ("ant", "bee", "cat")


def write(path, vector):
    """A file of one vector."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(",".join(repr(float(x)) for x in vector) + "\n")


def tree(folder, per_class=12):
    for label in CLASSES:
        for number, vector in enumerate(vectors(label, per_class)):
            write(folder / label / f"{number:02}.csv", vector)
    return folder


def taught(path, folder, **settings):
    """A state that was taught what is in a folder now."""
    learner = create(path, **settings)
    for place in sorted(folder.iterdir()):
        found = [np.loadtxt(file, np.float32, delimiter=",") for file in sorted(place.rglob("*.csv"))]
        if found:
            learner.learn([Sample(vector, f"{place}/x") for vector in found], place.name)
    return learner


@pytest.fixture
def folder(tmp_path):
    return tree(tmp_path / "photos")


@pytest.fixture
def state(tmp_path, folder, capsys):
    create(tmp_path / "state").close()
    assert sync(folder, tmp_path / "state", "--yes") == 0
    capsys.readouterr()
    return tmp_path / "state"


def sync(folder, state, *more):
    return main(["sync", str(folder), "--state", str(state), *more])


def said(folder, state, capsys, *more):
    assert sync(folder, state, "--json", *more) == 0
    return json.loads(capsys.readouterr().out)


def assert_follows(folder, state, tmp_path, capsys):
    """That the state is as if it had been taught what is in the folder; a second sync finds nothing to do."""
    with closing(Learner.open(state)) as learner, closing(taught(tmp_path / "expected", folder)) as expected:
        assert_same(learner, expected)
        generation = learner.store.current
    again = said(folder, state, capsys)
    assert not (again["learn"] or again["remove"] or again["move"] or again["rename"] or again["steps"])
    with closing(Learner.open(state)) as learner:
        assert learner.store.current == generation


def test_a_folder_is_learned_changed_and_followed(folder, state, tmp_path, capsys):
    assert_follows(folder, state, tmp_path, capsys)
    for number in (0, 5):
        (folder / "ant" / f"{number:02}.csv").unlink()
    (folder / "bee/03.csv").rename(folder / "cat/from-bee.csv")
    (folder / "bee/04.csv").rename(folder / "bee/other name.csv")
    write(folder / "cat/new.csv", vectors("cat", 1, 7)[0])
    write(folder / "dog/sub/a.csv", vectors("dog", 1, 1)[0])
    write(folder / "dog/sub/b.csv", vectors("dog", 1, 2)[0])
    write(folder / "cat/00.csv", vectors("cat", 1, 8)[0])       # other content under the same name
    plan = said(folder, state, capsys, "--dry-run")
    assert plan["learn"] == {"cat": 2, "dog": 2} and plan["remove"] == {"ant": 2, "cat": 1}
    assert plan["move"] == [{"from": "bee", "to": "cat", "samples": 1}] and plan["rename"] == []
    with closing(Learner.open(state)) as learner:
        assert counts(learner) == dict.fromkeys(CLASSES, 12)        # a dry run changes nothing
    assert sync(folder, state, "--yes") == 0
    out = capsys.readouterr().out
    assert "move 1 sample of bee to cat" in out and "removed 2 samples of ant" in out
    shutil.rmtree(tmp_path / "expected")
    assert_follows(folder, state, tmp_path, capsys)


def test_a_folder_that_is_renamed_renames_its_class(folder, state, tmp_path, capsys):
    """Also where nothing of it is stored any more."""
    (folder / "ant").rename(folder / "emmet")
    found = said(folder, state, capsys, "--yes")
    assert found["rename"] == [{"from": "ant", "to": "emmet"}] and not found["move"] and not found["learn"]
    assert [step["action"] for step in found["steps"]] == ["rename"]
    shutil.rmtree(tmp_path / "expected", ignore_errors=True)
    assert_follows(folder, state, tmp_path, capsys)


def test_a_class_that_is_gone_is_gone(folder, state, tmp_path, capsys):
    shutil.rmtree(folder / "ant")
    assert sync(folder, state, "--yes") == 0
    capsys.readouterr()
    assert_follows(folder, state, tmp_path, capsys)


def test_what_came_from_elsewhere_is_left_alone(folder, state, tmp_path, capsys):
    """A camera, another folder, the page, and no name at all, even in a class whose folder is gone."""
    with closing(Learner.open(state)) as learner:
        for seed, name in enumerate(("camera:/dev/video0", f"{tmp_path}/photos2/ant/00.csv", "", "upload.jpg"), 1):
            learner.learn([Sample(vector, name) for vector in vectors("ant", 5, seed)], "ant")
    shutil.rmtree(folder / "ant")
    found = said(folder, state, capsys, "--yes")
    assert found["from_elsewhere"] == {"ant": 20} and found["remove"] == {"ant": 12}
    with closing(Learner.open(state)) as learner:
        assert counts(learner)["ant"] == 20


@pytest.mark.parametrize("from_here", [0, 5])
def test_a_class_that_came_from_elsewhere_keeps_its_name(from_here, folder, tmp_path, capsys):
    """Also if the folder holds the same samples as another class; those that did come from it move."""
    with closing(create(tmp_path / "state")) as learner:
        files = sorted((folder / "ant").iterdir())
        learner.learn([Sample(np.loadtxt(file, np.float32, delimiter=","), str(
            folder / "dog" / file.name if number < from_here else tmp_path / "other" / file.name))
            for number, file in enumerate(files)], "dog")
    found = said(folder, tmp_path / "state", capsys, "--yes")
    assert not found["rename"] and found["from_elsewhere"] == {"dog": 12 - from_here}
    assert sum(each["samples"] for each in found["move"]) == from_here
    with closing(Learner.open(tmp_path / "state")) as learner:
        assert counts(learner) == {**dict.fromkeys(CLASSES, 12), "dog": 12 - from_here}


def test_what_learn_has_taught_is_followed(folder, tmp_path, monkeypatch, capsys):
    """By relative names, from the folder in which it was taught; with a session."""
    create(tmp_path / "state").close()
    monkeypatch.chdir(tmp_path)
    assert main(["learn", "--state", "state", "--from", "photos", "--session", "monday"]) == 0
    capsys.readouterr()
    assert not said(folder, "state", capsys)["learn"]
    (folder / "ant/00.csv").unlink()
    assert said(folder, "state", capsys, "--yes")["remove"] == {"ant": 1}
    with closing(Learner.open("state")) as learner:
        assert counts(learner) == {"ant": 11, "bee": 12, "cat": 12}


def test_what_is_not_stored_any_more_is_said(folder, tmp_path, capsys):
    """Its content is known, so that it is not learned again; it can't be removed, and the cure is named."""
    with closing(create(tmp_path / "state", exemplars=2_000)) as learner:
        pass
    assert sync(folder, tmp_path / "state", "--yes") == 0
    with closing(Learner.open(tmp_path / "state")) as learner:
        learner.learn(vectors("dog", 60), "dog")
        learner.forget("dog")
        stored = {row.source for row in learner.repository.known().stored}
    assert len(stored) < 36
    capsys.readouterr()
    found = said(folder, tmp_path / "state", capsys)
    assert not found["learn"] and not found["not_stored"]
    gone = [file for file in sorted(folder.rglob("*.csv")) if str(file) not in stored][:3]
    for file in gone:
        file.unlink()
    found = said(folder, tmp_path / "state", capsys)
    assert sum(found["not_stored"].values()) == 3 and not found["remove"]
    assert sync(folder, tmp_path / "state") == 0
    out = capsys.readouterr().out
    assert "it can't be told whether they came from it; to be exact, `edgecl forget --class" in out
    with closing(Learner.open(tmp_path / "state")) as learner:
        assert sum(counts(learner).values()) == 36


def test_most_of_what_is_known_goes_only_if_asked(folder, state, capsys):
    for label in ("ant", "bee"):
        shutil.rmtree(folder / label)
    assert sync(folder, state, "--yes") == 1
    out, err = capsys.readouterr()
    assert "remove 12 samples of ant" in out and "24 of the 36 samples that are known would be removed" in err
    with closing(Learner.open(state)) as learner:
        assert counts(learner) == dict.fromkeys(CLASSES, 12)
    assert sync(folder, state, "--yes", "--delete-most") == 0
    with closing(Learner.open(state)) as learner:
        assert counts(learner) == {"cat": 12}


def test_an_empty_or_missing_folder_removes_nothing(folder, state, tmp_path, capsys):
    """As a disk that is not mounted would look."""
    for label in CLASSES:
        for file in (folder / label).iterdir():
            file.unlink()
    assert "would be removed" in refused(capsys, "sync", folder, "--state", state, "--yes", "--delete-most")
    shutil.rmtree(folder)
    refused(capsys, "sync", folder, "--state", state, "--yes", "--delete-most")
    folder.mkdir()
    refused(capsys, "sync", folder, "--state", state, "--yes", "--delete-most")
    with closing(Learner.open(state)) as learner:
        assert counts(learner) == dict.fromkeys(CLASSES, 12)


def test_a_file_that_can_t_be_read_is_not_gone(folder, state, capsys):
    (folder / "ant/00.csv").write_text("1,2,broken\n")
    found = said(folder, state, capsys, "--yes")
    assert found["not_read"] == {"ant": 1} and not found["remove"]
    with closing(Learner.open(state)) as learner:
        assert counts(learner)["ant"] == 12


def test_what_moved_and_is_not_stored_any_more_is_learned_there_and_said_here(folder, tmp_path, capsys):
    create(tmp_path / "state", exemplars=2_000).close()
    assert sync(folder, tmp_path / "state", "--yes") == 0
    with closing(Learner.open(tmp_path / "state")) as learner:
        learner.learn(vectors("dog", 60), "dog")
        learner.forget("dog")
        stored = {row.source for row in learner.repository.known().stored}
    capsys.readouterr()
    moved = next(file for file in sorted((folder / "ant").iterdir()) if str(file) not in stored)
    moved.rename(folder / "bee/moved.csv")
    found = said(folder, tmp_path / "state", capsys, "--yes")
    assert found["not_removable"] == {"ant": 1} and found["learn"] == {"bee": 1}
    again = said(folder, tmp_path / "state", capsys)
    assert not again["learn"] and again["not_stored"] == {"ant": 1}
    with closing(Learner.open(tmp_path / "state")) as learner:
        assert counts(learner) == {"ant": 12, "bee": 13, "cat": 12}


def test_product_codes_can_t_be_taken_out(folder, tmp_path, capsys):
    rng = np.random.default_rng(0)
    Learner.create(tmp_path / "state", Settings("identity", 3_000_000, 40_000, "pq")).close()
    for number in range(400):
        write(tmp_path / "wide/ant" / f"{number:03}.csv", rng.standard_normal(32))
    assert sync(tmp_path / "wide", tmp_path / "state", "--yes") == 0
    with closing(Learner.open(tmp_path / "state")) as learner:
        for number in range(1, 4):
            learner.learn((rng.standard_normal((400, 32)) + 5 * number).astype(np.float32), f"class {number}")
        coded = {row.source for row in learner.repository.known().stored if row.coded and row.label == "ant"}
    assert coded
    os.unlink(sorted(coded)[0])
    capsys.readouterr()
    found = said(tmp_path / "wide", tmp_path / "state", capsys, "--yes")
    assert found["not_removable"] == {"ant": 1} and not found["remove"] and not found["steps"]


def test_photos_and_recordings(tmp_path, capsys):
    """A photo that is moved and one that is turned; a recording that is moved, and one that goes on."""
    rng = np.random.default_rng(0)
    (tmp_path / "small.onnx").write_bytes(conv_backbone((8, 16)))
    photos, recordings = tmp_path / "photos", tmp_path / "recordings"
    for label in ("mug", "bowl", "walk", "run"):
        folder = (photos if label in ("mug", "bowl") else recordings) / label
        folder.mkdir(parents=True)
        for number in range(4):
            if label in ("mug", "bowl"):
                pixels = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
                Image.fromarray(pixels).save(folder / f"{number}.png")
            else:
                np.savetxt(folder / f"{number}.csv", rng.standard_normal((120, 3)).cumsum(0), delimiter=",")
    Learner.create(tmp_path / "p", Settings(str(tmp_path / "small.onnx"), 20_000_000, 1_000_000, "jpeg")).close()
    Learner.create(tmp_path / "r", Settings("rocket", 20_000_000, 1_000_000, rate=40, window=1.0)).close()
    for folder, state, one, other in ((photos, "p", "mug", "bowl"), (recordings, "r", "walk", "run")):
        assert said(folder, tmp_path / state, capsys, "--yes")["learn"]
        file = sorted((folder / one).iterdir())[0]
        file.rename(folder / other / f"moved{file.suffix}")
        changed = sorted((folder / one).iterdir())[0]
        if state == "p":
            with Image.open(changed) as image:
                image.rotate(90).save(changed)
        else:
            with changed.open("a") as more:
                np.savetxt(more, rng.standard_normal((80, 3)), delimiter=",")
        found = said(folder, tmp_path / state, capsys, "--yes")
        assert found["move"] == [{"from": one, "to": other, "samples": 1 if state == "p" else 5}]
        assert found["learn"] == {one: 1 if state == "p" else 4}
        assert found["remove"] == ({one: 1} if state == "p" else {})
        assert not said(folder, tmp_path / state, capsys)["steps"]
        found = said(folder, tmp_path / state, capsys)
        assert not (found["learn"] or found["remove"] or found["move"])


def test_without_a_terminal_it_needs_yes(folder, state, capsys):
    (folder / "ant/00.csv").unlink()
    assert sync(folder, state) == 1
    assert "no terminal to ask on; add --yes" in capsys.readouterr().err
    with closing(Learner.open(state)) as learner:
        assert counts(learner)["ant"] == 12


@pytest.mark.parametrize(("answer", "left"), [("y\n", 11), ("n\n", 12), ("\n", 12), ("\x04", 12)])
def test_on_a_terminal_it_asks(answer, left, folder, state):
    (folder / "ant/00.csv").unlink()
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "edgecl", "sync", folder, "--state", state], stdin=theirs,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    os.write(ours, answer.encode())
    out, err = process.communicate(timeout=600)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == int(left == 12), err
    assert "Traceback" not in err
    assert "remove 1 sample of ant" in out
    with closing(Learner.open(state)) as learner:
        assert counts(learner)["ant"] == left


def test_a_new_state_and_its_dry_run(folder, tmp_path, capsys):
    assert sync(folder, tmp_path / "new", "--dry-run") == 0
    assert not (tmp_path / "new").exists() and "learn 12 files of ant" in capsys.readouterr().out


def test_a_state_that_keeps_no_sample_is_refused(folder, tmp_path, capsys):
    create(tmp_path / "state", quota=3_000_000, memory="statistics").close()
    assert "keeps no samples" in refused(capsys, "sync", folder, "--state", tmp_path / "state", "--yes")


def test_names_as_people_have_them(folder, state, tmp_path, capsys):
    """A class that is nearly a known one is asked about; names of folders are in any letters."""
    write(folder / "Ant/00.csv", vectors("other", 1)[0])
    assert "did you mean" in refused(capsys, "sync", folder, "--state", state, "--yes")
    shutil.rmtree(folder / "Ant")
    write(folder / "Tasse à café" / "é.csv", vectors("tasse", 1)[0])
    (folder / "Tasse à café" / os.fsdecode(b"\xff.csv")).write_bytes((folder / "ant/00.csv").read_bytes())
    assert said(folder, state, capsys, "--yes")["learn"] == {"Tasse à café": 2}
    assert not said(folder, state, capsys)["learn"]


def test_through_a_daemon(folder, tmp_path, capsys):
    with serving(tmp_path / "state", classes=("wasp",), control=(30, 30)) as (service, *_):
        assert said(folder, service.path, capsys, "--yes")["learn"] == dict.fromkeys(CLASSES, 12)
        (folder / "bee/00.csv").rename(folder / "cat/moved.csv")
        (folder / "cat/00.csv").unlink()
        found = said(folder, service.path, capsys, "--yes")
        assert found["remove"] == {"cat": 1} and found["move"] == [{"from": "bee", "to": "cat", "samples": 1}]
        assert {each["name"]: each["samples"] for each in service.classes()}["bee"] == 11
        found = said(folder, service.path, capsys)
        assert not (found["learn"] or found["remove"] or found["move"])


RUN = """
import os, signal, sys
from edgecl.cli import main
from edgecl.state.store import Store
count, real = 0, Store.commit
def commit(self, change):
    global count
    done = real(self, change)
    count += 1
    if count == int(sys.argv[3]):
        os.kill(os.getpid(), getattr(signal, sys.argv[4]))
    return done
Store.commit = commit
raise SystemExit(main(["sync", sys.argv[2], "--state", sys.argv[1], "--yes"]))
"""


@pytest.mark.parametrize("how", ["SIGINT", "SIGKILL"])
@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_what_is_cut_off_is_completed(how, after, folder, state, tmp_path, capsys):
    """Ctrl-C and a kill after each change."""
    (folder / "bee/03.csv").rename(folder / "cat/from-bee.csv")
    (folder / "ant/00.csv").unlink()
    for label in ("cat", "dog"):
        write(folder / label / "new.csv", vectors(label, 1, 7)[0])
        write(folder / label / "new2.csv", vectors(label, 1, 8)[0])
    made = subprocess.run([sys.executable, "-c", RUN, state, folder, str(after), how], capture_output=True, text=True,
                          timeout=600)
    assert made.returncode in ((130,) if how == "SIGINT" else (-signal.SIGKILL,)), made.stderr
    if how == "SIGINT":
        assert "the same command goes on" in made.stderr
    assert sync(folder, state, "--yes") == 0
    capsys.readouterr()
    assert_follows(folder, state, tmp_path, capsys)


def test_which_sources_are_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    within = Within(tmp_path / "a")
    assert within("a/b.jpg") == within(f"{tmp_path}/a/b.jpg") == str(tmp_path / "a/b.jpg")
    for other in ("", "b.jpg", "ab/c.jpg", f"{tmp_path}/ab/c.jpg", "camera:/dev/video0", "udp:1.2.3.4:5",
                  str(tmp_path)):
        assert within(other) is None
    whole = f"{tmp_path}/a/" + "x" * 240 + "/c.jpg"
    assert within(whole.encode()[-255:].decode()) == whole
    assert within(("y" * 300)[-255:]) is None
