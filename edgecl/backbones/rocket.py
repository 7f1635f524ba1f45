"""MiniRocket for sensor windows (Dempster, Schmidt & Webb, KDD 2021), as one ONNX graph.

Each of the 84 kernels of length 9 with six weights -1 and three weights 2 (section 3.1) runs at several dilations; a
feature is the share of time in which a kernel's output exceeds a bias (section 3.2). Deviations from the paper were
chosen by measurement on wrist recordings of unseen people: differences in time are further channels (MultiRocket, Tan
et al. 2022, section 3.1), a kernel mixes its random subset of channels with Gaussian instead of unit weights, biases
are quantiles over all calibration windows instead of one, and every convolution is zero-padded. A small one has plain
statistics of the window beside its features.
"""
from __future__ import annotations

from hashlib import blake2b
from itertools import combinations

import numpy as np
from onnx import TensorProto

from edgecl.backbones.graph import GraphBuilder, finish_backbone
from edgecl.backbones.session import open_session
from edgecl.backbones.window_statistics import add_statistics, statistics_count
from edgecl.errors import BadInput
from edgecl.settings import counted

TAPS = 9
KERNELS = np.array([[2 if tap in three else -1 for tap in range(TAPS)]
                    for three in combinations(range(TAPS), 3)], np.float32)
KERNEL_COUNT = len(KERNELS)         # 84; the dimension is a multiple of it
MAX_DILATIONS = 32                  # section 3.1
MIN_WINDOW_SAMPLES = 5              # with fewer, the outer taps see only padding
GOLDEN_RATIO = (5 ** 0.5 - 1) / 2   # its multiples modulo 1 are evenly spread: the quantiles of section 3.1
CALIBRATION_SAMPLES = 1 << 15       # samples in time, over all windows that are used for calibration
BIAS_MARGIN = 1e-3                  # in units of the scaled signal, see `_biases`
WITH_STATISTICS = 672               # features, at most: more gain nothing from statistics beside them
STATISTICS_WEIGHT = 0.3             # their deviation, in that of a feature: 0.15 and 0.6 are no better
STATISTICS_LIMIT = 6.0              # deviations of a statistic from its mean that count, at most


def usable_dimension(limit: int) -> int:
    """The largest dimension <= `limit` that rocket can have. Raises BadInput if `limit` is below 84."""
    if limit < KERNEL_COUNT:
        raise BadInput(f"rocket can't have {counted(limit, 'feature')}",
                       f"ask for at least {KERNEL_COUNT}, one for each kernel")
    return limit // KERNEL_COUNT * KERNEL_COUNT


def output_length(dimension: int, time: int, channels: int, statistics: bool = True) -> int:
    """The length d of the output of `build_rocket` for windows [n, time, channels]."""
    shares = usable_dimension(dimension)
    return shares + (statistics_count(time, channels) if statistics and shares <= WITH_STATISTICS else 0)


def build_rocket(windows: np.ndarray, dimension: int, seed: int = 0, statistics: bool = True) -> bytes:
    """Backbone `rocket`: float32 [n, time, channels] -> float32 [n, d]: `usable_dimension(dimension)` shares of time,
    in 0..1, and behind them, if they are WITH_STATISTICS or fewer, statistics of the window, in -1..1 or little more,
    unless there is no room for these.

    windows: [n, time, channels], without labels; channel scales and biases come from them, so they should be a mix of
    all that the sensor will record. Their order does not matter. Raises BadInput if there are no windows, or they are
    too short or not finite.
    """
    dimension = usable_dimension(dimension)
    windows = _sample(windows)
    _, time, channels = windows.shape
    mean = windows.mean(axis=(0, 1), dtype=np.float64).astype(np.float32)
    signals = windows - mean
    signals = np.concatenate([signals, np.diff(signals, axis=1, prepend=signals[:, :1])], axis=2)
    scale = _scale(signals)
    signals = (signals * scale).transpose(0, 2, 1)
    random = np.random.default_rng(seed)
    graph = GraphBuilder()
    x = graph.node("Sub", ["window", graph.weight("mean", mean)])
    earlier = graph.weight("earlier", np.maximum(np.arange(time) - 1, 0))
    before = graph.node("Gather", [x, earlier], axis=1)
    x = graph.node("Concat", [x, graph.node("Sub", [x, before])], axis=2)
    x = graph.node("Transpose", [x], perm=[0, 2, 1])
    graph.weight("kernels", KERNELS[:, None, :])
    shares: list[str] = []
    for dilation, count in _dilations(time, dimension // KERNEL_COUNT):
        mix = _mixes(2 * channels, random)
        biases = _biases(_convolve(signals, mix, dilation), count, KERNEL_COUNT * len(shares))
        # Kernels and mixes are multiplied when the model is loaded, which keeps the file small.
        weight = graph.node("Mul", [graph.weight(f"mix{dilation}", (mix * scale)[:, :, None]),
                                    "kernels"])
        pad = dilation * (TAPS // 2)
        output = graph.node("Conv", [x, weight], dilations=[dilation], pads=[pad, pad])
        for row in biases:
            bias = graph.weight(f"bias{len(shares)}", row[:, None])
            above = graph.node("Cast", [graph.node("Greater", [output, bias])],
                               to=TensorProto.FLOAT)
            shares.append(graph.node("ReduceMean", [above], axes=[2], keepdims=0))
    ends = {"window": ("float32", ("n", time, channels))}
    length = output_length(dimension, time, channels, statistics)
    if length == dimension:
        graph.node("Concat", shares, "features", axis=1)
    else:
        features = graph.node("Concat", shares, axis=1)
        scaled = graph.node("Mul", [x, graph.weight("scale", scale[:, None])])
        beside = add_statistics(graph, scaled, time, channels)
        trial = graph.model("rocket", ends, {features: ("float32", ("n", dimension)),
                                             beside: ("float32", ("n", length - dimension))})
        graph.node("Concat", [features, _weighed(graph, beside, *_run(trial.SerializeToString(), windows))],
                   "features", axis=1)
    model = graph.model("rocket", ends, {"features": ("float32", ("n", length))})
    return finish_backbone(model, "rocket", "window", (time, channels), length)


def _run(model: bytes, windows: np.ndarray) -> list[np.ndarray]:
    """The outputs of a model with the input `window`, for all windows."""
    session = open_session(model)
    parts = [session.run(None, {"window": windows[start:start + 16]}) for start in range(0, len(windows), 16)]
    return [np.concatenate(part) for part in zip(*parts)]


def _weighed(graph: GraphBuilder, statistics: str, shares: np.ndarray, values: np.ndarray) -> str:
    """Add nodes that bring statistics to STATISTICS_WEIGHT of the deviation of the features; the name of their output.
    shares, values: both, of the calibration windows [n, ...]. Statistics that do not vary count as 0."""
    centre, deviation = values.mean(0, np.float64), values.std(0, dtype=np.float64)
    moves = deviation > 1e-4 * (np.abs(values).max(0) + 1e-6)
    gain = np.divide(1, deviation, out=np.zeros_like(deviation), where=moves).astype(np.float32)
    apart = graph.node("Mul", [graph.node("Sub", [statistics, graph.weight("centre", centre.astype(np.float32))]),
                               graph.weight("gain", gain)])
    limits = [graph.weight(name, np.array(value, np.float32))
              for name, value in (("least", -STATISTICS_LIMIT), ("most", STATISTICS_LIMIT))]
    weight = np.array(STATISTICS_WEIGHT * shares.std(0, dtype=np.float64).mean(), np.float32)
    return graph.node("Mul", [graph.node("Clip", [apart, *limits]), graph.weight("weight", weight)])


def _sample(windows: np.ndarray) -> np.ndarray:
    """Checked float32 windows, at most CALIBRATION_SAMPLES in time, in an order that depends on their content only."""
    if windows.ndim != 3 or 0 in windows.shape:
        raise BadInput(f"the calibration windows have shape {windows.shape}",
                       "give [n, time, channels], none of them 0")
    if windows.shape[1] < MIN_WINDOW_SAMPLES:
        raise BadInput(f"windows have {counted(windows.shape[1], 'sample')}, rocket needs {MIN_WINDOW_SAMPLES} or more",
                       "choose a longer --window or a higher --rate")
    windows = np.ascontiguousarray(windows, np.float32)
    if not np.isfinite(windows).all():
        bad = np.count_nonzero(~np.isfinite(windows).all(axis=(1, 2)))
        raise BadInput(f"{bad} of {len(windows)} calibration windows contain NaN or infinity",
                       "leave those windows out")
    most = max(1, CALIBRATION_SAMPLES // windows.shape[1])
    order = sorted(range(len(windows)), key=lambda i: blake2b(windows[i].tobytes()).digest())
    return windows[order[:most]]


def _scale(signals: np.ndarray) -> np.ndarray:
    """1 / the typical deviation within a window, for each of signals [n, time, 2C]; 1 for constant ones.

    The second half of the channels are differences, whose deviation is from 0 rather than from their mean.
    """
    centre = signals.mean(axis=1, keepdims=True, dtype=np.float64)
    centre[:, :, signals.shape[2] // 2:] = 0
    usual = np.sqrt(((signals - centre) ** 2).mean(axis=1)).mean(axis=0)
    usual[usual <= 1e-6 * np.abs(signals).max(axis=(0, 1))] = 1
    return (1 / usual).astype(np.float32)


def _dilations(time: int, per_kernel: int) -> list[tuple[int, int]]:
    """(dilation, number of biases), exponentially spaced until a kernel spans the window (section 3.1)."""
    steps = min(per_kernel, MAX_DILATIONS)
    longest = max(1.0, (time - 1) / (TAPS - 1))
    dilations, repeats = np.unique(np.geomspace(1, longest, steps).astype(int), return_counts=True)
    counts = repeats * per_kernel // steps
    counts[:per_kernel - counts.sum()] += 1
    return [(int(dilation), int(count)) for dilation, count in zip(dilations, counts, strict=True)]


def _mixes(channels: int, random: np.random.Generator) -> np.ndarray:
    """Gaussian weights float32 [84, channels] of norm 1, 0 outside a random subset of channels per kernel.

    The size of the subset is drawn uniformly on a logarithmic scale, up to 9 channels, as in the paper's code.
    """
    mixes = np.zeros((KERNEL_COUNT, channels), np.float32)
    for mix in mixes:
        size = int(2 ** random.uniform(0, np.log2(min(channels, TAPS) + 1)))
        mix[random.choice(channels, size, replace=False)] = random.normal(size=size)
    return mixes / np.linalg.norm(mixes, axis=1, keepdims=True)


def _convolve(signals: np.ndarray, mix: np.ndarray, dilation: int) -> np.ndarray:
    """The output of each kernel, float32 [n, 84, time], on signals [n, channels, time], zero-padded."""
    time, pad = signals.shape[2], dilation * (TAPS // 2)
    mixed = np.pad(mix @ signals, ((0, 0), (0, 0), (pad, pad)))
    out = np.zeros((len(signals), KERNEL_COUNT, time), np.float32)
    for tap in range(TAPS):
        out += KERNELS[:, tap, None] * mixed[:, :, tap * dilation:tap * dilation + time]
    return out


def _biases(outputs: np.ndarray, count: int, first: int) -> np.ndarray:
    """Quantiles float32 [count, 84] of the outputs [n, 84, time]; the first one belongs to feature `first`.

    BIAS_MARGIN is added so that constant signals, whose outputs equal the bias up to rounding, give 0 on every
    processor and at every batch size.
    """
    pooled = np.sort(outputs.transpose(1, 0, 2).reshape(KERNEL_COUNT, -1), axis=1)
    shares = GOLDEN_RATIO * np.arange(first + 1, first + 1 + count * KERNEL_COUNT).reshape(count, KERNEL_COUNT) % 1
    index = (shares * pooled.shape[1]).astype(int)
    return pooled[np.arange(KERNEL_COUNT), index] + np.float32(BIAS_MARGIN)
