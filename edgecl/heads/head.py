"""A head as it serves: one affine map, its confidence, and its distance for unknown samples."""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecl.statistics.transform import FeatureTransform


ACCEPTED = 0.95  # share of held-back known samples that must stay known
NEEDED = 20      # held-back samples without which no threshold is set


@dataclass(frozen=True)
class Novelty:
    """distance(z) = u^2 . gain + min_c (|m_c|^2 - 2 u . m_c) at u = (z - centre) map of logits z; a sample over
    `threshold` is unknown.

    centre float32 [C]; map float32 [C, k], k <= C; gain float32 [k]; means m_c float32 [C, k].
    """

    centre: NDArray[np.float32]
    map: NDArray[np.float32]
    gain: NDArray[np.float32]
    means: NDArray[np.float32]
    threshold: float = float("inf")

    def distance(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Relative Mahalanobis distance float64 [n] of logits [n, C]: the larger, the stranger."""
        u = (logits - self.centre) @ self.map
        nearest: NDArray[np.float64] = ((self.means ** 2).sum(1) - 2 * u @ self.means.T).min(1)
        return u ** 2 @ self.gain + nearest

    def with_threshold(self, held_back: NDArray[np.float64]) -> Novelty:
        """The threshold under which ACCEPTED of the held-back distances [n] stay; none where n < NEEDED."""
        limit = float(np.quantile(held_back, ACCEPTED)) if len(held_back) >= NEEDED else float("inf")
        return replace(self, threshold=limit)


@dataclass(frozen=True)
class Head:
    """One affine map on h - reference, ready to serve or to export.

    weight float32 [C, d], bias float32 [C] in the order of `labels`; normalised: logits are divided by |h|;
    temperature: confidence = softmax(logits / temperature); novelty: how unknown samples are told, or None.
    """

    kind: str
    labels: tuple[str, ...]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    reference: NDArray[np.float32]
    transform: FeatureTransform
    normalised: bool = False
    temperature: float = 1.0
    novelty: Novelty | None = field(default=None, repr=False)

    def logits(self, h: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logits float64 [n, C] of h float32 [n, d]: the reference that the exported graph is checked against."""
        z: NDArray[np.float64] = (h.astype(np.float64) - self.reference) @ self.weight.T.astype(np.float64) + self.bias
        if self.normalised:
            z /= np.maximum(np.linalg.norm(h, axis=1, keepdims=True), 1e-12)
        return z
