"""What a closed-form head says of stored samples that it has not learned: each is judged without its session or its
near-copies, while the head that serves is solved once, from all samples.

Taking rows out of the class means and of the shrunk covariance is an update of low rank, so that no head is solved
again. With S_e = (a / f) W + b I = L L^T, the rows D of the removed samples about their class means and
H_ij = 1 / n_c if i and j are of the same class, the inverse of the covariance without them is

    f' / f  (S_e^-1 + a / f S_e^-1 D^T (I - H - a / f D S_e^-1 D^T)^-1 D S_e^-1)

(Sherman-Morrison-Woodbury; I - H since the mean of a class moves as well), f' the degrees of freedom that are left. b is
kept. Ridge is a linear smoother: with the hat matrix A of its training samples and the residuals R = Y - Z, those out of
fold are (I - A_RR)^-1 R (the PRESS of Allen 1974, for several rows).
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgecl.heads.removal import Removed, Smoother

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from edgecl.heads.removal import Left
    from edgecl.statistics.covariance import Metric, PooledCovariance
    from edgecl.statistics.transform import FeatureTransform

NEAR = 0.4              # of the mean squared distance of two samples of a class: nearer ones are taken out together ...
MAX_BALL = 64           # ... but never more than this, the nearest, nor half of the class
MIN_SESSIONS = 3        # of 2 samples or more, so that sessions are left out as a whole
BLOCK = 2 ** 20         # numbers of whitened rows that are worked on at a time


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
        step = max(BLOCK // max(x.shape[1], len(x)), 1)
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


@dataclass(frozen=True)
class OutOfFold:
    """What heads say of the judging rows, out of fold, float64: with the inner product <a, b> = a S_e^-1 b without what
    is taken out, a and b about the mean of all samples: own [m]: <x, x>; inner [m, C]: <x, m_c>; squares [m, C]:
    <m_c, m_c>; ridge [m, C]: the logits of `solvers.ridge`, None if they were not asked for; gone: judging row and
    class, int64 [g] each, of the classes that have no sample left. truth: the true classes, int64 [m]."""

    own: NDArray[np.float64]
    inner: NDArray[np.float64]
    squares: NDArray[np.float64]
    truth: NDArray[np.int64]
    gone: tuple[NDArray[np.int64], NDArray[np.int64]]
    ridge: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, pooled: PooledCovariance, rows: Rows, left: LeftOut, e: float | None, ridge: bool = False) -> OutOfFold:
        """The judging rows `left.rows` of `rows` by heads solved at the shrinkage e from `pooled`, which is of all
        samples and keeps what it was factored for (`PooledCovariance.whitened_at`). e: None for heads that know no
        covariance; then inner products are plain ones, about zero."""
        count, classes = len(left.rows), len(pooled.counts)
        nothing = np.zeros(0, np.int64)
        found = cls(np.empty(count), np.empty((count, classes)), np.empty((count, classes)), rows.classes[left.rows],
                    (nothing, nothing), np.empty((count, classes)) if ridge else None)
        gone = [found.gone]
        with pooled.metric(e) as metric:
            smoother = Smoother(pooled, metric.means, e) if ridge and e is not None else None
            for judging, involved, together in _blocks(left, rows, len(pooled.centre)):
                x = metric.whiten(rows.h(involved) - metric.origin)
                removed = Removed(x, rows.classes[involved], metric, pooled, smoother)
                places = np.searchsorted(involved, left.rows[judging])
                if together:
                    lost = found._take(judging, removed.without_all(places))
                    gone.append((np.repeat(judging, len(lost)), np.tile(lost, len(judging))))
                else:
                    found._each(removed, judging, places, involved, left)
        return replace(found, gone=(np.concatenate([at for at, _ in gone]), np.concatenate([of for _, of in gone])))

    def _each(self, removed: Removed, judging: NDArray[np.int64], places: NDArray[np.int64],
              involved: NDArray[np.int64], left: LeftOut) -> None:
        """Fill in rows that each have a set of their own, those with sets of one size at a time."""
        sizes = np.array([len(left.of[row]) for row in judging.tolist()])
        for size in np.unique(sizes).tolist():
            mine = np.flatnonzero(sizes == size)
            sets = np.array([left.of[row] for row in judging[mine].tolist()], np.int64).reshape(len(mine), size)
            out = np.searchsorted(involved, sets)
            step = max(BLOCK // (max(size, 1) * max(self.inner.shape[1], removed.x.shape[1])), 1)
            for start in range(0, len(mine), step):
                part = slice(start, start + step)
                self._take(judging[mine[part]], removed.without_each(places[mine[part]], out[part]))

    def _take(self, judging: NDArray[np.int64], found: Left) -> NDArray[np.int64]:
        """Fill in some rows; the classes that are gone for them."""
        self.own[judging], self.inner[judging], self.squares[judging] = found.own, found.inner, found.squares
        if self.ridge is not None and found.ridge is not None:
            self.ridge[judging] = found.ridge
        return found.gone

    def distances(self) -> NDArray[np.float64]:
        """Squared distances to the class means [m, C]; infinite for a class that is gone."""
        found = self.squares - 2 * self.inner
        found += self.own[:, None]
        found[self.gone] = np.inf
        return found

    def logits(self, kind: str) -> NDArray[np.float64]:
        """The logits [m, C] of a kind of head, but for a number per row that all classes share; -inf for a class that
        is gone. kind: of `solvers.KINDS`; of those without covariance only if it was solved without (e = None)."""
        if kind.startswith("ridge"):
            if self.ridge is None:
                raise ValueError("ridge was not asked for")
            found = self.ridge.copy()
        elif kind == "cosine":
            found = self.inner / np.maximum(np.sqrt(self.squares * self.own[:, None]), 1e-24)
        else:
            found = self.inner - self.squares / 2
            found *= 2 if kind == "nearest-mean" else 1
        found[self.gone] = -np.inf
        return found


def _blocks(left: LeftOut, rows: Rows, d: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], bool]]:
    """Judging rows, as places in `left.rows`, and the samples that are involved, as sorted places in `rows`: those that
    have one set together (True), and as many that have small sets of their own class as BLOCK allows (False)."""
    alike: dict[int, list[int]] = {}
    for place, out in enumerate(left.of):
        alike.setdefault(id(out), []).append(place)
    waiting: list[int] = []
    for mine in alike.values():
        out, row = left.of[mine[0]], left.rows[mine[0]]
        if len(mine) > 1 and len(out) or len(out) > MAX_BALL or (rows.classes[out] != rows.classes[row]).any():
            yield np.array(mine, np.int64), np.union1d(out, left.rows[mine]), True
        else:
            waiting += mine
    waiting.sort(key=rows.classes[left.rows].tolist().__getitem__)
    start, involved = 0, set[int]()
    for end, place in enumerate(waiting):
        more = {int(left.rows[place]), *left.of[place].tolist()}
        if end > start and len(involved | more) * d > BLOCK:
            yield np.array(waiting[start:end], np.int64), np.array(sorted(involved), np.int64), False
            start, involved = end, set()
        involved |= more
    if waiting:
        yield np.array(waiting[start:], np.int64), np.array(sorted(involved), np.int64), False
