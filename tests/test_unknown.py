"""Unknown samples: the distance in logits against the one written out in all dimensions."""
from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from edgecl.heads.head import ACCEPTED_SHARE, MIN_FOR_THRESHOLD
from edgecl.heads.solvers import KINDS, solve
from edgecl.heads.unknown import fit
from edgecl.statistics.class_statistics import ClassStatistics
from edgecl.statistics.transform import FeatureTransform


def learned(classes=6, d=12, n=40, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    mix = np.eye(d) + 0.3 * rng.standard_normal((d, d))
    store, data = ClassStatistics(np.full(d, offset)), {}
    for c in range(classes):
        data[c] = (offset + 2 * rng.standard_normal(d) + rng.standard_normal((n + c, d)) @ mix).astype(np.float32)
        store.add(f"c{c:02}", data[c])
    return store.pooled(), data


def written_out(x, pooled):
    """min_c (x - mu_c)^T S_e^-1 (x - mu_c) - (x - mu)^T (S_e + B)^-1 (x - mu), all in d dimensions."""
    e, d = pooled.shrinkage, len(pooled.centre)
    within = (1 - e) * pooled.covariance + e * np.trace(pooled.covariance) / d * np.eye(d)
    total = within + sum(s * np.outer(m, m) for s, m in zip(pooled.share, pooled.means))
    x = x.astype(np.float64) - pooled.centre
    near = [np.einsum("nd,nd->n", x - m, np.linalg.solve(within, (x - m).T).T) for m in pooled.means]
    return np.min(near, 0) - np.einsum("nd,nd->n", x, np.linalg.solve(total, x.T).T)


@pytest.mark.parametrize(("classes", "d"), [(2, 12), (6, 12), (30, 12), (13, 12)])
def test_the_distance_in_logits_is_the_one_in_all_dimensions(classes, d):
    pooled, data = learned(classes, d)
    head = solve("slda", pooled, FeatureTransform(d, d))
    x = np.concatenate([*data.values(), 5 * np.random.default_rng(1).standard_normal((50, d)).astype(np.float32)])
    found, expected = fit(head, pooled).distance(head.logits(x)), written_out(x, pooled)
    assert np.abs(found - expected).max() < 1e-3 * np.ptp(expected)


def test_features_far_from_zero_have_the_same_distances():
    (near, data), (far, moved) = learned(), learned(offset=1e4)
    a, b = (solve("slda", pooled, FeatureTransform(12, 12)) for pooled in (near, far))
    here = fit(a, near).distance(a.logits(data[2]))
    assert np.allclose(here, fit(b, far).distance(b.logits(moved[2])), atol=0.01 * np.abs(here).max())


@pytest.mark.parametrize("kind", [kind for kind, needs in KINDS.items() if not needs.normalised])
def test_another_class_is_further_than_the_known_ones(kind):
    pooled, data = learned(8)
    head = solve(kind, pooled, FeatureTransform(12, 12))
    novelty = fit(head, pooled)
    known = np.concatenate([novelty.distance(head.logits(x)) for x in data.values()])
    strange = novelty.distance(head.logits(12 * np.random.default_rng(5).standard_normal((60, 12)).astype(np.float32)))
    assert np.median(strange) > np.quantile(known, ACCEPTED_SHARE)


def test_the_threshold_accepts_its_share_and_waits_for_enough_samples():
    pooled, _ = learned()
    novelty = fit(solve("slda", pooled, FeatureTransform(12, 12)), pooled)
    distances = np.arange(100.0)
    assert np.mean(distances <= novelty.with_threshold(distances).threshold) == pytest.approx(ACCEPTED_SHARE)
    assert novelty.with_threshold(distances[:MIN_FOR_THRESHOLD - 1]).threshold == float("inf")
    assert novelty.with_threshold(distances[:MIN_FOR_THRESHOLD]).threshold < float("inf")


def test_without_two_classes_and_a_covariance_nothing_is_strange():
    store = ClassStatistics(np.zeros(3))
    for label, x in (("a", np.eye(3)[:1]), ("b", np.eye(3)[1:2])):
        store.add(label, x.astype(np.float32))
        assert fit(solve("slda", store.pooled(), FeatureTransform(3, 3)), store.pooled()) is None
    same = ClassStatistics(np.zeros(3))
    same.add("a", np.eye(3, dtype=np.float32))
    same.add("b", np.eye(3, dtype=np.float32))
    pooled = same.pooled()
    found = fit(solve("slda", pooled, FeatureTransform(3, 3)), pooled)
    assert found is None or np.isfinite(found.distance(np.zeros((1, 2)))).all()


@pytest.mark.parametrize("kind", ["slda", "ridge"])
@pytest.mark.parametrize("factor", [1, 1 / 9, 1 / 3, 2])
@pytest.mark.parametrize(("classes", "d"), [(6, 12), (12, 12), (30, 12), (40, 90), (150, 140)])
def test_short_ways_give_the_distance_of_the_general_one(classes, d, factor, kind):
    """Of a head that is solved from the covariance itself, or from one that is shrunk otherwise."""
    pooled, data = learned(classes, d, 8 if classes > 12 else 40)
    solved = pooled if factor == 1 else replace(pooled, penalty=min(pooled.shrinkage * factor, 0.95))
    head = solve(kind, solved, FeatureTransform(d, d))
    logits = head.logits(np.concatenate(list(data.values())))
    found = fit(head, pooled, solved).distance(logits)
    general = fit(replace(head, shrinkage=None), pooled).distance(logits)
    assert np.abs(found - general).max() < 2e-6 * np.ptp(general)


def test_classes_with_the_same_mean_have_distances():
    pooled, data = learned(4, 12)
    store = ClassStatistics(np.zeros(12))
    for label in range(4):
        store.add(f"a{label}", data[label])
        store.add(f"b{label}", data[label])
    pooled = store.pooled()
    for factor in (1, 1 / 3):
        solved = pooled if factor == 1 else replace(pooled, penalty=pooled.shrinkage * factor)
        head = solve("slda", solved, FeatureTransform(12, 12))
        found = fit(head, pooled, solved).distance(head.logits(data[0]))
        if factor == 1:
            assert np.abs(found - written_out(data[0], pooled)).max() < 1e-3 * np.abs(found).max()
        assert np.isfinite(found).all()


def test_distances_of_thousands_of_classes_need_no_square_of_their_number():
    rng = np.random.default_rng(0)
    store = ClassStatistics(np.zeros(16))
    for c in range(3000):
        store.add(f"c{c:04}", (4 * rng.standard_normal(16) + rng.standard_normal((2, 16))).astype(np.float32))
    pooled = store.pooled()
    tracemalloc.start()
    head = solve("ridge", pooled, FeatureTransform(16, 16))
    novelty = fit(head, pooled)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 3000 * 3000   # bytes: a matrix of float64 would be eight times that
    assert np.isfinite(novelty.distance(head.logits(np.zeros((2, 16), np.float32)))).all()
