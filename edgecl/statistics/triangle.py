"""Symmetric matrices at rest: their upper triangle, row after row, as float32."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def packed(full: NDArray[np.float64]) -> NDArray[np.float32]:
    """The upper triangle of a matrix [d, d]."""
    d, start = len(full), 0
    triangle = np.empty(d * (d + 1) // 2, np.float32)
    for i in range(d):
        triangle[start:start + d - i] = full[i, i:]
        start += d - i
    return triangle


def unpacked(triangle: NDArray[np.float32], d: int) -> NDArray[np.float64]:
    """The inverse: float64 [d, d]."""
    full, start = np.zeros((d, d)), 0
    for i in range(d):
        full[i, i:] = triangle[start:start + d - i]
        full[i:, i] = full[i, i:]
        start += d - i
    return full
