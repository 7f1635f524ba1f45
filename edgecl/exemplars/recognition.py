"""Which samples are known already: those that a class was taught before, and those that two learners both know."""
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgecl.exemplars.selection import MIN_NORM, OWN_BITS, own_hashes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from numpy.typing import NDArray

    from edgecl.exemplars.columns import SampleColumns
    from edgecl.exemplars.known_samples import KnownSamples
    from edgecl.exemplars.stored import StoredSample

SAME_FEATURE = np.float32(1e-3)     # relative distance up to which two features are of one sample


class Recognised(NamedTuple):
    """What is known of some samples [n] for a class. known: whether each is, or repeats another one of them, bool [n];
    elsewhere: other class -> places of those that it knows and this one does not."""

    known: NDArray[np.bool_]
    elsewhere: dict[str, list[int]]


class CommonSamples(NamedTuple):
    """What two learners both know. left_out: class -> key and feature of the samples that can be subtracted from the
    second one's statistics; places: of those among its stored samples; twice: samples that can't be subtracted;
    elsewhere: samples that the first one knows as another class."""

    left_out: dict[str, list[tuple[int, NDArray[np.float32]]]]
    places: set[int]
    twice: int
    elsewhere: int

    @property
    def subtracted(self) -> int:
        """How many samples can be subtracted."""
        return sum(map(len, self.left_out.values()))


def recognise(taught: tuple[str, Sequence[int], NDArray[np.float32]], known: KnownSamples, rows: list[StoredSample],
              columns: Callable[[], SampleColumns],
              as_kept: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Recognised:
    """What is known of samples, given as their class, keys and features [n, d]: those with the key of a known sample,
    and those with the own bits of a stored sample that has the same feature.

    rows, columns: the stored samples, the latter when asked; as_kept: makes of features what the codec keeps.
    """
    label, keys, features = taught
    own, here = own_hashes(np.asarray(keys, np.int64)), np.zeros(len(keys), np.bool_)
    elsewhere: dict[str, set[int]] = {}
    alike: dict[int, list[int]] = {}    # own bits -> places of samples whose session may be the only difference
    for place, name, key in known.with_own_bits(own):
        if key != keys[place]:
            alike.setdefault(key & OWN_BITS, []).append(place)
        elif name == label:
            here[place] = True
        else:
            elsewhere.setdefault(name, set()).add(place)
    for row in _with_own_bits(rows, columns(), alike) if alike else ():
        for place in {*alike[row.key & OWN_BITS]}:
            if same_feature(as_kept(features[place:place + 1])[0], row.feature):
                if row.label == label:
                    here[place] = True
                else:
                    elsewhere.setdefault(row.label, set()).add(place)
    if len({*own.tolist()}) < len(own):
        _mark_repeated(here, keys, features)
    found = {name: sorted(place for place in places if not here[place]) for name, places in sorted(elsewhere.items())}
    return Recognised(here, {name: places for name, places in found.items() if places})


def common_samples(known: KnownSamples, rows: list[StoredSample], theirs: KnownSamples,
                   their_rows: list[StoredSample], exact: bool) -> CommonSamples:
    """What another learner knows that this one knows too: samples with the same key, and stored ones with the same own
    bits and feature. rows, their_rows: the stored samples; exact: whether samples can be subtracted from the other
    one's statistics."""
    names, keys = theirs.all()
    hits: dict[tuple[str, int], list[tuple[str, int]]] = {}     # class and key of theirs -> those of ours
    for theirs_at, name, key in known.with_own_bits(own_hashes(keys)):
        hits.setdefault((names[theirs_at], int(keys[theirs_at])), []).append((name, key))
    mine, other = _by_key(rows, {ours for found in hits.values() for ours in found}), _by_key(their_rows, hits)
    left_out: dict[str, list[tuple[int, NDArray[np.float32]]]] = {}
    places, twice, elsewhere = set[int](), 0, 0
    for (label, key), found in sorted(hits.items()):
        place = other.get((label, key))
        feature = None if place is None else their_rows[place].feature
        same = {name for name, number in found if number == key or (
            feature is not None and (name, number) in mine and same_feature(feature, rows[mine[name, number]].feature))}
        if label not in same:
            elsewhere += bool(same)
            continue
        if feature is None and (label, key) in mine:
            feature = rows[mine[label, key]].feature
        if feature is None or not exact:
            twice += 1
            continue
        left_out.setdefault(label, []).append((key, feature))
        if place is not None:
            places.add(place)
    return CommonSamples(left_out, places, twice, elsewhere)


def same_feature(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    """Whether two features [d] agree so well that they are of the same sample, if their keys do too."""
    return bool(np.linalg.norm(one - other) <= SAME_FEATURE * max(np.linalg.norm(other), MIN_NORM))


def _with_own_bits(rows: list[StoredSample], columns: SampleColumns, own: Collection[int]) -> list[StoredSample]:
    """The stored samples with some own bits, as they were learned."""
    table = columns.rows
    return [rows[place] for place in table["place"][
        np.isin(own_hashes(table["key"]), [*own]) & (table["coded"] == 0)].tolist()]


def _by_key(rows: list[StoredSample], wanted: Collection[tuple[str, int]]) -> dict[tuple[str, int], int]:
    """Class and key -> place of a stored sample, as it was learned."""
    return {(row.label, row.key): place for place, row in enumerate(rows)
            if not row.coded and (row.label, row.key) in wanted} if wanted else {}


def _mark_repeated(known: NDArray[np.bool_], keys: Sequence[int], features: NDArray[np.float32]) -> None:
    """Mark samples as known that repeat an earlier one."""
    earlier: dict[int, list[int]] = {}
    for place in np.flatnonzero(~known).tolist():
        twins = earlier.setdefault(keys[place] & OWN_BITS, [])
        if any(keys[twin] == keys[place] or same_feature(features[place], features[twin]) for twin in twins):
            known[place] = True
        else:
            twins.append(place)
