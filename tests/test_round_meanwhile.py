"""What happens to a state while a worker runs, or came of another one: nothing is lost, nothing mixed."""
from __future__ import annotations

import numpy as np
import pytest
from helpers_candidates import accept, by, candidate, linear, matrix, world
from helpers_state import DIMENSION, create, knowledge, vectors

from edgecl.backbones import build_identity
from edgecl.backbones.adapters import adapted, with_adapter
from edgecl.backbones.rocket import build_rocket
from edgecl.backbones.session import Backbone
from edgecl.errors import StateError
from edgecl.learner import Learner
from edgecl.rounds.candidate import Candidate, take_in
from edgecl.rounds.gate import BOUNDS
from edgecl.samples import sample_keys
from edgecl.settings import Settings

THREE = [("ant", 25, 0), ("wasp", 25, 0), ("cat", 25, 0)]


def adapter(seed: int) -> bytes:
    """The identity with an adapter behind it that changes something."""
    import onnx

    whole = onnx.load_model_from_string(with_adapter(build_identity(DIMENSION), 0))
    up = next(each for each in whole.graph.initializer if each.name == "adapter.up")
    values = np.random.default_rng(seed).normal(size=tuple(up.dims)).astype(np.float32) / 8
    up.CopyFrom(onnx.numpy_helper.from_array(values, "adapter.up"))
    return whole.SerializeToString()


def adapter_candidate(learner, model):
    known = learner.repository.known()
    held = {row.id for row in known.held_back()}
    found = {row.id: adapted(model, row.feature[None])[0] for row in known.stored}
    return Candidate("er", learner.store.current, model, found, frozenset(found) - held, b"parts")


def test_samples_that_came_while_the_worker_ran_go_through_the_new_backbone(learner, monkeypatch):
    model = adapter(1)
    made = adapter_candidate(learner, model)
    other = Learner.open(learner.store.path)
    other.learn(vectors("dog", 25), "dog")
    other.learn(vectors("ant", 10, 7), "ant")
    accept(learner, made, monkeypatch)
    known = learner.repository.known()
    assert known.plain.counts == {"ant": 35, "wasp": 25, "cat": 25, "dog": 25}
    seen = world(*THREE, ("dog", 25, 0), ("ant", 10, 7))
    for row in known.stored:
        np.testing.assert_allclose(row.feature, adapted(model, seen[row.key][None])[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(known.plain.mean("dog"), adapted(model, vectors("dog", 25)).mean(0), atol=1e-4)
    assert not any(row.trained for row in known.stored if row.label == "dog")
    assert {each.label for each in other.predict(vectors("dog", 9, 3))} == {"dog"}


def test_windows_that_came_while_the_worker_ran_are_read_from_what_is_kept_of_them(tmp_path, monkeypatch):
    def windows(label, count, seed=0):
        rng = np.random.default_rng([len(label), ord(label[0]), seed])
        pace = np.random.default_rng(ord(label[0])).uniform(0.05, 0.6, 2)
        waves = np.sin(np.arange(48)[:, None] * pace + rng.uniform(0, 6, (count, 1, 2)))
        return (waves + 0.1 * rng.normal(size=waves.shape)).astype(np.float32)

    learner = Learner.create(tmp_path / "state", Settings(backbone="rocket", quota=2_000_000, exemplars=200_000,
                                                          head="slda", codec="delta16"))
    for name in ("ant", "bee", "cat"):
        learner.learn(windows(name, 20), name)
    size = learner.foundation.dimension
    model = build_rocket(windows("z", 30), size, 5)
    new, known = Backbone(model), learner.repository.known()
    assert new.info.dimension == size
    codec = learner.foundation.buffer(learner.settings).codec.input
    found = {row.id: new.features(codec.decode(row.input)[None])[0] for row in known.stored}
    made = Candidate("er", learner.store.current, model, found, frozenset(), b"parts")
    Learner.open(learner.store.path).learn(windows("dog", 20), "dog")
    accept(learner, made, monkeypatch)
    rows = [row for row in learner.repository.known().stored if row.label == "dog"]
    assert len(rows) == 20
    expected = dict(zip(sample_keys(windows("dog", 20)), new.features(windows("dog", 20))))
    for row in rows:
        np.testing.assert_allclose(row.feature, expected[row.key], atol=0.06)  # int8 features of 16-bit windows
    assert {each.label for each in learner.predict(windows("dog", 9, 3))} == {"dog"}


def test_a_learn_that_a_round_overtook_goes_through_the_new_backbone(learner, monkeypatch):
    model, other = adapter(2), Learner.open(learner.store.path)
    learner.learn(vectors("dog", 25), "dog", progress=lambda _: other.store.tuned() or accept(
        other, adapter_candidate(other, model), monkeypatch))
    rows = [row for row in learner.repository.known().stored if row.label == "dog"]
    np.testing.assert_allclose(np.stack([row.feature for row in rows]), adapted(model, vectors("dog", 25)), rtol=1e-5,
                               atol=1e-5)
    assert knowledge(Learner.open(learner.store.path)) == knowledge(learner)
    assert {each.label for each in learner.predict(vectors("dog", 9, 3))} == {"dog"}


def test_a_learn_that_cannot_be_taken_along_is_refused_and_changes_nothing(learner, monkeypatch):
    other = Learner.open(learner.store.path)
    with pytest.raises(StateError, match=r"changed.*try again"):
        learner.learn(vectors("dog", 25), "dog", progress=lambda _: other.store.tuned() or accept(
            other, candidate(other, world(*THREE), matrix(1)), monkeypatch))
    assert [c.name for c in learner.classes()] == ["ant", "cat", "wasp"]
    assert knowledge(learner) == knowledge(other)
    learner.learn(vectors("dog", 25), "dog")
    rows = [row for row in learner.repository.known().stored if row.label == "dog"]
    np.testing.assert_allclose(np.stack([row.feature for row in rows]), by(matrix(1), vectors("dog", 25)), rtol=1e-3,
                               atol=1e-3)


@pytest.mark.parametrize("work", ["forget", "rollback", "round"])
def test_a_candidate_of_a_state_that_lost_something_meanwhile_is_refused(learner, monkeypatch, work):
    made, other = candidate(learner, world(*THREE), matrix(1)), Learner.open(learner.store.path)
    if work == "forget":
        other.forget("wasp")
    elif work == "rollback":
        other.rollback()
    else:
        accept(other, candidate(other, world(*THREE), matrix(2)), monkeypatch)
    before = knowledge(other)
    took = take_in(learner.repository, made, BOUNDS)
    assert took.generation is None
    assert [check.name for check in took.checks] == ["meanwhile"]
    assert work in took.checks[0].found
    assert knowledge(learner) == before


def test_states_of_different_backbones_are_not_merged(tmp_path, learner, monkeypatch):
    other = create(tmp_path / "other")
    for name, count, seed in (("cat", 25, 5), ("dog", 25, 0)):
        other.learn(vectors(name, count, seed), name)
    path = other.store.path
    accept(other, candidate(other, world(("cat", 25, 5), ("dog", 25, 0)), matrix(1)), monkeypatch)
    before = knowledge(learner)
    with pytest.raises(StateError, match=r"learning round.*before the first round"):
        learner.merge([path])
    assert knowledge(learner) == before
    empty = create(tmp_path / "empty")
    empty.merge([path])
    assert knowledge(empty)[0] == knowledge(other)[0]
    assert empty.store.tuned() is not None
    assert empty.forget("dog")["exact"] is False, "the backbone that it took over has seen it"
    other.rollback(max(g for g in other.store.restorable() if g < other.store.tuned()))
    learner.merge([path])
    assert [c.name for c in learner.classes()] == ["ant", "cat", "dog", "wasp"]
    assert linear(matrix(1)) not in [p.read_bytes() for p in learner.store.path.glob("models/*.onnx")]
