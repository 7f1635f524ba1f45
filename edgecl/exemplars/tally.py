"""What a growing list of stored samples would take in a buffer, counted on without going through all of them again."""
from __future__ import annotations

from typing import TYPE_CHECKING

from edgecl.exemplars.stored import Widths, file_bytes, row_bytes

if TYPE_CHECKING:
    from edgecl.exemplars.buffer import Buffer
    from edgecl.exemplars.origin import Origin
    from edgecl.exemplars.stored import StoredSample


class Tally:
    """Bytes of a list of samples, counted on as it grows at its end; another list is counted from its beginning."""

    def __init__(self) -> None:
        self._count([])

    def _count(self, rows: list[StoredSample]) -> None:
        self._rows, self._counted, self._inputs = rows, 0, 0
        self._longest_input = self._last_tick = self._shared = self._longest_origin = 0
        self._origins: set[tuple[str, Origin]] = set()      # of each class: the files keep an origin once for each

    def bytes(self, rows: list[StoredSample], buffer: Buffer, dimension: int) -> int:
        """What samples take as they were learned, and their origins, class names apart; at most. dimension: of their
        features."""
        if rows is not self._rows or len(rows) < self._counted:
            self._count(rows)
        for row in rows[self._counted:]:
            self._inputs += len(row.input)
            self._longest_input = max(self._longest_input, len(row.input))
            self._last_tick = max(self._last_tick, row.tick)
            if (row.label, row.origin) not in self._origins:
                self._origins.add((row.label, row.origin))
                self._shared += row.origin.bytes
                self._longest_origin = max(self._longest_origin, row.origin.bytes)
        self._counted = len(rows)
        widths = Widths.most(self._longest_input, len(self._origins) if self._longest_origin else 0, self._last_tick)
        frames = [file_bytes(buffer.limit, buffer.segment, [], longest) for longest in (self._longest_origin, 0)]
        return (len(rows) * row_bytes(buffer.codec.feature, dimension, widths) + self._inputs + self._shared
                + frames[0] - frames[1])
