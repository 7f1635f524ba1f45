"""Which stored samples judge a head, and what is left out for each: a function of what is known, whatever the order in
which it was taught and however its recordings are numbered."""
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgecl.exemplars.selection import BY_RECORDING_ONE_IN, GROUP_SHIFT, by_recording, own_hashes, recording_hashes
from edgecl.heads.left_out import MIN_SESSIONS, LearnedRows, LeftOut, by_sessions, left_out

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from numpy.typing import NDArray

    from edgecl.exemplars.columns import SampleColumns
    from edgecl.exemplars.stored import StoredSample
    from edgecl.statistics.class_statistics import ClassStatistics
    from edgecl.statistics.transform import FeatureTransform

MAX_JUDGES = 4000       # samples that judge; more would make a judgement slower, but not much surer
MOST_LOGITS = 2 ** 19   # of all judges: with over 131 classes there are fewer of them ...
MOST_NUMBERS = 2 ** 21  # of the features of judges without sessions: to whiten them takes most of the time ...
FEWEST_JUDGES = 100     # ... but there are no fewer than this
MIN_JUDGED = 4          # samples of a class: with fewer it has no accuracy, and no part in the calibration


class Judges(NamedTuple):
    """The stored samples that statistics contain exactly, or pseudo-samples, which they do not; which of them judge,
    and without which. groups: a number of the session or near-copies of each judging one, int64 [m]; in_sessions:
    whether half of all that is stored comes from sessions, be they left out as a whole or not; more: samples that only
    count for the accuracy of their classes, since of so many classes too few judge."""

    rows: LearnedRows
    left: LeftOut
    groups: NDArray[np.int64]
    in_sessions: bool
    more: LeftOut

    @property
    def truth(self) -> NDArray[np.int64]:
        """The classes of those that judge, int64 [m]."""
        return self.rows.classes[self.left.rows]

    def some(self, most: int) -> NDArray[np.int64]:
        """Whole sessions of at most so many judging samples, but one at least, as places among these."""
        sizes = np.bincount(np.unique(self.groups, return_inverse=True)[1])
        _, first, of = np.unique(self.groups, return_index=True, return_inverse=True)
        order = np.argsort(first)
        kept = order[np.cumsum(sizes[order]) <= most]
        return np.flatnonzero(np.isin(of, kept if len(kept) else order[:1]))

    def only(self, some: NDArray[np.int64]) -> Judges:
        """The same with some of the judging samples alone."""
        left = LeftOut(self.left.rows[some], [self.left.of[place] for place in some.tolist()], self.left.sessions)
        return self._replace(left=left, groups=self.groups[some])


def judges_of(stored: Sequence[StoredSample], columns: SampleColumns, plain: ClassStatistics,
              transform: FeatureTransform, in_parts: bool) -> Judges:
    """The judges among stored samples. columns: of those that are kept; plain: statistics of all samples ever learned,
    transformed by `transform`; in_parts: whether a buffer that is full keeps a quarter by whole recordings.

    All that is not coded can be taken out of the statistics, and judges but for what a learning round was tuned on.
    """
    labels = plain.labels
    of = {label: place for place, label in enumerate(labels)}
    counts = np.array([plain.counts[label] for label in labels], np.float64)
    table, classes = columns.rows, np.array([of[label] for label in columns.labels], np.int64)[columns.rows["label"]]
    whole = _whole(classes, table, counts, in_parts)
    order = np.lexsort((table["key"] >> GROUP_SHIFT, own_hashes(table["key"]), classes))
    order = order[table["coded"][order] == 0]
    table, classes = table[order], classes[order]
    sessions, own = table["key"] >> GROUP_SHIFT, own_hashes(table["key"])
    rows = LearnedRows([stored[place].feature for place in table["place"].tolist()], transform, classes, sessions, own,
                whole[order])
    able = np.flatnonzero(~table["trained"] & (counts[classes] > 1))
    whole_sessions = by_sessions(rows, able)
    most = min(MAX_JUDGES, max(MOST_LOGITS // max(len(labels), 1), FEWEST_JUDGES))
    if not whole_sessions:
        most = min(most, max(MOST_NUMBERS // transform.dimension, FEWEST_JUDGES))
    judging = _by_session(able, rows, table["key"][able], most) if whole_sessions else \
        _alike_of_each(able, classes, most)
    spread, more = _spread(rows, judging, plain), judging[:0]
    if not whole_sessions and most < MIN_JUDGED * len(labels) <= MAX_JUDGES:
        enough = able[(np.bincount(classes[able], minlength=len(labels)) >= MIN_JUDGED)[classes[able]]]
        more = np.setdiff1d(_alike_of_each(enough, classes, MIN_JUDGED * len(labels)), judging)
    left = left_out(rows, judging, counts, spread, whole_sessions)
    sizes = left.sizes()
    alone = np.minimum.reduceat(left.pairs()[1], np.cumsum(sizes) - sizes) if len(sizes) else judging
    groups = np.where(rows.whole[judging], sessions[judging], -1 - alone) if whole_sessions else alone
    return Judges(rows, left, groups, whole_sessions or several(columns.rows["key"] >> GROUP_SHIFT),
                  left_out(rows, more, counts, spread, False))


def pseudo_judges(drawn: Sequence[StoredSample], labels: Sequence[str], transform: FeatureTransform) -> Judges:
    """Pseudo-samples as judges: nothing is taken out for them."""
    of, n = {label: place for place, label in enumerate(labels)}, len(drawn)
    none, numbers = np.zeros(0, np.int64), np.arange(n)
    rows = LearnedRows([row.feature for row in drawn], transform, np.array([of[row.label] for row in drawn], np.int64),
                numbers, numbers, np.ones(n, np.bool_))
    return Judges(rows, LeftOut(numbers, [none] * n, False), numbers, False, LeftOut(none, [], False))


def several(sessions: NDArray[np.int64]) -> bool:
    """Whether there are MIN_SESSIONS of two or more of these samples, which hold at least half of them."""
    sizes = np.unique(sessions, return_counts=True)[1]
    sizes = sizes[sizes > 1]
    return len(sizes) >= MIN_SESSIONS and 2 * int(sizes.sum()) >= len(sessions)


def _whole(classes: NDArray[np.int64], table: NDArray[Any], counts: NDArray[np.float64],
           in_parts: bool) -> NDArray[np.bool_]:
    """Whether all samples of the session of each row are stored as they were learned, in all its classes, bool [n]; see
    `reservoir`."""
    sessions = table["key"] >> GROUP_SHIFT
    stored = np.bincount(classes, minlength=len(counts))
    whole = (stored >= counts)[classes]
    if in_parts and not whole.all():
        order = by_recording(table["key"], table["spare"], classes)
        rank = np.arange(len(order)) - np.searchsorted(classes[order], classes[order])
        first = np.r_[True, (np.diff(sessions[order]) != 0) | (np.diff(classes[order]) != 0)]
        ends = np.r_[np.flatnonzero(first)[1:], len(order)] - 1     # the last row of each recording in its class
        kept = rank[ends] < (stored[classes[order[ends]]] - 1) // BY_RECORDING_ONE_IN
        whole[order] |= kept[np.cumsum(first) - 1]
    _, of = np.unique(sessions, return_inverse=True)
    part = np.bincount(of, ~whole | (table["coded"] != 0))
    return np.asarray(part[of] == 0, np.bool_)


def _alike_of_each(able: NDArray[np.int64], classes: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of the rows, of each class equally many as far as it has them, and of the classes evenly spread
    ones if there are too many."""
    if len(able) <= most:
        return able
    starts = np.searchsorted(classes[able], classes[able])
    rank = np.arange(len(able)) - starts
    sizes = np.unique(classes[able], return_counts=True)[1]
    level = np.searchsorted(np.cumsum(np.bincount(rank)), most, "right")
    if level:
        return able[rank < level]
    firsts = able[rank == 0]
    return np.asarray(firsts[np.arange(most) * len(sizes) // most], np.int64)


def _by_session(able: NDArray[np.int64], rows: LearnedRows, keys: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """At most so many of the rows, by session: sessions come by their hash, in turn of each class that has most of one;
    of a session that is longer than a share of all, the rows of the smallest own hashes. keys: of the rows."""
    order = np.lexsort((rows.own[able], rows.sessions[able]))
    able, keys = able[order], keys[order]
    rank = np.arange(len(able)) - np.searchsorted(rows.sessions[able], rows.sessions[able])
    kept = rank < max(most // MIN_SESSIONS, 1)
    able, keys = able[kept], keys[kept]
    _, first, of, sizes = np.unique(rows.sessions[able], return_index=True, return_inverse=True, return_counts=True)
    table = np.zeros((len(first), int(rows.classes.max(initial=0)) + 1), np.int32)
    np.add.at(table, (of, rows.classes[able]), 1)
    main, smallest, one = table.argmax(1), rows.own[able[first]], np.zeros(len(keys), np.int64)
    hashes = recording_hashes(keys, one > 0, one)[first]
    by_class = np.lexsort((smallest, hashes, main))
    turn = np.empty(len(first), np.int64)
    turn[by_class] = np.arange(len(first)) - np.searchsorted(main[by_class], main[by_class])
    order = np.lexsort((smallest, hashes, turn))
    place = np.empty(len(first), np.int64)
    place[order] = np.arange(len(order))
    taken = max(int(np.searchsorted(np.cumsum(sizes[order]), most, "right")), 1)
    mine = np.flatnonzero(place[of] < taken)
    return np.asarray(able[mine[np.argsort(place[of[mine]], kind="stable")]], np.int64)


def _spread(rows: LearnedRows, judging: NDArray[np.int64], plain: ClassStatistics) -> float:
    """The mean squared distance of two samples of a class: of the judging rows to their class means if the statistics
    do not tell."""
    if plain.second_moment and plain.degrees_of_freedom > 0:
        return plain.spread(np.zeros((0, plain.dimension), np.float32))
    if not len(judging):
        return 0.0
    labels = plain.labels
    counts = np.array([plain.counts[label] for label in labels], np.float64)[rows.classes[judging]]
    total = 0.0
    for start in range(0, len(judging), FEWEST_JUDGES):
        part = judging[start:start + FEWEST_JUDGES]
        means = np.stack([plain.mean(labels[own]) for own in rows.classes[part].tolist()])
        total += float((((rows.h(part) - means) ** 2).sum(1) / (1 - 1 / counts[start:start + len(part)])).sum())
    return 2 * total / len(judging)
