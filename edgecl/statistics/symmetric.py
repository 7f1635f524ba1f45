"""Symmetric matrices [d, d] without a second one beside them: updated, factored in place, and solved."""
from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

CHOLESKY_BLOCK = 128    # rows eliminated at a time
UPDATED_AT_ONCE = 256   # rows of a symmetric update, of which only the upper triangle is computed


def updated(scatter: NDArray[np.float64], plus: Iterable[NDArray[np.float64]] = (),
            minus: Iterable[NDArray[np.float64]] = (), out: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """scatter [d, d] + P^T P - M^T M for each P of `plus` and M of `minus` [n, d]: exactly symmetric, into `out` (which
    may be `scatter`) or a new array, with no other array of that size in between."""
    out = np.empty_like(scatter) if out is None else out
    signed = [(1, rows) for rows in plus if len(rows)] + [(-1, rows) for rows in minus if len(rows)]
    for start in range(0, len(scatter), UPDATED_AT_ONCE):
        k = slice(start, start + UPDATED_AT_ONCE)
        part = scatter[k, start:].copy()
        for sign, rows in signed:
            product = rows[:, k].T @ rows[:, start:]
            part = np.add(part, product, out=part) if sign > 0 else np.subtract(part, product, out=part)
        out[k, start:] = part
        out[start:, k] = part.T
    return out


def clipped(values: NDArray[np.float64], vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric matrix of these eigenvalues [d] and vectors [d, d] without the negative ones: [d, d]."""
    kept = values > 0
    return updated(np.zeros_like(vectors), [(vectors[:, kept] * np.sqrt(values[kept])).T])


class Factor:
    """The Cholesky factor L [d, d] of a matrix, in blocks of CHOLESKY_BLOCK rows: those below the diagonal in the lower
    triangle of `lower`, those on it inverted."""

    def __init__(self, lower: NDArray[np.float64], scale: float, shift: float) -> None:
        """Factor scale A + shift I in place; A [d, d] is the upper triangle of `lower`, which is only read. Raises
        LinAlgError if that is not positive definite, when the lower triangle is of no use either."""
        d = len(lower)
        self.lower = lower
        self.blocks = [slice(start, min(start + CHOLESKY_BLOCK, d)) for start in range(0, d, CHOLESKY_BLOCK)]
        self.corners: list[NDArray[np.float64]] = []
        for k in self.blocks:
            size = k.stop - k.start
            panel = scale * lower[k, k.start:].T
            panel.flat[:size * size:size + 1] += shift
            panel -= lower[k.start:, :k.start] @ lower[k, :k.start].T
            self.corners.append(np.linalg.inv(np.linalg.cholesky(panel[:size])))
            lower[k.stop:, k] = panel[size:] @ self.corners[-1].T

    def forward(self, b: NDArray[np.float64]) -> NDArray[np.float64]:
        """L^-1 b of b [d, k], a new array."""
        x = np.array(b, np.float64)
        for k, corner in zip(self.blocks, self.corners):
            x[k] = corner @ (x[k] - self.lower[k, :k.start] @ x[:k.start])
        return x

    def backward(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """L^-T x of x [d, k], in place."""
        for k, corner in zip(reversed(self.blocks), reversed(self.corners)):
            x[k] = corner.T @ (x[k] - self.lower[k.stop:, k].T @ x[k.stop:])
        return x


@contextmanager
def factored(a: NDArray[np.float64], scale: float = 1.0, shift: float = 0.0) -> Iterator[Factor | None]:
    """The Cholesky factor of scale a + shift I, None if that is not positive definite. The symmetric a [d, d] lends its
    lower triangle meanwhile and has it back afterwards: no second [d, d] is needed.

    Nearly all the work is matrix products, which takes two thirds of the time of `numpy.linalg.cholesky`.
    """
    try:
        try:
            factor: Factor | None = Factor(a, scale, shift)
        except np.linalg.LinAlgError:
            factor = None
        yield factor
    finally:
        for start in range(0, len(a), CHOLESKY_BLOCK):
            k = slice(start, start + CHOLESKY_BLOCK)
            a[k.stop:, k] = a[k, k.stop:].T


def pseudo_root(a: NDArray[np.float64], scale: float, shift: float) -> NDArray[np.float64]:
    """R [d, r] so that R R^T is the pseudo-inverse of scale a + shift I: directions without variance, or with less by
    rounding, are dropped."""
    values, vectors = np.linalg.eigh(a)
    values = scale * values + shift
    kept = values > 1e-12 * values[-1]
    root: NDArray[np.float64] = vectors[:, kept] / np.sqrt(values[kept])
    return root


def solve_positive(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve a x = b for symmetric positive definite a [d, d] and b [d, k]; with the pseudo-inverse of a if it is
    singular or, by rounding, indefinite."""
    with factored(a) as factor:
        if factor is not None:
            return factor.backward(factor.forward(b))
    root = pseudo_root(a, 1.0, 0.0)
    solved: NDArray[np.float64] = root @ (root.T @ b)
    return solved
