"""Gaussians of classes and their pseudo-samples, where a state keeps no sample."""
from __future__ import annotations

import numpy as np
import pytest

from edgecl.exemplars.pseudo_samples import JUDGING_DRAWS, MAX_RANK, PSEUDO_CODED, TRAINING_DRAWS, ClassGaussians, width
from edgecl.statistics.class_statistics import ClassStatistics
from edgecl.statistics.transform import FeatureTransform

D = 6


def samples(n, seed=0, shift=0.0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, D)) @ np.triu(np.ones((D, D))) + shift).astype(np.float32)


def statistics(**classes):
    known = ClassStatistics(np.zeros(D, np.float32))
    for label, h in classes.items():
        known.add(label, h)
    return known


def test_the_rank_follows_from_room_and_classes():
    for room, rank in ((3 * 4 * D, 0), (3 * 4 * D * 3, 2), (10 ** 6, D), (3 * 4 * D - 1, None)):
        gaussians = ClassGaussians(room)
        for label in "abc":
            gaussians.add(label, samples(50), 1.0)
        assert [len(own.factor) for own in gaussians.of.values()] == ([] if rank is None else [rank] * 3)
        arrays = gaussians.to_arrays()
        assert arrays["diagonal"].nbytes + arrays["factor"].nbytes <= room
    assert MAX_RANK > D


def test_taught_twice_is_as_taught_at_once_and_comes_back_from_rest():
    once, twice, x = ClassGaussians(10 ** 6), ClassGaussians(10 ** 6), samples(60)
    once.add("ant", x, 2.0)
    twice.add("ant", x[:20], 4.0)
    twice.add("ant", x[20:], 1.0, 20)
    np.testing.assert_allclose(once.of["ant"].covariance, np.cov(x.T, bias=True), atol=1e-5)
    np.testing.assert_allclose(twice.of["ant"].covariance, once.of["ant"].covariance, atol=1e-5)
    assert twice.widths == {"ant": 2.0}
    back = ClassGaussians(10 ** 6)
    back.load(twice.to_arrays(), {"ant": x.mean(0, np.float64)})
    np.testing.assert_allclose(back.of["ant"].covariance, twice.of["ant"].covariance, atol=1e-5)
    assert back.widths == twice.widths
    back.forget("ant")
    assert not back.of and not back.widths and not back.to_arrays()["names"].size


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_draws_lie_about_the_mean_as_wide_as_measured_and_are_the_same_again(power, monkeypatch):
    monkeypatch.setattr("edgecl.exemplars.pseudo_samples.TRAINING_DRAWS", 50_000)
    transform, gaussians = FeatureTransform(D, D, power), ClassGaussians(10 ** 6)
    h = transform(samples(200, shift=20))
    known = statistics(ant=h)
    gaussians.add("ant", h, 3.0)
    rows = gaussians.draw("ant", known, transform, judges=False)
    drawn = transform(np.stack([row.feature for row in rows])).astype(np.float64)
    wanted = 9 * np.cov(h.T, bias=True)
    assert np.linalg.norm(drawn.mean(0) - h.mean(0)) < 0.02 * np.linalg.norm(h.mean(0))
    assert np.linalg.norm(np.cov(drawn.T) - wanted) < 0.03 * np.linalg.norm(wanted)
    assert {(row.coded, row.judges, row.label) for row in rows} == {(PSEUDO_CODED, False, "ant")}
    again = gaussians.draw("ant", known, transform, judges=False)
    assert all(np.array_equal(a.feature, b.feature) for a, b in zip(rows[:50], again))
    judging = gaussians.draw("ant", known, transform, judges=True)
    assert len(judging) == JUDGING_DRAWS and not np.array_equal(judging[0].feature, rows[0].feature)


def test_a_round_goes_through_draws_to_learn_from_and_others_that_judge():
    gaussians, parts = ClassGaussians(10 ** 6), {label: samples(30, k, 9 * k) for k, label in enumerate("ab")}
    for label, h in parts.items():
        gaussians.add(label, h, 1.0)
    rows = gaussians.samples(statistics(**parts), FeatureTransform(D, D))
    assert [row.id for row in rows] == list(range(2 * (TRAINING_DRAWS + JUDGING_DRAWS)))
    assert sum(row.judges for row in rows) == 2 * JUDGING_DRAWS


def test_the_width_is_how_far_another_recording_lies():
    """Of recordings that differ, more than of recordings alike; never less than an estimated mean calls for."""
    keys = [(number // 10) << 32 for number in range(40)]
    alike, apart = samples(40), samples(40) + np.repeat(5 * samples(4, 9), 10, 0)
    found = [width("ant", h, keys, statistics(ant=h, bee=samples(40, 5, 30))) for h in (alike, apart)]
    assert np.sqrt(41 / 39) <= found[0] < 1.6 and found[1] > 1.5 * found[0]
    few = samples(3)
    assert width("ant", few, [0, 1, 2], statistics(ant=few)) == pytest.approx(np.sqrt(2))
