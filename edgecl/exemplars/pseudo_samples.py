"""Where no sample may be kept: a Gaussian of each class, and pseudo-samples that are drawn from it."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgecl.exemplars.selection import held_back
from edgecl.exemplars.stored import StoredSample
from edgecl.statistics.covariance import solve_positive
from edgecl.statistics.gaussian import Gaussian

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from edgecl.statistics.class_statistics import ClassStatistics
    from edgecl.statistics.transform import FeatureTransform

RANK = 16       # directions of a class at most
FEWEST = 3      # samples taught at once: of two, mean and covariance are both
LEARNED = 100   # pseudo-samples of a class that a learning round learns from,
JUDGING = 100   # and that judge, at most; of many classes ALL in all, but ...
ALL, LEAST = 600, 10    # ... so many of each at least
CODED = "drawn"     # `Row.coded` of pseudo-samples: no part of the statistics, to be subtracted
TINY = 1e-30


class ClassGaussians:
    """The covariance of each class, for a state that keeps no sample, in `room` bytes at rest: a diagonal and as many
    directions as fit, RANK at most; of no class where not even the diagonals do. widths: class -> how many times
    farther from the mean samples lie that were held back when it was taught."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.of: dict[str, Gaussian] = {}
        self.widths: dict[str, float] = {}

    def rank(self, dimension: int) -> int:
        """Directions a class that the room has space for; less than 0 where it has none for a diagonal."""
        return min(self.room // (4 * dimension * max(len(self.widths), 1)) - 1, RANK, dimension)

    def add(self, label: str, h: NDArray[np.float32], width: float, count: int = 0) -> None:
        """Samples h [n, d] of a class that had `count`. width: as measured on them."""
        share = len(h) / (len(h) + count)
        self.widths[label] = (1 - share) * self.widths.get(label, width) + share * width
        x, old = h.astype(np.float64), self.of.get(label)
        rank = max(self.rank(x.shape[1]), 0)
        if old is not None:
            self.take(label, old.merged(count, x, rank))
        elif not count:     # of a class whose Gaussian was let go of, later samples alone tell too little
            self.take(label, Gaussian.fitted(x, rank))

    def take(self, label: str, own: Gaussian | None) -> None:
        """The Gaussian of a class, where it has one; every class gets as many directions as fit then."""
        if own is not None:
            every = {**self.of, label: own}
            rank = self.rank(len(own.mean))
            self.of = {name: each.cut(rank) for name, each in every.items()} if rank >= 0 else {}

    def draw(self, label: str, statistics: ClassStatistics, transform: FeatureTransform,
             judges: bool) -> list[StoredSample]:
        """Pseudo-samples of a class, always the same, about its mean in `statistics`, which `transform` has gone
        through, as wide as samples lay that were held back. Of a class without a Gaussian, from the
        covariance within all classes; [] where there is neither. judges: see `StoredSample`."""
        mean, own = statistics.mean(label), self.of.get(label)
        if own is None and statistics.moment is not None:
            pooled = statistics.pooled()
            own = Gaussian.of(mean, pooled.shrunk(pooled.shrinkage), RANK)
        if own is None:
            return []
        n = min(JUDGING, max(ALL // len(self.widths), LEAST)) if judges else LEARNED
        drawn = own.draw(n, np.random.default_rng([judges, *label.encode()])) - own.mean
        return [StoredSample(None, None, label, number, feature, coded=CODED, judges=judges)
                for number, feature in enumerate(transform.back(mean + self.widths[label] * drawn))]

    def samples(self, statistics: ClassStatistics, transform: FeatureTransform) -> list[StoredSample]:
        """What a learning round goes through, with ids: LEARNED of each class, and those that judge."""
        rows = [row for label in statistics.labels for judges in (False, True)
                for row in self.draw(label, statistics, transform, judges)]
        return [row._replace(id=number) for number, row in enumerate(rows)]

    def moved(self, features: Mapping[str, NDArray[np.float32]]) -> ClassGaussians:
        """Those of pseudo-samples by another backbone: class -> h [n, d]."""
        found = ClassGaussians(self.room)
        for label, h in features.items():
            found.add(label, h.mean(0) + (h - h.mean(0)) / np.float32(self.widths[label]), self.widths[label])
        return found

    def forget(self, label: str) -> None:
        """Let go of a class."""
        self.of.pop(label, None)
        self.widths.pop(label, None)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """At rest, float32, in alphabetical order; the means are those of the statistics."""
        labels = sorted(self.widths)
        found = {"labels": np.array(labels, np.str_), "widths": np.array([self.widths[c] for c in labels], np.float32)}
        least = min((len(own.factor) for own in self.of.values()), default=0)
        cut = [self.of[label].cut(least) for label in sorted(self.of)]
        return {**found, "names": np.array(sorted(self.of), np.str_),
                "diagonal": np.array([own.diagonal for own in cut], np.float32),
                "factor": np.array([own.factor for own in cut], np.float32)}

    def load(self, arrays: Mapping[str, NDArray[Any]], means: Mapping[str, NDArray[np.float64]]) -> None:
        """The inverse of `to_arrays`. means: class -> float64 [d]."""
        self.widths = dict(zip(map(str, arrays["labels"]), map(float, arrays["widths"])))
        self.of = {
            str(name): Gaussian(means[str(name)], diagonal.astype(np.float64), factor.astype(np.float64))
            for name, diagonal, factor in zip(arrays["names"], arrays["diagonal"], arrays["factor"])}


def width(label: str, h: NDArray[np.float32], keys: Sequence[int], statistics: ClassStatistics) -> float:
    """How many times farther from the mean of a class new samples lie than draws of its Gaussian: measured, as a head
    sees it, on some of the class's samples h [n, d], which are held back from both; no less than
    sqrt((n + 1) / (n - 1)), which is what an estimated mean and covariance of n samples call for. statistics: h is part
    of them."""
    least = float(np.sqrt((len(h) + 1) / max(len(h) - 1, 1)))
    picked = held_back(h, keys, len(h), len(statistics.labels))
    if not len(picked) or len(h) - len(picked) < 2:
        return least
    rest = statistics.pooled({label: h[picked]})
    mean = rest.centre + rest.means[rest.labels.index(label)]
    own = Gaussian.fitted(np.delete(h, picked, 0).astype(np.float64), RANK)
    gaps = np.vstack([h[picked] - mean, own.draw(JUDGING, np.random.default_rng(0)) - own.mean])
    scaled = solve_positive(rest.shrunk(rest.shrinkage), gaps.T).T if rest.covariance is not None else gaps
    far = (gaps * scaled).sum(1)
    return max(float(np.sqrt(far[:len(picked)].mean() / max(far[len(picked):].mean(), TINY))), least)
