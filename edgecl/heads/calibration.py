"""Evaluates heads on held-back samples: calibrates their confidence, and compares two of them."""
from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecl.heads.head import Head, chunks

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from edgecl.statistics.covariance import PooledCovariance

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e2  # in units of the mean distance of a logit to the largest one
TEMPERATURE_STEP = 1.001
STANDARD_ERRORS = 3  # not 2: the held-back samples of a class come from one recording, so they are not independent
SECANTS = 8          # at most; each is one pass over the logits
ROUGHLY = 2 ** 17    # logits that the temperature is first estimated from
WIDER = 1.1          # times the estimate, until the temperature is bracketed
LEAST_GAIN = 1e-6    # in log loss: less is rounding, where classes are perfectly separable


@dataclass(frozen=True)
class Trial:
    """A head, solved from `rest` (but for trained ones), evaluated on held-back samples that it has not seen: their
    logits float32 [n, C], log losses [n] and true classes [n], as indices into `labels`."""

    head: Head
    rest: PooledCovariance
    logits: NDArray[np.float32]
    losses: NDArray[np.float64]
    truth: NDArray[np.int64]

    @classmethod
    def run(cls, head: Head, rest: PooledCovariance, held: NDArray[np.float32], truth: NDArray[np.int64]) -> Trial:
        """Evaluate a head solved from `rest` on samples `held` [n, d], which its transform has been applied to."""
        logits = head.logits(held, np.float32)
        if not len(truth):
            return cls(replace(head, temperature=_guess_temperature(head, rest)), rest, logits, np.zeros(0), truth)
        temperature, losses = calibrate(logits, truth)
        return cls(replace(head, temperature=temperature), rest, logits, losses, truth)

    def beats(self, other: Trial) -> bool:
        """Whether this head is better than another: its class-balanced loss is lower by more than STANDARD_ERRORS
        standard errors of the paired difference, and by LEAST_GAIN."""
        gain, weight = other.losses - self.losses, class_weights(self.truth)
        mean = float(weight @ gain)
        return mean >= LEAST_GAIN and mean > STANDARD_ERRORS * float(np.sqrt((weight ** 2) @ (gain - mean) ** 2))


def calibrate(logits: NDArray[np.floating[Any]], truth: NDArray[np.int64]) -> tuple[float, NDArray[np.float64]]:
    """The temperature that minimises the class-balanced log loss of logits [n, C] (Guo et al. 2017), and the loss of
    each sample at it, float64 [n]. The loss is convex in 1 / temperature: its slope is bracketed by secants, and the
    temperature is the first, on a grid of TEMPERATURE_STEP, at which it does not fall any more."""
    weight, rows = class_weights(truth), np.arange(len(truth))
    below = (logits - logits.max(1, keepdims=True)).astype(np.float32, copy=False)
    spread = max(-float(below.mean(dtype=np.float64)), _coolest(logits))
    below /= np.float32(spread)
    own = below[rows, truth].astype(np.float64)

    def slope(temperature: float) -> float:     # > 0: the true class has less than its share, so cooler is worse
        if temperature not in slopes:
            slopes[temperature] = float(weight @ (_expected(below, temperature)[1] - own))
        return slopes[temperature]

    def rough(temperature: float) -> float:     # the same of a few samples
        return float(weight[::skip] @ (_expected(below[::skip], temperature)[1] - own[::skip]))

    low, high, slopes = MIN_TEMPERATURE, MAX_TEMPERATURE, dict[float, float]()
    skip = max(below.size // ROUGHLY, 1)
    under, over = _bracket(rough if skip > 1 else slope, low, high)
    if skip > 1:
        while under > low and slope(under) <= 0:
            under = max(under / WIDER, low)
        while over < high and slope(over) > 0:
            over = min(over * WIDER, high)
        under, over = _bracket(slope, under, over)
    while high > TEMPERATURE_STEP * low:
        temperature = math.sqrt(low * high)
        if temperature <= under or (temperature < over and slope(temperature) > 0):
            low = temperature
        else:
            high = temperature
    return high * spread, np.log(_expected(below, high)[0]) - own / high


def _expected(below: NDArray[np.float32], temperature: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The sums of odds float64 [n], and the expected logits [n], of logits [n, C] below the largest one."""
    total, expected = np.empty(len(below)), np.empty(len(below))
    cooling = np.float32(1 / temperature)
    for rows in chunks(*below.shape):
        odds = below[rows] * cooling
        np.exp(odds, out=odds)
        total[rows] = odds.sum(1)
        odds *= below[rows]
        expected[rows] = odds.sum(1)
    return total, expected / total


def _bracket(slope: Callable[[float], float], low: float, high: float) -> tuple[float, float]:
    """Temperatures a little below and above the one at which the slope becomes negative: regula falsi in log T, by the
    Illinois rule."""
    a, b, at_a, at_b = math.log(low), math.log(high), slope(low), slope(high)
    if at_a <= 0 or at_b > 0:
        return (low, low) if at_a <= 0 else (high, high)
    last = 0
    for _ in range(SECANTS):
        x = (a * at_b - b * at_a) / (at_b - at_a)
        margin = 0.25 * math.log(TEMPERATURE_STEP) if b - a < 0.1 else 0.05 * (b - a)
        x = min(max(x, a + margin), b - margin)
        found = slope(math.exp(x))
        if found > 0:
            a, at_a, at_b, last = x, found, at_b / 2 if last > 0 else at_b, 1
        else:
            b, at_b, at_a, last = x, found, at_a / 2 if last < 0 else at_a, -1
        if b - a < math.log(TEMPERATURE_STEP) / 2:
            break
    return math.exp(a), math.exp(b)


def class_weights(truth: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weights float64 [n] that give every class the same total; they sum to 1."""
    weight = 1.0 / np.bincount(truth)[truth]
    return weight / float(weight.sum())


def _guess_temperature(head: Head, pooled: PooledCovariance) -> float:
    """The temperature while nothing is held back: class means themselves get a confidence of about 0.95."""
    means, coolest, margins = (pooled.means + pooled.centre).astype(np.float32), 0.0, []
    for rows in chunks(*means.shape):
        logits = head.logits(means[rows], np.float32)
        coolest = max(coolest, float(np.abs(logits).max()))
        places = np.arange(len(logits)), np.arange(rows.start, rows.start + len(logits))
        own = logits[places]
        logits[places] = -np.inf
        margins.append(own - logits.max(1))
    margin = float(np.median(np.concatenate(margins))) if len(means) > 1 else 0.0
    return max(margin / 3, 1e-4 * coolest or 1.0)


def _coolest(logits: NDArray[np.floating[Any]]) -> float:
    """The lowest temperature at which the rounding of float32 logits does not show; 1 where all are 0."""
    return 1e-4 * float(max(logits.max(), -logits.min())) or 1.0
