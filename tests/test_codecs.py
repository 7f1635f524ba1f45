"""Codecs of the exemplar buffer: what they keep, what it costs, and what they say of damaged bytes."""
from __future__ import annotations

import contextlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from edgecl.errors import BadInput, StateError
from edgecl.evaluation.datasets import digits, watch
from edgecl.exemplars.codecs import KINDS_OF_CODEC, Float32, Int8, codec_of
from edgecl.exemplars.input_codecs import Delta16, Jpeg, Raw
from edgecl.exemplars.product_quantiser import AMPLE_PER_CLASS, ROW_BYTES, ProductQuantiser, _layout, plan
from edgecl.statistics.class_statistics import MAX_FEATURE
from edgecl.statistics.transform import FeatureTransform

POWERS = st.sampled_from([1.0, 0.5])
TOP = float(np.float32(MAX_FEATURE))
VALUES = st.one_of(st.floats(-TOP, TOP, width=32), st.floats(-1, 1, width=32), st.just(0.0),
                   st.floats(-2.0 ** -100, 2.0 ** -100, width=32))
VECTORS = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=VALUES)
SMALLEST = np.float32(2.0 ** -149)


def bits(array):
    return np.ascontiguousarray(array).tobytes()


# vectors ----------------------------------------------------------------------------------------


@given(VECTORS)
def test_raw_vectors_come_back_bit_by_bit(features):
    encoded = Float32().encode(features)
    assert bits(Float32().decode(encoded)) == bits(features)
    assert encoded.dtype == Float32().dtype(features.shape[1])
    assert len(bits(encoded)) == 4 * features.size


@given(VECTORS, POWERS)
@example(np.zeros((1, 4), np.float32), 0.5)
@example(np.array([[SMALLEST, 0], [1e-38, -SMALLEST], [1e15, SMALLEST], [-1e15, 1]], np.float32), 0.5)
@example(np.array([[SMALLEST, 0], [1e-38, -SMALLEST], [1e15, SMALLEST], [-1e15, 1]], np.float32), 1.0)
@settings(max_examples=200)
def test_what_int8_decodes_it_encodes_to_the_same_bytes(features, power):
    codec = Int8(power)
    encoded = codec.encode(features)
    decoded = codec.decode(encoded)
    again = codec.encode(decoded)
    assert bits(again) == bits(encoded)
    assert bits(codec.decode(again)) == bits(decoded)
    assert decoded.dtype == np.float32 and decoded.shape == features.shape
    assert np.isfinite(decoded).all()
    assert len(bits(encoded)) == len(features) * (features.shape[1] + 2)


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_int8_encodes_the_same_at_every_scale(power):
    largest = np.geomspace(1e-44, 1e15, 40_000).astype(np.float32)
    features = largest[:, None] * np.array([1, -0.7, 0.01, 0], np.float32)
    codec = Int8(power)
    encoded = codec.encode(features)
    assert bits(codec.encode(codec.decode(encoded))) == bits(encoded)
    assert (encoded["codes"][largest > 1e-33, 0] == 127).all()


@given(VECTORS, POWERS)
def test_the_error_of_int8_is_half_a_step_in_its_own_domain(features, power):
    transform = FeatureTransform(features.shape[1], features.shape[1], power)
    decoded = Int8(power).decode(Int8(power).encode(features))
    x, near = transform(features).astype(np.float64), transform(decoded).astype(np.float64)
    step = np.maximum(np.abs(x).max(1, keepdims=True) / 126.5, 2.0 ** (-126 * power))
    assert (np.abs(x - near) <= 0.5001 * step).all()
    assert (np.sign(decoded) * np.sign(features) >= 0).all()


def test_int8_of_none_and_of_one_number():
    assert Int8().decode(Int8().encode(np.zeros((0, 5), np.float32))).shape == (0, 5)
    assert abs(Int8().decode(Int8().encode(np.array([[-3.0]], np.float32))) + 3) < 0.5 * 3 / 126.5


def test_the_root_of_skewed_features_is_kept_better_in_the_domain_of_roots():
    features = (np.random.default_rng(0).standard_normal((50, 200)) ** 4).astype(np.float32)

    def error(power):
        return np.abs(np.sqrt(Int8(power).decode(Int8(power).encode(features))) - np.sqrt(features)).mean()

    assert error(0.5) < error(1.0) / 2


# product quantisation ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pixels():
    return digits().x_train


def error(codec, features):
    return float(((codec.decode(codec.encode(features)) - features) ** 2).mean() / features.var(0).mean())


def test_more_bytes_give_a_smaller_error(pixels):
    by_code = [error(ProductQuantiser.train(pixels, code, 2000), pixels) for code in (2, 4, 8, 16, 32)]
    assert by_code == sorted(by_code, reverse=True)
    assert by_code[-1] < 0.05 < 0.3 < by_code[0] < 0.8
    by_book = [error(ProductQuantiser.train(pixels, 8, book), pixels) for book in (300, 600, 2000)]
    assert by_book == sorted(by_book, reverse=True)


@pytest.mark.parametrize(("code", "book"), [(1, 20_000), (3, 2000), (8, 400), (16, 2000), (20, 450), (64, 9000)])
def test_codes_and_codebook_keep_to_their_bytes(pixels, code, book):
    quantiser = ProductQuantiser.train(pixels, code, book)
    encoded = quantiser.encode(pixels[:50])
    assert encoded.dtype == quantiser.dtype(64)
    assert len(bits(encoded)) == 50 * encoded.dtype.itemsize <= 50 * code
    assert quantiser.shared_bytes == sum(len(bits(a)) for a in quantiser.to_arrays().values()) <= book


def test_a_codebook_that_does_not_fit_is_refused(pixels):
    with pytest.raises(BadInput, match="--exemplars"):
        ProductQuantiser.train(pixels, 8, 150)


def test_a_seed_gives_one_codebook(pixels):
    one, same, other = (ProductQuantiser.train(pixels, 8, 2000, seed) for seed in (1, 1, 2))
    assert all(bits(a) == bits(b) for a, b in zip(one.to_arrays().values(), same.to_arrays().values()))
    assert bits(one.books) != bits(other.books)


def test_arrays_are_all_there_is(pixels, tmp_path):
    quantiser = ProductQuantiser.train(pixels, 8, 2000, power=0.5)
    np.savez(tmp_path / "book.npz", **quantiser.to_arrays())
    with np.load(tmp_path / "book.npz", allow_pickle=False) as stored:
        again = ProductQuantiser.from_arrays(stored, power=0.5)
    encoded = quantiser.encode(pixels)
    assert bits(again.encode(pixels)) == bits(encoded)
    assert bits(again.decode(encoded)) == bits(quantiser.decode(encoded))


@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 30), st.booleans(), POWERS, st.integers(0, 99))
@example(1, 59, 1, True, 1.0, 0)
@example(1, 70, 1, True, 0.5, 99)
@settings(max_examples=60, deadline=None)
def test_any_count_and_length_of_vectors(count, dimension, code, small, power, seed):
    features = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    mean = 4 if count == 1 else 2  # bytes a number: vectors that do not differ leave no error to a float16 mean
    quantiser = ProductQuantiser.train(features, code, (mean + 1) * dimension + (600 if small else 20_000), power=power)
    encoded = quantiser.encode(features)
    decoded = quantiser.decode(encoded)
    assert decoded.shape == features.shape and decoded.dtype == np.float32
    assert encoded.dtype.itemsize <= code
    assert quantiser.shared_bytes <= (mean + 1) * dimension + (600 if small else 20_000)
    assert np.isfinite(decoded).all()
    for row, alone in zip(decoded, features):  # in a batch or by itself
        assert bits(quantiser.decode(quantiser.encode(alone[None]))) == bits(row)
    assert quantiser.decode(quantiser.encode(features[:0])).shape == (0, dimension)


@pytest.mark.parametrize("dimension", [20, 59, 64, 70])
def test_a_mean_in_float32_takes_its_bytes_of_the_codebook(dimension):
    features = np.random.default_rng(0).standard_normal((1, dimension)).astype(np.float32)
    least = 4 * dimension + dimension + 8 + 16 * -(-dimension // 2)  # mean, scale, units, 16 centroids for two pieces
    assert ProductQuantiser.train(features, 1, least + 1).shared_bytes == least
    with pytest.raises(BadInput, match="--exemplars"):
        ProductQuantiser.train(features, 1, least - 1)


def test_constant_and_very_unequal_dimensions():
    rng = np.random.default_rng(0)
    scales = np.array([0, 0, 1e-3, 1, 1e4, 1e-3, 1, 1], np.float32)
    means = np.array([0, 3.7, 5, -2, 1e6, 0, 0, 1e3], np.float32)
    features = (rng.standard_normal((500, 8)).astype(np.float32) * scales + means).astype(np.float32)
    quantiser = ProductQuantiser.train(features, 8, 20_000)
    decoded = quantiser.decode(quantiser.encode(features))
    assert (decoded[:, :2] == features[:, :2]).all()
    off = np.sqrt(((decoded - features)[:, 2:] ** 2).mean(0))
    assert (off < 0.5 * scales[2:]).all()
    same = np.full((7, 5), 2.25, np.float32)
    quantiser = ProductQuantiser.train(same, 2, 1000)
    assert (quantiser.decode(quantiser.encode(same)) == same).all()


def test_a_dimension_that_wakes_up_later_spoils_no_other():
    features = np.random.default_rng(0).standard_normal((400, 16)).astype(np.float32)
    features[:, 3] = 0
    quantiser = ProductQuantiser.train(features, 8, 20_000)
    awake = features.copy()
    awake[:, 3] = 1e15
    others = np.arange(16) != 3
    assert error(quantiser, features) < 0.5
    off = quantiser.decode(quantiser.encode(awake))[:, others] - features[:, others]
    assert (off ** 2).mean() < 0.5


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-20, 1e10])
def test_tiny_and_large_features_are_no_trouble(scale):
    features = (scale * np.random.default_rng(0).standard_normal((40, 9))).astype(np.float32)
    for power in (1.0, 0.5):
        quantiser = ProductQuantiser.train(features, 9, 5000, power=power)
        decoded = quantiser.decode(quantiser.encode(features))
        assert np.abs(decoded - features).max() < 4 * scale


def test_huge_features_stay_finite():
    features = np.random.default_rng(0).uniform(-MAX_FEATURE, MAX_FEATURE, (50, 12)).astype(np.float32)
    for power in (1.0, 0.5):
        quantiser = ProductQuantiser.train(features, 12, 5000, power=power)
        assert np.isfinite(quantiser.decode(quantiser.encode(features))).all()


@given(st.integers(0, 10 ** 7), st.integers(1, 3000), st.integers(0, 200))
def test_a_plan_fits_its_buffer(limit, dimension, classes):
    planned = plan(limit, dimension, classes)
    if planned is None:
        return
    code, codebook = planned
    assert 1 <= code <= dimension / 4 + 1
    assert codebook <= 2 * limit / 3
    assert 2 * (code + ROW_BYTES) <= dimension + 4 + ROW_BYTES  # less than half of int8
    assert limit < AMPLE_PER_CLASS * max(classes, 1) * (dimension + 2 + ROW_BYTES)
    centroids, length, own = _layout(dimension, code, codebook - 3 * dimension - 8)
    assert centroids * length * (-(-dimension // length) if own else 1) + 3 * dimension + 8 <= codebook


@pytest.mark.parametrize(("limit", "dimension", "classes", "pq"), [
    (16_000, 64, 10, True), (256_000, 64, 10, False), (16_000, 16, 2, False), (1_000_000, 1280, 81, True),
    (16_000, 1280, 81, True), (16_000_000, 1280, 81, False), (1_000_000, 2688, 7, True), (4_000_000, 2688, 7, False),
    (8_000, 2688, 7, False)])
def test_int8_is_for_ample_buffers_and_codebooks_are_for_scarce_ones(limit, dimension, classes, pq):
    assert (plan(limit, dimension, classes) is not None) == pq


# samples ----------------------------------------------------------------------------------------


def photo(shape, seed=0):
    rng = np.random.default_rng(seed)
    down, across = np.mgrid[:shape[0], :shape[1]]
    waves = [np.sin(down / rng.uniform(4, 9) + across / rng.uniform(4, 9)) for _ in range(shape[2])]
    return (128 + 90 * np.stack(waves, 2) + rng.normal(0, 3, shape)).clip(0, 255).astype(np.uint8)


def movement():
    recording = watch().recordings[0]
    return np.ascontiguousarray(recording[:150], np.float32)


@pytest.mark.parametrize("sample", [photo((9, 7, 3)), np.array([[1.5, np.pi], [-0.0, 1e-45]], np.float32)])
def test_raw_samples_come_back_bit_by_bit(sample):
    codec = Raw(sample.shape, sample.dtype)
    data = codec.encode(sample)
    assert len(data) == sample.nbytes
    again = codec.decode(data)
    assert again.dtype == sample.dtype and again.shape == sample.shape and bits(again) == bits(sample)
    assert again.flags.writeable
    for damaged in (data[:-1], data + b"\0", b""):
        with pytest.raises(StateError, match="damaged"):
            codec.decode(damaged)


@pytest.mark.parametrize("shape", [(64, 48, 3), (64, 48, 1), (1, 1, 3), (17, 5, 3)])
def test_a_photo_survives_jpeg(shape):
    pixels, codec = photo(shape), Jpeg(shape)
    data = codec.encode(pixels)
    again = codec.decode(data)
    assert again.dtype == np.uint8 and again.shape == shape
    assert codec.encode(pixels) == data
    if shape[2] == 1:
        assert np.abs(again.astype(int) - pixels).mean() < 4
    assert shape[0] < 60 or len(data) < pixels.size / 2


def test_quality_costs_bytes():
    pixels = photo((64, 64, 3))
    sizes = [len(Jpeg((64, 64, 3), quality).encode(pixels)) for quality in (10, 50, 85, 95)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] / 2


@given(st.data())
def test_damaged_photos_are_state_errors(data):
    shape = (16, 16, 3)
    whole = JPEG_BYTES
    cut = whole[:data.draw(st.integers(0, len(whole) - 1))]
    place, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
    flipped = bytes([*whole[:place], whole[place] ^ bit, *whole[place + 1:]])
    for damaged in (cut, flipped, data.draw(st.binary(max_size=40))):
        with suppress(StateError):
            assert Jpeg(shape).decode(damaged).shape == shape


JPEG_BYTES = Jpeg((16, 16, 3)).encode(photo((16, 16, 3)))


def test_only_a_jpeg_of_the_right_size_is_a_photo():
    import io

    from PIL import Image

    png = io.BytesIO()
    Image.fromarray(photo((16, 16, 3))).save(png, "PNG")
    for wrong in (png.getvalue(), Jpeg((16, 17, 3)).encode(photo((16, 17, 3))),
                  Jpeg((16, 16, 1)).encode(photo((16, 16, 1))), JPEG_BYTES[:len(JPEG_BYTES) // 2], b""):
        with pytest.raises(StateError, match="damaged"):
            Jpeg((16, 16, 3)).decode(wrong)


FLOATS = st.one_of(st.floats(-2.0 ** 127, 2.0 ** 127, width=32), st.floats(-1, 1, width=32),
                   st.integers(-9, 9).map(float), st.floats(-2.0 ** -130, 2.0 ** -130, width=32))


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=FLOATS))
@example(np.array([[-3e38], [3e38]], np.float32))
@example(np.array([[0], [SMALLEST], [5 * SMALLEST]], np.float32))
@settings(max_examples=150)
def test_the_error_of_delta16_is_half_a_step(window):
    codec = Delta16(window.shape)
    again = codec.decode(codec.encode(window))
    assert again.dtype == np.float32 and again.shape == window.shape
    exact = window.astype(np.float64)
    step = np.ptp(exact, axis=0) / 65535
    rounding = np.spacing(np.abs(window).max(0)).astype(np.float64)
    assert (np.abs(again - exact) <= 0.51 * step + rounding).all()
    constant = np.ptp(exact, axis=0) == 0
    assert (again[:, constant] == window[:, constant]).all()


def test_a_recorded_window_takes_half_its_bytes():
    window = movement()
    codec = Delta16(window.shape)
    data = codec.encode(window)
    assert codec.encode(window) == data
    assert len(data) < window.nbytes * 0.5
    assert (np.abs(codec.decode(data) - window) <= 0.501 * np.ptp(window, axis=0) / 65535 + 1e-5).all()


@given(st.data())
def test_damaged_windows_are_state_errors(data):
    place, bit = data.draw(st.integers(0, len(WINDOW) - 1)), data.draw(st.integers(1, 255))
    cut = WINDOW[:data.draw(st.integers(0, len(WINDOW) - 1))]
    for damaged in (cut, WINDOW + b"x", data.draw(st.binary(max_size=40))):
        with pytest.raises(StateError, match="damaged"):
            Delta16((20, 3)).decode(damaged)
    with contextlib.suppress(StateError):   # deflate has headers that say the same in two ways
        found = Delta16((20, 3)).decode(bytes([*WINDOW[:place], WINDOW[place] ^ bit, *WINDOW[place + 1:]]))
        assert (found == Delta16((20, 3)).decode(WINDOW)).all()
    for shape in ((20, 2), (21, 3), (1, 1), (2000, 3)):
        with pytest.raises(StateError, match="damaged"):
            Delta16(shape).decode(WINDOW)


WINDOW = Delta16((20, 3)).encode(np.random.default_rng(0).standard_normal((20, 3)).cumsum(0).astype(np.float32))


# by name ----------------------------------------------------------------------------------------


def test_codecs_by_name():
    assert codec_of("raw", "feature", (64,)) == (Float32(), None)
    assert codec_of("raw", "image", (8, 8, 3), 0.5) == (Int8(0.5), Raw((8, 8, 3), np.uint8))
    assert codec_of("raw", "window", (150, 6)) == (Int8(), Raw((150, 6), np.float32))
    assert codec_of("jpeg", "image", (8, 8, 3), 0.5) == (Int8(0.5), Jpeg((8, 8, 3), 85))
    assert codec_of("jpeg:70", "image", (8, 8, 3)) == (Int8(), Jpeg((8, 8, 3), 70))
    assert codec_of("delta16", "window", (150, 6)) == (Int8(), Delta16((150, 6)))
    assert codec_of("int8-feature", "feature", (64,)) == (Int8(), None)


def test_int8_holds_the_features_until_there_is_a_codebook(pixels):
    quantiser = ProductQuantiser.train(pixels, 8, 2000)
    for name in ("pq", "auto"):
        assert codec_of(name, "image", (8, 8, 3), 0.5) == (Int8(0.5), None)
        assert codec_of(name, "image", (8, 8, 3), 0.5, quantiser).feature is quantiser
    assert codec_of("int8-feature", "feature", (64,), 1.0, quantiser) == (Int8(), None)


@pytest.mark.parametrize(("name", "kind", "say"), [
    ("zip", "image", "zip"), ("", "image", "give auto, raw"), ("JPEG", "image", "JPEG"), ("raw:3", "image", "raw:3"),
    ("jpeg", "window", "not windows"), ("jpeg:70", "feature", "not features"), ("delta16", "image", "not images"),
    ("delta16", "feature", "not features"), ("jpeg:", "image", "quality"), ("jpeg:0", "image", "quality"),
    ("jpeg:96", "image", "1 to 95"), ("jpeg:8.5", "image", "quality"), ("jpeg:²", "image", "quality")])
def test_names_that_no_codec_has(name, kind, say):
    with pytest.raises(BadInput, match=say):
        codec_of(name, kind, (8, 8, 3))


def test_every_codec_that_fits_stores_a_sample():
    samples = {"image": photo((16, 16, 3)), "window": movement()}
    for name, kinds in KINDS_OF_CODEC.items():
        for kind in kinds:
            codec = codec_of(name, kind, samples[kind].shape if kind in samples else (64,))
            assert name.split(":")[0] in (codec.feature.name, getattr(codec.input, "name", ""), "pq", "auto")
            if codec.input:
                again = codec.input.decode(codec.input.encode(samples[kind]))
                assert again.shape == samples[kind].shape and again.dtype == samples[kind].dtype
