"""A head: one affine map, its confidence, and its scores for unknown samples."""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from edgecl.statistics.transform import FeatureTransform

LEVELS = 127            # on each side of 0: numbers of a sample and of a stored row become 8-bit integers
LEAST_STEP = 1e-30      # where all numbers are 0
LEAST_DISTANCE = 1e-4   # of the squared length of stored rows: what rounding to 8 bits makes
CHUNK = 2 ** 16         # numbers that are worked on at a time
LARGE_CHUNK = 2 ** 20   # the same for matrix products


class Scale(NamedTuple):
    """What a score is like for known samples that are taken for each class: its mean and its standard deviation,
    float32 [C]."""

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]

    def standardised(self, scores: NDArray[np.float64], best: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores [n] of samples that are taken for the classes `best` [n]."""
        return np.asarray((scores - self.mean[best]) / self.deviation[best], np.float64)


STANDARD = Scale(np.zeros(1, np.float32), np.ones(1, np.float32))


@dataclass(frozen=True)
class RelativeDistance:
    """distance(z) = u^2 . gain + min_c (squares_c - 2 u . m_c) with u = (z - centre) map, for logits z.

    centre float32 [C]; map float32 [C, k], k <= C; gain float32 [k]; means m_c float32 [C, k]; squares float32 [C].
    """

    centre: NDArray[np.float32]
    map: NDArray[np.float32]
    gain: NDArray[np.float32]
    means: NDArray[np.float32]
    squares: NDArray[np.float32]

    def __call__(self, logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Relative Mahalanobis distance float64 [n] of logits [n, C], in their precision; larger means less familiar.
        """
        distance, to_means = np.empty(len(logits)), -2 * self.means.T
        for rows in chunks(len(logits), logits.shape[1], LARGE_CHUNK):
            u = (logits[rows] - self.centre) @ self.map
            near = u @ to_means
            near += self.squares
            u *= u
            distance[rows] = u @ self.gain + near.min(1)
        return distance


@dataclass(frozen=True)
class NearestRow:
    """distance(x) = log(squared distance to the nearest stored row), but at least log(least). A stored row is
    length_i rows_i: rows int8 [N, d], length float32 [N].

    Without `centre` and `weight`, samples have length 1, so that only their direction counts; with them, float32 [d],
    they are (x - centre) weight. Samples are rounded as the rows are: all products are exact integers, in any runtime
    and any batch.
    """

    rows: NDArray[np.int8]
    length: NDArray[np.float32]
    centre: NDArray[np.float32] | None
    weight: NDArray[np.float32] | None
    least: float

    @classmethod
    def of(cls, x: NDArray[np.float32], centre: NDArray[np.float32] | None,
           weight: NDArray[np.float32] | None) -> NearestRow:
        """The rows of stored samples x float32 [N, d], features before any projection."""
        rows, length = rounded(x, centre, weight)
        found = cls(rows, length[:, 0], centre, weight, 0.0)
        return replace(found, least=LEAST_DISTANCE * float(found.squares.mean()) or LEAST_DISTANCE)

    @property
    def squares(self) -> NDArray[np.float64]:
        """The squared lengths of the stored rows [N]."""
        return np.asarray((self.rows.astype(np.float64) ** 2).sum(1) * self.length.astype(np.float64) ** 2, np.float64)

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """float64 [n] of x float32 [n, d], features before any projection."""
        found = np.empty(len(x))
        for mine in chunks(len(x), sum(self.rows.shape), LARGE_CHUNK):
            found[mine] = self.apart(x[mine], np.float64).min(1)
        return np.log(np.maximum(found, self.least))

    def apart(self, x: NDArray[np.float32],
              dtype: type[np.floating[Any]] = np.float32) -> NDArray[np.floating[Any]]:
        """Squared distances [n, N] to every row."""
        whole, length = rounded(x, self.centre, self.weight)
        a = whole.astype(dtype)
        found: NDArray[np.floating[Any]] = a @ self.rows.T.astype(dtype)
        found *= -2 * self.length.astype(dtype)
        found *= length
        found += self.squares.astype(dtype)
        found += (a * a).sum(1, keepdims=True) * length.astype(dtype) ** 2
        return found


@dataclass(frozen=True)
class Novelty:
    """How a head tells unknown samples: the largest of its scores, each less the mean that known samples taken for the
    same class have out of fold, over their standard deviation. near: from the logits; like: from the features; either
    may be missing.

    threshold: a sample with a larger score is unknown; infinite if that can't be told yet. needs: how many samples of
    one class are missing until it can, 0 if none, None if no number of them would do.
    """

    near: RelativeDistance | None = None
    near_scale: Scale = STANDARD
    like: NearestRow | None = None
    like_scale: Scale = STANDARD
    threshold: float = float("inf")
    needs: int | None = 0

    def score(self, x: NDArray[np.float32], logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Score float64 [n] of samples with the features x float32 [n, source], before any projection, and these
        logits [n, C]; larger means less familiar."""
        found, best = np.full(len(logits), -np.inf), logits.argmax(1)
        if self.near is not None:
            found = self.near_scale.standardised(self.near(logits), best)
        if self.like is not None:
            found = np.maximum(found, self.like_scale.standardised(self.like(x), best))
        return found


@dataclass(frozen=True)
class Head:
    """One affine map on h - reference, ready to serve or to export.

    weight float32 [C, d], bias float32 [C] in the order of `labels`; normalised: whether logits are divided by |h|;
    temperature T and smoothing s: confidence = (1 - s) softmax(logits / T) + s / C; novelty: recognises unknown
    samples, or None; shrinkage: of the covariance that the weight was solved from, or None.
    """

    kind: str
    labels: tuple[str, ...]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    reference: NDArray[np.float32]
    transform: FeatureTransform
    normalised: bool = False
    temperature: float = 1.0
    smoothing: float = 0.0
    novelty: Novelty | None = field(default=None, repr=False)
    shrinkage: float | None = None

    def logits(self, h: NDArray[np.float32], dtype: type[np.floating[Any]] = np.float64) -> NDArray[np.floating[Any]]:
        """Logits [n, C] of h float32 [n, d]: in float64 the reference for the exported graph, in float32 what it
        computes."""
        z: NDArray[np.floating[Any]] = np.subtract(h, self.reference, dtype=dtype) @ np.asarray(self.weight.T, dtype)
        z += self.bias
        if self.normalised:
            z /= np.maximum(np.linalg.norm(h, axis=1, keepdims=True), 1e-12)
        return z


def rounded(x: NDArray[np.float32], centre: NDArray[np.float32] | None,
            weight: NDArray[np.float32] | None) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Rows [n, d] as integers of at most LEVELS, and what to multiply them with [n, 1], as `NearestRow` takes them; the
    exported graph does the same."""
    if centre is not None and weight is not None:
        x = (x - centre) * weight
    step = np.maximum(np.abs(x).max(1, keepdims=True, initial=0) / np.float32(LEVELS), np.float32(LEAST_STEP))
    whole = np.rint(x / step)
    if weight is None:
        step = 1 / np.maximum(np.linalg.norm(whole, axis=1, keepdims=True), np.float32(1))
    return whole.astype(np.int8), step


def chunks(n: int, columns: int, numbers: int = CHUNK) -> Iterator[slice]:
    """Slices of n rows of that many columns, each of at most so many numbers, by default those that fit a processor's
    cache."""
    size = max(numbers // max(columns, 1), 1)
    return (slice(start, start + size) for start in range(0, n, size))
