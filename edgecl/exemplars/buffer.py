"""The exemplar buffer of one learner: which samples fit into its bytes, and how they are encoded."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgecl.exemplars.columns import SampleColumns
from edgecl.exemplars.selection import (
    GROUP_SHIFT,
    Shared,
    admitted,
    by_recording,
    held_back,
    herding,
    margins,
    own_hashes,
    recording_hashes,
    reservoir,
)
from edgecl.exemplars.stored import file_bytes, row_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecl.exemplars.codebook import Codebook
    from edgecl.exemplars.codecs import Codec, FeatureCodec
    from edgecl.exemplars.stored import StoredSample
    from edgecl.statistics.class_statistics import ClassStatistics
    from edgecl.statistics.transform import FeatureTransform

FEWEST_EXACT = 3        # samples beside a codebook that stay as they were learned: fewer could not judge
EXACT_ONE_IN = 4        # with a codebook, at most a quarter of the buffer is for samples that are not coded


@dataclass(frozen=True)
class Buffer:
    """The settings of an exemplar buffer. limit: bytes of its files; segment: bytes of one file; admission: see
    `edgecl.exemplars.selection`; codec: of the samples; codebook: for most features, or None; kind: of the samples."""

    limit: int
    segment: int
    admission: str
    codec: Codec
    codebook: Codebook | None = None
    kind: str = "feature"

    @property
    def common(self) -> FeatureCodec:
        """The codec of most features."""
        return self.codebook.codec if self.codebook else self.codec.feature

    def keep(self, rows: list[StoredSample], columns: SampleColumns, statistics: ClassStatistics,
             transform: FeatureTransform) -> KeptSamples:
        """What the buffer keeps of stored samples, at least one. columns: of `rows`; statistics: of all samples ever
        learned, transformed by `transform`."""
        of, shares = columns.shared()
        shared, widths, classes = Shared(of, shares), columns.widths(shares), columns.classes
        ranks = self._ranks(rows, columns, statistics, transform)
        room = self.limit - file_bytes(self.limit, self.segment, statistics.labels, int(shares.max()))
        sizes = row_bytes(self.common, transform.source, widths) + columns.rows["input"]
        if self.codebook is None:
            places = np.flatnonzero(admitted(classes, ranks, sizes, room, shared))
            return KeptSamples(columns._replace(rows=columns.rows[places]), np.ones(len(places), np.bool_))
        each = row_bytes(self.codec.feature, transform.source, widths)
        exact = np.zeros(len(rows), np.bool_)
        if room // EXACT_ONE_IN >= FEWEST_EXACT * each:
            able = np.flatnonzero(columns.rows["coded"] == 0)
            fits = admitted(classes[able], _exact_ranks(columns)[able], np.full(len(able), each), room // EXACT_ONE_IN,
                            shared._replace(of=of[able]))
            exact[able[fits]] = True    # they stay as they were learned, so that heads can be judged on them
        theirs = np.unique(of[exact])
        room -= self.codebook.length + int(exact.sum()) * each + int(shares[theirs].sum())
        sizes[exact], shares[theirs] = 0, 0
        places = np.flatnonzero(admitted(classes, ranks, sizes, room, shared) | exact)
        kept, books = columns.rows[places], [*columns.books]
        if self.codebook.name not in books:
            books.append(self.codebook.name)
        kept["coded"][~exact[places]] = books.index(self.codebook.name)
        return KeptSamples(columns._replace(rows=kept, books=books), exact[places])

    def as_kept(self, rows: list[StoredSample], kept: KeptSamples) -> list[StoredSample]:
        """The samples that are kept of `rows`, as they are kept."""
        chosen = [rows[place] for place in kept.columns.rows["place"].tolist()]
        return chosen if self.codebook is None else self.codebook.take(chosen, kept.exact)

    def bytes_of(self, columns: SampleColumns, dimension: int) -> int:
        """Upper bound on the bytes of exemplars in the files of the buffer. dimension: of their features."""
        if not len(columns.rows):
            return 0
        coded, shares = int(np.count_nonzero(columns.rows["coded"])), columns.shared()[1]
        widths = columns.widths(shares)
        return (file_bytes(self.limit, self.segment, sorted(columns.of_class()), int(shares.max()))
                + int(shares.sum()) + (self.codebook.length if self.codebook else 0) + int(columns.rows["input"].sum())
                + coded * row_bytes(self.common, dimension, widths)
                + (len(columns.rows) - coded) * row_bytes(self.codec.feature, dimension, widths))

    def _ranks(self, rows: list[StoredSample], columns: SampleColumns, statistics: ClassStatistics,
               transform: FeatureTransform) -> NDArray[np.int64]:
        """The rank of each sample within its class, int64 [n]: low ranks stay longest, near-duplicates go first."""
        spare = columns.rows["spare"]
        if self.admission == "ring":
            return np.arange(len(rows), 0, -1) + len(rows) * spare
        if self.admission == "reservoir":
            return reservoir(columns.rows["key"], spare, columns.rows["label"])
        ranks, known = np.empty(len(rows), np.int64), statistics.labels
        means = np.stack([statistics.mean(label) for label in known])
        of = {label: place for place, label in enumerate(known)}
        order = np.lexsort((own_hashes(columns.rows["key"]), columns.rows["label"]))
        for mine in np.split(order, np.flatnonzero(np.diff(columns.rows["label"][order])) + 1):
            place = of[columns.labels[columns.rows["label"][mine[0]]]]
            h = transform(np.stack([rows[i].feature for i in mine]))
            within = herding(h, means[place]) if self.admission == "herding" else \
                np.argsort(np.argsort(margins(h.astype(np.float64), place, means), kind="stable"))
            ranks[mine] = within + len(mine) * spare[mine]
        return ranks


class KeptSamples(NamedTuple):
    """What a buffer keeps of a list of samples: columns of them as they are kept; exact: which stay as they were
    learned, bool [n]."""

    columns: SampleColumns
    exact: NDArray[np.bool_]


def _exact_ranks(columns: SampleColumns) -> NDArray[np.int64]:
    """The order in which samples stay as they were learned where others are coded, int64 [n]: in each class one of each
    recording in turn, since those of one recording alone would not tell what another one is like. It does not change by
    what was coded already. A round held some back to judge, which come first; those that it was tuned on come last."""
    rows = columns.rows
    order = by_recording(rows["key"], rows["spare"], rows["label"])
    recordings = np.stack([rows["label"][order].astype(np.int64), rows["key"][order] >> GROUP_SHIFT])
    new = np.r_[True, (np.diff(recordings) != 0).any(0)][:len(order)]
    begins = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
    turns = np.lexsort((np.arange(len(order)) - begins, recordings[0]))     # stable: recordings stay in their order
    ranks = np.empty(len(rows), np.int64)
    ranks[order[turns]] = np.arange(len(rows))
    return ranks + len(rows) * np.where(rows["judges"], 0, 1 + rows["trained"])


Picked = dict[str, tuple[bytes, int, int, "NDArray[np.int64]"]]


def held_places(rows: list[StoredSample], columns: SampleColumns, statistics: ClassStatistics,
                before: Picked | None = None) -> dict[str, list[int]]:
    """The places of the exemplars that no learning round may be tuned on, by class. columns: of the exemplars, which
    are among `rows`; statistics: of all samples ever learned; before: what was picked the last time, class -> keys,
    samples of the class, classes and the picked ones, which is brought up to date: only classes for which one of these
    has changed are gone through."""
    before = {} if before is None else before
    labels, table = statistics.labels, columns.rows
    chosen: dict[str, list[int]] = {label: [] for label in labels}
    for label, place in table[["label", "place"]][table["judges"]].tolist():
        chosen[columns.labels[label]].append(place)
    # what can be subtracted from the statistics, and is new to the backbone
    order = np.lexsort((table["key"], recording_hashes(table["key"], table["spare"], table["label"]), table["label"]))
    table = table[order]
    able = table[~(table["judges"] | table["trained"] | (table["coded"] != 0))]
    keys, places = np.ascontiguousarray(able["key"]), np.ascontiguousarray(able["place"])
    ends = [*(np.flatnonzero(np.diff(able["label"])) + 1).tolist(), len(able)] if len(able) else []
    for start, end in zip([0, *ends], ends):
        label = columns.labels[able["label"][start]]
        count = end - start if chosen[label] else statistics.counts[label]      # a round has already held some back
        mine = keys[start:end]
        known = mine.tobytes(), count, len(labels)
        if label not in before or before[label][:3] != known:
            features = np.stack([rows[place].feature for place in places[start:end].tolist()])
            before[label] = *known, held_back(features, mine, count, len(labels))
        chosen[label] += places[start + before[label][3]].tolist()
    return {label: mine for label, mine in chosen.items() if mine}
