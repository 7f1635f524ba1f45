"""Closed-form heads against scikit-learn and against the formulas written out."""
from __future__ import annotations

import numpy as np
import pytest

from edgecl.errors import StateError
from edgecl.evaluation.datasets import digits
from edgecl.heads.solvers import KINDS, forms, nearest_mean, ridge, slda, solve
from edgecl.statistics.class_statistics import ClassStatistics
from edgecl.statistics.covariance import MAX_SHRINKAGE, oas_shrinkage
from edgecl.statistics.form import Form
from edgecl.statistics.symmetric import solve_positive
from edgecl.statistics.transform import FeatureTransform

SPLIT = digits()
X, Y = np.concatenate([SPLIT.x_train, SPLIT.x_test]) * 16, np.concatenate([SPLIT.y_train, SPLIT.y_test])
SHUFFLED = np.random.default_rng(0).permutation(len(X))
X, Y = X[SHUFFLED], Y[SHUFFLED]
TRAIN, TEST = X[:797], X[797:]


def pooled_of(x, y, reference=None):
    store = ClassStatistics(np.zeros(x.shape[1]) if reference is None else reference)
    for label in np.unique(y):
        store.add(str(label), x[y == label])
    return store.pooled()


DIGITS = pooled_of(TRAIN, Y[:797])


def absolute(affine, pooled):
    """Weight and bias on h itself."""
    weight, bias = affine
    return weight, bias - weight @ pooled.centre


def without_common_part(logits):
    return logits - logits.mean(1, keepdims=True)


@pytest.mark.parametrize("shrinkage", [0.01, 0.1, 0.5, 1.0])
def test_slda_is_scikit_learns_discriminant_analysis(shrinkage):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    weight, bias = absolute(slda(DIGITS, shrinkage), DIGITS)
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=np.full(10, 0.1))
    reference.fit(TRAIN.astype(np.float64), Y[:797])
    # scikit-learn weighs each class's covariance by its prior, edgecl by its degrees of freedom; else they are equal
    scatter = sum((m := TRAIN[Y[:797] == c].astype(np.float64) - TRAIN[Y[:797] == c].mean(0, np.float64)).T @ m
                  for c in range(10)) / 787
    covariance = (1 - shrinkage) * scatter + shrinkage * np.trace(scatter) / 64 * np.eye(64)
    direct = np.linalg.solve(covariance, reference.means_.T).T
    logits = TEST @ weight.T + bias
    expected = TEST @ direct.T - (direct * reference.means_).sum(1) / 2
    assert np.allclose(without_common_part(logits), without_common_part(expected), rtol=1e-6, atol=1e-6)
    assert (logits.argmax(1) == expected.argmax(1)).all()
    assert np.mean(logits.argmax(1) == reference.predict(TEST)) > 0.995


@pytest.mark.parametrize("shrinkage", [0.05, 0.3])
def test_slda_equals_scikit_learn_on_classes_of_one_size(shrinkage):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    chosen = np.concatenate([np.flatnonzero(c == Y)[:70] for c in range(10)])
    x, y = X[chosen], Y[chosen]
    pooled = pooled_of(x.astype(np.float32), y, np.full(64, 3.0))
    reference = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=np.full(10, 0.1))
    reference.fit(x, y)
    # its class covariances divide by n, ours by n - 1 in all: the shrunk metric differs by that factor alone
    weight, bias = absolute(slda(pooled, shrinkage), pooled)
    ours, theirs = TEST @ weight.T + bias, reference.decision_function(TEST.astype(np.float64))
    ours = without_common_part(ours) * (700 / 690)
    assert np.allclose(ours, without_common_part(theirs), rtol=1e-5, atol=1e-5)
    assert (ours.argmax(1) == theirs.argmax(1)).all()


@pytest.mark.parametrize("penalty", [1e-3, 1.0, 1e4])
def test_ridge_is_scikit_learns_ridge_on_one_hot_targets(penalty):
    from sklearn.linear_model import Ridge

    weight, bias = absolute(ridge(DIGITS, penalty), DIGITS)
    reference = Ridge(alpha=penalty).fit(TRAIN.astype(np.float64), np.eye(10)[Y[:797]])
    assert np.allclose(weight, reference.coef_, rtol=1e-6, atol=1e-8 * np.abs(reference.coef_).max())
    assert np.allclose(bias, reference.intercept_, rtol=1e-6, atol=1e-8)


def test_ridge_finds_its_own_penalty_from_the_shrinkage():
    e = DIGITS.shrinkage
    penalty = 787 * e / (1 - e) * np.trace(DIGITS.covariance) / 64
    found, expected = ridge(DIGITS), ridge(DIGITS, penalty)
    assert np.allclose(found[0], expected[0], rtol=1e-7, atol=1e-10)
    assert np.allclose(found[1], expected[1])


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")
def test_nearest_mean_is_the_nearest_centroid():
    from sklearn.neighbors import NearestCentroid

    weight, bias = absolute(nearest_mean(DIGITS), DIGITS)
    assert ((TEST @ weight.T + bias).argmax(1) == NearestCentroid().fit(TRAIN, Y[:797]).predict(TEST)).all()


def test_cosine_logits_are_the_cosines_to_the_means():
    head = solve("cosine", DIGITS, FeatureTransform(64, 64))
    means = np.stack([TRAIN[Y[:797] == c].mean(0, np.float64) for c in range(10)])
    cosines = (TEST / np.linalg.norm(TEST, axis=1, keepdims=True)) @ (means / np.linalg.norm(means, axis=1)[:, None]).T
    assert np.allclose(head.logits(TEST), cosines, atol=1e-6)
    assert np.isfinite(head.logits(np.zeros((1, 64), np.float32))).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_does_not_depend_on_the_stores_reference(kind):
    transform = FeatureTransform(64, 64)
    near, far = (solve(kind, pooled_of(TRAIN, Y[:797], reference), transform)
                 for reference in (None, np.full(64, 30.0)))
    assert np.allclose(near.weight, far.weight, rtol=1e-5, atol=1e-5 * np.abs(near.weight).max())
    assert np.allclose(near.logits(TEST), far.logits(TEST), rtol=1e-5, atol=1e-5 * np.abs(near.logits(TEST)).max())


def test_features_far_from_zero_are_told_apart_as_well_as_near_it():
    rng = np.random.default_rng(0)
    means, y = 3 * rng.standard_normal((5, 8)), np.arange(500) % 5
    x = means[y] + rng.standard_normal((500, 8))
    hits = {}
    for offset in (0.0, 1e5):
        moved = (x + offset).astype(np.float32)
        pooled = pooled_of(moved, y, moved[:100].mean(0))
        hits[offset] = {kind: np.mean(solve(kind, pooled, FeatureTransform(8, 8)).logits(moved).argmax(1) == y)
                        for kind in ("nearest-mean", "slda", "ridge")}
    assert hits[0.0]["slda"] > 0.95
    for kind in hits[0.0]:
        assert hits[1e5][kind] == pytest.approx(hits[0.0][kind], abs=0.005)


def degenerate():
    rng = np.random.default_rng(1)
    cloud = rng.standard_normal((40, 6)).astype(np.float32)
    yield "one class", cloud, np.zeros(40)
    yield "one sample", cloud[:1], np.zeros(1)
    yield "two samples", cloud[:2], np.arange(2)
    yield "one sample a class", cloud[:5], np.arange(5)
    yield "more classes than dimensions", cloud, np.arange(40) // 2
    yield "constant features", np.where(np.arange(6) < 4, 7, cloud).astype(np.float32), np.arange(40) % 3
    yield "only constant features", np.full((40, 6), 7, np.float32), np.arange(40) % 3
    yield "duplicated samples", np.repeat(cloud[:8], 5, 0), np.repeat(np.arange(8), 5)
    yield "duplicates far away", np.repeat(cloud[:8] + np.float32(1e5), 5, 0), np.repeat(np.arange(8), 5)
    yield "tiny", cloud * np.float32(1e-12), np.arange(40) % 3
    yield "huge", cloud * np.float32(1e12), np.arange(40) % 3
    yield "equal classes", np.tile(cloud[:20], (2, 1)), np.repeat([0, 1], 20)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "x", "y"), list(degenerate()), ids=[name for name, _, _ in degenerate()])
def test_degenerate_data_give_finite_heads(kind, name, x, y):
    exact = ClassStatistics(x[0])
    for label in np.unique(y):
        exact.add(str(label), x[y == label])
    for store in (exact, ClassStatistics.from_arrays(exact.to_arrays())):
        head = solve(kind, store.pooled(), FeatureTransform(6, 6))
        assert np.isfinite(head.weight).all() and np.isfinite(head.bias).all()
        assert np.isfinite(head.logits(x)).all()


@pytest.mark.parametrize("kind", ["nearest-mean", "slda", "ridge"])
@pytest.mark.parametrize("name", ["one sample a class", "duplicated samples", "duplicates far away"])
def test_the_samples_themselves_are_told_even_after_a_rest_in_float32(kind, name):
    x, y = next((x, y) for found, x, y in degenerate() if found == name)
    store = ClassStatistics(x.mean(0))
    for label in np.unique(y):
        store.add(str(label), x[y == label])
    head = solve(kind, ClassStatistics.from_arrays(store.to_arrays()).pooled(), FeatureTransform(6, 6))
    assert (head.logits(x).argmax(1) == np.unique(y, return_inverse=True)[1]).all()


def test_heads_that_need_a_second_moment_say_so():
    store = ClassStatistics(np.zeros(2), second_moment=False)
    store.add("a", np.ones((3, 2), np.float32))
    for kind, needs in KINDS.items():
        if needs.second_moment:
            with pytest.raises(StateError, match="second moment"):
                solve(kind, store.pooled(), FeatureTransform(2, 2))
        else:
            assert solve(kind, store.pooled(), FeatureTransform(2, 2)).weight.shape == (1, 2)


@pytest.mark.parametrize("d", [1, 5, 127, 128, 129, 300])
def test_solve_positive_solves(d):
    rng = np.random.default_rng(d)
    root, b = rng.standard_normal((d, d + 5)), rng.standard_normal((d, 7))
    a = root @ root.T
    kept, given = a.copy(), b.copy()
    assert np.allclose(solve_positive(a, b), np.linalg.solve(a, b), rtol=1e-6, atol=1e-7)
    assert np.array_equal(a, kept) and np.array_equal(b, given)


def test_solve_positive_leaves_out_what_a_singular_matrix_does_not_tell():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((200, 20))
    a, b = root @ root.T, root @ rng.standard_normal((20, 3))
    assert np.allclose(solve_positive(a - 1e-13 * np.eye(200), b), np.linalg.pinv(a, rcond=1e-10) @ b, atol=1e-6)


def test_oas_is_the_papers_formula():
    covariance = np.cov(np.random.default_rng(0).standard_normal((50, 12)).T @ np.diag(np.ones(50)))
    n, p = 60 / 6, 12
    trace, square = np.trace(covariance), np.trace(covariance @ covariance)
    rho = ((1 - 2 / p) * square + trace ** 2) / ((n + 1 - 2 / p) * (square - trace ** 2 / p))
    assert oas_shrinkage(covariance, 60) == pytest.approx(min(rho, MAX_SHRINKAGE))
    assert oas_shrinkage(np.eye(5), 100) == 1.0
    assert oas_shrinkage(np.zeros((5, 5)), 0) == 1.0
    assert oas_shrinkage(np.diag([1.0, 0, 0, 0]), 10 ** 9) == 1e-3


def test_forms_go_from_rich_to_poor():
    assert forms("auto", 1280) == [Form(True), *(Form(True, r) for r in (256, 128, 64, 32, 16)), Form(False)]
    assert forms("auto", 64)[0] == Form(True, None, 1024)
    assert forms("cosine", 1280) == [Form(False)]
    assert all(form.projected for form in forms("ridge-projected", 300))
