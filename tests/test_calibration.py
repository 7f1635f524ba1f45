"""Confidence: temperature and smoothing as the mode of their posterior."""
import math

import numpy as np
import pytest

from edgecl.heads.calibration import SPREAD_OF_T, TRUST, Prior, fit, prior
from edgecl.heads.solvers import solve
from edgecl.statistics.class_statistics import ClassStatistics
from edgecl.statistics.transform import FeatureTransform


def confidence(logits, temperature, smoothing):
    """The calibrated probabilities [n, C] of logits [n, C]."""
    odds = np.exp((logits - logits.max(1, keepdims=True)) / temperature)
    return (1 - smoothing) * odds / odds.sum(1, keepdims=True) + smoothing / logits.shape[1]


def drawn(n, classes, temperature, seed=0):
    """Logits [n, C] and classes drawn from softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, classes)) * 3
    p = confidence(z, temperature, 0)
    return z, np.array([rng.choice(classes, p=row) for row in p])


def posterior(z, truth, prior, temperature, smoothing):
    p = confidence(z, temperature, smoothing)[np.arange(len(truth)), truth]
    return -np.log(p).sum() + (math.log(temperature / prior.temperature) / SPREAD_OF_T) ** 2 / 2 \
        - TRUST * math.log(1 - smoothing)


def every(n):
    return np.ones(n, bool)


@pytest.mark.parametrize(("classes", "wild"), [(2, 0), (5, 0), (5, 12), (40, 3), (300, 0)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e5])
@pytest.mark.parametrize("factor", [0.2, 1.0, 8.0])
def test_nothing_nearby_is_more_probable(classes, wild, scale, factor):
    z, truth = drawn(200, classes, 1.3, seed=classes)
    z[:wild] *= 30
    truth[:wild] = z[:wild].argmin(1)
    around = Prior(1.3 * factor * scale, 1e-6 * scale)
    found = fit(z * scale, truth, every(200), around)
    best = posterior(z * scale, truth, around, found.temperature, found.smoothing)
    for step in (0.9, 0.99, 1.01, 1.1):
        assert posterior(z * scale, truth, around, found.temperature * step, found.smoothing) > best - 1e-3
    for smoothing in (found.smoothing - 0.02, found.smoothing + 0.02):
        if 0 <= smoothing < 1:
            assert posterior(z * scale, truth, around, found.temperature, smoothing) > best - 1e-3
    wanted = -np.log(confidence(z * scale, found.temperature, found.smoothing)[np.arange(200), truth])
    assert np.allclose(found.losses, wanted, rtol=1e-4, atol=1e-5)
    assert wild == 0 or found.smoothing > 0


def test_many_samples_overrule_the_prior_and_none_leave_it():
    z, truth = drawn(4000, 4, 2.0)
    assert fit(z, truth, every(4000), Prior(0.5, 1e-3)).temperature == pytest.approx(2.0, rel=0.12)
    assert fit(z, truth, ~every(4000), Prior(0.5, 1e-3)).temperature == 0.5
    assert fit(z[:0], truth[:0], every(0), Prior(0.5, 1e-3)).losses.shape == (0,)
    few = fit(z[:3], truth[:3], every(3), Prior(0.5, 1e-3)).temperature
    assert 0.3 < few < 1.2


def test_the_temperature_is_never_below_its_floor():
    z = np.eye(4)[np.arange(400) % 4]       # always right, by a margin of 1
    sure = fit(z, z.argmax(1), every(400), Prior(0.3, 1e-6))
    floor = fit(z, z.argmax(1), every(400), Prior(0.3, 0.25))
    assert sure.temperature < 0.2 and floor.temperature == pytest.approx(0.25)
    assert sure.smoothing == floor.smoothing == 0


def test_a_few_wildly_wrong_samples_do_not_take_all_confidence():
    z, truth = drawn(400, 6, 1.0)
    before = fit(z, truth, every(400), Prior(1.0, 1e-6))
    z[:8] *= 50
    truth[:8] = z[:8].argmin(1)
    after = fit(z, truth, every(400), Prior(1.0, 1e-6))
    assert after.temperature < 1.5 * before.temperature and 0.005 < after.smoothing < 0.1


def test_a_class_that_is_gone_takes_no_part():
    z, truth = drawn(300, 4, 1.0)
    wide = np.hstack([z, np.full((300, 1), -np.inf)])
    one, other = fit(z, truth, every(300), Prior(1.0, 1e-6)), fit(wide, truth, every(300), Prior(1.0, 1e-6))
    assert other.temperature == pytest.approx(one.temperature, rel=1e-3)
    assert np.isfinite(other.losses).all()
    lost = fit(np.where(np.arange(4) == truth[:, None], -np.inf, z), truth, every(300), Prior(1.0, 1e-6))
    assert np.isfinite(lost.losses).all() and lost.smoothing > 0.5  # nothing is right: answers mean nothing


def test_one_class_is_always_sure():
    found = fit(np.zeros((5, 1)), np.zeros(5, np.int64), every(5), Prior(1.0, 1.0))
    assert (found.temperature, found.smoothing, found.losses.tolist()) == (1.0, 0.0, [0] * 5)


def head_of(spread, classes=6, d=20, each=5):
    rng = np.random.default_rng(0)
    known = ClassStatistics(np.zeros(d, np.float32))
    means = rng.normal(size=(classes, d)) * spread
    for number in range(classes):
        known.add(f"{number}", (means[number] + rng.normal(size=(each, d))).astype(np.float32))
    pooled = known.pooled()
    return solve("slda", pooled, FeatureTransform(d, d)), (pooled.means + pooled.centre).astype(np.float32)


def test_the_prior_is_a_share_of_the_gap_between_class_means():
    head, means = head_of(1.0)
    z = head.logits(means)
    own = z[np.arange(6), np.arange(6)]
    gap = np.median(own - np.where(np.eye(6, dtype=bool), -np.inf, z).max(1))
    assert prior(head, means, 7.0, 7.0).temperature == pytest.approx(gap / 7, rel=1e-5)
    assert prior(head, means, 3.5, 7.0) == pytest.approx((gap / 3.5, gap / 7), rel=1e-5)
    assert prior(head, means, 3.5).least < gap / 1e3
    assert prior(*head_of(4.0), 7.0).temperature > 4 * prior(head, means, 7.0).temperature


def test_the_prior_of_one_class_and_of_equal_classes_is_a_number():
    for spread, classes in ((1.0, 1), (0.0, 3)):
        known = prior(*head_of(spread, classes), 7.0, 7.0)
        assert 0 < known.least <= known.temperature < math.inf
    known = ClassStatistics(np.zeros(3, np.float32))
    for label in "ab":
        known.add(label, np.ones((3, 3), np.float32))
    found = prior(solve("slda", known.pooled(), FeatureTransform(3, 3)), np.ones((2, 3), np.float32), 7.0, 7.0)
    assert 0 < found.least <= found.temperature < math.inf
