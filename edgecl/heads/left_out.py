"""What is left out while a stored sample judges: its session over all classes, or its near-copies."""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgecl.heads.head import chunks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from edgecl.statistics.transform import FeatureTransform

NEAR = 0.4              # of the mean squared distance of two samples of a class: nearer ones are taken out together ...
MAX_BALL = 64           # ... but never more than this, the nearest, nor half of the class
MIN_SESSIONS = 3        # of 2 samples or more, so that sessions are left out as a whole
AT_ONCE = 2 ** 18       # numbers of features that are compared at a time
EMPTY = np.zeros(0, np.float32)


@dataclass(frozen=True)
class LearnedRows:
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
        found = np.empty((len(places), self.transform.dimension), np.float32)
        for part in chunks(*found.shape):
            some = np.concatenate([self.features[place] for place in places[part].tolist()] or [EMPTY])
            found[part] = self.transform(some.reshape(-1, self.transform.source))
        return found

    def on(self, transform: FeatureTransform) -> LearnedRows:
        """The same through another transform."""
        return replace(self, transform=transform)


class LeftOut(NamedTuple):
    """Which rows judge, int64 [m], and what is taken out for each of them: of[i], places in `LearnedRows`, itself
    included; nothing (length 0) for samples that the statistics do not contain. sessions: whether these are whole
    sessions."""

    rows: NDArray[np.int64]
    of: list[NDArray[np.int64]]
    sessions: bool

    def sizes(self) -> NDArray[np.int64]:
        """How many rows are taken out for each judging row, int64 [m]."""
        return np.fromiter(map(len, self.of), np.int64, len(self.of))

    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All pairs of a judging row, as a place in `rows`, and a row that is taken out with it: int64 [p] each."""
        if not self.of:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        return np.repeat(np.arange(len(self.of)), self.sizes()), np.concatenate(self.of)


def by_sessions(rows: LearnedRows, judging: NDArray[np.int64]) -> bool:
    """Whether whole sessions are left out: there are MIN_SESSIONS of two or more samples, which hold at least half of
    the judging rows."""
    sessions, sizes = np.unique(rows.sessions[rows.whole], return_counts=True)
    several = sessions[sizes > 1]
    held = int((np.isin(rows.sessions[judging], several) & rows.whole[judging]).sum())
    return len(several) >= MIN_SESSIONS and 2 * held >= len(judging) > 0


def left_out(rows: LearnedRows, judging: NDArray[np.int64], counts: NDArray[np.float64], spread: float,
             sessions: bool) -> LeftOut:
    """What is taken out for each of the rows `judging` [m], int64, of classes of two samples or more.

    sessions: whole ones over all classes. Without, and for a row whose class would be gone: the rows of its class that
    are nearer than NEAR of `spread` (the mean squared distance of two samples of a class). counts: samples of each
    class ever learned.
    """
    mates: dict[int, NDArray[np.int64]] = {}
    alone = np.ones(len(judging), np.bool_)
    if sessions:
        order = np.argsort(rows.sessions, kind="stable")
        sorted_sessions = rows.sessions[order]
        usable = rows.whole[judging]
        for number in np.unique(rows.sessions[judging[usable]]).tolist():
            start, end = np.searchsorted(sorted_sessions, [number, number + 1])
            mates[number] = np.sort(order[start:end])
            gone = np.bincount(rows.classes[mates[number]], minlength=len(counts)) >= counts
            mine = usable & (rows.sessions[judging] == number)
            alone[mine] = gone[rows.classes[judging[mine]]]
    balls = iter(_balls(rows, judging[alone], counts, spread))
    of = [next(balls) if one else mates[session] for session, one in zip(
        rows.sessions[judging].tolist(), alone.tolist())]
    return LeftOut(judging, of, sessions)


def _balls(rows: LearnedRows, judging: NDArray[np.int64], counts: NDArray[np.float64],
           spread: float) -> list[NDArray[np.int64]]:
    """The rows of its class near each of the rows `judging`, the nearest first, itself included."""
    found: list[NDArray[np.int64]] = [*judging[:, None]]
    most = np.minimum(counts // 2, MAX_BALL).astype(np.int64)
    order = np.lexsort((rows.own, rows.classes))
    starts = np.searchsorted(rows.classes[order], np.arange(len(counts) + 1))
    judged = np.argsort(rows.classes[judging], kind="stable")
    begins = np.searchsorted(rows.classes[judging[judged]], np.arange(len(counts) + 1))
    classes = np.flatnonzero((np.diff(begins) > 0) & (most > 1))
    for some in _alike(classes, np.diff(begins), np.diff(starts), rows.transform.dimension):
        ours = _padded(judged, begins, some)        # [g, j], as places in `judging`
        theirs = _padded(order, starts, some)       # [g, n]
        x, d = rows.h(judging[ours].ravel()), rows.transform.dimension
        x = x.reshape(*ours.shape, d)
        centre = x[:, :1].copy()
        x -= centre
        size = np.einsum("gjd,gjd->gj", x, x)
        pairs: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []
        step = max(AT_ONCE // (len(some) * max(d, ours.shape[1])), 1)
        for start in range(0, theirs.shape[1], step):
            part = theirs[:, start:start + step]
            y = rows.h(part.ravel()).reshape(*part.shape, d) - centre
            apart = size[:, :, None] + np.einsum("gnd,gnd->gn", y, y)[:, None] - 2 * (x @ y.swapaxes(1, 2))
            group, at, to = np.nonzero(apart < NEAR * spread)
            pairs.append((ours[group, at], part[group, to], apart[group, at, to]))
        at, to, apart = (np.concatenate(each) for each in zip(*pairs))
        _, first = np.unique(at * len(order) + to, return_index=True)   # padding has repeated some
        at, to, apart = at[first], to[first], apart[first]
        apart = np.where(judging[at] == to, -np.inf, apart)             # itself is never dropped
        several = np.bincount(at, minlength=len(judging))[at] > 1
        at, to, apart = at[several], to[several], apart[several]
        ranked = np.lexsort((rows.own[to], apart, at))
        at, to = at[ranked], to[ranked]
        starts_of = np.flatnonzero(np.diff(at, prepend=-1))
        for place, start, end in zip(at[starts_of].tolist(), starts_of.tolist(), [*starts_of[1:].tolist(), len(at)]):
            found[place] = to[start:min(end, start + int(most[rows.classes[judging[place]]]))]
    return found


def _alike(classes: NDArray[np.int64], judging: NDArray[np.int64], stored: NDArray[np.int64],
           d: int) -> Iterator[NDArray[np.int64]]:
    """Classes that are worked on together: much alike in judging and in stored rows, within a factor of two."""
    kind = np.ceil(np.log2(np.maximum(np.stack([judging[classes], stored[classes]]), 1)))
    for each in np.unique(kind, axis=1).T:
        mine = classes[(kind == each[:, None]).all(0)]
        size = max(AT_ONCE // int(2 ** each[0] * max(2 ** each[1], d)), 1)
        yield from (mine[start:start + size] for start in range(0, len(mine), size))


def _padded(places: NDArray[np.int64], starts: NDArray[np.int64], some: NDArray[np.int64]) -> NDArray[np.int64]:
    """The places of each of some classes [g, n], those of the smaller ones repeated; starts [C + 1]: where the places
    of a class begin."""
    sizes = starts[some + 1] - starts[some]
    return np.asarray(places[starts[some][:, None] + np.arange(sizes.max()) % sizes[:, None]], np.int64)
