"""The gate: each check refuses what it is there for, and nothing else."""
from __future__ import annotations

import hashlib

import numpy as np
import onnx
import pytest
from helpers_candidates import linear, matrix
from helpers_state import DIMENSION, PROBE

from edgecl.backbones import build_identity
from edgecl.backbones.adapters import with_adapter
from edgecl.backbones.graph import GraphBuilder, finish_backbone, set_metadata
from edgecl.backbones.session import METADATA_KEY, Backbone
from edgecl.learning.judging import Judgement
from edgecl.rounds.gate import BOUNDS, LARGER_BY, Bounds, check_accuracy, check_file

SERVING, GOOD = linear(matrix(0)), linear(matrix(1))
EXPECTED = Backbone(GOOD).features(PROBE)


def outcome(model, digest=None, serving=SERVING, samples=PROBE, expected=EXPECTED):
    """The names of the checks in order, and of those that failed."""
    checks = check_file(model, digest or hashlib.sha256(model).hexdigest(), serving, samples, expected)
    return [check.name for check in checks], [check.name for check in checks if not check.passed]


def altered(model, scale):
    """The same graph, one weight of it times `scale`."""
    whole = onnx.load_model_from_string(model)
    values = onnx.numpy_helper.to_array(whole.graph.initializer[0]).copy()
    values[3, 5] *= scale
    whole.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(values, "matrix"))
    return whole.SerializeToString()


def told(model, text):
    """The same graph with other metadata."""
    whole = onnx.load_model_from_string(model)
    set_metadata(whole, {METADATA_KEY: text})
    return whole.SerializeToString()


def large():
    """A small graph in a file past what is allowed."""
    g = GraphBuilder()
    g.weight("unused", np.zeros(LARGER_BY // 4, np.float32))
    g.node("MatMul", ["input", g.weight("matrix", matrix(1))], "features")
    ends = ("float32", ["n", DIMENSION])
    return finish_backbone(g.model("linear", {"input": ends}, {"features": ends}), "identity", "feature", [DIMENSION],
                           DIMENSION)


def test_what_is_sound_passes_every_check():
    assert outcome(GOOD) == (["digest", "size", "form", "parity", "latency"], [])


def test_an_adapter_behind_a_backbone_that_does_nothing_is_not_too_slow():
    serving = build_identity(2048)
    samples = np.random.default_rng(0).normal(size=(4, 2048)).astype(np.float32)
    assert outcome(with_adapter(serving, 0), serving=serving, samples=samples, expected=samples)[1] == []


@pytest.mark.parametrize(("model", "name"), [
    (large(), "size"),
    (linear(np.ones((DIMENSION + 1, DIMENSION), np.float32)), "form"),
    (linear(np.ones((DIMENSION, DIMENSION - 1), np.float32)), "form"),
    (linear(matrix(1), kind="window"), "form"),
    (b"no model", "form"),
    (GOOD[:-500], "form"),
    (told(GOOD, "{no JSON"), "form"),
    (told(GOOD, '{"name": "linear"}'), "form"),
    (altered(GOOD, 1.01), "parity"),
    (altered(GOOD, np.nan), "parity"),
    (altered(GOOD, np.inf), "parity"),
    (linear(matrix(1), slow=30), "latency"),
])
def test_each_fault_is_found_by_its_own_check_and_ends_the_others(model, name):
    names, failed = outcome(model)
    assert failed == [name]
    assert names[-1] == name


def test_a_digest_that_was_flipped_is_found():
    right = hashlib.sha256(GOOD).hexdigest()
    assert outcome(GOOD, digest=("1" if right[0] == "0" else "0") + right[1:])[1] == ["digest"]


@pytest.mark.parametrize("expected", [
    EXPECTED[:-1], EXPECTED[:, :-1], np.where(np.arange(DIMENSION) == 2, np.nan, EXPECTED), EXPECTED * 1.001,
])
def test_features_that_the_worker_saw_otherwise_are_found(expected):
    assert outcome(GOOD, expected=expected.astype(np.float32))[1] == ["parity"]


def test_rounding_is_no_difference():
    noise = np.random.default_rng(0).uniform(-1, 1, EXPECTED.shape) * np.abs(EXPECTED).max()
    assert outcome(GOOD, expected=(EXPECTED + 5e-5 * noise).astype(np.float32))[1] == []
    assert outcome(GOOD, expected=(EXPECTED + 5e-4 * noise).astype(np.float32))[1] == ["parity"]


def test_a_graph_that_answers_another_length_than_it_says_fails_parity():
    whole = onnx.load_model_from_string(linear(np.ones((DIMENSION, DIMENSION - 1), np.float32)))
    info = Backbone(GOOD).metadata[METADATA_KEY]
    set_metadata(whole, {METADATA_KEY: info})
    assert outcome(whole.SerializeToString())[1] == ["parity"]


def judged(loss, held=100, **accuracy):
    return Judgement(None, {name: (round(share * held), held) for name, share in accuracy.items()}, loss=loss)


@pytest.mark.parametrize(("before", "after", "bounds", "failed"), [
    (judged(1, a=.8, b=.8), judged(.9, a=.9, b=.8), BOUNDS, []),
    (judged(1, a=.8, b=.8), judged(.9, a=.8, b=.8), BOUNDS, []),                        # as right, but surer
    (judged(1, a=.8, b=.8), judged(1, a=.8, b=.8), BOUNDS, ["accuracy"]),               # no better
    (judged(1, a=.8, b=.8), judged(1.1, a=.9, b=.8), BOUNDS, ["accuracy"]),             # more right, but less sure
    (judged(1, a=.8, b=.8), judged(.1, a=.75, b=.8), BOUNDS, []),                       # within a standard error: 2.8 %
    (judged(1, a=.8, b=.8), judged(.1, a=.74, b=.8), BOUNDS, ["accuracy"]),
    (judged(1, a=.8, b=.5), judged(.5, a=.70, b=.9), BOUNDS, []),
    (judged(1, a=.8, b=.5), judged(.5, a=.69, b=.9), BOUNDS, ["regression"]),           # one class lost
    (judged(1, a=.8, b=.5), judged(.5, a=.69, b=.9), Bounds(.2), []),
    (judged(1, a=.8, b=.5), judged(.5, a=.78, b=.9), Bounds(0), []),                    # two samples of 100
    (judged(1, a=.8, b=.5), judged(.5, a=.77, b=.9), Bounds(0), ["regression"]),
    (judged(1, 2, a=1., b=0.), judged(.5, 2, a=0., b=1.), BOUNDS, []),                  # two can't tell
    (judged(1, 5, a=.8, b=.4), judged(.5, 5, a=.4, b=1.), BOUNDS, []),
    (judged(1, 5, a=.8, b=.4), judged(.5, 5, a=.2, b=1.), BOUNDS, ["regression"]),
    (judged(1, a=.9, b=.9), judged(2, a=.5, b=.9), BOUNDS, ["accuracy", "regression"]),
    (judged(None), judged(None), BOUNDS, ["accuracy"]),                                 # nothing can judge
    (judged(1, a=.8), judged(1, b=.9), BOUNDS, ["accuracy", "regression"]),             # another class
    (judged(1, a=.8, b=.8), judged(1, a=.9), BOUNDS, ["accuracy", "regression"]),       # a class that vanished
])
def test_the_loss_must_fall_and_no_class_may_be_lost(before, after, bounds, failed):
    checks = check_accuracy(before, after, bounds)
    assert [check.name for check in checks if not check.passed] == failed
    assert all(check.found for check in checks)


def test_classes_count_alike_however_many_of_their_samples_judge():
    before = Judgement(None, {"many": (900, 1000), "few": (5, 10)}, loss=1.0)
    after = Judgement(None, {"many": (850, 1000), "few": (7, 10)}, loss=0.9)
    assert all(check.passed for check in check_accuracy(before, after, BOUNDS))


def test_a_class_that_lost_is_named_with_its_figures():
    check = check_accuracy(judged(1, a=.8, wasp=.9), judged(.5, a=1., wasp=.5), BOUNDS)[-1]
    assert check.found == "wasp 90 % -> 50 %"
