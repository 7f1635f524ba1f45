"""Class statistics: all that the fast learner remembers of its samples, additive in any order."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgecl.errors import BadInput, StateError
from edgecl.statistics.covariance import PooledCovariance

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from numpy.typing import NDArray

BLOCK = 256  # samples that wait for one symmetric rank-256 update: 16 times the speed of one at a time
LARGEST = 1e15  # of a feature: sums of squares are float32 at rest, up to 3e38


def check_features(label: str, h: NDArray[np.float32]) -> None:
    """Raise BadInput where a feature can't be summed: NaN, infinite or over LARGEST."""
    if not np.abs(h).max(initial=0) <= LARGEST:
        raise BadInput(f"a feature of class {label!r} is no number up to {LARGEST:.0e}",
                       "look at the samples and the backbone for NaN or infinity")


class ClassStatistics:
    """Per class n_c and Q_c = sum (h - r), shared G = sum (h - r)(h - r)^T, about a fixed reference r.

    Accumulates in float64; at rest (`to_arrays`) sums and the packed triangle of G are float32. The reference
    only guards the precision: results do not depend on it. `second_moment=False` keeps no G (nearest means only).
    residual: degrees of freedom that approximately forgotten classes left in G; diagonal: what stands beside the low
    rank where G was at rest so, float64 [d], so that no single sample can be subtracted from it any more; else None.
    """

    def __init__(self, reference: NDArray[np.floating[Any]], second_moment: bool = True) -> None:
        self.reference: NDArray[np.float32] = np.asarray(reference, np.float32)
        self.counts: dict[str, int] = {}
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.residual = 0
        self.diagonal: NDArray[np.float64] | None = None
        self._moment = np.zeros((self.dimension, self.dimension)) if second_moment else None
        self._waiting = np.zeros((0, self.dimension))

    @property
    def dimension(self) -> int:
        """Length of h."""
        return len(self.reference)

    @property
    def labels(self) -> list[str]:
        """The classes in alphabetical order, which is the order of every array below."""
        return sorted(self.counts)

    @property
    def total(self) -> int:
        """Samples of all classes."""
        return sum(self.counts.values())

    @property
    def moment(self) -> NDArray[np.float64] | None:
        """G float64 [d, d] about the reference, or None. Samples are added in blocks of BLOCK in the order in which
        they came, whenever it was read: the same samples give the same bits."""
        if self._moment is None or not len(self._waiting):
            return self._moment
        product: NDArray[np.float64] = self._waiting.T @ self._waiting
        return np.add(self._moment, product, out=product)

    def mean(self, label: str) -> NDArray[np.float64]:
        """The mean of a class, float64 [d]."""
        return self.reference + self.sums[label] / self.counts[label]

    def spread(self, h: NDArray[np.float32]) -> float:
        """The mean squared distance of two samples of one class; of two of `h` [n, d] where no G is kept."""
        freedom = self.degrees_of_freedom
        if self._moment is None or freedom < 1:
            return 2 * float(h.var(0, dtype=np.float64).sum())
        between = sum(float(q @ q) / self.counts[label] for label, q in self.sums.items())
        total = float(np.trace(self._moment)) + float(np.vdot(self._waiting, self._waiting))
        return 2 * max(total - between, 0.0) / freedom

    def add(self, label: str, h: NDArray[np.float32]) -> None:
        """Add samples h [n, d] (or one, [d]) of one class. Raises BadInput, see `check_features`."""
        check_features(label, h)
        rows = self._centred(h)
        total = rows.sum(0)
        self.counts[label] = self.counts.get(label, 0) + len(rows)
        self.sums[label] = self.sums[label] + total if label in self.sums else total
        if self._moment is not None:
            waiting = np.concatenate([self._waiting, rows])
            for start in range(0, len(waiting) - BLOCK + 1, BLOCK):
                block = waiting[start:start + BLOCK]
                self._moment += block.T @ block
            self._waiting = waiting[len(waiting) - len(waiting) % BLOCK:].copy()

    def remove(self, label: str, h: NDArray[np.float32]) -> None:
        """Take samples h [n, d] of one class out again, exactly; with its last sample a class is gone.

        Raises StateError where the class has fewer, or where G was at rest as a diagonal and a rank.
        """
        rows = self._centred(h)
        left = self.counts.get(label, 0) - len(rows)
        if left < 0 or self.diagonal is not None:
            raise StateError(f"{len(rows)} of {left + len(rows)} samples of class {label!r} can't be taken out",
                             "take out only samples that are still contained exactly")
        if left:
            self.counts[label], self.sums[label] = left, self.sums[label] - rows.sum(0)
        else:
            del self.counts[label], self.sums[label]
        if self._moment is not None:
            self._moment -= rows.T @ rows

    def without(self, label: str, samples: NDArray[np.float32] | None = None) -> ClassStatistics:
        """A copy that has forgotten a class.

        Exact where `samples` [n_c, d] are all of the class's samples; otherwise the mean is removed from G exactly
        and the class's scatter about it stays, anonymous, as `residual` degrees of freedom.
        """
        left = self.copy()
        if samples is not None and self.diagonal is None:
            left.remove(label, samples)
            return left
        n, q = left.counts.pop(label), left.sums.pop(label)
        if left._moment is not None:
            left._moment -= np.outer(q, q / n)
            left.residual += n - 1
        return left

    def affine(self, weight: NDArray[np.float64], shifts: Mapping[str, NDArray[np.float64]],
               noise: NDArray[np.float64]) -> ClassStatistics:
        """The statistics of A h + b_c + noise, about their mean. weight: A [d', d]; shifts: b_c [d'] of each class;
        noise: its covariance within classes [d', d']. G is approximate afterwards where it was."""
        means = {label: weight @ self.mean(label) + shifts[label] for label in self.counts}
        total: NDArray[np.float64] = sum((n * means[label] for label, n in self.counts.items()), np.zeros(len(weight)))
        image = ClassStatistics(total / max(self.total, 1), self._moment is not None)
        image.counts, image.residual = dict(self.counts), self.residual
        image.sums = {label: n * (means[label] - image.reference) for label, n in self.counts.items()}
        if image._moment is not None and self.degrees_of_freedom > 0:  # else the scatter is rounding
            scatter = weight @ self.scatter() @ weight.T
            image._moment += (scatter + scatter.T) / 2 + self.degrees_of_freedom * noise
        if image._moment is not None:
            rows = image._weighted_means()
            image._moment += rows.T @ rows
        image.diagonal = None if self.diagonal is None else np.zeros(len(weight))
        return image

    def about_its_mean(self, second_moment: bool = True) -> ClassStatistics:
        """The same about the mean of its own classes (0 without any): the old reference may be a forgotten sample."""
        centre = sum(self.sums.values(), np.zeros(self.dimension)) / max(self.total, 1)
        moved = ClassStatistics(self.reference + centre if self.counts else 0 * self.reference, second_moment)
        moved.merge(self)
        return moved

    def merge(self, other: ClassStatistics) -> None:
        """Add another store's samples: the result is what one store would hold that had seen both.

        Raises StateError where the dimensions differ or one of them keeps no second moment.
        """
        if self.dimension != other.dimension or (self._moment is None) != (other._moment is None):
            raise StateError(f"statistics of {self.dimension} and {other.dimension} dimensions can't be merged",
                             "merge states that were created with the same backbone, quota and head")
        shift = other.reference.astype(np.float64) - self.reference
        for label, n in other.counts.items():
            self.counts[label] = self.counts.get(label, 0) + n
            moved = other.sums[label] + n * shift
            self.sums[label] = self.sums[label] + moved if label in self.sums else moved
        theirs = other.moment
        if self._moment is not None and theirs is not None:
            q = sum(other.sums.values(), np.zeros(self.dimension))
            cross = np.outer(q, shift)
            self._moment += theirs + cross + cross.T + other.total * np.outer(shift, shift)
        self.residual += other.residual
        if other.diagonal is not None:
            self.diagonal = other.diagonal + (0 if self.diagonal is None else self.diagonal)

    def copy(self) -> ClassStatistics:
        """An independent copy."""
        twin = ClassStatistics(self.reference, second_moment=False)
        twin.counts, twin.residual, twin.diagonal = dict(self.counts), self.residual, self.diagonal
        twin.sums = dict(self.sums)  # sums are replaced, never changed in place
        moment = self.moment
        twin._moment = moment.copy() if moment is self._moment and moment is not None else moment
        return twin

    def pooled(self, held: Mapping[str, NDArray[np.float32]] | None = None) -> PooledCovariance:
        """What heads are solved from, as if the samples `held` (class -> h [n, d]) had never been added.

        Where G is approximate, their scatter can't be subtracted from it and stays.
        """
        rows = {label: self._centred(h) for label, h in (held or {}).items()}
        labels = self.labels
        counts = np.array([self.counts[c] - len(rows.get(c, ())) for c in labels], np.float64)
        means = np.stack([self.sums[c] - rows[c].sum(0) if c in rows else self.sums[c] for c in labels])
        means /= counts[:, None]
        mean = counts @ means / counts.sum()
        freedom = int(counts.sum()) - len(labels) + self.residual
        covariance: NDArray[np.float64] | None = None
        if self._moment is not None and freedom < 1:
            covariance = np.zeros_like(self._moment)
        elif self._moment is not None and self.diagonal is not None:
            covariance = self.scatter() / self.degrees_of_freedom
        elif self._moment is not None:
            covariance = self._scatter(np.sqrt(counts)[:, None] * means, *rows.values()) / freedom
        return PooledCovariance(tuple(labels), counts, self.reference + mean, means - mean, covariance, freedom)

    @property
    def degrees_of_freedom(self) -> int:
        """N - C, plus what forgotten classes left."""
        return self.total - len(self.counts) + self.residual

    def scatter(self) -> NDArray[np.float64]:
        """G about the class means: the scatter within classes, float64 [d, d]."""
        return self._scatter(self._weighted_means())

    def _scatter(self, *rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """G - R^T R of rows R [n, d] about the reference."""
        every = np.concatenate(rows)
        product: NDArray[np.float64] = every.T @ every
        return np.subtract(self.moment, product, out=product)  # type: ignore[arg-type]

    def _weighted_means(self) -> NDArray[np.float64]:
        """Each class mean times the root of its count: [C, d]."""
        return np.array([self.sums[c] / np.sqrt(self.counts[c]) for c in self.labels]).reshape(-1, self.dimension)

    def _centred(self, h: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.atleast_2d(h).astype(np.float64) - self.reference

    def to_arrays(self, rank: int | None = None) -> dict[str, NDArray[Any]]:
        """Everything, at rest: float32 arrays, names and counts.

        rank: None keeps the packed triangle of G, exactly; a number keeps the within-class scatter as its diagonal,
        exactly, plus its `rank` strongest directions.
        """
        labels, d = self.labels, self.dimension
        arrays: dict[str, NDArray[Any]] = {
            "reference": self.reference,
            "labels": np.array(labels, dtype=np.str_),
            "counts": np.array([self.counts[c] for c in labels], np.int64),
            "sums": np.array([self.sums[c] for c in labels], np.float32).reshape(len(labels), d),
            "residual": np.array(self.residual, np.int64)}
        moment = self.moment
        if moment is not None and rank is None:
            arrays["moment"] = np.concatenate([moment[i, i:] for i in range(d)]).astype(np.float32)
        elif moment is not None and rank is not None:
            scatter = self.scatter()
            values, vectors = np.linalg.eigh(scatter - np.diag(np.zeros(d) if self.diagonal is None else self.diagonal))
            factor = np.sqrt(np.maximum(values[-rank:], 0))[:, None] * vectors[:, -rank:].T
            arrays["factor"] = factor.astype(np.float32)
            arrays["diagonal"] = np.maximum(np.diag(scatter) - (factor ** 2).sum(0), 0).astype(np.float32)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> ClassStatistics:
        """The inverse of `to_arrays`."""
        store = cls(arrays["reference"], second_moment="moment" in arrays or "factor" in arrays)
        labels: Iterable[str] = (str(c) for c in arrays["labels"])
        for label, n, q in zip(labels, arrays["counts"], arrays["sums"]):
            store.counts[label], store.sums[label] = int(n), q.astype(np.float64)
        store.residual = int(arrays["residual"])
        if "moment" in arrays:
            store._moment = _unpack(arrays["moment"], store.dimension)
        elif "factor" in arrays:
            factor = arrays["factor"].astype(np.float64)
            store.diagonal = arrays["diagonal"].astype(np.float64)
            rows = np.concatenate([factor, store._weighted_means()])
            store._moment = rows.T @ rows + np.diag(store.diagonal)
        return store

    @staticmethod
    def bytes_at_rest(dimension: int, classes: int, second_moment: bool = True, rank: int | None = None) -> int:
        """Bytes of the arrays of `to_arrays`, names and container apart."""
        packed = dimension * (dimension + 1) // 2 if rank is None else (rank + 1) * dimension
        return 4 * ((packed if second_moment else 0) + (classes + 1) * dimension)


def _unpack(packed: NDArray[np.float32], d: int) -> NDArray[np.float64]:
    full, start = np.zeros((d, d)), 0
    for i in range(d):
        full[i, i:] = packed[start:start + d - i]
        full[i:, i] = full[i, i:]
        start += d - i
    return full
