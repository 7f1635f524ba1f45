"""What is had again after damage: statistics from older ones, a backbone by its hash."""
from __future__ import annotations

import numpy as np
import pytest
from candidates import candidate, linear, matrix, world
from helpers_state import DIMENSION, answers, create, flip, knowledge, refused, vectors

from edgecl.errors import BudgetError, StateError
from edgecl.learner import Learner
from edgecl.learning.repair import repair
from edgecl.rounds import gate
from edgecl.rounds.candidate import take_in
from edgecl.runtime.service import Service
from edgecl.runtime.settings import DaemonSettings
from edgecl.settings import Settings, short_names

NAMES = ("ant", "bee", "cat")
HURT = [flip, lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(b"")]
IDS = ["flip", "gone", "short", "empty"]


def statistics(learner):
    known = learner.repository.known()
    return {name: (n, known.plain.mean(name)) for name, n in known.plain.counts.items()}, known.plain.scatter()


@pytest.fixture
def rewritten(tmp_path):
    """A state whose newest statistics are a sum of older ones and samples that are all stored."""
    learner = create(tmp_path / "state", exemplars=8_000)
    taught = 0
    while len(snapshots(learner)) < 2:
        few = learner.store.log.length > 63_000     # the last ones are a class of their own, whose samples all stay
        name = "few" if few else NAMES[taught % 3]
        learner.learn(vectors(name, 2 if few else 30, taught), name)
        taught += 1
    learner.learn(vectors("elk", 25), "elk")
    return learner


def snapshots(learner):
    return [g for g in learner.store.alive() if g.snapshot]


@pytest.mark.parametrize("hurt", HURT, ids=IDS)
def test_damaged_statistics_are_computed_from_older_ones_if_every_sample_since_is_stored(rewritten, hurt):
    shown, before, newest = answers(rewritten), statistics(rewritten), snapshots(rewritten)[-1]
    samples = {each.name: each.samples for each in rewritten.classes()}
    rewritten.close()
    hurt(rewritten.store.path / "models" / newest.snapshot)
    learner = Learner.open(rewritten.store.path)
    after = statistics(learner)
    assert before[0].keys() == after[0].keys()
    assert all(n == after[0][name][0] and np.allclose(mean, after[0][name][1], atol=1e-5)
               for name, (n, mean) in before[0].items())
    assert np.allclose(before[1], after[1], rtol=1e-4, atol=1e-2)
    assert [each[0] for each in answers(learner)] == [each[0] for each in shown]
    assert any(newest.snapshot in line for line in learner.damage)
    learner.learn(vectors("fox", 25), "fox")
    known = knowledge(learner)
    learner.close()
    learner = Learner.open(rewritten.store.path)
    assert knowledge(learner) == known
    assert {each.name: each.samples for each in learner.classes()} == samples | {"fox": 25}


@pytest.mark.parametrize("hurt", HURT, ids=IDS)
def test_the_only_statistics_are_learned_again_from_the_samples_if_all_are_stored(tmp_path, hurt):
    learner = create(tmp_path / "state", exemplars=100_000)
    for name in NAMES:
        learner.learn(vectors(name, 25), name)
    learner.forget("bee")       # no older statistics are left
    learner.learn(vectors("elk", 25), "elk")
    shown, before, newest = answers(learner), statistics(learner), snapshots(learner)[-1]
    learner.close()
    hurt(tmp_path / "state/models" / newest.snapshot)
    learner = Learner.open(tmp_path / "state")
    after = statistics(learner)
    assert {name: n for name, (n, _) in after[0].items()} == {"ant": 25, "cat": 25, "elk": 25}
    assert np.allclose(before[1], after[1], rtol=1e-4, atol=1e-3)
    assert answers(learner) == shown
    learner.learn(vectors("fox", 25), "fox")
    known = knowledge(learner)
    learner.close()
    assert knowledge(Learner.open(tmp_path / "state")) == known


def test_statistics_are_not_computed_from_older_ones_if_samples_are_missing(tmp_path, capsys):
    learner = create(tmp_path / "state", exemplars=8_000)
    for name in ("ant", "bee"):
        learner.learn(vectors(name, 25), name)
    learner.learn(vectors("dog", 1500), "dog")
    newest, shown = learner.store.newest.snapshot, answers(learner)
    learner.close()
    flip(tmp_path / "state/models" / newest)
    learner = Learner.open(tmp_path / "state")
    with pytest.raises(StateError, match="--repair"):
        learner.learn(vectors("elk", 25), "elk")
    assert answers(learner) == shown


def test_beside_damaged_statistics_what_answers_is_shown(tmp_path):
    learner = create(tmp_path / "state", exemplars=8_000)
    for name in ("ant", "bee"):
        learner.learn(vectors(name, 25), name)
    learner.learn(vectors("dog", 1500), "dog")
    shown = answers(learner), learner.classes(), learner.status().head
    learner.learn(vectors("elk", 5), "elk")     # nobody asks for its head
    learner.store.close()
    flip(tmp_path / "state/models" / snapshots(Learner.open(tmp_path / "state"))[-1].snapshot)
    learner = Learner.open(tmp_path / "state")
    assert (answers(learner), learner.classes(), learner.status().head) == shown
    assert learner.status().warnings
    learner.close()
    service = Service(Learner.open(tmp_path / "state"), DaemonSettings(tmp_path / "state"))
    service.start()
    try:
        assert [each["name"] for each in service.classes()] == ["ant", "bee", "dog"]
        assert service.predict(vectors("ant", 2))[0]["label"] == "ant"
    finally:
        assert service.stop(60)


def test_statistics_are_not_computed_from_those_by_another_backbone(rewritten, monkeypatch):
    monkeypatch.setattr(gate, "check_accuracy", lambda *_: [])
    seen = world(("elk", 25, 0), *((name, 30, seed) for name in NAMES for seed in range(100)),
                 *(("few", 2, number) for number in range(200)))
    assert take_in(rewritten.repository, candidate(rewritten, seen, matrix(1)), gate.BOUNDS).generation
    newest = snapshots(rewritten)[-1].snapshot
    rewritten.close()
    flip(rewritten.store.path / "models" / newest)
    with pytest.raises(StateError, match="--repair"):
        Learner.open(rewritten.store.path).learn(vectors("fox", 25), "fox")


# backbones ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("hurt", HURT, ids=IDS)
def test_a_damaged_backbone_is_built_again_and_written_back(learner, hurt):
    shown, name = answers(learner), learner.store.newest.backbone
    learner.close()
    hurt(learner.store.path / "models" / name)
    learner = Learner.open(learner.store.path)
    assert answers(learner) == shown
    assert any(name in line and "identity" in line for line in learner.damage)
    learner.learn(vectors("dog", 25), "dog")
    assert learner.store.blobs.intact(name)
    learner.close()
    assert answers(Learner.open(learner.store.path)) != "StateError"


def users_own(folder):
    (folder / "mine").mkdir(exist_ok=True)
    path = folder / "mine" / "net.onnx"
    path.write_bytes(linear(matrix(3)))
    return path


@pytest.fixture
def adopted(tmp_path, monkeypatch):
    """A state with a backbone of the user's own, named by a relative path, and that file."""
    path = users_own(tmp_path)
    monkeypatch.chdir(tmp_path / "mine")
    learner = Learner.create(tmp_path / "state", Settings(backbone="net.onnx", quota=1_000_000, exemplars=20_000))
    for name in ("ant", "bee"):
        learner.learn(vectors(name, 25), name)
    learner.close()
    monkeypatch.chdir(tmp_path)
    return learner, path


@pytest.mark.parametrize("hurt", HURT, ids=IDS)
def test_a_backbone_of_the_users_own_is_read_from_its_file_again(adopted, hurt):
    learner, _ = adopted
    before = Learner.open(learner.store.path)
    shown, name = answers(before), before.store.newest.backbone
    hurt(learner.store.path / "models" / name)
    again = Learner.open(learner.store.path)
    assert answers(again) == shown
    assert again.store.blobs.intact(name)


@pytest.mark.parametrize("lost", ["gone", "another"])
def test_a_backbone_that_is_not_to_be_had_is_told_with_file_hash_and_cure(adopted, capsys, photos, lost):
    learner, path = adopted
    name = Learner.open(learner.store.path).store.newest.backbone
    path.unlink() if lost == "gone" else path.write_bytes(linear(matrix(4)))
    flip(learner.store.path / "models" / name)
    line = refused(capsys, "predict", "--state", learner.store.path, photos)
    assert short_names(name) in line and str(path) in line and "edgecl restore" in line and "copy models/" in line


def test_a_tuned_backbone_is_not_mistaken_for_its_source(rewritten, monkeypatch):
    monkeypatch.setattr(gate, "check_accuracy", lambda *_: [])
    seen = world(("elk", 25, 0), *((name, 30, seed) for name in NAMES for seed in range(100)),
                 *(("few", 2, number) for number in range(200)))
    before = answers(rewritten)
    assert take_in(rewritten.repository, candidate(rewritten, seen, matrix(1)), gate.BOUNDS).generation
    name = rewritten.store.newest.backbone
    rewritten.close()
    flip(rewritten.store.path / "models" / name)
    learner = Learner.open(rewritten.store.path)
    assert answers(learner) == before       # the generation before it answers
    assert any("instead of" in line or "damaged" in line for line in learner.damage)


def test_a_backbone_without_room_to_be_written_back_serves_from_memory(learner, monkeypatch):
    shown, name = answers(learner), learner.store.newest.backbone
    learner.close()
    path = learner.store.path / "models" / name
    flip(path)
    hurt = path.read_bytes()
    learner = Learner.open(learner.store.path)
    monkeypatch.setattr(learner.store.ledger, "quota", learner.store.used_bytes() + 100)
    assert answers(learner) == shown
    assert path.read_bytes() == hurt
    assert any(name in line for line in learner.damage)
    with pytest.raises(BudgetError, match="--discard"):
        repair(learner.repository)
    assert path.read_bytes() == hurt


def test_the_cache_gives_a_backbone_by_its_hash(adopted, tmp_path, monkeypatch):
    learner, path = adopted
    name = Learner.open(learner.store.path).store.newest.backbone
    content = (learner.store.path / "models" / name).read_bytes()
    monkeypatch.setenv("EDGECL_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "backbones-0.0.1").mkdir(parents=True)
    kept = tmp_path / "cache" / "backbones-0.0.1" / f"some.{name.partition('.')[0]}.onnx"
    path.unlink()
    flip(learner.store.path / "models" / name)
    kept.write_bytes(content[:-1] + b"x")
    with pytest.raises(StateError, match="can't be had again"):
        Learner.open(learner.store.path).predict(vectors("ant", 1))
    kept.write_bytes(content)
    assert Learner.open(learner.store.path).predict(vectors("ant", 1))[0].label == "ant"


def test_another_state_that_is_merged_may_have_a_damaged_backbone(learner, tmp_path):
    other = create(tmp_path / "other")
    other.learn(vectors("elk", 25), "elk")
    name = other.store.newest.backbone
    other.close()
    flip(tmp_path / "other/models" / name)
    fresh = create(tmp_path / "fresh")
    fresh.merge([tmp_path / "other"])
    assert [each.name for each in fresh.classes()] == ["elk"]
    assert fresh.predict(np.zeros((1, DIMENSION), np.float32))[0].label == "elk"
