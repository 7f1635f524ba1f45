"""The exemplar buffer of one learner: which samples fit into its bytes, and how they are encoded."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgecl.exemplars.selection import Shared, admitted, held_back, herding, margins, reservoir
from edgecl.exemplars.stored import Widths, file_bytes, row_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecl.exemplars.codebook import Codebook
    from edgecl.exemplars.codecs import Codec, FeatureCodec
    from edgecl.exemplars.stored import StoredSample
    from edgecl.statistics.class_statistics import ClassStatistics
    from edgecl.statistics.transform import FeatureTransform

MIN_HELD_BACK = 20      # held-back samples; with fewer, heads are not compared by score
HELD_BACK_ONE_IN = 4    # with a codebook, at most a quarter of the buffer is for held-back samples, which are not coded


@dataclass(frozen=True)
class Buffer:
    """The settings of an exemplar buffer. limit: bytes of its files; segment: bytes of one file; admission: see
    `edgecl.exemplars.selection`; codec: of the samples; codebook: for features that are not held back, or None."""

    limit: int
    segment: int
    admission: str
    codec: Codec
    codebook: Codebook | None = None

    @property
    def common(self) -> FeatureCodec:
        """The codec of most features."""
        return self.codebook.codec if self.codebook else self.codec.feature

    def keep(self, rows: list[StoredSample], statistics: ClassStatistics, transform: FeatureTransform,
             decode: bool = True, before: Picked | None = None) -> list[StoredSample]:
        """The stored samples that the buffer keeps, as it keeps them. rows: at least one; statistics: of all samples
        ever learned, transformed by `transform`; decode: see `Codebook.take`; before: see `held_out`."""
        labels, ranks, shared = [row.label for row in rows], self._ranks(rows, statistics, transform), _shared(rows)
        longest = int(shared.sizes.max())
        widths = Widths.of(rows, len(shared.sizes) if longest else 0)
        room = self.limit - file_bytes(self.limit, self.segment, statistics.labels, longest)
        sizes = row_bytes(self.common, transform.source, widths) + np.array([len(row.input) for row in rows])
        if self.codebook is None:
            return [row for row, kept in zip(rows, admitted(labels, ranks, sizes, room, shared)) if kept]
        room -= self.codebook.length
        each = row_bytes(self.codec.feature, transform.source, widths)
        exact = np.zeros(len(rows), np.bool_)
        if room // HELD_BACK_ONE_IN >= MIN_HELD_BACK * each:
            held = {id(row) for mine in held_out(rows, statistics, before).values() for row in mine}
            exact = self._exact_ones(rows, held, each, room // HELD_BACK_ONE_IN, shared)
        theirs = np.unique(shared.of[exact])
        room -= int(exact.sum()) * each + int(shared.sizes[theirs].sum())
        sizes[exact], shared.sizes[theirs] = 0, 0
        keep = admitted(labels, ranks, sizes, room, shared) | exact
        return self.codebook.take([row for row, kept in zip(rows, keep) if kept], exact[keep], decode)

    def bytes_of(self, exemplars: list[StoredSample]) -> int:
        """Upper bound on the bytes of these exemplars in the files of the buffer."""
        if not exemplars:
            return 0
        d, coded = len(exemplars[0].feature), sum(bool(row.coded) for row in exemplars)
        labels, shared = sorted({row.label for row in exemplars}), _shared(exemplars).sizes
        longest = int(shared.max())
        widths = Widths.of(exemplars, len(shared) if longest else 0)
        return (file_bytes(self.limit, self.segment, labels, longest) + int(shared.sum())
                + (self.codebook.length if self.codebook else 0) + sum(len(row.input) for row in exemplars)
                + coded * row_bytes(self.common, d, widths)
                + (len(exemplars) - coded) * row_bytes(self.codec.feature, d, widths))

    @staticmethod
    def _exact_ones(rows: list[StoredSample], held: set[int], size: int, room: int,
                    shared: Shared) -> NDArray[np.bool_]:
        """Which samples, bool [n], stay as they were learned so that heads can be compared on them: as many of the
        held-back ones, given by `id`, as there is room for."""
        exact = np.array([id(row) in held for row in rows])
        places = np.flatnonzero(exact)
        fits = admitted([rows[i].label for i in places], np.array([rows[i].key for i in places], np.int64),
                        np.full(len(places), size), room, shared._replace(of=shared.of[places]))
        exact[places[~fits]] = False
        return exact

    def _ranks(self, rows: list[StoredSample], statistics: ClassStatistics,
               transform: FeatureTransform) -> NDArray[np.int64]:
        """The rank of each sample within its class, int64 [n]: low ranks stay longest, near-duplicates go first."""
        spare = np.array([row.spare for row in rows])
        if self.admission == "ring":
            return np.arange(len(rows), 0, -1) + len(rows) * spare
        ranks, keys = np.empty(len(rows), np.int64), np.array([row.key for row in rows], np.int64)
        places: dict[str, list[int]] = {}
        for number, row in enumerate(rows):
            places.setdefault(row.label, []).append(number)
        known = statistics.labels if self.admission != "reservoir" else []
        means = np.stack([statistics.mean(label) for label in known]) if known else np.zeros((0, transform.dimension))
        if self.admission == "reservoir":
            for mine in map(np.array, places.values()):
                ranks[mine] = reservoir(keys[mine], spare[mine])
        for place, label in enumerate(known):
            if label in places:
                mine = np.array(places[label])
                h = transform(np.stack([rows[i].feature for i in mine]))
                order = herding(h, means[place]) if self.admission == "herding" else \
                    np.argsort(np.argsort(margins(h.astype(np.float64), place, means), kind="stable"))
                ranks[mine] = order + len(mine) * spare[mine]
        return ranks


def _shared(rows: list[StoredSample]) -> Shared:
    """The origins of samples, which the files keep once for each class."""
    pairs = [(row.label, row.origin) for row in rows]
    places = {pair: place for place, pair in enumerate(dict.fromkeys(pairs))}
    return Shared(np.array([places[pair] for pair in pairs]), np.array([origin.bytes for _, origin in places]))


Picked = dict[str, tuple[list[int], int, int, list[int]]]


def held_out(rows: list[StoredSample], statistics: ClassStatistics,
             before: Picked | None = None) -> dict[str, list[StoredSample]]:
    """The exemplars that no head is learned from, by class. statistics: of all samples ever learned; before: what was
    picked the last time, class -> keys, samples of the class, classes and the picked ones, which is brought up to
    date: only classes for which one of these has changed are gone through again."""
    before = {} if before is None else before
    chosen: dict[str, list[StoredSample]] = {label: [] for label in statistics.labels}
    eligible: dict[str, list[StoredSample]] = {label: [] for label in statistics.labels}
    for row in rows:
        if row.judges:
            chosen[row.label].append(row)
        elif not (row.coded or row.trained):  # can be subtracted from the statistics, and is new to the backbone
            eligible[row.label].append(row)
    for label, mine in eligible.items():
        if mine:
            mine.sort(key=lambda row: row.key)
            count = len(mine) if chosen[label] else statistics.counts[label]     # a round has already held some back
            keys = [row.key for row in mine]
            if label not in before or before[label][:3] != (keys, count, len(eligible)):
                picked = held_back(np.stack([row.feature for row in mine]), keys, count, len(eligible))
                before[label] = keys, count, len(eligible), picked.tolist()
            chosen[label] += [mine[i] for i in before[label][3]]
    return {label: mine for label, mine in chosen.items() if mine}
