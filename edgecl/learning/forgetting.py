"""What forgetting a class leaves of it in the covariance that all classes share, and how that is mended."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgecl.statistics.class_statistics import ClassStatistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecl.learning.knowledge import Knowledge
    from edgecl.statistics.transform import FeatureTransform

EXACT = 1e-3            # of a variance in any direction: less rounding changes no answer
USELESS = 0.1           # more is no covariance any more
DROWNED = 10.0          # times the variance of what is left: a forgotten class may leave less
LEAST_FREEDOM = 10      # of stored samples that show the variance of what is left

REMAINS = "its samples and mean are gone, its contribution to the shared covariance remains, unlabelled"
ROUNDED = "it was so much larger than what is left that rounding has moved the shared covariance by about {:.1%}"
ESTIMATED = "it was so much larger than what is left that the shared covariance was estimated again, from {}"


def after_forgetting(knowledge: Knowledge, subtracted: bool) -> str:
    """Mend the statistics that a forgotten class has just left; what remains of it, for people, "" if nothing.
    subtracted: whether all its samples were; else its scatter is still there, unlabelled.

    If all samples of the classes that are left are stored as they were learned, they are learned again. Otherwise the
    covariance stays as it is, if it is still one of theirs, or is estimated from what there is.
    """
    every = knowledge.statistics.values()
    rounding = max(statistics.rounding() for statistics in every)
    if subtracted and rounding <= EXACT:
        return ""
    estimates = {transform: _estimate(knowledge, transform) for transform in knowledge.statistics}
    drowned = rounding > USELESS or any(
        found is not None and _variance(knowledge.statistics[transform]) > DROWNED * float(np.trace(found))
        for transform, found in estimates.items())
    if (drowned or knowledge.form.rank is None) and _learn_again(knowledge):
        return "" if knowledge.form.rank is None else ESTIMATED.format("all that is stored")
    if not drowned:
        return REMAINS if not subtracted else ROUNDED.format(rounding)
    for transform, found in estimates.items():
        statistics = knowledge.statistics[transform]
        d = statistics.dimension
        statistics.take_covariance(np.eye(d) * (_variance(statistics) / d) if found is None else found)
    some = sum(not row.coded for row in knowledge.stored)
    return ESTIMATED.format(f"{some} stored samples" if some else "what is kept of each class")


def _learn_again(knowledge: Knowledge) -> bool:
    """Learn all that is stored again, if it is all that is known; whether it is."""
    mine: dict[str, list[NDArray[np.float32]]] = {label: [] for label in knowledge.labels}
    for row in knowledge.stored:
        if not row.coded:
            mine[row.label].append(row.feature)
    if knowledge.gaussians is not None or {label: len(rows) for label, rows in mine.items()} != knowledge.plain.counts:
        return False
    for transform in knowledge.statistics:
        transformed = {label: transform(np.stack(rows)) for label, rows in mine.items()}
        centre = sum(h.sum(0, np.float64) for h in transformed.values()) / knowledge.plain.total
        fresh = ClassStatistics(centre)
        for label, h in transformed.items():
            fresh.add(label, h)
        knowledge.statistics[transform] = fresh
    return True


def _estimate(knowledge: Knowledge, transform: FeatureTransform) -> NDArray[np.float64] | None:
    """The covariance within classes [d, d] of the samples that are stored, or of each class's Gaussian; None if there
    are too few."""
    if knowledge.gaussians is not None:
        own = [(knowledge.plain.counts[label] - 1, each) for label, each in sorted(knowledge.gaussians.of.items())]
        freedom = sum(n for n, _ in own)
        if freedom < LEAST_FREEDOM or transform != knowledge.transforms[0]:
            return None
        return sum((n / freedom * each.covariance for n, each in own), np.zeros((transform.dimension,) * 2))
    stored = ClassStatistics(np.zeros(transform.dimension))
    for label in knowledge.labels:
        features = [row.feature for row in knowledge.stored if row.label == label and not row.coded]
        if features:
            stored.add(label, transform(np.stack(features)))
    freedom = stored.degrees_of_freedom
    return stored.scatter() / freedom if freedom >= LEAST_FREEDOM else None


def _variance(statistics: ClassStatistics) -> float:
    """The variance within classes, over all directions."""
    return float(np.trace(statistics.scatter())) / max(statistics.degrees_of_freedom, 1)
