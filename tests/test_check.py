"""`edgecl check`: everything is read; what is damaged is named, repaired, and compared with what is right."""
from __future__ import annotations

import json
import os
import random
import shutil
from contextlib import suppress

import numpy as np
import pytest
from candidates import candidate, matrix, world
from helpers_daemon import serving
from helpers_state import answers, create, directory_bytes, error_of, flip, knowledge, refused, tree, vectors

from edgecl.cli import main
from edgecl.errors import EdgeclError
from edgecl.learner import Learner
from edgecl.learning.repair import check, repair
from edgecl.rounds import gate
from edgecl.rounds.candidate import take_in
from edgecl.runtime import control
from edgecl.runtime.client import Client
from edgecl.state.database import DATABASE_FILE
from edgecl.state.integrity import BAD

TIMES = int(os.environ.get("EDGECL_TIMES", 12))
QUOTA = 1_000_000


def half(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


def zeros(path):
    data = path.read_bytes()
    path.write_bytes(data[:len(data) // 4] + bytes(len(data) // 2) + data[3 * len(data) // 4:])


HURT = {"flip": lambda path: flip(path, path.stat().st_size // 2), "gone": lambda path: path.unlink(), "half": half,
        "empty": lambda path: path.write_bytes(b""), "zeros": zeros}


def vector_state(path):
    """Older heads and statistics, exemplars, a journal, and a class in the log."""
    learner = create(path, quota=QUOTA, exemplars=8_000)
    for name in ("ant", "bee"):
        learner.learn(vectors(name, 25), name)
    learner.learn(vectors("cat", 1200), "cat")
    learner.learn(vectors("dog", 25), "dog")
    return learner


def coded_state(path):
    """Exemplars as product codes, with their codebook."""
    learner = create(path, quota=400_000, exemplars=6_000, codec="auto")
    for number in range(6):
        learner.learn(vectors(f"class {number}", 60, dimension=64), f"class {number}")
    assert learner.store.codebook
    return learner


def tuned_state(path):
    """A round has given all samples other features."""
    learner = create(path, quota=QUOTA, exemplars=40_000)
    for name in ("ant", "bee", "cat"):
        learner.learn(vectors(name, 25), name)
    accuracy, gate.check_accuracy = gate.check_accuracy, lambda *_: []
    try:
        seen = world(*((name, 25, 0) for name in ("ant", "bee", "cat")))
        assert take_in(learner.repository, candidate(learner, seen, matrix(1)), gate.BOUNDS).generation
    finally:
        gate.check_accuracy = accuracy
    learner.learn(vectors("dog", 25), "dog")
    return learner


def statistics_state(path):
    """No samples at all."""
    learner = create(path, quota=QUOTA, memory="statistics")
    for name in ("ant", "bee", "cat"):
        learner.learn(vectors(name, 60), name)
    return learner


STATES = {"vectors": vector_state, "coded": coded_state, "tuned": tuned_state, "statistics": statistics_state}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A state of each kind, closed."""
    folder = tmp_path_factory.mktemp("states")
    for name, make in STATES.items():
        make(folder / name).close()
    return folder


@pytest.fixture(params=STATES)
def state(request, made, fast_path):
    return shutil.copytree(made / request.param, fast_path / request.param)


@pytest.fixture
def vectors_state(made, fast_path):
    return shutil.copytree(made / "vectors", fast_path / "vectors")


def checked(capsys, state, *options):
    """Exit code and JSON of the command."""
    code = main(["check", "--json", "--state", str(state), *options])
    return code, json.loads(capsys.readouterr().out)


def probe_of(learner):
    return np.random.default_rng(1).normal(size=(20, learner.foundation.dimension)).astype(np.float32) * 3


def summary(state):
    """What a state knows: counts, means and scatter, as one array of float64, and the samples that it keeps."""
    learner = Learner.open(state)
    try:
        plain = learner.repository.known().plain
        sums = [plain.counts[name] * plain.mean(name) for name in plain.labels]
        return np.concatenate([list(plain.counts.values()), *sums, plain.scatter().ravel()]), knowledge(learner)[1]
    finally:
        learner.close()


def files_of(report, *verdicts):
    return {each["file"] for each in report["files"] if each["verdict"] in (verdicts or BAD)}


def test_an_intact_state_is_read_whole_and_nothing_is_changed(state, capsys):
    before = tree(state)
    code, report = checked(capsys, state)
    assert (code, report["intact"], report["done"]) == (0, True, [])
    assert files_of(report, "intact") == set(before) - {"reserved"}
    assert tree(state) == before
    code, report = checked(capsys, state, "--repair")
    assert (code, report["intact"], report["done"]) == (0, True, [])
    assert tree(state) == before
    assert checked(capsys, state, "--discard") == (0, {"discarded": 0})


def every_file(state):
    return sorted(path for path in state.rglob("*") if path.is_file() and path.name != "reserved")


@pytest.mark.parametrize("how", HURT)
def test_every_damage_of_every_file_is_found_and_repaired_and_no_bytes_are_deleted(state, fast_path, capsys, how):
    wanted = summary(state)
    for victim in every_file(state):
        name = str(victim.relative_to(state))
        copy = shutil.copytree(state, fast_path / "copy")
        HURT[how](copy / name)
        before, bad = tree(copy), (copy / name).read_bytes() if (copy / name).exists() else None
        code, report = checked(capsys, copy)
        assert tree(copy) == before, name
        if name in ("acknowledged", "edgecl.copy") and how == "gone":
            assert code == 0
        else:
            assert code == 1 and any(each.startswith(name) for each in files_of(report)), name
        code, report = repaired(capsys, copy)
        kept = {path.read_bytes() for path in copy.rglob("*") if path.is_file()}
        assert not bad or bad in kept or name in ("acknowledged", "edgecl.copy"), name
        assert directory_bytes(copy, reserve=False) <= QUOTA, name
        if code:    # a file that nothing can give again: it goes on being named
            assert files_of(report) == {name}, (name, report)
            assert name.endswith((".npz", ".onnx")), name
        else:
            assert report["intact"], name
            if victim.suffix not in (".npz", ".exemplars", ".codebook", ".log", ".features", ".journal"):
                found = summary(copy)
                assert np.allclose(found[0], wanted[0], rtol=1e-4, atol=1e-2), name
                assert found[1] == wanted[1], name
            learns_on(copy, name)
        shutil.rmtree(copy)


def repaired(capsys, state):
    code = main(["check", "--json", "--repair", "--state", str(state)])
    out, err = capsys.readouterr()
    if not out:
        assert "Traceback" not in err and err.count("\n") == 1, err
        return checked(capsys, state)
    return code, json.loads(out)


def learns_on(state, name):
    learner = Learner.open(state)
    learner.learn(vectors("new", 30, dimension=learner.foundation.dimension), "new")
    learner.forget("new")
    learner.close()
    assert check(state).intact, name
    again = Learner.open(state)
    assert isinstance(answers(again, probe_of(again)), list), name
    again.close()


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


def test_statistics_of_a_state_without_samples_are_not_made_up(made, fast_path, capsys):
    state = shutil.copytree(made / "statistics", fast_path / "state")
    learner = Learner.open(state)
    names, before = {g.snapshot for g in learner.store.alive() if g.snapshot}, answers(learner)
    learner.close()
    for name in names:
        flip(state / "models" / name)
    hurt = {(state / "models" / name).read_bytes() for name in names}
    code, report = checked(capsys, state, "--repair")
    assert code == 1 and "edgecl restore" in next(each["lost"] for each in report["files"] if each["verdict"] in BAD)
    assert answers(Learner.open(state)) == before
    assert hurt <= {path.read_bytes() for path in every_file(state)}


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


def test_older_statistics_are_taken_if_they_know_more(made, fast_path, capsys):
    state = shutil.copytree(made / "statistics", fast_path / "state")
    learner = Learner.open(state)
    newest = learner.store.newest.snapshot
    learner.close()
    flip(state / "models" / newest)
    [cure] = [each["cure"] for each in checked(capsys, state)[1]["files"] if each["cure"]]
    assert "nothing is left of 'cat'" in cure
    code, report = checked(capsys, state, "--repair")
    assert code == 0 and any("from 120 of 180 samples; nothing is left of 'cat'" in line for line in report["done"])
    learner = Learner.open(state)
    assert {each.name: each.samples for each in learner.classes()} == {"ant": 60, "bee": 60}


def test_a_damaged_codebook_costs_the_exemplars_that_it_coded_and_nothing_else(made, fast_path, capsys):
    state = shutil.copytree(made / "coded", fast_path / "state")
    learner = Learner.open(state)
    book, counts = learner.store.meta["codebooks"][-1][0], dict(learner.repository.known().plain.counts)
    exemplars = learner.status().exemplars
    learner.close()
    flip(state / "models" / book, 400)
    assert f"models/{book}" in files_of(checked(capsys, state)[1])
    learner = Learner.open(state)
    assert any(book in line for line in learner.damage)
    assert learner.status().exemplars < exemplars
    learner.learn(vectors("new", 30, dimension=64), "new")
    assert learner.repository.known().plain.counts == {**counts, "new": 30}
    learner.close()
    assert checked(capsys, state, "--repair")[0] == 0
    assert Learner.open(state).repository.known().plain.counts == {**counts, "new": 30}


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
    assert capsys.readouterr().out == "1 set-aside file deleted\n"


@pytest.mark.parametrize("kind", STATES)
def test_random_damage_is_found_and_repaired_or_told(made, fast_path, kind, capsys):
    choose, state = random.Random(kind), fast_path / "state"
    for number in range(TIMES):
        shutil.copytree(made / kind, state)
        for victim in choose.sample(every_file(state), choose.choice((1, 1, 2, 4))):
            size = victim.stat().st_size
            if choose.random() < 0.7 and size:
                flip(victim, choose.randrange(size))
            else:
                victim.write_bytes(victim.read_bytes()[:choose.randrange(size + 1)])
        report = check(state)
        if refusal := error_of(lambda: Learner.open(state).close()):
            assert "edgecl restore" in refusal.cure, number
            shutil.rmtree(state)
            continue
        learner = Learner.open(state)
        with suppress(EdgeclError):
            done = repair(learner.repository)
            assert report.intact or done.intact or all(
                each.lost for each in done.findings if each.verdict in BAD), (number, done)
        learner.close()
        if check(state).intact:
            learns_on(state, number)
        assert directory_bytes(state, reserve=False) <= QUOTA
        shutil.rmtree(state)


def test_through_the_daemon(tmp_path, monkeypatch, capsys):
    with serving(tmp_path / "state", control=(240.0, 240.0)) as (service, _, _):
        code, report = checked(capsys, tmp_path / "state")
        assert code == 0
        victim = [tmp_path / "state" / each["file"] for each in report["files"] if each["what"].startswith("head")][-1]
        flip(victim)
        code, report = checked(capsys, tmp_path / "state")
        assert code == 1 and files_of(report) == {f"models/{victim.name}"}
        with Client(tmp_path / "state/control.sock") as client:
            assert client.ask("check")["intact"] is False
            monkeypatch.setattr(control.control_clients, "user_of", lambda _: 12345)
            with Client(tmp_path / "state/control.sock") as other:
                for command in ("repair", "discard"):
                    with pytest.raises(EdgeclError, match="may not change"):
                        other.ask(command)
                assert other.ask("check")["intact"] is False
            assert client.ask("repair")["intact"] is True
            assert client.ask("discard") == 1
        assert service.predict(vectors("ant", 2))[0]["label"] == "ant"
