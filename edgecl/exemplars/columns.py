"""The columns of a growing list of stored samples that decide which of them a buffer keeps, as arrays."""
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgecl.exemplars.stored import Widths

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from edgecl.exemplars.origin import Origin
    from edgecl.exemplars.stored import StoredSample

FIELDS = [("place", np.int64), ("label", np.int64), ("key", np.int64), ("input", np.int64), ("origin", np.int64),
          ("tick", np.int64), ("coded", np.int64), ("spare", np.bool_), ("trained", np.bool_), ("judges", np.bool_)]


class SampleColumns(NamedTuple):
    """Some samples of a list as `rows` [n] of FIELDS: place in the list; label, origin and coded are places in
    `labels`, `origins` and `books`; input is the length of the encoded input. books[0] is "", for features as they were
    learned."""

    rows: NDArray[Any]
    labels: list[str]
    origins: list[Origin]
    books: list[str]

    @property
    def classes(self) -> NDArray[np.int64]:
        """The class of each sample, int64 [n], as a place in the alphabetical order of `labels`."""
        order = np.empty(len(self.labels), np.int64)
        order[sorted(range(len(self.labels)), key=self.labels.__getitem__)] = np.arange(len(self.labels))
        return order[self.rows["label"]]

    def of_class(self) -> dict[str, int]:
        """How many samples each class has, of those that have any."""
        counts = np.bincount(self.rows["label"], minlength=len(self.labels))
        return {label: count for label, count in zip(self.labels, counts.tolist()) if count}

    def shared(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which origin of its class each sample has, int64 [n], and the bytes of each of these, int64 [m]: the files
        keep an origin once for each class."""
        pairs, of = np.unique(self.rows["label"] * len(self.origins) + self.rows["origin"], return_inverse=True)
        sizes = np.array([origin.bytes for origin in self.origins], np.int64)
        return of, sizes[pairs % max(len(self.origins), 1)]

    def widths(self, shared: NDArray[np.int64]) -> Widths:
        """The widths of an index of these samples; shared: the bytes of their origins."""
        if not shared.max(initial=0):
            return Widths()
        return Widths.most(int(self.rows["input"].max()), len(shared), int(self.rows["tick"].max()))


class GrowingColumns:
    """The columns of a list of samples, read on as it grows at its end; another list is read from its beginning."""

    def __init__(self) -> None:
        self._read([])

    def _read(self, rows: list[StoredSample]) -> None:
        self._rows, self._count, self._room = rows, 0, np.zeros(0, FIELDS)
        self._labels: dict[str, int] = {}
        self._origins: dict[Origin, int] = {}
        self._books = {"": 0}

    def __call__(self, rows: list[StoredSample]) -> SampleColumns:
        """The columns of these samples, not to be changed."""
        if rows is not self._rows or len(rows) < self._count:
            self._read(rows)
        new = rows[self._count:]
        if new:
            if len(rows) > len(self._room):
                room = np.zeros(max(len(rows), 2 * self._count), FIELDS)
                room[:self._count] = self._room[:self._count]
                self._room = room
            part = self._room[self._count:len(rows)]
            _, _, labels, keys, _, inputs, spare, coded, trained, judges, origins, ticks = zip(*new)
            for name, column, known in (("label", labels, self._labels), ("origin", origins, self._origins),
                                        ("coded", coded, self._books)):
                part[name] = [known.setdefault(value, len(known)) for value in column]
            part["place"] = np.arange(self._count, len(rows))
            part["input"] = [*map(len, inputs)]
            for name, column in (("key", keys), ("tick", ticks), ("spare", spare), ("trained", trained),
                                 ("judges", judges)):
                part[name] = column
            self._count = len(rows)
        return SampleColumns(self._room[:self._count], [*self._labels], [*self._origins], [*self._books])
