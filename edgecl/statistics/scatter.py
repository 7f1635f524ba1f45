"""The scatter of samples within their classes, one matrix for all of them, and how far rounding may have moved it."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgecl.statistics.rounding import ERROR_AT_REST
from edgecl.statistics.row_blocks import RowBlocks
from edgecl.statistics.symmetric import clipped, updated
from edgecl.statistics.triangle import ERROR_PACKED, diagonal_at_rest, packed, unpacked

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from numpy.typing import NDArray

    from edgecl.statistics.covariance import PooledCovariance

ERROR_OF_SUMS = 2.0 ** -50  # of a float64 sum, relative to the largest value that it had


class Scatter:
    """W = sum (h - mu_c)(h - mu_c)^T, float64 [d, d]. diagonal: float64 [d] if W was stored as a diagonal plus a low
    rank, so that single samples can no longer be subtracted from it, else None."""

    def __init__(self, within: NDArray[np.float64]) -> None:
        """within: W as it is so far, [d, d], which becomes this one's own."""
        self.become(within)

    def become(self, within: NDArray[np.float64]) -> None:
        """Take another W [d, d] for the one that is there."""
        self.diagonal: NDArray[np.float64] | None = None
        self._within = within
        self._error = np.zeros(len(within))         # standard deviation of the rounding in the diagonal of W
        self._lacking = RowBlocks(len(within))      # samples that W still lacks

    def whole(self) -> NDArray[np.float64]:
        """W float64 [d, d], not to be changed. Samples are added in blocks of UPDATE_BLOCK, no matter when W is read:
        the same calls of `add` give the same bits."""
        return updated(self._within, [self._lacking.rows]) if len(self._lacking.rows) else self._within

    def variances(self) -> NDArray[np.float64]:
        """The diagonal of W, float64 [d]."""
        return np.diag(self._within) + np.einsum("nd,nd->d", self._lacking.rows, self._lacking.rows)

    def add(self, rows: NDArray[np.float64]) -> None:
        """Add what samples add to W, rows [n, d] of `apart`."""
        self._lacking.take(rows, self._within)

    def subtract(self, rows: NDArray[np.float64]) -> None:
        """The inverse of `add`, exactly but for rounding."""
        self._error = np.hypot(self._error, ERROR_OF_SUMS * self.variances())
        updated(self._within, [], [rows], out=self._within)

    def clear(self) -> None:
        """W = 0, since no class has more than one sample."""
        self.become(np.zeros_like(self._within))

    def image(self, weight: NDArray[np.float64], noise: NDArray[np.float64]) -> Scatter:
        """The scatter of A h, and `noise` [d', d'] added to it. weight: A [d', d]."""
        whole = weight @ self.whole() @ weight.T
        image = Scatter((whole + whole.T) / 2 + noise)
        image._error = weight ** 2 @ self._error
        return image

    def merge(self, other: Scatter, between: NDArray[np.float64]) -> None:
        """Add another scatter. between: what the means of the classes that both have add, rows [n, d]."""
        self._within += other._within
        updated(self._within, [rows for rows in (other._lacking.rows, between) if len(rows)], out=self._within)
        self._error = np.hypot(self._error, other._error)
        if other.diagonal is not None:
            self.diagonal = other.diagonal + (0 if self.diagonal is None else self.diagonal)

    def copy(self) -> Scatter:
        """An independent copy."""
        whole = self.whole()
        twin = Scatter(whole.copy() if whole is self._within else whole)
        twin.diagonal, twin._error = self.diagonal, self._error.copy()
        return twin

    @property
    def error(self) -> float:
        """The standard deviation of the rounding in the entry of the diagonal that has the most."""
        return float(self._error.max(initial=0))

    def covariance(self, removed: NDArray[np.float64], freedom: int) -> NDArray[np.float64]:
        """The covariance within classes [d, d] without what samples have added, rows [n, d], when `freedom` degrees of
        freedom are left. If W is approximate, these can't be subtracted from it and remain."""
        if freedom < 1:
            return np.zeros_like(self._within)
        if self.diagonal is not None:
            return self.whole() / (freedom + len(removed))
        covariance = updated(self._within, [self._lacking.rows], [removed])
        covariance /= freedom
        return covariance

    def rounding(self, pooled: PooledCovariance) -> float:
        """See `ClassStatistics.rounding`. pooled: of this scatter."""
        e = pooled.shrinkage
        values, vectors = np.linalg.eigh(pooled.second())
        error = self._error / pooled.freedom @ vectors ** 2
        seen = (1 - e) * values + pooled.sphere(e)
        if values[0] < -ERROR_AT_REST * max(values[-1], 0.0) and self.diagonal is None:
            self._within = clipped(values, vectors)
            self._lacking.clear()
            self._within *= pooled.freedom
        return float((error / seen).max()) if seen[0] > 0 else float("inf")

    def to_arrays(self, rank: int | None = None) -> dict[str, NDArray[Any]]:
        """W in its stored form, and how far rounding has moved it; see `ClassStatistics.to_arrays`."""
        arrays: dict[str, NDArray[Any]] = {}
        variances, whole = self.variances(), self.whole()
        size = float(np.abs(variances).sum()) or 1.0
        if rank is None:
            arrays["scatter"] = packed(whole)
            fresh = np.where(diagonal_at_rest(variances) == variances, 0, ERROR_PACKED * variances)     # if not as read
        else:
            values, vectors = np.linalg.eigh(whole - np.diag(
                np.zeros(len(whole)) if self.diagonal is None else self.diagonal))
            factor = np.sqrt(np.maximum(values[-rank:], 0))[:, None] * vectors[:, -rank:].T
            arrays["factor"] = factor.astype(np.float32)
            arrays["diagonal"] = np.maximum(variances - (factor ** 2).sum(0), 0).astype(np.float32)
            fresh = ERROR_AT_REST * variances
        arrays["rounding"] = np.array(float(np.hypot(self._error, fresh).sum()) / size)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], means: NDArray[np.float64]) -> Scatter | None:
        """The inverse of `to_arrays`, None if no scatter is stored. means: of the classes about the reference, each
        times the square root of its count [C, d], for the form up to format 2, with G about the reference in place of
        W."""
        if "factor" in arrays:
            factor, diagonal = arrays["factor"].astype(np.float64), arrays["diagonal"].astype(np.float64)
            scatter = cls(factor.T @ factor + np.diag(diagonal))
            scatter.diagonal = diagonal
        elif "scatter" in arrays:
            scatter = cls(unpacked(arrays["scatter"], means.shape[1]))
        elif "moment" in arrays:
            moment = unpacked(arrays["moment"], means.shape[1])
            error = ERROR_AT_REST * np.diag(moment)
            scatter = cls(updated(moment, [], [means], out=moment))
            scatter._error = error
        else:
            return None
        if "rounding" in arrays:
            scatter._error = float(arrays["rounding"]) * np.abs(np.diag(scatter._within))
        return scatter


def apart(rows: NDArray[np.float64], mean: NDArray[np.float64] | None, others: int) -> NDArray[np.float64]:
    """Rows R [n, d] so that R^T R is what samples `rows` [n, d] of a class add to the scatter within it, besides the
    `others` that it has, of that mean [d] (Chan, Golub & LeVeque 1983, equation 2.1b)."""
    centre = rows.mean(0)
    apart = rows - centre
    if others and mean is not None:
        apart += np.sqrt(others / (others + len(rows))) * (centre - mean)
    return apart
