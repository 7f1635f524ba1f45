"""The keys of all samples that were taught, stored or not, so that what is taught again can be recognised."""
from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from edgecl.exemplars.selection import GROUP_SHIFT, OWN_BITS, own_hashes

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from edgecl.exemplars.stored import StoredSample

KEY_BYTES = 8
HEAD_BITS = 31              # of a key: its session or recording
FEWEST_ADDED, ADDED_ONE_IN = 1024, 8    # keys that wait until they are sorted in, and their share of all


class KnownSamples:
    """The keys, see `edgecl.samples.sample_keys`, of all samples that each class was taught. limit: bytes of keys in a
    file; 0 if a file has none.

    Keys lie sorted by their own bits, and those added since in a dict, so that adding takes as long as what is new.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self._clear()

    def _clear(self) -> None:
        self._names, self._places = list[str](), dict[str, int]()       # classes, also some that are gone
        self._turned, self._of = np.zeros(0, np.int64), np.zeros(0, np.int32)   # keys, own bits first; their classes
        self._added: dict[int, list[tuple[int, int]]] = {}              # own bits -> keys and classes
        self._waiting = 0                                               # keys in `_added`
        self._counts: Counter[str] = Counter()

    def count(self, label: str) -> int:
        """Samples of a class that would be recognised."""
        return self._counts[label]

    @property
    def total(self) -> int:
        """Samples of all classes that would be recognised."""
        return len(self._turned) + self._waiting

    def add(self, label: str, keys: Sequence[int] | NDArray[np.int64]) -> None:
        """A class was taught samples with these keys."""
        place = self._place(label)
        self._counts[label] += len(keys)
        self._waiting += len(keys)
        for key in map(int, keys):
            self._added.setdefault(key & OWN_BITS, []).append((key, place))
        if self._waiting > FEWEST_ADDED + len(self._turned) // ADDED_ONE_IN:
            self._sort()

    def add_rows(self, rows: Sequence[StoredSample]) -> None:
        """Stored samples were taught."""
        self._counts.update(row.label for row in rows)
        self._insert(_turned([row.key for row in rows]), self._classes(rows))

    def add_missing(self, rows: Sequence[StoredSample]) -> None:
        """Stored samples were taught, some of which are here already."""
        self._sort()
        turned, of = (np.concatenate(pair) for pair in (
            (self._turned, _turned([row.key for row in rows])), (self._of, self._classes(rows))))
        order = np.lexsort((of, turned))
        other = (np.diff(turned[order]) != 0) | (np.diff(of[order]) != 0)
        group = np.empty(len(order), np.int64)
        group[order] = np.cumsum(np.r_[True, other][:len(order)])
        here = len(self._turned)
        self.add_rows([rows[place] for place in np.flatnonzero(~np.isin(group[here:], group[:here])).tolist()])

    def remove(self, label: str, keys: Sequence[int]) -> None:
        """Samples with these keys were taken out of a class, one for each time that a key is given."""
        self._sort()
        place, stay = self._places.get(label, -1), np.ones(len(self._turned), np.bool_)
        for key, times in Counter(map(int, keys)).items():
            begin, end = (int(np.searchsorted(self._turned, _turned([key])[0], side)) for side in ("left", "right"))
            mine = begin + np.flatnonzero(self._of[begin:end] == place)[:times]
            stay[mine] = False
            self._counts[label] -= len(mine)
        self._turned, self._of = self._turned[stay], self._of[stay]

    def forget(self, label: str) -> None:
        """A class was forgotten."""
        self._sort()
        stay = self._of != self._places.get(label, -1)
        self._turned, self._of = self._turned[stay], self._of[stay]
        del self._counts[label]

    def rename(self, old: str, new: str) -> None:
        """A class has another name; if that is the name of another class, the two are one now."""
        self._sort()
        self._of = np.where(self._of == self._places.get(old, -1), np.int32(self._place(new)), self._of)
        self._counts[new] += self._counts.pop(old, 0)

    def take(self, other: KnownSamples, apart_from: Mapping[str, Sequence[int]]) -> None:
        """All that another learner was taught, apart from samples with some keys of each class."""
        theirs = KnownSamples()
        theirs._names, theirs._places, theirs._counts = other._names, other._places, Counter(other._counts)
        theirs._turned, theirs._of = other._sorted()
        for label, keys in apart_from.items():
            theirs.remove(label, keys)
        self._counts.update(theirs._counts)
        places = np.array([self._place(name) for name in theirs._names], np.int32)
        self._insert(theirs._turned, places[theirs._of])

    # looking ------------------------------------------------------------------------------------

    def with_own_bits(self, own: NDArray[np.int64]) -> Iterator[tuple[int, str, int]]:
        """For each of some own bits [n] (the low bits of keys) the samples that have them: place in `own`, class, key.
        """
        begins = self._turned.searchsorted(own << HEAD_BITS)
        ends = self._turned.searchsorted(own << HEAD_BITS | 2 ** HEAD_BITS - 1, "right")
        for place in (ends > begins).nonzero()[0].tolist():
            for here in range(begins[place], ends[place]):
                yield place, self._names[self._of[here]], int(_straight(self._turned[here]))
        if self._added:
            for place, bits in enumerate(own.tolist()):
                for key, of in self._added.get(bits, ()):
                    yield place, self._names[of], key

    def has(self, label: str, keys: Sequence[int]) -> NDArray[np.bool_]:
        """Which of some keys [n] samples of a class have, bool [n]."""
        found = np.zeros(len(keys), np.bool_)
        for place, name, key in self.with_own_bits(own_hashes(np.array(keys, np.int64))):
            found[place] |= name == label and key == keys[place]
        return found

    def all(self) -> tuple[list[str], NDArray[np.int64]]:
        """The class and the key of each sample, int64 [n]."""
        turned, of = self._sorted()
        return [self._names[place] for place in of.tolist()], _straight(turned)

    # at rest ------------------------------------------------------------------------------------

    def to_arrays(self, labels: Sequence[str]) -> dict[str, NDArray[Any]]:
        """The keys as arrays of at most `limit` bytes; the same samples give the same bytes. Those with the lowest own
        bits are left out, since the buffer drops their samples last. labels: all classes in order."""
        if not self.limit:
            return {}
        self._sort()
        first = max(len(self._turned) - self.limit // KEY_BYTES, 0)
        place = {label: number for number, label in enumerate(labels)}
        of = np.array([place.get(name, -1) for name in self._names], np.int64)[self._of[first:]]
        keys = _straight(self._turned[first:])
        return {"keys": keys[np.lexsort((keys, of))], "counts": np.bincount(of, minlength=len(labels))}

    def load(self, arrays: Mapping[str, NDArray[Any]], labels: Sequence[str]) -> None:
        """Become what `to_arrays` made arrays of; {}: none were kept."""
        self._clear()
        if arrays:
            counts = arrays["counts"].tolist()
            self._counts.update({label: count for label, count in zip(labels, counts) if count})
            places = np.array([self._place(label) for label in labels], np.int32)
            self._insert(_turned(arrays["keys"]), np.repeat(places, counts))

    # within -------------------------------------------------------------------------------------

    def _place(self, label: str) -> int:
        if label not in self._places:
            self._places[label] = len(self._names)
            self._names.append(label)
        return self._places[label]

    def _classes(self, rows: Sequence[StoredSample]) -> NDArray[np.int32]:
        return np.array([self._place(row.label) for row in rows], np.int32)

    def _sort(self) -> None:
        """Sort in what was added."""
        if self._waiting:
            pairs = [pair for found in self._added.values() for pair in found]
            self._added, self._waiting = {}, 0
            self._insert(_turned([key for key, _ in pairs]), np.array([of for _, of in pairs], np.int32))

    def _sorted(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        self._sort()
        return self._turned, self._of

    def _insert(self, turned: NDArray[np.int64], of: NDArray[np.int32]) -> None:
        """Take in sorted keys of classes, in any order, beside those that are sorted."""
        turned, of = np.concatenate([self._turned, turned]), np.concatenate([self._of, of])
        order = np.argsort(turned, kind="stable")
        self._turned, self._of = turned[order], of[order]


def _turned(keys: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """Keys with their own bits before those of their session, so that sorting brings equal samples together."""
    whole = np.asarray(keys, np.int64)
    return own_hashes(whole) << HEAD_BITS | whole >> GROUP_SHIFT


def _straight(turned: NDArray[np.int64]) -> NDArray[np.int64]:
    """The inverse of `_turned`."""
    return (turned & (2 ** HEAD_BITS - 1)) << GROUP_SHIFT | turned >> HEAD_BITS
