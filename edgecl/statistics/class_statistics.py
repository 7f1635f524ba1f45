"""Class statistics: everything that the closed-form heads need from the samples, additive in any order."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgecl.errors import BadInput, StateError
from edgecl.statistics.covariance import PooledCovariance
from edgecl.statistics.rounding import ERROR_AT_REST, dither, seed_of
from edgecl.statistics.scatter import Scatter, apart
from edgecl.statistics.symmetric import updated
from edgecl.statistics.triangle import packed_length

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

    from numpy.typing import NDArray

    Rows = NDArray[np.float64]

MAX_FEATURE = 1e15      # sums of squares are stored as float32, up to 3e38


def check_features(label: str, h: NDArray[np.float32]) -> None:
    """Raise BadInput if a feature can't be summed because it is NaN, infinite or over MAX_FEATURE."""
    if not np.abs(h).max(initial=0) <= MAX_FEATURE:
        raise BadInput(f"a feature of class {label!r} is not a number of at most {MAX_FEATURE:.0e}",
                       "check the samples and the backbone for NaN or infinity")


class ClassStatistics:
    """Per class n_c and Q_c = sum (h - r) about a fixed reference r, and the scatter W = sum (h - mu_c)(h - mu_c)^T
    within all classes.

    Accumulates in float64; stored (`to_arrays`), sums are float32, and W is a packed triangle of 4 bytes per entry
    (`edgecl.statistics.triangle`). The reference only protects the precision of the means. `second_moment=False` keeps
    no W (for nearest-mean heads only).
    residual: degrees of freedom that approximately forgotten classes left in W.
    """

    def __init__(self, reference: NDArray[np.floating[Any]], second_moment: bool = True) -> None:
        self.reference: NDArray[np.float32] = np.asarray(reference, np.float32)
        self.counts: dict[str, int] = {}
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.residual = 0
        self._within = Scatter(np.zeros((self.dimension, self.dimension))) if second_moment else None

    @property
    def dimension(self) -> int:
        """Length of h."""
        return len(self.reference)

    @property
    def labels(self) -> list[str]:
        """The classes in alphabetical order, which all arrays below follow."""
        return sorted(self.counts)

    @property
    def total(self) -> int:
        """Number of samples of all classes."""
        return sum(self.counts.values())

    @property
    def degrees_of_freedom(self) -> int:
        """N - C, plus those that forgotten classes left."""
        return self.total - len(self.counts) + self.residual

    @property
    def second_moment(self) -> bool:
        """Whether W is kept."""
        return self._within is not None

    @property
    def diagonal(self) -> NDArray[np.float64] | None:
        """Float64 [d] if W was stored as a diagonal plus a low rank, so that single samples can no longer be subtracted
        from it, else None."""
        return None if self._within is None else self._within.diagonal

    @property
    def moment(self) -> NDArray[np.float64] | None:
        """G = sum (h - r)(h - r)^T, float64 [d, d], or None if no second moment is kept."""
        return None if self._within is None else updated(self.scatter(), [self._weighted_means()])

    def scatter(self) -> NDArray[np.float64]:
        """W float64 [d, d], see `Scatter.whole`."""
        assert self._within is not None
        return self._within.whole()

    def mean(self, label: str) -> NDArray[np.float64]:
        """The mean of a class, float64 [d]."""
        return self.reference + self.sums[label] / self.counts[label]

    def spread(self, h: NDArray[np.float32]) -> float:
        """The mean squared distance between two samples of a class; between two of `h` [n, d] if no W is kept."""
        freedom = self.degrees_of_freedom
        if self._within is None or freedom < 1:
            return 2 * float(h.var(0, dtype=np.float64).sum())
        return 2 * max(float(self._within.variances().sum()), 0.0) / freedom

    def add(self, label: str, h: NDArray[np.float32]) -> None:
        """Add samples h [n, d] (or one, [d]) of one class. Raises BadInput as `check_features` does."""
        check_features(label, h)
        rows = self._centred(h)
        if not len(rows):
            return
        n, total = self.counts.get(label, 0), rows.sum(0)
        if self._within is not None:
            self._within.add(apart(rows, self.sums[label] / n if n else None, n))
        self.counts[label] = n + len(rows)
        self.sums[label] = self.sums[label] + total if n else total

    def add_each(self, labels: Sequence[str], h: NDArray[np.float32]) -> None:
        """Add samples h [n, d] one at a time, each of its own class: the same bits as n calls of `add`, in less time.
        Raises BadInput as `check_features` does; then nothing has changed."""
        check_features(", ".join(sorted({*labels})), h)
        rows, places = self._centred(h), dict[str, list[int]]()
        for place, label in enumerate(labels):
            places.setdefault(label, []).append(place)
        changes = np.zeros_like(rows)
        for label, mine in places.items():
            n, own = self.counts.get(label, 0), rows[mine]
            sums = np.cumsum(np.concatenate([self.sums[label][None], own]) if n else own, 0)
            self.counts[label], self.sums[label] = n + len(mine), sums[-1].copy()
            first = 0 if n else 1       # of a class that is new, the first sample is its mean
            others = np.arange(n + first, n + len(mine))[:, None]
            changes[mine[first:]] = np.sqrt(others / (others + 1)) * (own[first:] - sums[:-1] / others)
        if self._within is not None:
            self._within.add(changes)

    def remove(self, label: str, h: NDArray[np.float32]) -> None:
        """Remove samples h [n, d] of one class, exactly but for rounding (`rounding`). A class disappears with its last
        sample.

        Raises StateError if the class has fewer samples, or if W was stored as a diagonal plus a low rank.
        """
        rows = self._centred(h)
        left = self.counts.get(label, 0) - len(rows)
        if left < 0 or self.diagonal is not None:
            raise StateError(f"{len(rows)} of {left + len(rows)} samples of class {label!r} can't be removed",
                             "remove only samples that the statistics still contain exactly")
        if not len(rows):
            return
        if left:
            self.counts[label], self.sums[label] = left, self.sums[label] - rows.sum(0)
        else:
            del self.counts[label], self.sums[label]
        if self._within is not None:
            self._within.subtract(apart(rows, self.sums[label] / left if left else None, left))
        if self.degrees_of_freedom < 1:
            self._clear_scatter()   # what is left of it is rounding

    def rename(self, label: str, name: str) -> None:
        """Give a class another name; if that is a class as well, the two become one, exactly."""
        n, total = self.counts.pop(label), self.sums.pop(label)
        mine = self.counts.get(name, 0)
        if mine:
            between = np.sqrt(mine * n / (mine + n)) * (total / n - self.sums[name] / mine)
            total = self.sums[name] + total
            if self._within is not None:
                self._within.add(between[None])
        self.counts[name], self.sums[name] = mine + n, total

    def rounding_of_mean(self, label: str, size: float) -> float:
        """How far rounding at rest may have moved the mean of a class, in standard deviations of a sample. size: the
        largest entry of its sum before something was subtracted from it."""
        error = ERROR_AT_REST * size / self.counts[label]
        if error == 0 or self._within is None or self.degrees_of_freedom < 1:
            return 0.0
        variance = float(self._within.variances().sum()) / self.degrees_of_freedom / self.dimension
        return error / float(np.sqrt(variance)) if variance > 0 else 0.0

    def take_mean(self, label: str, h: NDArray[np.float32]) -> None:
        """Take the mean of a class from all of its samples h [n, d], without the rounding of what was subtracted."""
        self.sums[label] = self._centred(h).sum(0)

    def without(self, label: str, samples: NDArray[np.float32] | None = None) -> ClassStatistics:
        """A copy without one class.

        Exact but for rounding if `samples` [n_c, d] are all samples of the class, or if no other class is left;
        otherwise its mean is gone, and its scatter about the mean remains part of W, as `residual` degrees of freedom.
        """
        left = self.copy()
        if samples is not None and self.diagonal is None:
            left.remove(label, samples)
            return left
        n, _ = left.counts.pop(label), left.sums.pop(label)
        left.residual += n - 1 if left._within is not None else 0
        if not left.counts:
            left._clear_scatter()
        return left

    def _clear_scatter(self) -> None:
        """W = 0, since no class has more than one sample."""
        self.residual = 0
        if self._within is not None:
            self._within.clear()

    def affine(self, weight: NDArray[np.float64], shifts: Mapping[str, NDArray[np.float64]],
               noise: NDArray[np.float64]) -> ClassStatistics:
        """The statistics of A h + b_c + noise, about their mean. weight: A [d', d]; shifts: b_c [d'] for each class;
        noise: its covariance within classes [d', d']. An approximate W stays approximate."""
        means = {label: weight @ self.mean(label) + shifts[label] for label in self.counts}
        total: NDArray[np.float64] = sum((n * means[label] for label, n in self.counts.items()), np.zeros(len(weight)))
        image = ClassStatistics(total / max(self.total, 1), self._within is not None)
        image.counts, image.residual = dict(self.counts), self.residual
        image.sums = {label: n * (means[label] - image.reference) for label, n in self.counts.items()}
        if self._within is not None and self.degrees_of_freedom > 0:  # else the scatter is only rounding
            image._within = self._within.image(weight, self.degrees_of_freedom * noise)
        if image._within is not None and self.diagonal is not None:
            image._within.diagonal = np.zeros(len(weight))
        return image

    def about_its_mean(self, second_moment: bool = True) -> ClassStatistics:
        """The same about the mean of its classes (0 if there are none): the old reference may be a forgotten sample."""
        centre = sum(self.sums.values(), np.zeros(self.dimension)) / max(self.total, 1)
        moved = ClassStatistics(self.reference + centre if self.counts else 0 * self.reference, second_moment)
        moved.merge(self)
        return moved

    def merge(self, other: ClassStatistics) -> None:
        """Add the samples of other statistics: the result is that of all samples seen by one learner.

        Raises StateError if the dimensions differ, or if only one of the two keeps a second moment.
        """
        if self.dimension != other.dimension or (self._within is None) != (other._within is None):
            raise StateError(f"statistics of {self.dimension} and {other.dimension} dimensions can't be merged",
                             "merge states that were created with the same backbone, quota and head")
        shift = other.reference.astype(np.float64) - self.reference
        between = []
        for label, n in other.counts.items():
            moved, mine = other.sums[label] + n * shift, self.counts.get(label, 0)
            if mine:
                between.append(np.sqrt(mine * n / (mine + n)) * (moved / n - self.sums[label] / mine))
            self.counts[label] = mine + n
            self.sums[label] = self.sums[label] + moved if mine else moved
        if self._within is not None and other._within is not None:
            self._within.merge(other._within, np.array(between).reshape(-1, self.dimension))
        self.residual += other.residual

    def copy(self) -> ClassStatistics:
        """An independent copy."""
        twin = ClassStatistics(self.reference, second_moment=False)
        twin.counts, twin.residual = dict(self.counts), self.residual
        twin.sums = dict(self.sums)  # sums are replaced, never changed in place
        twin._within = None if self._within is None else self._within.copy()
        return twin

    def rounding(self) -> float:
        """How far rounding may have moved W: the largest standard deviation of a variance relative to it, over all
        directions of the covariance as heads use it; infinite if W is not even positive there. What was subtracted
        drowns what is left if that is not small. Also makes W positive semidefinite, within rounding."""
        if self._within is None or self.degrees_of_freedom < 1:
            return 0.0
        return self._within.rounding(self.pooled())

    def barely_rounded(self, most: float) -> bool:
        """Whether `rounding` is at most so much, as far as that is quickly told."""
        if self._within is None or self.degrees_of_freedom < 1:
            return True
        pooled = self.pooled()
        return self._within.error / pooled.freedom <= most * pooled.sphere(pooled.shrinkage)

    def take_covariance(self, covariance: NDArray[np.float64]) -> None:
        """Take another estimate of the covariance within classes [d, d] for the one that is there."""
        assert self._within is not None
        self.residual = 0
        self._within.become(covariance * self.degrees_of_freedom)

    def pooled(self, held: Mapping[str, NDArray[np.float32]] | None = None) -> PooledCovariance:
        """The means and covariance that heads are solved from, as if `held` (class -> h [n, d]) had never been added.

        If W is approximate, the scatter of `held` can't be subtracted from it and remains.
        """
        labels, held = self.labels, held or {}
        counts = np.array([self.counts[c] for c in labels], np.float64)
        sums = np.concatenate([self.sums[c] for c in labels]).reshape(len(labels), -1)
        places = [place for place, label in enumerate(labels) if len(held.get(label, ()))]
        removed = self._centred(np.concatenate([held[labels[place]] for place in places])) if places else \
            np.zeros((0, self.dimension))
        if places:
            sizes = np.array([len(held[labels[place]]) for place in places])
            own = np.add.reduceat(removed, np.cumsum(sizes) - sizes) if sizes.max() > 1 else removed.copy()
            counts[places] -= sizes
            sums[places] -= own
            left, size = counts[places][:, None], sizes[:, None]
            own /= size
            with np.errstate(invalid="ignore", divide="ignore"):    # all samples of a class may be taken out
                change = np.where(left > 0, np.sqrt(left / (left + size)) * (own - sums[places] / left), 0)
            removed += np.repeat(change - own, sizes, 0)
        means = np.divide(sums, counts[:, None], out=sums)
        mean = counts @ means / counts.sum()
        means -= mean
        freedom = self.degrees_of_freedom - len(removed)
        covariance = None if self._within is None else self._within.covariance(removed, freedom)
        return PooledCovariance(tuple(labels), counts, self.reference + mean, means, covariance, freedom,
                                exact=self.diagonal is None)

    def _weighted_means(self) -> NDArray[np.float64]:
        """Each class mean times the square root of its count, float64 [C, d]."""
        return np.array([self.sums[c] / np.sqrt(self.counts[c]) for c in self.labels]).reshape(-1, self.dimension)

    def _centred(self, h: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.atleast_2d(h).astype(np.float64) - self.reference

    def to_arrays(self, rank: int | None = None) -> dict[str, NDArray[Any]]:
        """Everything in its stored form: arrays of 4 bytes per value, names, counts, and how far rounding has moved W.

        rank: None keeps the packed triangle of W; a number keeps its exact diagonal and its `rank` strongest
        directions. Sums are rounded without bias (`dither`), since each new reference changes all of them; W only
        changes by what was added or removed, and rounds back to what it was. The same statistics give the same bytes.
        """
        labels, d = self.labels, self.dimension
        sums = np.array([self.sums[c] for c in labels], np.float64).reshape(len(labels), d)
        counts = np.array([self.counts[c] for c in labels], np.int64)
        arrays: dict[str, NDArray[Any]] = {
            "reference": self.reference,
            "labels": np.array(labels, dtype=np.str_),
            "counts": counts,
            "sums": dither(sums, seed_of(self.reference, counts, sums)),
            "residual": np.array(self.residual, np.int64)}
        return arrays if self._within is None else arrays | self._within.to_arrays(rank)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ClassStatistics:
        """The inverse of `to_arrays`; also of its form up to format 2, with G about the reference in place of W."""
        store = cls(arrays["reference"], second_moment=False)
        labels: Iterable[str] = (str(c) for c in arrays["labels"])
        for label, n, q in zip(labels, arrays["counts"], arrays["sums"]):
            store.counts[label], store.sums[label] = int(n), q.astype(np.float64)
        store.residual = int(arrays["residual"])
        store._within = Scatter.from_arrays(arrays, store._weighted_means())
        return store

    @staticmethod
    def bytes_at_rest(dimension: int, classes: int, second_moment: bool = True, rank: int | None = None) -> int:
        """Bytes of the arrays of `to_arrays`, without names and container."""
        scatter = packed_length(dimension) if rank is None else (rank + 1) * dimension
        return 4 * ((scatter + 2 if second_moment else 0) + (classes + 1) * dimension)
