"""What is kept of the class statistics: exact, of low rank, or means only."""
from __future__ import annotations

from typing import NamedTuple


class Form(NamedTuple):
    """What is kept of the class statistics.

    second_moment: whether G is kept at all; rank: None for the exact G, else the number of directions kept beside
    the diagonal; projected: length of the random projection whose statistics are also kept, 0 for none.
    """

    second_moment: bool
    rank: int | None = None
    projected: int = 0

    def describe(self, dimension: int) -> str:
        """A description for people, such as `exact 1280 x 1280`."""
        if not self.second_moment:
            return "class means only"
        plain = f"exact {dimension} x {dimension}" if self.rank is None else f"diagonal + rank {self.rank}"
        return plain + (f", and {self.projected} random projections" if self.projected else "")
