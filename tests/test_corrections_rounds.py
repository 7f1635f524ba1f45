"""Corrections of a state whose backbone a learning round has tuned, or is about to."""
from __future__ import annotations

import numpy as np
import pytest
from helpers_candidates import accept, by, candidate, matrix, world
from helpers_state import answers, create, knowledge, traces, vectors

from edgecl.exemplars.sample_ids import sample_id
from edgecl.learner import Learner
from edgecl.rounds.candidate import take_in
from edgecl.rounds.gate import Bounds

THREE = [("ant", 25, 0), ("wasp", 25, 0), ("cat", 25, 0)]


@pytest.fixture
def tuned(fast_path, monkeypatch):
    """A state after a round, and a class taught since."""
    learner = create(fast_path / "state", exemplars=40_000)
    for label, count, seed in THREE:
        learner.learn(vectors(label, count, seed), label)
    accept(learner, candidate(learner, world(*THREE), matrix(1)), monkeypatch)
    learner.learn(vectors("dog", 25), "dog")
    return learner


def of(learner, label, count):
    """The first stored samples of a class."""
    return [row for row in learner.repository.known().stored if row.label == label][:count]


def test_the_backbone_has_seen_a_removed_sample_and_that_is_said(tuned):
    seen, later = of(tuned, "wasp", 3), of(tuned, "dog", 3)
    assert tuned.remove([row.id for row in later]).exact
    assert tuned.status().exact
    done = tuned.remove([row.id for row in seen if row.trained])
    assert not done.exact
    assert "the backbone was tuned on them" in done.why
    assert tuned.status().exact is False
    assert tuned.rename("cat", "tom").exact
    known = tuned.repository.known()
    for label, name in (("wasp", "wasp"), ("dog", "dog"), ("tom", "cat"), ("ant", "ant")):
        mine = np.stack([row.feature for row in known.stored if row.label == label])
        assert known.plain.counts[label] == len(mine)
        np.testing.assert_allclose(known.plain.mean(label), mine.mean(0), rtol=1e-3, atol=1e-3)
        assert {row.key for row in known.stored if row.label == label} <= {*world((name, 25, 0))}
    assert (answers(tuned), knowledge(tuned)) == (answers(Learner.open(tuned.store.path)),
                                                  knowledge(Learner.open(tuned.store.path)))


def test_moved_samples_stay_marked_as_seen(tuned):
    rows = of(tuned, "wasp", 6)
    done = tuned.move([row.id for row in rows], "ant")
    assert not done.exact
    now = {sample_id(row): row for row in Learner.open(tuned.store.path).repository.known().stored}
    for row in rows:
        moved = now[done.ids[sample_id(row)]]
        assert (moved.trained, moved.judges, moved.key, moved.feature.tolist()) == (
            row.trained, row.judges, row.key, row.feature.tolist())


@pytest.mark.parametrize("change", [
    lambda it: it.remove([row.id for row in of(it, "wasp", 5)]), lambda it: it.rename("cat", "tom"),
    lambda it: it.move([row.id for row in of(it, "ant", 25)], "cat")])
def test_the_way_back_across_a_correction_has_the_features_of_then(tuned, change):
    for _ in range(2):  # with the round among the statistics that are kept, and without
        before, generation = (answers(tuned), knowledge(tuned)), tuned.store.current
        change(tuned)
        assert knowledge(tuned) != before[1]
        tuned.rollback(generation)
        assert (answers(tuned), knowledge(tuned)) == before
        tuned.close()
        tuned = Learner.open(tuned.store.path)
        assert (answers(tuned), knowledge(tuned)) == before
        tuned.remove([of(tuned, "dog", 1)[0].id])


def test_erasing_a_sample_erases_its_features_by_every_backbone(tuned):
    rows = of(tuned, "wasp", 3)
    tuned.remove([row.id for row in rows], erase=True)
    assert not traces(tuned.store.path, vectors("wasp", 3), [])
    assert not traces(tuned.store.path, by(matrix(1), vectors("wasp", 3)), [])


def test_a_class_that_is_gone_takes_what_the_method_remembers_of_classes_with_it(tuned):
    """The next one of that name is another class."""
    assert tuned.store.parts()
    tuned.remove([of(tuned, "wasp", 1)[0].id])
    assert tuned.store.parts()
    tuned.rename("wasp", "hornet")
    assert tuned.store.parts() is None


def test_a_candidate_from_before_a_correction_is_refused(fast_path):
    learner = create(fast_path / "state", exemplars=40_000)
    for label, count, seed in THREE:
        learner.learn(vectors(label, count, seed), label)
    made = candidate(learner, world(*THREE), matrix(1))
    learner.rename("wasp", "hornet")
    took = take_in(learner.repository, made, Bounds())
    assert took.generation is None
    assert any("`rename` has changed the state" in check.found for check in took.checks)
