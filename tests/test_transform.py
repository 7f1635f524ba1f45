"""The way from a feature to the vector whose statistics are kept: the same numbers on every board."""
from __future__ import annotations

import hashlib

import numpy as np
import pytest

from edgecl.statistics.transform import FeatureTransform, choose_power

GOLDEN = "e270470ca03f5df16c2aa9fe3af794748780dc2e5fd23bf5fc5b55234f413e9a"


def test_the_plain_lift_is_the_feature_itself():
    features = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    assert np.array_equal(FeatureTransform(7, 7)(features), features)


def test_the_power_keeps_the_sign():
    found = FeatureTransform(4, 4, power=0.5)(np.array([[-4, 0, 9, 2]], np.float32))
    assert found.dtype == np.float32
    assert np.allclose(found, [[-2, 0, 3, 2 ** 0.5]])


def test_the_signs_are_the_same_on_every_board():
    signs = FeatureTransform(5, 30, projected=True, seed=3).signs
    assert (signs.shape, signs.dtype, set(signs.ravel().tolist())) == ((5, 30), np.int8, {-1, 1})
    digest = hashlib.sha256(FeatureTransform(64, 1024, projected=True).signs.tobytes()).hexdigest()
    assert digest == GOLDEN  # a change here would make every stored state's projection another one
    assert not np.array_equal(FeatureTransform(5, 30, seed=4).signs, signs)


def test_the_projection_is_relu_of_a_random_matrix_that_keeps_the_variance():
    transform = FeatureTransform(64, 1024, power=0.5, projected=True, seed=1)
    features = np.random.default_rng(0).standard_normal((200, 64)).astype(np.float32) ** 3
    tempered = np.sign(features) * np.sqrt(np.abs(features))
    expected = np.maximum(tempered @ transform.signs.astype(np.float32) / 8, 0)
    assert np.allclose(transform(features), expected, rtol=1e-5, atol=1e-6)
    assert (transform(features) ** 2).mean() == pytest.approx((tempered ** 2).mean() / 2, rel=0.1)
    assert np.allclose(transform(features[:1]), transform(features)[:1], rtol=1e-5, atol=1e-6)


def test_the_columns_of_the_projection_are_not_alike():
    signs = FeatureTransform(64, 512, projected=True).signs.astype(float)
    overlap = np.abs(np.corrcoef(signs.T) - np.eye(512))
    assert overlap.max() < 0.75
    assert overlap.mean() == pytest.approx((2 / np.pi / 64) ** 0.5, rel=0.1)


def test_the_power_is_chosen_by_skewness():
    rng = np.random.default_rng(0)
    assert choose_power(rng.standard_normal((500, 8)).astype(np.float32)) == 1.0
    assert choose_power(rng.gamma(1.0, size=(500, 8)).astype(np.float32)) == 0.5
    assert choose_power(np.ones((5, 3), np.float32)) == 1.0
    assert choose_power(np.ones((1, 3), np.float32)) == 1.0
    far = (1e5 + rng.gamma(1.0, size=(500, 8))).astype(np.float32)
    assert choose_power(far) in (0.5, 1.0)
