"""The learning curve: which stored samples are right out of fold with fewer of the others, exact by subtraction."""
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgecl.heads.left_out import LeftOut
from edgecl.heads.out_of_fold import OutOfFold
from edgecl.heads.solvers import KINDS
from edgecl.learning.judging import SHRINKAGES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecl.learning.judges import Judges
    from edgecl.statistics.class_statistics import ClassStatistics

THINNED = 4     # stored samples or sessions of a class, so that some of them can be left out
DRAWS = {"half": ((2, 0), (2, 1)), "three_quarters": ((4, 0), (4, 2))}     # left out: one in so many, from which on


class Curve(NamedTuple):
    """Which of the judging samples are right, mean over draws, float64 [m]: with all stored samples, with three
    quarters, and with half of those of each class."""

    full: NDArray[np.float64]
    three_quarters: NDArray[np.float64]
    half: NDArray[np.float64]


def learning_curve(statistics: ClassStatistics, judges: Judges, kind: str) -> tuple[Curve, NDArray[np.int64]]:
    """The learning curve of a kind of head, and the class that each judging sample is taken for, int64 [m]. statistics:
    of all samples, through the transform of `judges.rows`; if single samples can't be subtracted from them, the curve
    has one point, and the others are NaN."""
    nothing = np.zeros(len(judges.rows.classes), np.bool_)
    said = _said(kind, judges, statistics, nothing, judges.left)
    full = (said == judges.truth).astype(np.float64)
    points = {}
    for name, draws in DRAWS.items():
        rights = []
        for one_in, first in draws if statistics.diagonal is None else ():
            gone = _thinned(judges, one_in, first)
            left = _without(judges, gone)
            rights.append(_said(kind, judges, statistics, gone, left) == judges.truth)
        points[name] = np.mean(rights, 0) if rights else np.full(len(full), np.nan)
    return Curve(full, points["three_quarters"], points["half"]), said


def _thinned(judges: Judges, one_in: int, first: int) -> NDArray[np.bool_]:
    """Which stored samples are left out, bool [n]: one in so many of each class, by their hashes, or by whole sessions;
    none of a class that has few."""
    rows = judges.rows
    unit = rows.sessions if judges.left.sessions else rows.own
    order = np.lexsort((rows.own, unit, rows.classes))
    new = np.ones(len(order), np.bool_)
    new[1:] = (np.diff(rows.classes[order]) != 0)
    if judges.left.sessions:
        new[1:] |= np.diff(unit[order]) != 0
    else:
        new[:] = True
    number = np.cumsum(new) - 1
    begins = np.searchsorted(rows.classes[order], rows.classes[order])
    rank = np.empty(len(order), np.int64)
    rank[order] = number - number[begins]
    several = np.zeros(len(order), np.int64)
    np.maximum.at(several, rows.classes, rank)
    many = several[rows.classes] + 1 >= THINNED
    return np.asarray(many & (rank % one_in == first), np.bool_)


def _without(judges: Judges, gone: NDArray[np.bool_]) -> LeftOut:
    """What is taken out for each judging sample, if some samples are gone already. One of its class always stays."""
    rows = judges.rows
    parts: dict[int, NDArray[np.int64]] = {}
    found: list[NDArray[np.int64]] = []
    kept = np.bincount(rows.classes[~gone], minlength=int(rows.classes.max()) + 1)
    for of, own in zip(judges.left.of, judges.truth.tolist()):
        rest = parts.setdefault(id(of), of[~gone[of]])      # a session stays one array, which is taken out once
        mine = np.flatnonzero(rows.classes[rest] == own)
        found.append(np.delete(rest, mine[-1]) if len(mine) >= kept[own] > 0 else rest)
    return LeftOut(judges.left.rows, found, judges.left.sessions)


def _said(kind: str, judges: Judges, statistics: ClassStatistics, gone: NDArray[np.bool_],
          left: LeftOut) -> NDArray[np.int64]:
    """The class that each judging sample is taken for, int64 [m], by a head of what is not gone."""
    rows, labels = judges.rows, statistics.labels
    held = {labels[number]: rows.h(np.flatnonzero(gone & (rows.classes == number)))
            for number in np.unique(rows.classes[gone]).tolist()}
    pooled = statistics.pooled(held)
    e = None
    if KINDS[kind].second_moment:
        e = max(pooled.shrinkage, SHRINKAGES[0]) if judges.in_sessions else pooled.shrinkage
    found = np.empty(len(left.rows), np.int64)
    for some, out in OutOfFold.in_parts(pooled, rows, left, e, kind.startswith("ridge")):
        found[some] = out.logits(kind).argmax(1)
    return found
