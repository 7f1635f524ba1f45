"""Scatter matrices at rest: the upper triangle, row after row, as whole numbers of 32 bits.

No entry of a scatter matrix is larger than the geometric mean of its two diagonal ones, so one power of two per row is
scale enough: at most 2^-30 of that mean is rounded away. Float32, which spends 8 bits per entry on an exponent, rounds
2^-25. Statistics are rewritten thousands of times, and what the entries of a large class have rounded away stays when
that class is forgotten.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

BITS = 31                   # of an entry, beside its sign
ERROR_PACKED = 2.0 ** -29   # standard deviation of what packing rounds, relative to the diagonal, at most
LEAST, MOST = -128, 127     # exponents of two for the square root of a diagonal entry, as int8


def packed(full: NDArray[np.float64]) -> NDArray[np.int32]:
    """The upper triangle of a positive semidefinite matrix [d, d], then the exponent of each row, four to a number."""
    d, start, exponents = len(full), 0, _exponents(np.diag(full))
    triangle = np.zeros(packed_length(d), np.int32)
    for i in range(d):
        triangle[start:start + d - i] = _whole(full[i, i:], exponents[i] + exponents[i:])
        start += d - i
    triangle[start:].view(np.int8)[:d] = exponents
    return triangle


def unpacked(triangle: NDArray[Any], d: int) -> NDArray[np.float64]:
    """The inverse: float64 [d, d]. It also reads triangles of float32, as they were written before."""
    full, start = np.zeros((d, d)), 0
    whole = triangle.dtype.kind != "f"
    exponents = triangle[d * (d + 1) // 2:].view(np.int8)[:d].astype(np.intc) if whole else np.zeros(d, np.intc)
    for i in range(d):
        row = triangle[start:start + d - i].astype(np.float64)
        full[i, i:] = np.ldexp(row, exponents[i] + exponents[i:] - BITS) if whole else row
        full[i:, i] = full[i, i:]
        start += d - i
    return full


def diagonal_at_rest(diagonal: NDArray[np.float64]) -> NDArray[np.float64]:
    """The diagonal [d] of a matrix as packing and unpacking leave it."""
    exponents = 2 * _exponents(diagonal)
    return np.ldexp(_whole(diagonal, exponents), exponents - BITS)


def _exponents(diagonal: NDArray[np.float64]) -> NDArray[np.intc]:
    """The exponents of the powers of two just above the square roots of a diagonal [d]."""
    roots, exponents = np.frexp(np.sqrt(np.maximum(diagonal, 0)))
    return np.where(roots > 0, exponents.clip(LEAST, MOST), LEAST).astype(np.intc)


def _whole(row: NDArray[np.float64], exponents: NDArray[np.intc]) -> NDArray[np.float64]:
    """Entries as whole numbers of BITS bits, 2^exponents being 1."""
    return np.rint(np.ldexp(row, BITS - exponents)).clip(1 - 2 ** BITS, 2 ** BITS - 1)


def packed_length(d: int) -> int:
    """Numbers of 4 bytes that a packed matrix [d, d] takes."""
    return d * (d + 1) // 2 + -(-d // 4)
