"""How sure a head may be: temperature and smoothing of its confidence, fitted to logits of samples out of fold.

confidence = (1 - s) softmax(z / T) + s / C (temperature scaling, Guo et al. 2017; the second term is what a few wildly
wrong samples cost, which otherwise drive T up for all). T and s are the mode of their posterior: T is log-normal about
a share of the gap between class means, which is known from one sample per class on, and (1 - s)^5 is the prior of s.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgecl.heads.head import chunks

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from edgecl.heads.head import Head

SPREAD_OF_T = 0.3       # standard deviation of log T about its prior
TRUST = 5               # (1 - s)^TRUST: prior of the smoothing s
MOST_SMOOTHING = 0.99
MOST_LOGITS = 2 ** 18   # that T is fitted to, of samples evenly spread: more would change it by less than its error
MOST_CLASSES = 256      # whose gap is looked at, evenly spread
STEP, CLOSE = 0.5, 1e-3     # in log T: of the search for a bracket, and of the result
FURTHEST = 12.0         # in log T, from the prior
HALVINGS = 30           # of the interval of s


class Prior(NamedTuple):
    """What is known of the temperature before any sample has judged: where it should be, and the lowest it may be."""

    temperature: float
    least: float


@dataclass(frozen=True)
class Calibration:
    """temperature T and smoothing s of the confidence, and the log loss of each sample at them, float64 [n]."""

    temperature: float
    smoothing: float
    losses: NDArray[np.float64]


def prior(head: Head, means: NDArray[np.float32], divisor: float, floor: float = math.inf) -> Prior:
    """The prior of a head's temperature: the gap between class means (the median over classes of the logit of the
    class's own mean, less the next largest) / divisor. floor: T is never below gap / floor. means: of the classes,
    [C, d], as the head takes samples."""
    classes, gaps, largest = len(head.labels), [], 0.0
    chosen = np.arange(classes) if classes <= MOST_CLASSES else np.arange(MOST_CLASSES) * classes // MOST_CLASSES
    for rows in chunks(len(chosen), classes):
        logits = head.logits(means[chosen[rows]], np.float32)
        largest = max(largest, float(np.abs(logits).max()))
        places = np.arange(len(logits)), chosen[rows]
        own = logits[places]
        logits[places] = -np.inf
        gaps.append(own - logits.max(1))
    gap = max(float(np.median(np.concatenate(gaps))), 0.0) if classes > 1 else 0.0
    least = 1e-4 * largest or 1.0   # below it, the rounding of float32 logits would show
    return Prior(max(gap / divisor, least), max(gap / floor, least))


def fit(logits: NDArray[np.floating[Any]], truth: NDArray[np.int64], usable: NDArray[np.bool_],
        prior: Prior) -> Calibration:
    """Temperature and smoothing for logits [n, C] of samples out of fold (-inf for a class that is gone) with the true
    classes [n], fitted to the samples that are `usable`, bool [n]; the prior alone if there are none."""
    exact = np.array(logits, np.float64)
    exact -= exact.max(1, keepdims=True)
    below = np.maximum(exact, -1e30, out=exact).astype(np.float32)
    del exact
    fitted = np.flatnonzero(usable)
    most = max(MOST_LOGITS // below.shape[1], 1)
    if len(fitted) > most:
        fitted = fitted[np.arange(most) * len(fitted) // most]
    temperature, smoothing = max(prior.temperature, prior.least), 0.0
    if len(fitted) and below.shape[1] > 1:
        temperature, smoothing = _mode(below[fitted], truth[fitted], prior)
    share, _ = _own_share(below, truth, temperature)
    with np.errstate(divide="ignore"):
        losses = -np.log((1 - smoothing) * share + smoothing / below.shape[1])
    return Calibration(temperature, smoothing, np.minimum(losses, 1e3))


def _mode(below: NDArray[np.float32], truth: NDArray[np.int64], prior: Prior) -> tuple[float, float]:
    """Temperature and smoothing of the largest posterior, searched from the prior downhill."""
    classes, centre, best = below.shape[1], math.log(prior.temperature), dict[float, float]()

    def slope(log_t: float) -> float:
        """Of the loss in log T, at the best smoothing there."""
        share, change = _own_share(below, truth, math.exp(log_t))
        s = best[log_t] = _smoothing(share, classes)
        p = (1 - s) * share + s / classes
        return float(-((1 - s) * change / np.maximum(p, 1e-300)).sum()) + (log_t - centre) / SPREAD_OF_T ** 2

    low = math.log(prior.least)
    start = max(centre, low)
    found = _downhill(slope, start, low)
    return math.exp(found), best[found]


def _downhill(slope: Callable[[float], float], start: float, low: float) -> float:
    """Where a slope becomes positive, at `low` or above: the nearest place to `start` on its way down, first bracketed,
    then found by the Illinois rule (a regula falsi)."""
    at_start = slope(start)
    way = -STEP if at_start > 0 else STEP
    a, at_a, b, at_b = start, at_start, start, at_start
    while (at_b > 0) == (at_start > 0):
        a, at_a = b, at_b
        b = max(b + way, low)
        if b == a or abs(b - start) > FURTHEST:
            return a
        at_b = slope(b)
    side = 0
    while abs(b - a) > CLOSE:
        x = (a * at_b - b * at_a) / (at_b - at_a)
        margin = CLOSE / 3 if abs(b - a) < 10 * CLOSE else 0.02 * abs(b - a)
        x = min(max(x, min(a, b) + margin), max(a, b) - margin)
        at_x = slope(x)
        if (at_x > 0) == (at_b > 0):
            b, at_b, at_a, side = x, at_x, at_a / 2 if side > 0 else at_a, 1
        else:
            a, at_a, at_b, side = x, at_x, at_b / 2 if side < 0 else at_b, -1
    return b


def _own_share(below: NDArray[np.float32], truth: NDArray[np.int64],
               temperature: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The softmax of the true class float64 [n], and its derivative in log T, of logits [n, C] below the largest."""
    rows, total, expected = np.arange(len(truth)), np.empty(len(truth)), np.empty(len(truth))
    cooling = np.float32(1 / temperature)
    for part in chunks(*below.shape):
        scaled = below[part] * cooling
        odds = np.exp(scaled)
        total[part] = odds.sum(1, dtype=np.float64)
        scaled = np.maximum(scaled, np.float32(-1e4))
        expected[part] = np.einsum("nc,nc->n", odds, scaled)
    own = below[rows, truth].astype(np.float64) / temperature
    share = np.exp(own) / total
    return share, share * (expected / total - np.maximum(own, -1e4))


def _smoothing(share: NDArray[np.float64], classes: int) -> float:
    """The best smoothing s for softmaxes of true classes [n]: the loss is convex in s, so its slope is halved in on."""
    gain = 1 / classes - share

    def slope(s: float) -> float:
        return float(-(gain / np.maximum(share + s * gain, 1e-300)).sum()) + TRUST / (1 - s)

    low, high = 0.0, MOST_SMOOTHING
    if slope(low) >= 0:
        return low
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return low
