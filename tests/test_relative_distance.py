"""The relative Mahalanobis distance from the logits alone, against what it is in all dimensions."""
from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from helpers_heads import learned, written_out

from edgecl.heads.relative_distance import relative_distance
from edgecl.heads.solvers import solve
from edgecl.statistics.class_statistics import ClassStatistics
from edgecl.statistics.transform import FeatureTransform


@pytest.mark.parametrize("kind", ["slda", "ridge"])
@pytest.mark.parametrize("factor", [1, 1 / 9, 2])
@pytest.mark.parametrize(("classes", "d"), [(2, 12), (6, 12), (12, 12), (30, 12), (40, 60)])
def test_the_distance_in_logits_is_the_one_in_all_dimensions(classes, d, factor, kind):
    pooled, data = learned(classes, d, 8 if classes > 12 else 40)
    pooled = replace(pooled, penalty=min(pooled.shrinkage * factor, 0.85))
    head = solve(kind, pooled, FeatureTransform(d, d))
    x = np.concatenate([*data.values(), 5 * np.random.default_rng(1).standard_normal((50, d)).astype(np.float32)])
    found, expected = relative_distance(head, pooled)(head.logits(x)), written_out(x, pooled)
    assert np.abs(found - expected).max() < 1e-3 * np.ptp(expected)


def test_features_far_from_zero_have_the_same_distances():
    (near, data), (far, moved) = learned(), learned(offset=1e4)
    a, b = (solve("slda", pooled, FeatureTransform(12, 12)) for pooled in (near, far))
    here = relative_distance(a, near)(a.logits(data[2]))
    assert np.allclose(here, relative_distance(b, far)(b.logits(moved[2])), atol=0.01 * np.abs(here).max())


def test_without_two_classes_and_a_covariance_there_is_no_relative_distance():
    store = ClassStatistics(np.zeros(3))
    for label, x in (("a", np.eye(3)[:1]), ("b", np.eye(3)[1:2])):
        store.add(label, x.astype(np.float32))
        assert relative_distance(solve("slda", store.pooled(), FeatureTransform(3, 3)), store.pooled()) is None
    pooled = learned()[0]
    for kind in ("nearest-mean", "cosine"):
        assert relative_distance(solve(kind, pooled, FeatureTransform(12, 12)), pooled) is None


def test_classes_with_the_same_mean_have_distances():
    store, data = ClassStatistics(np.zeros(12)), learned(4, 12)[1]
    for label in range(4):
        store.add(f"a{label}", data[label])
        store.add(f"b{label}", data[label])
    pooled = store.pooled()
    head = solve("slda", pooled, FeatureTransform(12, 12))
    found = relative_distance(head, pooled)(head.logits(data[0]))
    assert np.abs(found - written_out(data[0], pooled)).max() < 1e-3 * np.abs(found).max()


def test_distances_of_thousands_of_classes_need_no_square_of_their_number():
    rng = np.random.default_rng(0)
    store = ClassStatistics(np.zeros(16))
    for c in range(3000):
        store.add(f"c{c:04}", (4 * rng.standard_normal(16) + rng.standard_normal((2, 16))).astype(np.float32))
    pooled = store.pooled()
    tracemalloc.start()
    head = solve("ridge", pooled, FeatureTransform(16, 16))
    near = relative_distance(head, pooled)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 3000 * 3000   # bytes: a matrix of float64 would be eight times that
    assert np.isfinite(near(head.logits(np.zeros((2, 16), np.float32)))).all()
