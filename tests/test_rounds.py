"""Learning rounds as a person types them: taken or refused, by every method that tunes; what can't be done is said."""
from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from helpers_networks import convolutions, photos
from helpers_state import create, refused, vectors

from edgecl.cli import main
from edgecl.errors import BadInput, StateError
from edgecl.learner import Learner
from edgecl.rounds.method import method_names, read_method
from edgecl.rounds.run import RoundRequest
from edgecl.settings import Settings
from edgecl.training.bench.session import MethodRun

OTHERS = [name for name in method_names() if any(row.bench_only for _, row in read_method(name).rows())]
TUNING = [name for name in method_names() if read_method(name).tuned != "none" and name not in OTHERS]
KINDS = ["ash", "elm", "fir", "oak"]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]


def taught(path, kinds=KINDS, **settings):
    """A state with a small tunable backbone that knows stripes of several kinds."""
    (path / "net.onnx").write_bytes(convolutions())
    learner = Learner.create(path / "state", Settings(backbone=str(path / "net.onnx"), quota=4_000_000,
                                                      exemplars=1_200_000, **{"codec": "raw", **settings}))
    for kind in kinds:
        learner.learn(photos(KINDS.index(kind), 60), kind)
    return learner


def accuracy(learner):
    right = [answer.label == kind for place, kind in enumerate(KINDS)
             for answer in learner.predict(photos(place, 40, seed=1))]
    return float(np.mean(right))


def keeps(method):
    """Whether its first constraint keeps something after a round, by a round of the benchmark."""
    run = MethodRun(method, "mlp", (8,), "float32", 10**6, 0)
    run.learn(np.random.default_rng(0).standard_normal((20, 8)).astype(np.float32), np.arange(20) % 2)
    return any(name.startswith("constraint0/") for name in run.state())


@pytest.mark.parametrize("method", TUNING)
def test_every_method_that_tunes_does_so_in_a_state(method, tmp_path):
    learner = taught(tmp_path)
    before, heads = accuracy(learner), learner.status().head
    epochs = 1 if read_method(method).parts["memory"] == ("greedy",) else 8     # GDumb makes 30 of each
    done = learner.round(RoundRequest(method, seconds=600, memory=10**9, epochs=epochs))
    assert done.steps == done.planned_steps > 0
    assert [name for name, _, _ in done.checks][:5] == ["digest", "size", "form", "parity", "latency"]
    assert all(passed for name, _, passed in done.checks if name not in ("accuracy", "regression"))
    last = learner.history()[-1]
    assert last.action == "round"
    assert last.detail["method"] == method
    if done.accepted:
        assert learner.status().generation == done.generation == last.id
        assert accuracy(learner) > before
        with np.load(io.BytesIO(learner.store.parts())) as kept:
            assert sorted(kept["classes"]) == KINDS
            assert any(name.startswith("constraint0/") for name in kept.files) == keeps(method)
        learner.rollback()
    else:
        assert last.detail["refused"]
    assert (accuracy(learner), learner.status().head) == (before, heads)


@pytest.mark.parametrize("method", OTHERS)
def test_a_method_that_a_state_cannot_serve_is_refused_with_the_cure(method, tmp_path):
    learner = taught(tmp_path, KINDS[:2])
    with pytest.raises(BadInput, match="edgecl bench"):
        learner.round(RoundRequest(method, seconds=600, memory=10**9))
    assert learner.history()[-1].action == "learn"


def test_a_round_makes_a_backbone_better_and_later_ones_go_on_from_it(tmp_path, capsys):
    learner = taught(tmp_path, KINDS[:2])
    learner.close()
    state = str(tmp_path / "state")
    assert main(["round", "--state", state, "--time", "10m", "--memory", "1GB", "--epochs", "40", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["method"] == "first-session"
    assert first["accepted"], first["checks"]
    assert first["memory_limit_bytes"] == 10**9
    assert 0 < first["peak_rss_bytes"] <= 1.05e9
    learner = Learner.open(state)
    for kind in KINDS[2:]:
        learner.learn(photos(KINDS.index(kind), 60), kind)
    learner.close()
    assert main(["round", "--state", state, "--time", "10m", "--memory", "1GB", "--epochs", "40", "--json"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert second["method"] == "er"
    assert set(second["accuracy"]) == set(KINDS)
    assert main(["history", "--state", state]) == 0
    assert "first-session" in capsys.readouterr().out
    assert accuracy(Learner.open(state)) > 0.5


def test_a_state_of_features_is_tuned_by_an_adapter(tmp_path):
    learner = create(tmp_path / "state", quota=3_000_000, exemplars=200_000)
    for name in ("ant", "bee", "cat"):
        learner.learn(vectors(name, 40), name)
    done = learner.round(RoundRequest(seconds=600, memory=10**9))
    assert {name for name, _, passed in done.checks if not passed} <= {"accuracy", "regression"}
    assert learner.predict(vectors("bee", 5, seed=3))[0].label == "bee"


def test_a_second_round_on_features_puts_an_adapter_on_top_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr("edgecl.rounds.gate.check_accuracy", lambda *_: [])     # it is taken, whatever it is worth
    learner = create(tmp_path / "state", quota=6_000_000, exemplars=200_000)
    for name in ("ant", "bee", "cat"):
        learner.learn(vectors(name, 40), name)
    request = RoundRequest("ewc", seconds=600, memory=10**9, epochs=2)
    assert learner.round(request).accepted
    learner.learn(vectors("dog", 40), "dog")
    generation = learner.status().generation
    with pytest.raises(StateError, match=r"of the last round's adapter.*give --method er"):
        learner.round(request)
    assert learner.status().generation == generation
    assert learner.round(replace(request, method="er")).accepted
    assert learner.predict(vectors("bee", 5, seed=3))[0].label == "bee"
    backbone = learner.store.blob_path(learner.store.newest.backbone).read_bytes()
    names = {each.name for each in onnx.load_model_from_string(backbone).graph.initializer}
    assert {"adapter.up", "adapter1.up"} <= names
    monkeypatch.setattr("edgecl.rounds.run.ADAPTERS", 2)
    with pytest.raises(StateError, match="2 rounds have put an adapter behind the backbone already"):
        learner.round(replace(request, method="er"))


def test_what_can_not_be_done_is_refused_with_the_cure(tmp_path, capsys):
    learner = taught(tmp_path, KINDS[:3])
    learner.close()
    state = tmp_path / "state"
    generation = Learner.open(state).status().generation
    for words, wanted in (
            (["--method", "slda"], "slda tunes no backbone"),
            (["--method", "packnet"], "give --method er, or judge and export it with `edgecl bench`"),
            (["--method", "nothing"], "there is no method 'nothing'; give a .toml file or one of"),
            (["--time", "soon"], "'soon' is not a time; write it like"),
            (["--memory", "1MB"], "bytes of memory at least, 1000000 are allowed; give --memory "),
            (["--blocks", "77"], "blocks that can be tuned, not 77; give 1 to"),
            (["--epochs", "0"], "--epochs 0; give 1 or more"),
            (["--max-regression", "2"], "--max-regression 2.0; give a share"),
            (["--time", "1s", "--memory", "1GB"], "give --time")):
        assert wanted in refused(capsys, "round", "--state", state, *words)
    assert "there is no edgecl state" in refused(capsys, "round", "--state", tmp_path / "none")
    assert Learner.open(state).status().generation == generation
    assert not list(tmp_path.glob(".state-round-*"))


def test_too_few_samples_are_no_round(tmp_path, capsys):
    learner = taught(tmp_path, KINDS[:1])
    learner.close()
    assert "samples of 1 class are stored, a round needs 2" in refused(capsys, "round", "--state", tmp_path / "state")
