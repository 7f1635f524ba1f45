"""Class statistics: all that the fast learner remembers of its samples, additive in any order."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgecl.errors import BadInput, StateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

BLOCK = 256  # samples that wait for one symmetric rank-256 update: 16 times the speed of one at a time


class ClassStatistics:
    """Per class n_c and Q_c = sum (h - r), shared G = sum (h - r)(h - r)^T, about a fixed reference r.

    Accumulates in float64; at rest (`to_arrays`) sums and the packed triangle of G are float32. The reference
    only guards the precision: results do not depend on it. `second_moment=False` keeps no G (nearest means only).
    """

    def __init__(self, reference: NDArray[np.float32], second_moment: bool = True) -> None:
        self.reference = np.asarray(reference, np.float32)
        self.counts: dict[str, int] = {}
        self.sums: dict[str, NDArray[np.float64]] = {}
        self.residual = 0  # degrees of freedom that approximately forgotten classes left in G
        d = self.dimension
        self._moment = np.zeros((d, d)) if second_moment else None
        self._waiting: list[NDArray[np.float64]] = []
        self._waiting_rows = 0

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
        """G float64 [d, d] about the reference, or None."""
        if self._moment is not None and self._waiting:
            rows = np.concatenate(self._waiting)
            self._waiting, self._waiting_rows = [], 0
            self._moment += rows.T @ rows
        return self._moment

    def add(self, label: str, h: NDArray[np.float32]) -> None:
        """Add samples h [n, d] (or one, [d]) of one class. Raises BadInput where a value is not finite."""
        rows = np.atleast_2d(h).astype(np.float64) - self.reference
        total = rows.sum(0)
        if not np.isfinite(total).all():
            raise BadInput(f"a feature of class {label!r} is not a finite number",
                           "look at the samples and the backbone for NaN or infinity")
        self.counts[label] = self.counts.get(label, 0) + len(rows)
        self.sums[label] = self.sums[label] + total if label in self.sums else total
        if self._moment is not None:
            self._waiting.append(rows)
            self._waiting_rows += len(rows)
            if self._waiting_rows >= BLOCK:
                _ = self.moment

    def without(self, label: str, samples: NDArray[np.float32] | None = None) -> ClassStatistics:
        """A copy that has forgotten a class.

        Exact where `samples` [n_c, d] are all of the class's samples; otherwise the mean is removed from G exactly
        and the class's scatter about it stays, anonymous, as `residual` degrees of freedom.
        """
        left = self.copy()
        n, q = left.counts.pop(label), left.sums.pop(label)
        if left._moment is None:
            return left
        if samples is not None:
            rows = samples.astype(np.float64) - self.reference
            left._moment -= rows.T @ rows
        else:
            left._moment -= np.outer(q, q / n)
            left.residual += n - 1
        return left

    def minus(self, held: Mapping[str, NDArray[np.float32]]) -> ClassStatistics:
        """A copy as if the samples `held` (class -> h [n, d]) had never been added."""
        left = self.copy()
        for label, h in held.items():
            rows = h.astype(np.float64) - self.reference
            left.counts[label] -= len(rows)
            left.sums[label] = left.sums[label] - rows.sum(0)
        if left._moment is not None and held:
            every = np.concatenate([h for h in held.values()]).astype(np.float64) - self.reference
            left._moment -= every.T @ every
        return left

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

    def copy(self) -> ClassStatistics:
        """An independent copy."""
        twin = ClassStatistics(self.reference, second_moment=False)
        twin.counts, twin.residual = dict(self.counts), self.residual
        twin.sums = dict(self.sums)  # sums are replaced, never changed in place
        moment = self.moment
        twin._moment = None if moment is None else moment.copy()
        return twin

    def means(self) -> NDArray[np.float64]:
        """Class means about the reference, float64 [C, d]."""
        return np.stack([self.sums[c] / self.counts[c] for c in self.labels])

    def weights(self) -> NDArray[np.float64]:
        """Samples a class, float64 [C]."""
        return np.array([self.counts[c] for c in self.labels], np.float64)

    def within_covariance(self) -> NDArray[np.float64]:
        """Pooled covariance within classes, S = (G - sum n_c mu_c mu_c^T) / (N - C), float64 [d, d].

        Where every class has one sample only, S is 0. Raises StateError without a second moment.
        """
        moment, freedom = self._need_moment(), self.degrees_of_freedom
        means = self.means()
        scatter = moment - (means.T * self.weights()) @ means
        return scatter / max(freedom, 1)

    @property
    def degrees_of_freedom(self) -> int:
        """N - C, plus what forgotten classes left."""
        return self.total - len(self.counts) + self.residual

    def total_scatter(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Scatter about the common mean, float64 [d, d], and that mean about the reference, float64 [d]."""
        mean = sum(self.sums.values(), np.zeros(self.dimension)) / self.total
        return self._need_moment() - self.total * np.outer(mean, mean), mean

    def _need_moment(self) -> NDArray[np.float64]:
        moment = self.moment
        if moment is None:
            raise StateError("these class statistics keep no second moment", "use a nearest-mean head")
        return moment

    def to_arrays(self, rank: int | None = None) -> dict[str, NDArray]:
        """Everything, at rest: float32 arrays, names and counts.

        rank: None keeps the packed triangle of G, exactly; a number keeps the within-class scatter as its diagonal,
        exactly, plus its `rank` strongest directions.
        """
        labels, d = self.labels, self.dimension
        arrays: dict[str, NDArray] = {
            "reference": self.reference,
            "labels": np.array(labels, dtype=np.str_),
            "counts": np.array([self.counts[c] for c in labels], np.int64),
            "sums": np.array([self.sums[c] for c in labels], np.float32).reshape(len(labels), d),
            "residual": np.array(self.residual, np.int64)}
        moment = self.moment
        if moment is not None and rank is None:
            arrays["moment"] = np.concatenate([moment[i, i:] for i in range(d)]).astype(np.float32)
        elif moment is not None:
            scatter = self.within_covariance() * max(self.degrees_of_freedom, 1)
            values, vectors = np.linalg.eigh(scatter)
            factor = vectors[:, -rank:] * np.sqrt(np.maximum(values[-rank:], 0))
            arrays["factor"] = factor.T.astype(np.float32)
            arrays["diagonal"] = np.maximum(np.diag(scatter) - (factor ** 2).sum(1), 0).astype(np.float32)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray]) -> ClassStatistics:
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
            store._moment = factor.T @ factor + np.diag(arrays["diagonal"].astype(np.float64))
            if store.counts:
                store._moment += (store.means().T * store.weights()) @ store.means()
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
