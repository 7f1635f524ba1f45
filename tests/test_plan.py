"""The bytes that a plan takes for the statistics are those of their file."""
from __future__ import annotations

import numpy as np
import pytest

from edgecl.exemplars.buffer import Buffer
from edgecl.exemplars.codecs import codec_of
from edgecl.learning.foundation import create_foundation
from edgecl.learning.knowledge import Knowledge
from edgecl.learning.plan import statistics_bytes
from edgecl.settings import Settings, parse_size
from edgecl.statistics.form import Form
from edgecl.statistics.transform import FeatureTransform


@pytest.mark.parametrize("form", [Form(True), Form(False), Form(True, 16), Form(True, None, 256)], ids=str)
@pytest.mark.parametrize(("dimension", "classes", "name"), [(1280, 20, "class {:03}"), (64, 3, "{:02}"),
                                                            (64, 120, "a rather long name of a class, {:03}")])
def test_statistics_take_the_bytes_that_are_planned(form, dimension, classes, name):
    transforms = [FeatureTransform(dimension, dimension, 1.0)]
    if form.projected:
        transforms.append(FeatureTransform(dimension, form.projected, 1.0, projected=True, seed=0))
    codec = codec_of("raw", "feature", (dimension,), 1)
    known = Knowledge(transforms, form, Buffer(10_000, 16_384, "reservoir", codec))
    rng = np.random.default_rng(0)
    for number in range(classes):
        known.add(name.format(number), range(2), rng.normal(size=(2, dimension)).astype(np.float32))
    real = len(known.snapshot())
    assert real <= statistics_bytes(dimension, classes, form, len(name.format(0))) <= real + 50 * len(transforms)


@pytest.mark.parametrize("quota", ["350KB", "400KB", "500KB", "700KB", "1MB", "2MB"])
def test_windows_have_a_covariance_wherever_one_fits(quota):
    """50 classes of exact statistics do not fit the small ones: then fewer do, before all are without."""
    windows = np.random.default_rng(0).standard_normal((40, 100, 6)).cumsum(1).astype(np.float32)
    size = parse_size(quota)
    foundation = create_foundation(Settings(backbone="rocket", quota=size, exemplars=size // 16), windows, windows)[0]
    assert foundation.form.second_moment
    assert foundation.form.rank is None or size < 400_000
