"""Clusters of features by average linkage: what they are depends on the samples, not on their order."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def average_linkage(squared: NDArray[np.float32], most: float) -> list[list[int]]:
    """Clusters of samples (Sokal & Michener 1958): the two whose mean squared distance is the smallest become one, as
    long as it is less than `most`.

    squared: squared distances of all pairs, float32 [n, n]. Returns indices, each in one cluster, ascending; n steps of
    n^2.
    """
    count = len(squared)
    if not count:
        return []
    mean, sizes = squared.astype(np.float64), np.ones(count)
    np.fill_diagonal(mean, np.inf)
    members = [[place] for place in range(count)]
    while True:
        one, other = sorted(divmod(int(mean.argmin()), count))
        if not mean[one, other] < most:
            break
        both = (sizes[one] * mean[one] + sizes[other] * mean[other]) / (sizes[one] + sizes[other])
        both[one] = np.inf
        mean[one] = mean[:, one] = both
        mean[other] = mean[:, other] = np.inf
        sizes[one] += sizes[other]
        members[one] += members[other]
        members[other] = []
    return [sorted(each) for each in members if each]
