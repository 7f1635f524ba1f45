"""What a closed-form head says of stored samples that it has not learned: each is judged without its session or its
near-copies, while the head that serves is solved once, from all samples.

Taking rows out of the class means and of the shrunk covariance is an update of low rank, so that no head is solved
again. With S_e = (a / f) W + b I = L L^T, the rows D of the removed samples about their class means and
H_ij = 1 / n_c if i and j are of the same class, the inverse of the covariance without them is

    f' / f  (S_e^-1 + a / f S_e^-1 D^T (I - H - a / f D S_e^-1 D^T)^-1 D S_e^-1)

(Sherman-Morrison-Woodbury; I - H since the mean of a class moves as well), f' the degrees of freedom that are left; b
is kept. Ridge is a linear smoother: with the hat matrix A of its training samples and the residuals R = Y - Z, those
out of fold are (I - A_RR)^-1 R (the PRESS of Allen 1974, for several rows).
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from edgecl.heads.head import chunks
from edgecl.heads.left_out import MAX_BALL, LeftOut
from edgecl.heads.removal import Removed, Smoother

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from edgecl.heads.left_out import LearnedRows
    from edgecl.heads.removal import Left
    from edgecl.statistics.covariance import Metric, PooledCovariance

T = TypeVar("T")
BLOCK = 2 ** 18     # numbers of whitened rows that are worked on at a time, of sets of rows ...
MANY = 256          # samples are whitened together whatever their length, since a factor is read each time
FEW = 4             # samples of one class are taken out for each of them on its own: it takes no longer
SETS = 2 ** 16      # ... and of what is added up for some of these, so that it stays in a processor's cache


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
    def of(cls, pooled: PooledCovariance, rows: LearnedRows, left: LeftOut, e: float | None,
           ridge: bool = False) -> OutOfFold:
        """The judging rows `left.rows` of `rows` by heads solved at the shrinkage e from `pooled`, which is of all
        samples and keeps what it was factored for (`PooledCovariance.whiten`). e: None for heads that know no
        covariance; then inner products are plain ones, about zero."""
        with pooled.metric(e) as metric:
            return cls._of(metric, pooled, rows, left, e, ridge)

    @classmethod
    def right(cls, kind: str, pooled: PooledCovariance, rows: LearnedRows, left: LeftOut,
              e: float | None) -> NDArray[np.bool_]:
        """Which of the judging rows a kind of head gets right, bool [m], without room for all of its logits; see `of`
        and `logits`."""
        found = np.empty(len(left.rows), np.bool_)
        for some, out in cls.in_parts(pooled, rows, left, e, kind.startswith("ridge")):
            found[some] = out.logits(kind).argmax(1) == out.truth
        return found

    @classmethod
    def in_parts(cls, pooled: PooledCovariance, rows: LearnedRows, left: LeftOut, e: float | None,
                 ridge: bool = False) -> Iterator[tuple[slice, OutOfFold]]:
        """As `of`, for some of the judging rows at a time: which places of `left.rows` they are, and what heads say of
        them."""
        with pooled.metric(e) as metric:
            for some in chunks(len(left.rows), len(pooled.counts), BLOCK):
                part = LeftOut(left.rows[some], left.of[some], left.sessions)
                yield some, cls._of(metric, pooled, rows, part, e, ridge)

    @classmethod
    def _of(cls, metric: Metric, pooled: PooledCovariance, rows: LearnedRows, left: LeftOut, e: float | None,
            ridge: bool) -> OutOfFold:
        count, classes = len(left.rows), len(pooled.counts)
        nothing = np.zeros(0, np.int64)
        found = cls(np.empty(count), np.empty((count, classes)), np.empty((count, classes)), rows.classes[left.rows],
                    (nothing, nothing), np.empty((count, classes)) if ridge else None)
        gone = [found.gone]
        smoother = Smoother(pooled, metric.means, e) if ridge and e is not None else None
        most = max(BLOCK // max(pooled.means.shape), MANY if len(pooled.centre) >= classes else 1)
        together, alone = _kinds(left, rows)
        for some in _split(together, [len(left.of[each[0]]) for each in together], most):
            sets = [np.sort(left.of[each[0]]) for each in some]
            removed = found._removed(np.concatenate(sets), rows, pooled, metric, smoother)
            for judging, out, end in zip(some, sets, np.cumsum([*map(len, sets)]).tolist()):
                part = removed.part(end - len(out), end) if len(sets) > 1 else removed
                lost = found._take(judging, part.without_all(np.searchsorted(out, left.rows[judging])))
                gone.append((np.repeat(judging, len(lost)), np.tile(lost, len(judging))))
        for few, involved in _involved(alone, left, most):
            removed = found._removed(involved, rows, pooled, metric, smoother)
            found._each(removed, few, np.searchsorted(involved, left.rows[few]), involved, left)
        return replace(found, gone=(np.concatenate([at for at, _ in gone]), np.concatenate([of for _, of in gone])))

    @staticmethod
    def _removed(places: NDArray[np.int64], rows: LearnedRows, pooled: PooledCovariance, metric: Metric,
                 smoother: Smoother | None) -> Removed:
        return Removed(metric.whiten(rows.h(places) - metric.origin), rows.classes[places], metric, pooled, smoother)

    def _each(self, removed: Removed, judging: NDArray[np.int64], places: NDArray[np.int64],
              involved: NDArray[np.int64], left: LeftOut) -> None:
        """Fill in rows that each have a set of their own, those with sets of one size at a time."""
        sizes = left.sizes()[judging]
        if (sizes > 1).any() and int((sizes ** 2).sum()) > len(involved) ** 2:
            removed.multiply()
        for size in np.unique(sizes).tolist():
            mine = np.flatnonzero(sizes == size)
            sets = np.array([left.of[row] for row in judging[mine].tolist()], np.int64).reshape(len(mine), size)
            out = np.searchsorted(involved, sets)
            step = max(SETS // (max(size, 1) * max(self.inner.shape[1], removed.x.shape[1])), 1)
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


def _kinds(left: LeftOut, rows: LearnedRows) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Judging rows, as places in `left.rows`: those that have one set together, and those that each have a small one of
    their own class, sorted by class."""
    _, first, of, count = np.unique(np.fromiter(map(id, left.of), np.int64, len(left.of)), return_index=True,
                                    return_inverse=True, return_counts=True)
    distinct = LeftOut(left.rows[first], [left.of[place] for place in first.tolist()], left.sessions)
    size, (at, members) = distinct.sizes(), distinct.pairs()
    mixed = np.zeros(len(size), np.bool_)
    mixed[at[rows.classes[members] != rows.classes[distinct.rows[at]]]] = True
    shared = (size > 1) & (mixed | (size > MAX_BALL) | (count > 1) & (size > FEW))
    order = np.argsort(of, kind="stable")
    ends = np.cumsum(count)
    together = [order[end - number:end] for end, number in zip(ends[shared].tolist(), count[shared].tolist())]
    alone = np.flatnonzero(~shared[of])
    return together, alone[np.argsort(rows.classes[left.rows[alone]], kind="stable")]


def _involved(alone: NDArray[np.int64], left: LeftOut,
              most: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Some of the judging rows at a time, and the samples that they involve, as sorted places: at most so many, but
    those of one judging row at least."""
    begin, involved = 0, set[int]()
    for place, (row, of) in enumerate(zip(left.rows[alone].tolist(), map(left.of.__getitem__, alone.tolist()))):
        wider = involved.union(of.tolist())
        wider.add(row)
        if involved and len(wider) > most:
            yield alone[begin:place], np.array(sorted(involved), np.int64)
            begin, wider = place, {row, *of.tolist()}
        involved = wider
    if involved:
        yield alone[begin:], np.array(sorted(involved), np.int64)


def _split(items: list[T], sizes: list[int], most: int) -> Iterator[list[T]]:
    """As many of the items at a time as have `most` samples together; one at least. sizes: samples of each."""
    begin, total = 0, 0
    for place, size in enumerate(sizes):
        if total and total + size > most:
            yield items[begin:place]
            begin, total = place, 0
        total += size
    if items:
        yield items[begin:]
