"""A head: one affine map, its confidence, and its distance for unknown samples."""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from edgecl.statistics.transform import FeatureTransform

ACCEPTED_SHARE = 0.95   # of held-back known samples that must stay known
MIN_FOR_THRESHOLD = 20  # held-back samples; with fewer, no threshold is set
CHUNK = 2 ** 16         # numbers that are worked on at a time
LARGE_CHUNK = 2 ** 20   # the same for matrix products


@dataclass(frozen=True)
class Novelty:
    """distance(z) = u^2 . gain + min_c (squares_c - 2 u . m_c) with u = (z - centre) map, for logits z; a sample whose
    distance is over `threshold` is unknown.

    centre float32 [C]; map float32 [C, k], k <= C; gain float32 [k]; means m_c float32 [C, k]; squares float32 [C].
    """

    centre: NDArray[np.float32]
    map: NDArray[np.float32]
    gain: NDArray[np.float32]
    means: NDArray[np.float32]
    squares: NDArray[np.float32]
    threshold: float = float("inf")

    def distance(self, logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
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

    def with_threshold(self, held_back: NDArray[np.float64]) -> Novelty:
        """With the threshold that ACCEPTED_SHARE of the held-back distances [n] stay below; infinite if
        n < MIN_FOR_THRESHOLD."""
        limit = float(np.quantile(held_back, ACCEPTED_SHARE)) if len(held_back) >= MIN_FOR_THRESHOLD else float("inf")
        return replace(self, threshold=limit)


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


def chunks(n: int, columns: int, numbers: int = CHUNK) -> Iterator[slice]:
    """Slices of n rows of that many columns, each of at most so many numbers, by default those that fit a processor's
    cache."""
    size = max(numbers // max(columns, 1), 1)
    return (slice(start, start + size) for start in range(0, n, size))
