"""What forgetting a class leaves of it in the covariance that all classes share, and how that is mended."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgecl.settings import counted
from edgecl.statistics.class_statistics import ClassStatistics

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgecl.exemplars.pseudo_samples import ClassGaussians
    from edgecl.exemplars.stored import StoredSample
    from edgecl.statistics.transform import FeatureTransform

    Statistics = dict[FeatureTransform, ClassStatistics]    # of the features themselves first

EXACT = 1e-3            # of a variance in any direction: less rounding changes no answer
USELESS = 0.1           # more is no covariance any more
DROWNED = 10.0          # times the variance of what is left: a forgotten class may leave less
LEAST_FREEDOM = 10      # of stored samples that show the variance of what is left

REMAINS = "its samples and mean are gone, its contribution to the shared covariance remains, unlabelled"
ROUNDED = "it was so much larger than what is left that rounding has moved the shared covariance by about {:.1%}"
MEAN_ROUNDED = "it was so much larger than what is left that rounding has moved the mean of its class by {:.1%} of a " \
    "standard deviation"
ESTIMATED = "it was so much larger than what is left that the shared covariance was estimated again, from {}"


def after_forgetting(statistics: Statistics, stored: Sequence[StoredSample], gaussians: ClassGaussians | None,
                     subtracted: bool, whole: bool = True) -> str:
    """Mend the statistics that a forgotten class has just left; what remains of it, for people, "" if nothing.
    stored: of the classes that are left; gaussians: theirs, in place of samples; subtracted: whether all samples of the
    class were, else its scatter is still there, unlabelled; whole: whether the scatter is kept as more than a diagonal
    and a rank.

    If all samples of the classes that are left are stored as they were learned, they are learned again. Otherwise the
    covariance stays as it is, if it is still one of theirs, or is estimated from what there is.
    """
    rounding = max(each.rounding() for each in statistics.values())
    if subtracted and rounding <= EXACT:
        return ""
    mine: dict[str, list[NDArray[np.float32]]] = {}
    for row in stored:
        if not row.coded:
            mine.setdefault(row.label, []).append(row.feature)
    estimates = {transform: _of_samples(transform, mine) for transform in statistics}
    first, known = next(iter(statistics.items()))
    if gaussians is not None:
        estimates = {first: _of_gaussians(known, gaussians)}
    drowned = rounding > USELESS or any(
        found is not None and _variance(statistics[transform]) > DROWNED * float(np.trace(found))
        for transform, found in estimates.items())
    every = gaussians is None and {label: len(rows) for label, rows in mine.items()} == known.counts
    if every and (drowned or whole):
        for transform in statistics:
            statistics[transform] = _learned(transform, mine)
        return "" if whole else ESTIMATED.format("all samples, which are stored")
    if not drowned:
        return ROUNDED.format(rounding) if subtracted else REMAINS
    for transform, each in statistics.items():
        sphere = np.eye(each.dimension) * (_variance(each) / each.dimension)
        found = estimates.get(transform)
        each.take_covariance(sphere if found is None else found)
    some = sum(map(len, mine.values()))
    return ESTIMATED.format(counted(some, "stored sample") if some and gaussians is None else
                            "what is kept of each class")


def _learned(transform: FeatureTransform, features: dict[str, list[NDArray[np.float32]]]) -> ClassStatistics:
    """The statistics of these samples, class -> features [d], about their mean."""
    transformed = {label: transform(np.stack(rows)) for label, rows in sorted(features.items())}
    total = sum(map(len, features.values()))
    learned = ClassStatistics(sum((h.sum(0, np.float64) for h in transformed.values()), np.zeros(transform.dimension))
                              / max(total, 1))
    for label, h in transformed.items():
        learned.add(label, h)
    return learned


def _of_samples(transform: FeatureTransform, features: dict[str, list[NDArray[np.float32]]]
                ) -> NDArray[np.float64] | None:
    """The covariance within classes [d, d] of these samples; None if they are too few."""
    learned = _learned(transform, features)
    freedom = learned.degrees_of_freedom
    return learned.scatter() / freedom if freedom >= LEAST_FREEDOM else None


def _of_gaussians(known: ClassStatistics, gaussians: ClassGaussians) -> NDArray[np.float64] | None:
    """The covariance within classes [d, d] that their Gaussians have; None if there are too few."""
    own = [(known.counts[label] - 1, each) for label, each in sorted(gaussians.of.items())]
    freedom = sum(n for n, _ in own)
    if freedom < LEAST_FREEDOM:
        return None
    return sum((n / freedom * each.covariance for n, each in own), np.zeros((known.dimension,) * 2))


def _variance(statistics: ClassStatistics) -> float:
    """The variance within classes, over all directions."""
    return float(np.trace(statistics.scatter())) / max(statistics.degrees_of_freedom, 1)
