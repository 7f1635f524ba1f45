"""Telling unknown samples: relative Mahalanobis distance, computed from the logits alone.

MD_c(x) - MD_0(x) (Ren et al. 2021, section 2.2), with the pooled covariance for MD_c and the total one for MD_0.
Both covariances agree on everything orthogonal to the discriminant directions, so for SLDA the difference is a
function of the C logits: C x C numbers instead of two D x D matrices, and nothing is approximated.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgecl.heads import oas_shrinkage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecl.statistics import ClassStatistics

ACCEPTED = 0.95  # share of held-back known samples that must stay known
NEEDED = 20      # held-back samples without which no threshold is set


@dataclass(frozen=True)
class Novelty:
    """distance(z) = z A z^T + min_c (z B_c + k_c) on logits z; over `threshold`, the sample is unknown.

    quadratic A float32 [C, C]; linear B float32 [C, C] (a column a class); constant k float32 [C].
    """

    quadratic: NDArray[np.float32]
    linear: NDArray[np.float32]
    constant: NDArray[np.float32]
    threshold: float = float("inf")

    def distance(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Relative Mahalanobis distance float64 [n] of logits [n, C]: the larger, the stranger."""
        return ((logits @ self.quadratic) * logits).sum(1) + (logits @ self.linear + self.constant).min(1)

    def with_threshold(self, held_back: NDArray[np.float64]) -> Novelty:
        """The threshold under which ACCEPTED of the held-back distances [n] stay; none where n < NEEDED."""
        limit = float(np.quantile(held_back, ACCEPTED)) if len(held_back) >= NEEDED else float("inf")
        return Novelty(self.quadratic, self.linear, self.constant, limit)


def fit(statistics: ClassStatistics, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> Novelty | None:
    """The distance in the logit space of an affine head (weight [C, d], bias [C]); None for fewer than 2 classes
    or without a pooled covariance."""
    if len(weight) < 2 or statistics.degrees_of_freedom < 1:
        return None
    covariance, freedom = statistics.within_covariance(), statistics.degrees_of_freedom
    e, sphere = oas_shrinkage(covariance, freedom), np.trace(covariance) / statistics.dimension
    w, share = weight.astype(np.float64), statistics.weights() / statistics.total
    within = w @ covariance @ w.T
    means = statistics.means() @ w.T + bias
    mean = share @ means
    between = ((means - mean).T * share) @ (means - mean)
    total = within * (freedom / statistics.total) + between
    near, far = (_inverse((1 - e) * c + e * sphere * (w @ w.T)) for c in (within, total))
    constant = ((means @ near) * means).sum(1) - mean @ far @ mean
    linear = 2 * (far @ mean)[:, None] - 2 * near @ means.T
    return Novelty(*(np.asarray(x, np.float32) for x in (near - far, linear, constant)))


def _inverse(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    size = len(covariance)
    return np.linalg.inv(covariance + np.eye(size) * max(1e-6 * np.trace(covariance) / size, 1e-30))
