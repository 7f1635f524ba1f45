"""Telling unknown samples: relative Mahalanobis distance, computed from the logits alone.

MD_c(x) - MD_0(x) (Ren et al. 2021, section 2.2), with the shrunk covariance S_e for MD_c and S_e + B for MD_0, where B
is that of the class means. The two differ in the C - 1 directions of the means only, so for SLDA the difference is a
function of the C logits: 2 C x C numbers instead of two D x D matrices, and nothing is approximated. They are kept as
one map that makes S_e the identity and B diagonal: float32 is enough then.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgecl.heads.head import Novelty

if TYPE_CHECKING:

    from edgecl.heads.head import Head
    from edgecl.statistics.covariance import PooledCovariance

LEAST = 1e-6     # of the largest variance: a direction of logits with less holds only rounding


def fit(head: Head, pooled: PooledCovariance) -> Novelty | None:
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
