"""Telling unknown samples: relative Mahalanobis distance, computed from the logits alone.

MD_c(x) - MD_0(x) (Ren et al. 2021, section 2.2), with the shrunk covariance S_e for MD_c and S_e + B for MD_0, where B
is that of the class means. The two differ in the C - 1 directions of the means only, so for SLDA the difference is a
function of the C logits: 2 C x C numbers instead of two D x D matrices, and nothing is approximated. They are kept as
one map that makes S_e the identity and B diagonal: float32 is enough then.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecl.heads import Head
    from edgecl.pooled import Pooled

ACCEPTED = 0.95  # share of held-back known samples that must stay known
NEEDED = 20      # held-back samples without which no threshold is set
LEAST = 1e-6     # of the largest variance: a direction of logits with less holds only rounding


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


def fit(head: Head, pooled: Pooled) -> Novelty | None:
    """The distance in the logit space of an affine head; None for fewer than 2 classes, and without a covariance."""
    if len(head.labels) < 2 or pooled.covariance is None or pooled.freedom < 1:
        return None
    w, e = head.weight.astype(np.float64), pooled.shrinkage
    means = pooled.means @ w.T
    variance, axes = np.linalg.eigh((1 - e) * (w @ pooled.covariance @ w.T) + pooled.sphere(e) * (w @ w.T))
    kept = variance > LEAST * variance[-1]
    if not kept.any():
        return None
    white = axes[:, kept] / np.sqrt(variance[kept])
    between, turn = np.linalg.eigh((white.T @ (means.T * pooled.share)) @ (means @ white))
    final = white @ turn
    centre = (pooled.centre - head.reference) @ w.T + head.bias
    gain = 1 - 1 / (1 + np.maximum(between, 0))
    return Novelty(*(part.astype(np.float32) for part in (centre, final, gain, means @ final)))
