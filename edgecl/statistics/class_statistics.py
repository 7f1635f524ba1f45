"""Class statistics: everything that the closed-form heads need from the samples, additive in any order."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgecl.errors import BadInput, StateError
from edgecl.statistics.covariance import PooledCovariance

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from numpy.typing import NDArray

UPDATE_BLOCK = 256  # samples per symmetric update of G: 16 times as fast as one at a time
MAX_FEATURE = 1e15  # sums of squares are stored as float32, up to 3e38


def check_features(label: str, h: NDArray[np.float32]) -> None:
    """Raise BadInput if a feature can't be summed because it is NaN, infinite or over MAX_FEATURE."""
    if not np.abs(h).max(initial=0) <= MAX_FEATURE:
        raise BadInput(f"a feature of class {label!r} is not a number of at most {MAX_FEATURE:.0e}",
                       "check the samples and the backbone for NaN or infinity")


class ClassStatistics:
    """Per class n_c and Q_c = sum (h - r), shared G = sum (h - r)(h - r)^T, about a fixed reference r.

    Accumulates in float64; stored (`to_arrays`), sums and the packed triangle of G are float32. The reference only
    protects precision: results do not depend on it. `second_moment=False` keeps no G (for nearest-mean heads only).
    residual: degrees of freedom that approximately forgotten classes left in G; diagonal: float64 [d] if G was stored
    as a diagonal plus a low rank, so that single samples can no longer be subtracted from it, else None.
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
        """The classes in alphabetical order, which all arrays below follow."""
        return sorted(self.counts)

    @property
    def total(self) -> int:
        """Number of samples of all classes."""
        return sum(self.counts.values())

    @property
    def moment(self) -> NDArray[np.float64] | None:
        """G float64 [d, d] about the reference, or None. Samples are added in blocks of UPDATE_BLOCK in their order of
        arrival, no matter when G is read: the same samples give the same bits."""
        if self._moment is None or not len(self._waiting):
            return self._moment
        product: NDArray[np.float64] = self._waiting.T @ self._waiting
        return np.add(self._moment, product, out=product)

    def mean(self, label: str) -> NDArray[np.float64]:
        """The mean of a class, float64 [d]."""
        return self.reference + self.sums[label] / self.counts[label]

    def spread(self, h: NDArray[np.float32]) -> float:
        """The mean squared distance between two samples of a class; between two of `h` [n, d] if no G is kept."""
        freedom = self.degrees_of_freedom
        if self._moment is None or freedom < 1:
            return 2 * float(h.var(0, dtype=np.float64).sum())
        between = sum(float(q @ q) / self.counts[label] for label, q in self.sums.items())
        total = float(np.trace(self._moment)) + float(np.vdot(self._waiting, self._waiting))
        return 2 * max(total - between, 0.0) / freedom

    def add(self, label: str, h: NDArray[np.float32]) -> None:
        """Add samples h [n, d] (or one, [d]) of one class. Raises BadInput as `check_features` does."""
        check_features(label, h)
        rows = self._centred(h)
        total = rows.sum(0)
        self.counts[label] = self.counts.get(label, 0) + len(rows)
        self.sums[label] = self.sums[label] + total if label in self.sums else total
        if self._moment is not None:
            waiting = np.concatenate([self._waiting, rows])
            for start in range(0, len(waiting) - UPDATE_BLOCK + 1, UPDATE_BLOCK):
                block = waiting[start:start + UPDATE_BLOCK]
                self._moment += block.T @ block
            self._waiting = waiting[len(waiting) - len(waiting) % UPDATE_BLOCK:].copy()

    def remove(self, label: str, h: NDArray[np.float32]) -> None:
        """Remove samples h [n, d] of one class exactly. A class disappears with its last sample.

        Raises StateError if the class has fewer samples, or if G was stored as a diagonal plus a low rank.
        """
        rows = self._centred(h)
        left = self.counts.get(label, 0) - len(rows)
        if left < 0 or self.diagonal is not None:
            raise StateError(f"{len(rows)} of {left + len(rows)} samples of class {label!r} can't be removed",
                             "remove only samples that the statistics still contain exactly")
        if left:
            self.counts[label], self.sums[label] = left, self.sums[label] - rows.sum(0)
        else:
            del self.counts[label], self.sums[label]
        if self._moment is not None:
            self._moment -= rows.T @ rows

    def without(self, label: str, samples: NDArray[np.float32] | None = None) -> ClassStatistics:
        """A copy without one class.

        Exact if `samples` [n_c, d] are all samples of the class; otherwise its mean is removed from G exactly, and its
        scatter about the mean remains part of the shared scatter, as `residual` degrees of freedom.
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
        """The statistics of A h + b_c + noise, about their mean. weight: A [d', d]; shifts: b_c [d'] for each class;
        noise: its covariance within classes [d', d']. An approximate G stays approximate."""
        means = {label: weight @ self.mean(label) + shifts[label] for label in self.counts}
        total: NDArray[np.float64] = sum((n * means[label] for label, n in self.counts.items()), np.zeros(len(weight)))
        image = ClassStatistics(total / max(self.total, 1), self._moment is not None)
        image.counts, image.residual = dict(self.counts), self.residual
        image.sums = {label: n * (means[label] - image.reference) for label, n in self.counts.items()}
        if image._moment is not None and self.degrees_of_freedom > 0:  # else the scatter is only rounding
            scatter = weight @ self.scatter() @ weight.T
            image._moment += (scatter + scatter.T) / 2 + self.degrees_of_freedom * noise
        if image._moment is not None:
            rows = image._weighted_means()
            image._moment += rows.T @ rows
        image.diagonal = None if self.diagonal is None else np.zeros(len(weight))
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
        """The means and covariance that heads are solved from, as if `held` (class -> h [n, d]) had never been added.

        If G is approximate, the scatter of `held` can't be subtracted from it and remains.
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
        """N - C, plus those that forgotten classes left."""
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
        """Each class mean times the square root of its count, float64 [C, d]."""
        return np.array([self.sums[c] / np.sqrt(self.counts[c]) for c in self.labels]).reshape(-1, self.dimension)

    def _centred(self, h: NDArray[np.float32]) -> NDArray[np.float64]:
        return np.atleast_2d(h).astype(np.float64) - self.reference

    def to_arrays(self, rank: int | None = None) -> dict[str, NDArray[Any]]:
        """Everything in its stored form: float32 arrays, names and counts.

        rank: None keeps the packed triangle of G, exact; a number keeps the exact diagonal of the within-class scatter
        and its `rank` strongest directions.
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
        """Bytes of the arrays of `to_arrays`, without names and container."""
        packed = dimension * (dimension + 1) // 2 if rank is None else (rank + 1) * dimension
        return 4 * ((packed if second_moment else 0) + (classes + 1) * dimension)


def _unpack(packed: NDArray[np.float32], d: int) -> NDArray[np.float64]:
    full, start = np.zeros((d, d)), 0
    for i in range(d):
        full[i, i:] = packed[start:start + d - i]
        full[i:, i] = full[i, i:]
        start += d - i
    return full
