"""Plain statistics of a sensor window, as nodes of an ONNX graph: what the features of a small `rocket` do not tell."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from edgecl.backbones.graph import GraphBuilder

LAGS = 8            # of the autocorrelation, at most: evenly spaced on a logarithmic scale, up to half of the window
AT_REST = 1e-3      # in units of the usual deviation: a channel that moves less has no autocorrelation


def add_statistics(graph: GraphBuilder, signals: str, time: int, channels: int) -> str:
    """Add nodes that compute statistics [n, `statistics_count`] of signals [n, 2 channels, time], each in units of its
    usual deviation, of which the second half are the differences of the first. Returns the name of their output.

    Per channel: mean, deviation, mean absolute deviation, least, largest, mean size and deviation of the differences,
    autocorrelation; per pair of channels: correlation.
    """
    def part(x: str, axis: int, start: int, stop: int) -> str:
        ends = [graph.weight(f"{name}{len(graph.weights)}", np.array([value], np.int64))
                for name, value in (("start", start), ("stop", stop), ("axis", axis))]
        return graph.node("Slice", [x, *ends])

    def over_time(op: str, x: str, keepdims: int = 0) -> str:
        return graph.node(op, [x], axes=[2], keepdims=keepdims)

    def size(x: str, keepdims: int = 0) -> str:
        return graph.node("Sqrt", [over_time("ReduceMean", graph.node("Mul", [x, x]), keepdims)])

    level, change = part(signals, 1, 0, channels), part(signals, 1, channels, 2 * channels)
    centred = graph.node("Sub", [level, over_time("ReduceMean", level, 1)])
    found = [over_time("ReduceMean", level), size(centred), over_time("ReduceMean", graph.node("Abs", [centred])),
             over_time("ReduceMin", level), over_time("ReduceMax", level),
             over_time("ReduceMean", graph.node("Abs", [change])), size(change)]
    least = graph.weight("at_rest", np.array(AT_REST, np.float32))
    unit = graph.node("Div", [centred, graph.node("Max", [size(centred, 1), least])])
    found += [over_time("ReduceMean", graph.node("Mul", [part(unit, 2, lag, time), part(unit, 2, 0, time - lag)]))
              for lag in _lags(time)]
    if channels > 1:
        products = graph.node("MatMul", [unit, graph.node("Transpose", [unit], perm=[0, 2, 1])])
        pairs = np.flatnonzero(np.triu(np.ones((channels, channels)), 1))
        both = graph.node("Gather", [graph.node("Flatten", [products]), graph.weight("pairs", pairs)], axis=1)
        found.append(graph.node("Div", [both, graph.weight("time", np.array(time, np.float32))]))
    return graph.node("Concat", found, axis=1)


def statistics_count(time: int, channels: int) -> int:
    """How many statistics a window of so many samples in time has."""
    return (7 + len(_lags(time))) * channels + channels * (channels - 1) // 2


def _lags(time: int) -> list[int]:
    return np.unique(np.geomspace(1, max(time // 2, 1), LAGS).astype(int)).tolist()
