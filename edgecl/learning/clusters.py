"""Clusters of features by centroid linkage: what they are depends on the samples, not on their order."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAME = 1.2      # times the squared distance that the means of two groups of samples of one class have by chance ...
APART = 0.1     # ... and as much more, in units of the spread: a class is more than one point with noise


def centroid_linkage(squared: NDArray[np.float32], spread: float) -> list[list[int]]:
    """Clusters of samples by the distances of their means (Sokal & Michener 1958): those two become one whose squared
    distance is the smallest part of their limit, as long as it is less than that. Means of a and b samples of one class
    are (1 / a + 1 / b) / 2 times the spread apart by chance, so the limit is smaller for larger clusters.

    squared: squared distances of all pairs, float32 [n, n]; spread: mean of those of two samples of one class. Returns
    indices, each in one cluster, ascending; n steps of n^2.
    """
    count = len(squared)
    if not count:
        return []
    gaps, sizes = squared.astype(np.float64), np.ones(count)
    np.fill_diagonal(gaps, np.inf)
    parts = gaps / max((SAME + APART) * spread, np.finfo(float).tiny)
    members = [[place] for place in range(count)]
    while True:
        one, other = sorted(divmod(int(parts.argmin()), count))
        if not parts[one, other] < 1:
            break
        a, b = sizes[one], sizes[other]
        mean = (a * gaps[one] + b * gaps[other]) / (a + b) - a * b * gaps[one, other] / (a + b) ** 2
        sizes[one], mean[[one, other]] = a + b, np.inf
        gaps[one] = gaps[:, one] = mean
        parts[one] = parts[:, one] = mean / (spread * (SAME * (1 / sizes + 1 / sizes[one]) / 2 + APART))
        gaps[other] = gaps[:, other] = parts[other] = parts[:, other] = np.inf
        members[one] += members[other]
        members[other] = []
    return [sorted(each) for each in members if each]
