"""`edgecl check`: everything is read; what is damaged is named, repaired, and compared with what is right."""
from __future__ import annotations

import os
import random
import shutil
from contextlib import suppress

import numpy as np
import pytest
from helpers_check import QUOTA, STATES, checked, every_file, files_of, half, learns_on, repaired, summary, zeros
from helpers_daemon import serving
from helpers_state import answers, directory_bytes, error_of, flip, tree, vectors

from edgecl.errors import EdgeclError
from edgecl.learner import Learner
from edgecl.learning.repair import check, repair
from edgecl.runtime import control
from edgecl.runtime.client import Client
from edgecl.state.integrity import BAD

TIMES = int(os.environ.get("EDGECL_TIMES", 12))
HURT = {"flip": lambda path: flip(path, path.stat().st_size // 2), "gone": lambda path: path.unlink(), "half": half,
        "empty": lambda path: path.write_bytes(b""), "zeros": zeros}


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
