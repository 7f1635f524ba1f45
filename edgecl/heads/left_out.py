"""What is left out while a stored sample judges: its session over all classes, or its near-copies."""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgecl.statistics.transform import FeatureTransform

NEAR = 0.4              # of the mean squared distance of two samples of a class: nearer ones are taken out together ...
MAX_BALL = 64           # ... but never more than this, the nearest, nor half of the class
MIN_SESSIONS = 3        # of 2 samples or more, so that sessions are left out as a whole
AT_ONCE = 2 ** 20       # numbers of features that are compared at a time


@dataclass(frozen=True)
class Rows:
    """Stored samples, exactly as they were learned: features, float32 [source] each; classes: their place in the order
    of the labels; sessions: numbers of the recordings; own: hashes of the samples; whole: whether every sample of the
    session is stored. All int64 or bool [n]."""

    features: Sequence[NDArray[np.float32]]
    transform: FeatureTransform
    classes: NDArray[np.int64]
    sessions: NDArray[np.int64]
    own: NDArray[np.int64]
    whole: NDArray[np.bool_]

    def h(self, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """The transformed features of some of them, float32 [k, d]."""
        chosen = np.array([self.features[place] for place in places.tolist()], np.float32)
        return self.transform(chosen.reshape(-1, self.transform.source))

    def on(self, transform: FeatureTransform) -> Rows:
        """The same through another transform."""
        return replace(self, transform=transform)


class LeftOut(NamedTuple):
    """Which rows judge, int64 [m], and what is taken out for each of them: of[i], places in `Rows`, itself included;
    nothing (length 0) for samples that the statistics do not contain. sessions: whether these are whole sessions."""

    rows: NDArray[np.int64]
    of: list[NDArray[np.int64]]
    sessions: bool

    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All pairs of a judging row, as a place in `rows`, and a row that is taken out with it: int64 [p] each."""
        if not self.of:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        return np.repeat(np.arange(len(self.of)), [*map(len, self.of)]), np.concatenate(self.of)


def left_out(rows: Rows, judging: NDArray[np.int64], counts: NDArray[np.float64], spread: float) -> LeftOut:
    """What is taken out for each of the rows `judging` [m], in the order in which they are judged.

    Whole sessions over all classes if there are MIN_SESSIONS of two or more samples, which hold at least half of the
    judging rows. Otherwise, and for a row whose class would be gone, the rows of its class that are nearer than NEAR of
    `spread` (the mean squared distance of two samples of a class). counts: samples of each class ever learned; a class
    of one can't be judged.
    """
    judging = judging[counts[rows.classes[judging]] > 1]
    usable = rows.whole[judging]
    mates: dict[int, NDArray[np.int64]] = {}
    sessions, sizes = np.unique(rows.sessions[rows.whole], return_counts=True)
    several = sessions[sizes > 1]
    by_session = len(several) >= MIN_SESSIONS and \
        2 * int((np.isin(rows.sessions[judging], several) & usable).sum()) >= len(judging) > 0
    alone = np.ones(len(judging), np.bool_)
    if by_session:
        order = np.argsort(rows.sessions, kind="stable")
        ends = np.searchsorted(rows.sessions[order], sessions, "right")
        for number in np.unique(rows.sessions[judging[usable]]).tolist():
            end = int(ends[np.searchsorted(sessions, number)])
            start = int(np.searchsorted(rows.sessions[order], number))
            mates[number] = np.sort(order[start:end])
            gone = np.bincount(rows.classes[mates[number]], minlength=len(counts)) >= counts
            mine = usable & (rows.sessions[judging] == number)
            alone[mine] = gone[rows.classes[judging[mine]]]
    balls = dict(zip(judging[alone].tolist(), _balls(rows, judging[alone], counts, spread)))
    of = [balls[row] if one else mates[session] for row, session, one in zip(
        judging.tolist(), rows.sessions[judging].tolist(), alone.tolist())]
    return LeftOut(judging, of, by_session)


def _balls(rows: Rows, judging: NDArray[np.int64], counts: NDArray[np.float64],
           spread: float) -> list[NDArray[np.int64]]:
    """The rows of its class near each of the rows `judging`, the nearest first, itself included."""
    found: list[NDArray[np.int64]] = [row[None] for row in judging]
    order = np.lexsort((rows.own, rows.classes))
    theirs = rows.classes[order]
    judged = np.argsort(rows.classes[judging], kind="stable")
    for mine in np.split(judged, np.flatnonzero(np.diff(rows.classes[judging[judged]])) + 1):
        if not len(mine):
            continue
        own = int(rows.classes[judging[mine[0]]])
        most = min(int(counts[own]) // 2, MAX_BALL)
        if most < 2:
            continue
        x = rows.h(judging[mine])
        x, centre = x - x[0], x[0]
        size = np.einsum("nd,nd->n", x, x)
        members = order[np.searchsorted(theirs, own):np.searchsorted(theirs, own, "right")]
        near: list[tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.float32]]] = []
        step = max(AT_ONCE // max(x.shape[1], len(x)), 1)
        for start in range(0, len(members), step):
            part = members[start:start + step]
            y = rows.h(part) - centre
            apart = size[:, None] + np.einsum("nd,nd->n", y, y) - 2 * (x @ y.T)
            at, to = np.nonzero(apart < NEAR * spread)
            near.append((at, part[to], apart[at, to]))
        at, to, apart = (np.concatenate(each) for each in zip(*near))
        apart = np.where(judging[mine][at] == to, -np.inf, apart)   # itself is never dropped
        ranked = np.lexsort((np.arange(len(at)), apart, at))
        ends = np.searchsorted(at[ranked], np.arange(len(mine)), "right")
        for place, start, end in zip(mine.tolist(), [0, *ends.tolist()], ends.tolist()):
            if end > start:
                found[place] = to[ranked[start:min(end, start + most)]]
    return found
