"""What an accepted learning round leaves in the state, and the way back across it."""
from __future__ import annotations

import numpy as np
import pytest
from helpers_candidates import accept, by, candidate, linear, matrix, world
from helpers_state import DIMENSION, PROBE, answers, create, directory_bytes, fingerprint, knowledge, traces, vectors

from edgecl.learner import Learner
from edgecl.state.store import Store
from edgecl.statistics.class_statistics import ClassStatistics

THREE = [("ant", 25, 0), ("wasp", 25, 0), ("cat", 25, 0)]


def kinds(learner, suffix):
    return sorted(path.name for path in learner.store.path.glob(f"models/*.{suffix}"))


def scatter(learner):
    known = learner.repository.known()
    return known.plain.counts, known.plain.pooled({}).means, known.plain.pooled({}).second()


@pytest.mark.parametrize("head", ["slda", "auto"])
def test_the_statistics_of_a_round_are_those_of_the_new_features(tmp_path, head, monkeypatch):
    one = create(tmp_path / "one", exemplars=40_000, head=head)
    whole = [(name, 40, seed) for name in ("ant", "wasp", "cat", "dog") for seed in (0, 1)]
    for name, count, seed in whole:
        one.learn(vectors(name, count, seed), name)
    weight = matrix(1)
    accept(one, candidate(one, world(*whole), weight), monkeypatch)
    afresh = create(tmp_path / "afresh", exemplars=40_000, head=head)
    for name, count, seed in whole:
        afresh.learn(by(weight, vectors(name, count, seed)), name)
    assert scatter(one)[0] == scatter(afresh)[0]
    np.testing.assert_allclose(scatter(one)[1], scatter(afresh)[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scatter(one)[2], scatter(afresh)[2], rtol=1e-4, atol=1e-4)
    asked = [(each.label, each.unknown) for each in one.predict(PROBE)]
    if head == "slda":  # its judging samples are others, so that only what is far from a border must agree
        assert np.mean([a == b.label for (a, _), b in zip(asked, afresh.predict(by(weight, PROBE)))]) > 0.9
    served = one.serving()
    np.testing.assert_allclose(served.backbone.features(PROBE), by(weight, PROBE), rtol=1e-4, atol=1e-4)
    assert {label for label, *_ in asked} <= {"ant", "wasp", "cat", "dog"}


def test_a_round_is_read_back_bit_for_bit_and_learning_goes_on(learner, monkeypatch):
    accept(learner, candidate(learner, world(*THREE), matrix(1)), monkeypatch)
    before = answers(learner), knowledge(learner)
    other = Learner.open(learner.store.path)
    assert (answers(other), knowledge(other)) == before
    learner.learn(vectors("dog", 25), "dog")
    assert knowledge(other) == knowledge(learner)
    assert answers(other) == answers(learner)
    dog = [row for row in learner.repository.known().stored if row.label == "dog"]
    np.testing.assert_allclose(np.stack([row.feature for row in dog]), by(matrix(1), vectors("dog", 25)), rtol=1e-4,
                               atol=1e-4)
    assert not any(row.trained for row in dog)
    assert {each.label for each in learner.predict(vectors("dog", 9, 3))} == {"dog"}


def test_several_rounds_in_a_row_each_with_classes_between(learner, monkeypatch):
    taught, path = [*THREE], learner.store.path
    for number in range(4):
        weight = matrix(number)
        accept(learner, candidate(learner, world(*taught), weight), monkeypatch)
        taught.append((f"new {number}", 25, 0))
        learner.learn(vectors(*taught[-1]), taught[-1][0])
        for row in learner.repository.known().stored:
            np.testing.assert_allclose(row.feature, by(weight, world(*taught)[row.key]), rtol=1e-3, atol=1e-3)
        again = Learner.open(path)
        assert knowledge(again) == knowledge(learner)
        assert len({row.id for row in again.repository.known().stored}) == 25 * len(taught)
        assert len(kinds(learner, "features")) <= 2 * 2
        again.close()
    assert [c.samples for c in learner.classes()] == [25] * 7
    for name, *_ in taught:
        assert {each.label for each in learner.predict(vectors(name, 9, 3))} == {name}


def test_the_old_features_are_written_over_when_no_way_back_needs_them(learner, monkeypatch):
    accept(learner, candidate(learner, world(*THREE), matrix(1)), monkeypatch)
    assert kinds(learner, "features")
    first = len(kinds(learner, "onnx"))
    for name in ("dog", "elk"):
        learner.learn(vectors(name, 1500), name)  # so many that the statistics are written anew
    assert not kinds(learner, "features")
    assert len(kinds(learner, "onnx")) <= first + 2
    assert len({g.backbone for g in learner.store.alive() if g.backbone}) == 2, "an old head may still serve"
    assert kinds(learner, "parts"), "the next round begins with it"
    seen = world(*THREE, ("dog", 1500, 0), ("elk", 1500, 0))
    for row in learner.repository.known().exemplars():
        np.testing.assert_allclose(row.feature, by(matrix(1), seen[row.key]), rtol=1e-3, atol=1e-3)
    assert {row.label for row in learner.repository.known().exemplars() if row.trained} == {"ant", "wasp", "cat"}
    assert knowledge(Learner.open(learner.store.path)) == knowledge(learner)


def test_bytes_hold_at_every_step_of_rounds(tmp_path, monkeypatch):
    quota, limit = 400_000, 6_000
    learner, taught = create(tmp_path / "state", quota=quota, exemplars=limit), []
    for number in range(3):
        for name in (f"a{number}", f"b{number}"):
            taught.append((name, 60, 0))
            learner.learn(vectors(*taught[-1]), name)
            assert directory_bytes(learner.store.path) <= quota
        accept(learner, candidate(learner, world(*taught), matrix(number)), monkeypatch)
        assert directory_bytes(learner.store.path) <= quota
        exemplars = learner.store.path.glob("models/*.exemplars")
        assert sum(path.stat().st_size for path in exemplars) <= limit
        assert learner.status().exemplar_bytes <= limit
    learner.learn(vectors("flood", 3000), "flood")
    assert directory_bytes(learner.store.path) <= quota
    assert sum(path.stat().st_size for path in learner.store.path.glob("models/*.exemplars")) <= limit
    assert knowledge(Learner.open(learner.store.path)) == knowledge(learner)


def test_the_way_back_across_a_round_is_exact(learner, monkeypatch):
    path, store = learner.store.path, learner.store
    before, then = (answers(learner), knowledge(learner)), store.newest
    accept(learner, candidate(learner, world(*THREE), matrix(1)), monkeypatch)
    learner.learn(vectors("dog", 25), "dog")
    assert answers(learner) != before[0]
    assert then.id in store.restorable()
    learner.rollback(then.id)
    assert (answers(learner), knowledge(learner)) == before
    assert store.newest.backbone == then.backbone
    assert not kinds(learner, "features")
    assert not kinds(learner, "parts")
    assert store.tuned() is None
    named = {name for g in store.alive() for name in (g.backbone, g.head, g.snapshot) if name}
    assert {file.name for file in (path / "models").iterdir()} <= named | {name for name, in store.query(
        "SELECT name FROM files")}
    other = Learner.open(path)
    assert (answers(other), knowledge(other)) == before
    learner.learn(vectors("elk", 25), "elk")
    taught = [*THREE, ("elk", 25, 0)]
    accept(learner, candidate(learner, world(*taught), matrix(2)), monkeypatch)
    for row in learner.repository.known().stored:
        np.testing.assert_allclose(row.feature, by(matrix(2), world(*taught)[row.key]), rtol=1e-3, atol=1e-3)
    assert knowledge(Learner.open(path)) == knowledge(learner)


def test_the_way_back_between_two_rounds_takes_the_features_of_the_first(learner, monkeypatch):
    accept(learner, candidate(learner, world(*THREE), matrix(1)), monkeypatch)
    learner.learn(vectors("dog", 25), "dog")
    taught = [*THREE, ("dog", 25, 0)]
    before, between = (answers(learner), knowledge(learner)), learner.store.current
    parts = learner.store.parts()
    accept(learner, candidate(learner, world(*taught), matrix(2)), monkeypatch)
    learner.learn(vectors("elk", 25), "elk")
    assert learner.store.parts() != parts
    learner.rollback(between)
    assert (answers(learner), knowledge(learner)) == before
    assert learner.store.parts() == parts
    other = Learner.open(learner.store.path)
    assert (answers(other), knowledge(other)) == before
    learner.forget("dog")
    learner.learn(vectors("fox", 25), "fox")
    assert {each.label for each in learner.predict(vectors("cat", 9, 3))} == {"cat"}


def test_forgetting_a_class_after_a_round_leaves_none_of_its_bytes(learner, monkeypatch):
    weight, path = matrix(1), learner.store.path
    victim = vectors("wasp", 25)
    made = candidate(learner, world(*THREE), weight)
    by_it = np.stack([made.features[row.id] for row in learner.repository.known().stored if row.label == "wasp"])
    accept(learner, made, monkeypatch)
    learner.learn(vectors("dog", 25), "dog")
    assert traces(path, victim, ["wasp"])
    assert traces(path, by_it, [])
    assert kinds(learner, "parts")
    assert learner.forget("wasp")["exact"] is False, "the backbone has seen it"
    assert not traces(path, victim, ["wasp"])
    assert not traces(path, by_it, [])
    assert not kinds(learner, "parts")
    assert learner.forget("dog")["exact"] is True, "that one came later"
    assert not traces(path, by(weight, vectors("dog", 25)), ["dog"])
    assert len({g.backbone for g in learner.history() if g.backbone}) == 1
    assert [c.name for c in learner.classes()] == ["ant", "cat"]
    assert knowledge(Learner.open(path)) == knowledge(learner)


def test_a_forget_that_could_not_pack_its_exemplars_erases_the_class_from_the_overlay(learner, monkeypatch):
    accept(learner, candidate(learner, world(*THREE), matrix(1)), monkeypatch)
    by_it = np.stack([row.feature for row in learner.repository.known().stored if row.label == "wasp"])
    monkeypatch.setattr(Store, "evict", lambda *_: None)
    learner.forget("wasp")
    monkeypatch.undo()
    assert kinds(learner, "features"), "it still holds the other classes"
    assert not traces(learner.store.path, by_it, ["wasp"])
    assert not traces(learner.store.path, vectors("wasp", 25), [])
    other = Learner.open(learner.store.path)
    for row in other.repository.known().stored:
        np.testing.assert_allclose(row.feature, by(matrix(1), world(*THREE)[row.key]), rtol=1e-3, atol=1e-3)
    assert knowledge(other) == knowledge(learner)


def test_what_was_held_back_before_a_round_judges_after_it(learner, monkeypatch):
    before = {row.id for row in learner.repository.known().held_back()}
    accept(learner, candidate(learner, world(*THREE), matrix(1)), monkeypatch)
    known = learner.repository.known()
    after = {row.id for row in known.held_back()}
    assert after
    assert after <= before
    assert {row.id for row in known.stored if row.trained} == {row.id for row in known.stored} - before
    assert set(learner.store.newest.detail["accuracy"]) == {"ant", "wasp", "cat"}
    learner.learn(vectors("ant", 30, 5), "ant")
    known = learner.repository.known()
    judges = known.judges()
    judging = {judges.rows.features[place].tobytes() for place in judges.left.rows.tolist()}
    assert judging and not judging & {row.feature.tobytes() for row in known.stored if row.trained}


def test_a_round_serves_in_every_open_process_at_the_next_prediction(learner, monkeypatch):
    other = Learner.open(learner.store.path)
    asked = vectors("cat", 9, 3)
    assert {each.label for each in other.predict(asked)} == {"cat"}
    old = other.serving().backbone_name
    accept(learner, candidate(learner, world(*THREE), matrix(1)), monkeypatch)
    assert {each.label for each in other.predict(asked)} == {"cat"}
    assert other.serving().backbone_name == learner.store.newest.backbone != old


def test_a_damaged_tuned_backbone_lets_the_one_before_serve(learner, monkeypatch):
    before = answers(learner)
    accept(learner, candidate(learner, world(*THREE), matrix(1)), monkeypatch)
    name = learner.store.newest.backbone
    path = learner.store.path
    learner.close()
    (path / "models" / name).write_bytes(linear(np.eye(DIMENSION, dtype=np.float32)))
    again = Learner.open(path)
    assert answers(again) == before
    assert name in again.damage[0]
    assert again.store.newest.id not in again.store.restorable()


def test_statistics_move_with_the_pairs_where_not_all_is_stored(tmp_path, monkeypatch):
    learner = create(tmp_path / "state", exemplars=6_000)
    taught = [(name, 1500, 0) for name in ("ant", "wasp", "cat")]
    for each in taught:
        learner.learn(vectors(*each), each[0])
    assert len(learner.repository.known().stored) < 3 * 1500
    accept(learner, candidate(learner, world(*taught), matrix(1)), monkeypatch)
    afresh = ClassStatistics(np.zeros(DIMENSION), True)
    for each in taught:
        afresh.add(each[0], by(matrix(1), vectors(*each)))
    assert learner.repository.known().plain.counts == afresh.counts
    for name, *_ in taught:
        np.testing.assert_allclose(learner.repository.known().plain.mean(name), afresh.mean(name), atol=0.05)
    assert fingerprint(learner.store.path) == fingerprint(learner.store.path)
