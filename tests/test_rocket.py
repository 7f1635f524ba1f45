"""The rocket backbone: against plain numpy, on awkward windows, and on real people never seen."""
from __future__ import annotations

import subprocess
import sys
from itertools import combinations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from edgecl.backbones.rocket import (
    CALIBRATION_SAMPLES,
    MIN_WINDOW_SAMPLES,
    WITH_STATISTICS,
    build_rocket,
    output_length,
    usable_dimension,
)
from edgecl.backbones.session import Backbone
from edgecl.errors import BadInput
from edgecl.evaluation.datasets import watch


def walks(count: int, time: int, channels: int, seed: int = 0) -> np.ndarray:
    """Random walks with an offset and a size of their own in each channel."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(count, time, channels)) * np.geomspace(.01, 50, channels)
    return (steps.cumsum(axis=1) + np.arange(channels)).astype(np.float32)


def reference(model: bytes, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features by the paper's definition, from the numbers in the file, and how many are ties."""
    graph = onnx.load_from_string(model).graph
    weights = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
    kernels = np.array([[2 if tap in three else -1 for tap in range(9)]
                        for three in combinations(range(9), 3)])
    levels = windows - weights["mean"]
    changes = levels - levels[:, [0, *range(windows.shape[1] - 1)]]
    signals = np.concatenate([levels, changes], axis=2).astype(float).transpose(0, 2, 1)
    columns, ties, bias = [], [], 0
    for node in [n for n in graph.node if n.op_type == "Conv"]:
        dilation = next(a.ints[0] for a in node.attribute if a.name == "dilations")
        mixed = np.einsum("kc,nct->nkt", weights[f"mix{dilation}"][:, :, 0].astype(float), signals)
        output = np.zeros_like(mixed)
        for t in range(windows.shape[1]):
            for tap in range(9):
                at = t + (tap - 4) * dilation
                if 0 <= at < windows.shape[1]:
                    output[:, :, t] += kernels[:, tap] * mixed[:, :, at]
        for _ in range(sum(node.output[0] in n.input for n in graph.node)):
            above = output - weights[f"bias{bias}"]
            columns.append((above > 0).mean(axis=2))
            ties.append((np.abs(above) < 1e-4).mean(axis=2))
            bias += 1
    return np.concatenate(columns, axis=1), np.concatenate(ties, axis=1)


@pytest.mark.parametrize(("time", "channels", "dimension"),
                         [(150, 6, 336), (40, 3, 1344), (9, 1, 84), (MIN_WINDOW_SAMPLES, 12, 500)])
def test_features_are_shares_of_time_above_a_bias(time, channels, dimension):
    model = build_rocket(walks(20, time, channels), dimension)
    windows = walks(5, time, channels, seed=1)
    features = Backbone(model).features(windows)
    expected, ties = reference(model, windows)
    assert features.dtype == np.float32
    assert features.shape == (5, output_length(dimension, time, channels))
    assert expected.shape == (5, dimension // 84 * 84)
    assert (np.abs(features[:, :expected.shape[1]] - expected) <= ties + 1e-6).all()
    assert ties.mean() < 1e-3


def test_biases_are_spread_quantiles_of_the_calibration_windows():
    windows = walks(64, 100, 4)
    shares = Backbone(build_rocket(windows, 672)).features(windows)[:, :672].mean(axis=0)
    quantiles = (5 ** .5 - 1) / 2 * np.arange(1, 673) % 1
    np.testing.assert_allclose(shares, 1 - quantiles, atol=2e-3)


def test_the_file_follows_from_windows_dimension_and_seed_but_not_from_their_order():
    windows = walks(700, 100, 3)
    assert windows[..., 0].size > CALIBRATION_SAMPLES
    model = build_rocket(windows, 200, seed=3)
    assert build_rocket(windows[::-1], 200, seed=3) == model
    assert build_rocket(windows, 200, seed=4) != model
    assert len(model) < 30_000


def test_units_and_offsets_of_channels_do_not_matter():
    windows = walks(32, 80, 4)
    gain, offset = np.float32([1e-3, 7, 300, .5]), np.float32([0, -50, 9.81, 4])
    a, b = (Backbone(build_rocket(w, 336)).features(w) for w in (windows, windows * gain + offset))
    assert np.abs(a - b).mean() < 1e-3 and a.shape[1] > 336


def test_a_channel_that_never_moved_does_no_harm():
    windows = walks(32, 60, 3)
    windows[:, :, 1] = 9.81
    backbone = Backbone(build_rocket(windows, 336))
    assert np.ptp(backbone.features(windows), axis=0).mean() > .1
    windows[0, :, 1] += np.linspace(0, 1000, 60, dtype=np.float32)
    features = backbone.features(windows)
    assert ((features[:, :336] >= 0) & (features[:, :336] <= 1)).all() and (np.abs(features) <= 1).all()
    assert not Backbone(build_rocket(np.zeros((1, 60, 3), np.float32), 84)).features(
        np.zeros((1, 60, 3), np.float32)).any()


def statistics(windows: np.ndarray, calibration: np.ndarray) -> np.ndarray:
    """The statistics of windows [n, time, channels] by their definition, without the last scaling."""
    centre = calibration.mean((0, 1))
    signals = [x - centre for x in (calibration.astype(float), windows.astype(float))]
    level, change = (np.concatenate([np.zeros_like(x[:, :1]), np.diff(x, axis=1)], 1) if i else x
                     for i, x in ((0, signals[1]), (1, signals[1])))
    usual = np.sqrt(signals[0].var(1)).mean(0)
    steps = np.concatenate([np.zeros_like(signals[0][:, :1]), np.diff(signals[0], axis=1)], 1)
    level, change = level / usual, change / np.sqrt((steps ** 2).mean(1)).mean(0)
    centred = level - level.mean(1, keepdims=True)
    unit = centred / np.maximum(centred.std(1, keepdims=True), 1e-3)
    time, channels = windows.shape[1:]
    lags = np.unique(np.geomspace(1, time // 2, 8).astype(int))
    pairs = [(i, j) for i in range(channels) for j in range(i + 1, channels)]
    return np.concatenate([
        level.mean(1), centred.std(1), np.abs(centred).mean(1), level.min(1), level.max(1), np.abs(change).mean(1),
        np.sqrt((change ** 2).mean(1)), *((unit[:, lag:] * unit[:, :-lag]).mean(1) for lag in lags),
        np.stack([(unit[:, :, i] * unit[:, :, j]).mean(1) for i, j in pairs], 1) if pairs else unit[:, 0, :0]], 1)


@pytest.mark.parametrize(("time", "channels"), [(150, 6), (40, 3), (MIN_WINDOW_SAMPLES, 1), (64, 2)])
def test_a_small_one_has_statistics_of_the_window_behind_its_features(time, channels):
    known, windows = walks(60, time, channels), walks(9, time, channels, seed=1)
    windows[0] = windows[0, 0]      # at rest
    backbone = Backbone(build_rocket(known, 84))
    found = backbone.features(windows)[:, 84:]
    values = statistics(known, known)
    moves = values.std(0) > 1e-4 * (np.abs(values).max(0) + 1e-6)
    weight = .3 * backbone.features(known)[:, :84].std(0).mean()
    apart = (statistics(windows, known) - values.mean(0)) / np.where(moves, values.std(0), np.inf)
    np.testing.assert_allclose(found, np.clip(apart, -6, 6) * weight, atol=2e-3 * weight)
    assert moves.any() and backbone.info.dimension == output_length(84, time, channels)
    assert output_length(WITH_STATISTICS + 84, time, channels) == WITH_STATISTICS + 84


def test_rounding_does_not_move_a_sensor_at_rest():
    windows = walks(64, 100, 3)
    windows[::2] = windows.mean(axis=(0, 1)) + np.float32([.1, -.3, 9.81])
    backbone = Backbone(build_rocket(windows, 1344))
    again = np.nextafter(windows[::2], np.float32(np.inf))
    np.testing.assert_array_equal(backbone.features(windows[::2]), backbone.features(again))


def test_the_batch_does_not_matter():
    windows = walks(20, 150, 6)
    backbone = Backbone(build_rocket(windows, 672))
    together = backbone.features(windows)
    alone = np.concatenate([backbone.features(window[None]) for window in windows])
    np.testing.assert_allclose(together, alone, atol=1 / 150 + 1e-6)
    assert np.abs(together - alone).mean() < 1e-5


def test_the_file_says_what_it_takes_and_gives():
    info = Backbone(build_rocket(walks(4, 1000, 2), 5376)).info
    assert (info.name, info.kind, info.input_shape) == ("rocket", "window", (1000, 2))
    assert info.dimension == usable_dimension(5400) == 5376


@pytest.mark.parametrize(("windows", "dimension", "says"), [
    (walks(4, 50, 3), 83, "83 features"),
    (walks(4, MIN_WINDOW_SAMPLES - 1, 3), 84, "4 samples"),
    (walks(4, 50, 3)[0], 84, r"\(50, 3\)"),
    (walks(4, 50, 3)[:0], 84, r"\(0, 50, 3\)"),
    (np.where(np.arange(4)[:, None, None] == 2, np.nan, walks(4, 50, 3)), 84, "1 of 4"),
])
def test_what_cannot_work_is_refused(windows, dimension, says):
    with pytest.raises(BadInput, match=says):
        build_rocket(windows, dimension)


def test_building_and_running_needs_neither_torch_nor_scipy():
    code = ("import sys, numpy as np; from edgecl.backbones.session import Backbone;"
            "from edgecl.backbones.rocket import build_rocket;"
            "Backbone(build_rocket(np.eye(30, dtype=np.float32)[None], 84));"
            "print({'torch', 'scipy', 'sklearn', 'pandas'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_ridge_on_its_features_knows_the_exercises_of_unseen_people():
    windows, names, people = watch().windows(3, 1.5)
    y = np.unique(names, return_inverse=True)[1]
    unseen = people > 6
    known = windows[~unseen]
    backbone = Backbone(build_rocket(known[::20], 672))
    train, test = backbone.features(known), backbone.features(windows[unseen])
    mean = train.mean(axis=0)
    centred = (train - mean).astype(np.float64)
    gram = centred.T @ centred
    gram += 1e-3 * np.trace(gram) * np.eye(len(gram)) / 10
    weight = np.linalg.solve(gram, centred.T @ np.eye(7)[y[~unseen]])
    shares = np.bincount(y[~unseen]) / len(known)
    accuracy = (((test - mean) @ weight + shares).argmax(axis=1) == y[unseen]).mean()
    assert accuracy > .84, accuracy
