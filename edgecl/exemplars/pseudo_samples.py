"""For states that may keep no samples: a Gaussian for each class, and pseudo-samples drawn from it."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgecl.exemplars.selection import held_back, recording_hashes
from edgecl.exemplars.stored import StoredSample
from edgecl.statistics.gaussian import Gaussian
from edgecl.statistics.symmetric import solve_positive

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from edgecl.statistics.class_statistics import ClassStatistics
    from edgecl.statistics.transform import FeatureTransform

MAX_RANK = 16               # directions of a class
MIN_SAMPLES = 3             # taught at once: mean and covariance would reveal two samples
TRAINING_DRAWS = 100        # pseudo-samples of a class that a learning round learns from
JUDGING_DRAWS = 100         # pseudo-samples of a class that judge it, at most; with many classes ...
MAX_JUDGING, MIN_JUDGING = 600, 10  # ... at most 600 in total, but at least 10 of each
PSEUDO_CODED = "drawn"      # `StoredSample.coded` of pseudo-samples: they are not contained in the statistics
MIN_DISTANCE = 1e-30


class ClassGaussians:
    """The covariance of each class, for a state that keeps no samples, stored in at most `room` bytes: a diagonal and
    as many directions as fit, at most MAX_RANK; no covariance at all if not even the diagonals fit. widths: class ->
    how many times farther from the mean its samples are than such draws, see `width`."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.of: dict[str, Gaussian] = {}
        self.widths: dict[str, float] = {}

    def rank(self, dimension: int) -> int:
        """Directions per class that fit into the room; below 0 if not even a diagonal does."""
        return min(self.room // (4 * dimension * max(len(self.widths), 1)) - 1, MAX_RANK, dimension)

    def add(self, label: str, h: NDArray[np.float32], width: float, count: int = 0) -> None:
        """Add samples h [n, d] of a class that had `count` before. width: as measured on these samples by `width`."""
        share = len(h) / (len(h) + count)
        self.widths[label] = (1 - share) * self.widths.get(label, width) + share * width
        x, old = h.astype(np.float64), self.of.get(label)
        rank = max(self.rank(x.shape[1]), 0)
        if old is not None:
            self.take(label, old.merged(count, x, rank))
        elif not count:     # once the Gaussian of a class was dropped, later samples alone show too little
            self.take(label, Gaussian.fitted(x, rank))

    def take(self, label: str, own: Gaussian | None) -> None:
        """Set the Gaussian of a class, if there is one, and reduce all classes to as many directions as fit then."""
        if own is not None:
            every = {**self.of, label: own}
            rank = self.rank(len(own.mean))
            self.of = {name: each.cut(rank) for name, each in every.items()} if rank >= 0 else {}

    def draw(self, label: str, statistics: ClassStatistics, transform: FeatureTransform,
             judges: bool) -> list[StoredSample]:
        """Pseudo-samples of a class, the same each time, about its mean in `statistics` (of transformed features), and
        as far from it as samples are that it was not fitted on. Without a Gaussian for the class, the pooled covariance
        is used; [] if there is neither. judges: see `StoredSample`."""
        mean, own = statistics.mean(label), self.of.get(label)
        if own is None and statistics.moment is not None:
            pooled = statistics.pooled()
            own = Gaussian.of(mean, pooled.shrunk(pooled.shrinkage), MAX_RANK)
        if own is None:
            return []
        n = min(JUDGING_DRAWS, max(MAX_JUDGING // len(self.widths), MIN_JUDGING)) if judges else TRAINING_DRAWS
        drawn = own.draw(n, np.random.default_rng([judges, *label.encode()])) - own.mean
        return [StoredSample(None, None, label, number, feature, coded=PSEUDO_CODED, judges=judges)
                for number, feature in enumerate(transform.back(mean + self.widths[label] * drawn))]

    def samples(self, statistics: ClassStatistics, transform: FeatureTransform) -> list[StoredSample]:
        """The pseudo-samples of a learning round, with ids: TRAINING_DRAWS of each class, and those that judge."""
        rows = [row for label in statistics.labels for judges in (False, True)
                for row in self.draw(label, statistics, transform, judges)]
        return [row._replace(id=number) for number, row in enumerate(rows)]

    def moved(self, features: Mapping[str, NDArray[np.float32]]) -> ClassGaussians:
        """The Gaussians for another backbone. features: of its pseudo-samples, class -> h [n, d]."""
        gaussians = ClassGaussians(self.room)
        for label, h in features.items():
            gaussians.add(label, h.mean(0) + (h - h.mean(0)) / np.float32(self.widths[label]), self.widths[label])
        return gaussians

    def rename(self, label: str, name: str, counts: Mapping[str, int]) -> None:
        """Give a class another name; if that is a class as well, the two become one. counts: samples of each before.
        """
        own, width, there = self.of.pop(label, None), self.widths.pop(label), self.widths.get(name)
        if there is None:
            self.widths[name] = width
            self.take(name, own)
            return
        n, mine = counts[label], counts[name]
        self.widths[name] = (n * width + mine * there) / (n + mine)
        before = self.of.pop(name, None)
        if own is not None and before is not None:
            self.take(name, before.joined(mine, own, n, max(self.rank(len(own.mean)), 0)))

    def forget(self, label: str) -> None:
        """Remove a class."""
        self.of.pop(label, None)
        self.widths.pop(label, None)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The stored form: float32, classes in alphabetical order, without the means, which the statistics have."""
        labels = sorted(self.widths)
        rank = min((len(own.factor) for own in self.of.values()), default=0)
        cut = [self.of[label].cut(rank) for label in sorted(self.of)]
        return {"labels": np.array(labels, np.str_), "widths": np.array([self.widths[c] for c in labels], np.float32),
                "names": np.array(sorted(self.of), np.str_),
                "diagonal": np.array([own.diagonal for own in cut], np.float32),
                "factor": np.array([own.factor for own in cut], np.float32)}

    def load(self, arrays: Mapping[str, NDArray[Any]], means: Mapping[str, NDArray[np.float64]]) -> None:
        """The inverse of `to_arrays`. means: class -> float64 [d]."""
        self.widths = dict(zip(map(str, arrays["labels"]), map(float, arrays["widths"])))
        self.of = {
            str(name): Gaussian(means[str(name)], diagonal.astype(np.float64), factor.astype(np.float64))
            for name, diagonal, factor in zip(arrays["names"], arrays["diagonal"], arrays["factor"])}


def width(label: str, h: NDArray[np.float32], keys: Sequence[int], statistics: ClassStatistics) -> float:
    """How many times farther from the mean of a class new samples are than draws from its Gaussian.

    Measured in the metric of a head on some of the class's samples h [n, d], which are held back from both; at least
    sqrt((n + 1) / (n - 1)), to account for a mean and covariance estimated from n samples. keys: of the samples;
    statistics: contain h.
    """
    least = float(np.sqrt((len(h) + 1) / max(len(h) - 1, 1)))
    numbers = np.asarray(keys, np.int64)
    order = np.lexsort((numbers, recording_hashes(numbers, np.zeros(len(h), np.bool_), np.zeros(len(h), np.int64))))
    h = h[order]
    picked = held_back(h, numbers[order], len(h), len(statistics.labels))
    if not len(picked) or len(h) - len(picked) < 2:
        return least
    rest = statistics.pooled({label: h[picked]})
    mean = rest.centre + rest.means[rest.labels.index(label)]
    own = Gaussian.fitted(np.delete(h, picked, 0).astype(np.float64), MAX_RANK)
    gaps = np.vstack([h[picked] - mean, own.draw(JUDGING_DRAWS, np.random.default_rng(0)) - own.mean])
    scaled = solve_positive(rest.shrunk(rest.shrinkage), gaps.T).T if rest.covariance is not None else gaps
    far = (gaps * scaled).sum(1)
    return max(float(np.sqrt(far[:len(picked)].mean() / max(far[len(picked):].mean(), MIN_DISTANCE))), least)
