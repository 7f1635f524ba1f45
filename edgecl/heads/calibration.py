"""Evaluates heads on held-back samples: calibrates their confidence, and compares two of them."""
from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgecl.heads.head import Head

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecl.statistics.covariance import PooledCovariance

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e2  # in units of the mean distance of a logit to the largest one
STANDARD_ERRORS = 3  # not 2: the held-back samples of a class come from one recording, so they are not independent


@dataclass(frozen=True)
class Trial:
    """A head evaluated on held-back samples that it has not seen: their logits [n, C], log losses [n] and true classes
    [n], as indices into `labels`."""

    head: Head
    logits: NDArray[np.float64]
    losses: NDArray[np.float64]
    truth: NDArray[np.int64]

    @classmethod
    def run(cls, head: Head, rest: PooledCovariance, held: NDArray[np.float32], truth: NDArray[np.int64]) -> Trial:
        """Evaluate a head solved from `rest` on samples `held` [n, d], which its transform has been applied to."""
        logits = head.logits(held)
        if not len(truth):
            return cls(replace(head, temperature=_guess_temperature(head, rest)), logits, np.zeros(0), truth)
        temperature, losses = calibrate(logits, truth)
        return cls(replace(head, temperature=temperature), logits, losses, truth)

    def beats(self, other: Trial) -> bool:
        """Whether this head is better than another: its class-balanced loss is lower by more than STANDARD_ERRORS
        standard errors of the paired difference."""
        gain, weight = other.losses - self.losses, class_weights(self.truth)
        mean = float(weight @ gain)
        return mean > STANDARD_ERRORS * float(np.sqrt((weight ** 2) @ (gain - mean) ** 2))


def calibrate(logits: NDArray[np.float64], truth: NDArray[np.int64]) -> tuple[float, NDArray[np.float64]]:
    """The temperature that minimises the class-balanced log loss of logits [n, C] (Guo et al. 2017), and the loss of
    each sample at it, float64 [n]. The loss is convex in 1 / temperature, so its slope is bisected."""
    weight, rows = class_weights(truth), np.arange(len(truth))
    shifted = logits - logits.max(1, keepdims=True)
    short = shifted.astype(np.float32)
    spread = max(float(np.abs(shifted).mean()), _coolest(logits))
    low, high = MIN_TEMPERATURE * spread, MAX_TEMPERATURE * spread
    while high > 1.001 * low:
        temperature = math.sqrt(low * high)
        odds = np.exp(short / np.float32(temperature))
        expected = np.einsum("nc,nc->n", odds, short) / odds.sum(1)
        if weight @ (expected - short[rows, truth]) > 0:  # the true class has less than its share: cooler is worse
            low = temperature
        else:
            high = temperature
    return high, np.log(np.exp(shifted / high).sum(1)) - shifted[rows, truth] / high


def class_weights(truth: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weights float64 [n] that give every class the same total; they sum to 1."""
    weight = 1.0 / np.bincount(truth)[truth]
    return weight / float(weight.sum())


def _guess_temperature(head: Head, pooled: PooledCovariance) -> float:
    """The temperature while nothing is held back: class means themselves get a confidence of about 0.95."""
    logits = head.logits((pooled.means + pooled.centre).astype(np.float32))
    np.fill_diagonal(other := logits.copy(), -np.inf)
    margin = float(np.median(np.diag(logits) - other.max(1))) if len(logits) > 1 else 0.0
    return max(margin / 3, _coolest(logits))


def _coolest(logits: NDArray[np.float64]) -> float:
    """The lowest temperature at which the rounding of float32 logits does not show; 1 where all are 0."""
    return 1e-4 * float(np.abs(logits).max()) or 1.0
