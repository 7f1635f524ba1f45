"""The base of all parts of a method: what it keeps between rounds."""
from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    Arrays = dict[str, np.ndarray]


class Part:
    """Keeps nothing; its bytes are those of the arrays of its `state`, so that what is counted is what is stored."""

    @property
    def nbytes(self) -> int:
        """Bytes kept between rounds."""
        return sum(array.nbytes for array in self.state().values())

    def state(self) -> Arrays:
        """All that is kept."""
        return {}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore what `state` returned."""
