"""What is known does not depend on order, pieces, rewrites or boards: on real digits, through the whole learner."""
from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgecl.evaluation.datasets import digits
from edgecl.heads.solvers import KINDS, solve
from edgecl.learner import Learner
from edgecl.settings import Settings
from edgecl.statistics.class_statistics import ClassStatistics
from edgecl.statistics.transform import FeatureTransform

DATA = digits()
X, Y = np.concatenate([DATA.x_train, DATA.x_test]) * 16, np.concatenate([DATA.y_train, DATA.y_test])
SHUFFLED = np.random.default_rng(0).permutation(len(X))
X, Y = X[SHUFFLED], Y[SHUFFLED]
TRAIN, TEST = X[:797], X[797:]  # 1,000 to compare predictions on
WHOLE = [(c, np.flatnonzero(Y[:797] == c)) for c in range(10)]


def pieces(number, seed):
    """Every class in that many pieces, all in random order."""
    parts = [(c, part) for c, rows in WHOLE for part in np.array_split(rows, number) if len(part)]
    return [parts[i] for i in np.random.default_rng(seed).permutation(len(parts))]


def function_of(head):
    """Weight float64 [C, d] and bias [C] on h itself."""
    weight = head.weight.astype(np.float64)
    return weight, head.bias - weight @ head.reference.astype(np.float64)


def difference(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


# class statistics --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["reversed", "samples one by one", "rewritten after every piece", "merged"])
def test_statistics_give_one_head_however_they_came(kind, way):
    transform = FeatureTransform(64, 256, projected=True) if KINDS[kind].projected else FeatureTransform(64, 64)

    def learned(parts, rewrite=False):
        store = ClassStatistics(transform(TRAIN[parts[0][1]]).mean(0))
        for label, rows in parts:
            store.add(str(label), transform(TRAIN[rows]))
            if rewrite:
                store = ClassStatistics.from_arrays(store.to_arrays())
        return store

    if way == "merged":
        parts = pieces(4, 1)
        store = learned(parts[:11])
        store.merge(learned(parts[11:]))
    else:
        store = {"reversed": lambda: learned(WHOLE[::-1]),
                 "samples one by one": lambda: learned(pieces(1000, 2)[::-1]),
                 "rewritten after every piece": lambda: learned(pieces(5, 3), rewrite=True)}[way]()
    found, expected = (solve(kind, s.pooled(), transform) for s in (store, learned(WHOLE)))
    assert found.labels == expected.labels
    (weight, bias), (other_weight, other_bias) = function_of(found), function_of(expected)
    h = transform(TEST)
    assert difference(weight, other_weight) <= 1e-4
    assert np.abs(bias - other_bias).max() <= 1e-4 * np.abs(expected.logits(h)).max()
    assert (found.logits(h).argmax(1) == expected.logits(h).argmax(1)).all()


# the whole learner -------------------------------------------------------------------------------


def taught(path, parts, head="auto", reopen=0):
    learner = Learner.create(path, Settings(backbone="identity", quota=2_000_000, exemplars=100_000, head=head))
    for number, (label, rows) in enumerate(parts, 1):
        learner.learn(TRAIN[rows], f"digit {label}")
        if reopen and number % reopen == 0:
            learner.close()
            learner = Learner.open(path)
    return learner


def served(learner):
    """Kind, initializers and threshold of the head that serves."""
    serving = learner.serving()
    model = onnx.load_model_from_string(serving.head_model)
    return serving.head.kind, {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}


def assert_same(found, expected):
    (kind, ours), (other, theirs) = served(found), served(expected)
    assert kind == other
    for name in ("weight", "bias", "reference", "temperature"):
        assert difference(ours[name], theirs[name]) <= 1e-4
    a, b = found.predict(TEST), expected.predict(TEST)
    assert [p.label for p in a] == [p.label for p in b]
    assert [p.unknown for p in a] == [p.unknown for p in b]
    assert max(abs(p.confidence - q.confidence) for p, q in zip(a, b)) < 1e-3
    assert {c.name: (c.samples, c.exemplars, c.accuracy) for c in found.classes()} == \
        {c.name: (c.samples, c.exemplars, c.accuracy) for c in expected.classes()}


@pytest.fixture(scope="module")
def at_once(tmp_path_factory):
    heads: dict[str, Learner] = {}

    def of(head):
        if head not in heads:
            heads[head] = taught(tmp_path_factory.mktemp("exact") / head, WHOLE, head)
        return heads[head]

    return of


@pytest.mark.parametrize("head", ["auto", "ridge-projected", "cosine"])
def test_the_order_of_the_classes_changes_nothing(head, at_once, tmp_path):
    assert_same(taught(tmp_path / "state", WHOLE[::-1], head), at_once(head))


def test_tiny_pieces_in_any_order_over_many_processes_change_nothing(at_once, tmp_path, monkeypatch):
    monkeypatch.setattr("edgecl.learning.repository.LOG_SHARE", 0)
    learner = taught(tmp_path / "state", pieces(8, 5), reopen=6)
    assert len({g.snapshot for g in learner.history() if g.snapshot}) > 1  # the statistics were rewritten on the way
    assert_same(learner, at_once("auto"))


@pytest.mark.parametrize("head", ["auto", "slda", "ridge", "nearest-mean"])
def test_two_boards_merge_into_what_one_would_have_learned(head, at_once, tmp_path):
    parts = pieces(2, 6)
    here, there = taught(tmp_path / "here", parts[:9], head), taught(tmp_path / "there", parts[9:], head)
    here.merge([there.store.path])
    assert_same(here, at_once(head))


def test_forgetting_a_class_just_learned_is_as_if_it_never_came(tmp_path):
    without = taught(tmp_path / "without", WHOLE[:-1])
    learner = taught(tmp_path / "state", WHOLE)
    answer = learner.forget("digit 9")
    if answer["exact"]:
        assert_same(learner, without)
    assert [p.label for p in learner.predict(TEST[:50])].count("digit 9") == 0


def test_auto_is_one_of_the_kinds_and_is_good(at_once):
    learner = at_once("auto")
    assert served(learner)[0] in KINDS
    labels = [f"digit {y}" for y in Y[797:]]
    assert np.mean([p.label == label for p, label in zip(learner.predict(TEST), labels)]) > 0.93
