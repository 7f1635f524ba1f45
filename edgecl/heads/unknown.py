"""Recognises unknown samples by what known ones are like when they are left out: by the largest of two scores.

`like` is the logarithm of the squared distance to the nearest of some stored rows: of photos in direction only, of
anything else in units of the deviation within classes, each measured to be better there. `near` is the relative
Mahalanobis distance, see `edgecl.heads.relative_distance`: it tells what is between many classes, so it is used from
MANY_CLASSES on, or if no row may be stored.

Each score is standardised by its mean and deviation over the judging samples, out of fold, that are taken for the same
class, which begin with those of all classes: a class that varies much does not make it lenient for the others. The
largest of the two is compared with a threshold that keeps ACCEPTED of the judging samples, if they are independent
(whole sessions are left out, or photos have hardly any near-copies) and MANY_JUDGES; else with one that is CAREFUL
times further out than 95 % of them (a one-sided prediction interval). That needs MIN_JUDGES samples of one class. What
belongs to the class NOTHING is unknown anyway, and has no part in it.
"""
from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgecl.heads.head import NearestRow, Novelty, Scale, chunks
from edgecl.heads.relative_distance import parts_of, relative_distance
from edgecl.samples import NOTHING

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecl.heads.head import Head
    from edgecl.heads.left_out import LearnedRows, LeftOut
    from edgecl.heads.out_of_fold import OutOfFold
    from edgecl.statistics.covariance import PooledCovariance

MIN_JUDGES = 3          # samples: of fewer no deviation can be told
MANY_JUDGES, ACCEPTED = 20, 0.95    # from so many independent samples on, this share of them stays known
ALONE = 0.95            # of photos: if so many have no near-copies, they are independent. Vectors without sessions
                        # never are: units that are known from themselves make them nearer than others
CAREFUL_OF_ONE, CAREFUL = 1.25, 1.5     # times a one-sided 95 % interval, for one class and for several, whose scales
                                        # fit them closely: near-copies hide how much samples differ
MANY_CLASSES = 20       # with fewer, `near` finds nothing that `like` does not, and only raises the threshold, measured
PER_SESSION = 3         # samples of a session, or near-copies, tell as much as that many independent ones, at most
T95 = 6.314, 2.920      # the 95 % quantile of Student's t with 1 and 2 degrees of freedom
LEAST_DEVIATION = 0.05  # of the logarithm of a squared distance: less is chance
FARTHEST = 100.0        # the logarithm of a squared distance in float32 is never so large
LOWEST = 3.0            # deviations below the mean, where `like` ends: nothing more familiar can be told apart
MEAN_SAMPLES, VARIANCE_SAMPLES = 5, 10  # of all classes, that the mean and the variance of each one begin with
SCORED = 1024           # judging samples that means and deviations are of; more would not change them much
ROW_BYTES = 8           # of a row besides its numbers
ROWS_SHARE = 4          # the bytes for exemplars divided by this are the most for the rows of a head, ...
ROWS_NUMBERS = {True: 2 ** 20, False: 2 ** 18}  # ... so many numbers of photos and of anything else, ...
MOST_ROWS = {True: 2 ** 10, False: 2 ** 9}      # ... and so many rows: 1 % of the time of a photo, 5 % of a window's


class Judged(NamedTuple):
    """The samples that judge a head, and what is left out for each of them. groups: a number of the session or the
    near-copies of each; best: the class that each is taken for, out of fold; plain: statistics before any projection;
    photos: whether samples are photos; room: bytes for exemplars, 0 if no row may be kept; in_sessions: whether samples
    come from sessions."""

    rows: LearnedRows
    left: LeftOut
    groups: NDArray[np.int64]
    best: NDArray[np.int64]
    plain: PooledCovariance
    photos: bool
    room: int
    in_sessions: bool = False


def rows_held(exemplars: int, photos: bool, dimension: int, classes: int) -> int:
    """The most rows of a head, if exemplars may take so many bytes: one of each class at least, or none. dimension: of
    features."""
    rows = min(min(exemplars // ROWS_SHARE, ROWS_NUMBERS[photos]) // (dimension + ROW_BYTES), MOST_ROWS[photos])
    return rows if rows >= classes else 0


def rows_bytes(exemplars: int, photos: bool, dimension: int, classes: int) -> int:
    """The most bytes of those rows in a head."""
    rows = rows_held(exemplars, photos, dimension, classes)
    return rows * (dimension + ROW_BYTES) + 8 * dimension if rows else 0


def fit(head: Head, pooled: PooledCovariance, out: OutOfFold | None, judged: Judged) -> Novelty:
    """The scores of a head, and their threshold; infinite if too few samples judge or no score can be had. pooled: what
    the head was solved from; out: what it says of the judging samples out of fold, None if it was not solved from
    these statistics."""
    rows, left = judged.rows.on(judged.rows.transform.plain), judged.left
    missing = _missing(pooled, len(rows.classes), len(left.rows))
    few = np.arange(len(left.rows)) if len(left.rows) <= SCORED else np.arange(SCORED) * len(left.rows) // SCORED
    most = 0 if missing else rows_held(judged.room, judged.photos, rows.transform.source, len(head.labels))
    kept = _kept(rows, most)
    stored = NearestRow.of(rows.h(kept), *_units(judged)) if len(kept) else None
    asked = len(few) and not missing and (stored is None or len(head.labels) >= MANY_CLASSES)
    near = relative_distance(head, pooled) if asked and out is not None else None
    near_scores = None if near is None or out is None else _relative(pooled, out, few)
    like_scores = None if stored is None else _leave_out(rows, left, few, kept, stored, judged.in_sessions)
    found = [scores for scores in (near_scores, like_scores) if scores is not None]
    able = np.isfinite(np.stack(found)).all(0) if found else np.zeros(len(few), np.bool_)
    if NOTHING in head.labels:      # what is taken for it is unknown whatever its scores
        place = head.labels.index(NOTHING)
        named = able & (rows.classes[left.rows[few]] != place) & (judged.best[few] != place)
        able = named if int(named.sum()) >= MIN_JUDGES else able
    if int(able.sum()) < MIN_JUDGES:
        return Novelty(needs=missing or None)
    best, classes = judged.best[few[able]], len(head.labels)
    novelty, largest = Novelty(), np.full(len(best), -np.inf)
    if near_scores is not None:
        scores = near_scores[able]
        scale = _scale(scores, best, classes, 1e-6 * float(np.abs(scores).max()) or 1.0)
        novelty, largest = replace(novelty, near=near, near_scale=scale), scale.standardised(scores, best)
    if like_scores is not None and stored is not None:
        scores = like_scores[able]
        scale = _scale(scores, best, classes, LEAST_DEVIATION)
        scale = _without_rows(scale, rows, left, few[able], kept, stored, judged.in_sessions)
        least = max(math.exp(float((scale.mean - LOWEST * scale.deviation).min())), stored.least)
        novelty = replace(novelty, like=replace(stored, least=least), like_scale=scale)
        largest = np.maximum(largest, scale.standardised(scores, best))
    of = rows.sessions[left.rows] if judged.in_sessions else judged.groups
    groups = len(np.unique(of[few[able]]))
    independent = left.sessions or stored is None or (judged.photos and groups >= ALONE * len(largest))
    return replace(novelty, threshold=_threshold(largest, groups, classes, independent))


def _missing(pooled: PooledCovariance, stored: int, judges: int) -> int:
    """How many samples of one class are missing until MIN_JUDGES judge: the first of a class does not, since nothing is
    left of it without that one, but does so from the second on. None are if what is learned stays only in codes, since
    then no number would do. stored: samples that stay as they were learned."""
    if judges >= MIN_JUDGES or not stored:
        return 0
    return max(MIN_JUDGES - judges - int((pooled.counts == 1).any()), 1)


def _kept(rows: LearnedRows, most: int) -> NDArray[np.int64]:
    """The rows that a head holds, at most so many: of each class equally many as far as it has them, those with the
    smallest own hashes."""
    order = np.lexsort((rows.sessions, rows.own, rows.classes))
    theirs = rows.classes[order]
    rank = np.arange(len(order)) - np.searchsorted(theirs, theirs)
    level = int(np.searchsorted(np.cumsum(np.bincount(rank, minlength=1)), most, "right"))
    return np.sort(order[rank < level])


def _units(judged: Judged) -> tuple[NDArray[np.float32], NDArray[np.float32]] | tuple[None, None]:
    """Centre and weight of `NearestRow`."""
    if judged.photos:
        return None, None
    plain = judged.plain
    weight = np.ones(len(plain.centre))
    if plain.covariance is not None and plain.freedom > 0:
        weight = ((1 - plain.shrinkage) * np.diag(plain.covariance) + plain.sphere(plain.shrinkage)) ** -0.5
    return plain.centre.astype(np.float32), weight.astype(np.float32)


def _leave_out(rows: LearnedRows, left: LeftOut, few: NDArray[np.int64], kept: NDArray[np.int64],
               nearest: NearestRow, in_sessions: bool, strange: bool = False) -> NDArray[np.float64]:
    """`like` of some judging samples, float64 [m]: to the nearest of the rows that is not left out with them, and not
    of their class if `strange`; infinite if there is none. in_sessions: rows of the same session are left out too, and
    if enough judge then, those whose class has rows of no other one do not."""
    column = np.full(len(rows.classes), -1, np.int64)
    column[kept] = np.arange(len(kept))
    found, elsewhere = np.empty(len(few)), np.zeros(len(few), np.bool_)
    for mine in chunks(len(few), max(len(kept), rows.transform.source), 2 ** 20):
        judging = left.rows[few[mine]]
        apart = nearest.apart(rows.h(judging))
        for row, place in enumerate(few[mine].tolist()):
            out = column[left.of[place]]
            apart[row, out[out >= 0]] = np.inf
        if in_sessions:
            same = rows.sessions[judging][:, None] == rows.sessions[kept]
            elsewhere[mine] = (~same & (rows.classes[judging][:, None] == rows.classes[kept])).any(1)
            apart[same & elsewhere[mine][:, None]] = np.inf
        if strange:
            apart[rows.classes[judging][:, None] == rows.classes[kept]] = np.inf
        found[mine] = apart.min(1)
    if int(elsewhere.sum()) >= MIN_JUDGES:
        found[~elsewhere] = np.inf
    return np.log(np.maximum(found, nearest.least))


def _without_rows(scale: Scale, rows: LearnedRows, left: LeftOut, few: NDArray[np.int64], kept: NDArray[np.int64],
                  nearest: NearestRow, in_sessions: bool) -> Scale:
    """The scale of `like`, for classes of which no row is kept: as far as other samples are from rows of other classes;
    if that can't be told, `like` does not find their samples unknown."""
    none = np.bincount(rows.classes[kept], minlength=len(scale.mean)) == 0
    if not none.any():
        return scale
    scores = _leave_out(rows, left, few, kept, nearest, in_sessions, strange=True)
    scores = scores[np.isfinite(scores)]
    mean = float(scores.mean()) if len(scores) else FARTHEST
    deviation = max(float(scores.std(ddof=1)), LEAST_DEVIATION) if len(scores) > 1 else 1.0
    return Scale(np.where(none, mean, scale.mean).astype(np.float32),
                 np.where(none, deviation, scale.deviation).astype(np.float32))


def _relative(pooled: PooledCovariance, out: OutOfFold, few: NDArray[np.int64]) -> NDArray[np.float64] | None:
    """`near` of some judging samples out of fold, float64 [m]."""
    parts = parts_of("slda", pooled)      # of the logits <x, m_c>, whatever head was solved
    if parts is None:
        return None
    inner = out.inner[few]
    closest = out.squares[few] - 2 * inner
    place = np.full(len(out.truth), -1, np.int64)
    place[few] = np.arange(len(few))
    at, gone = place[out.gone[0]], out.gone[1]
    closest[at[at >= 0], gone[at >= 0]] = np.inf
    return np.asarray((inner @ parts[0]) ** 2 @ parts[1] + closest.min(1), np.float64)


def _scale(scores: NDArray[np.float64], best: NDArray[np.int64], classes: int, least: float) -> Scale:
    """What the scores of judging samples [m] are like, by the class that each is taken for: its mean begins with
    MEAN_SAMPLES of all classes, its variance with VARIANCE_SAMPLES."""
    mean, variance = float(scores.mean()), max(float(scores.std(ddof=1)), least) ** 2
    count = np.bincount(best, minlength=classes)
    means = (np.bincount(best, scores, classes) + MEAN_SAMPLES * mean) / (count + MEAN_SAMPLES)
    squares = np.bincount(best, (scores - means[best]) ** 2, classes) + VARIANCE_SAMPLES * variance
    deviations = np.maximum(np.sqrt(squares / (count + VARIANCE_SAMPLES)), least)
    return Scale(means.astype(np.float32), deviations.astype(np.float32))


def _threshold(scores: NDArray[np.float64], groups: int, classes: int, independent: bool) -> float:
    """The threshold for the largest of standardised scores, from those of judging samples [n] of so many groups and
    classes. independent: whether these say how many of other samples it would refuse."""
    n = len(scores)
    told = min(n, PER_SESSION * groups)
    times = (CAREFUL_OF_ONE if classes == 1 else CAREFUL) * t95(max(told - 1, 1)) * math.sqrt(1 + 1 / n)
    careful = float(scores.mean()) + times * max(float(scores.std(ddof=1)), 0.5)
    if not independent or told < MANY_JUDGES:
        return careful
    return min(careful, float(np.quantile(scores, ACCEPTED * (1 + 1 / told))))  # as conformal prediction has it


def t95(freedom: int) -> float:
    """The 95 % quantile of Student's t: the Cornish-Fisher expansion about that of a normal distribution."""
    return T95[freedom - 1] if freedom <= len(T95) else 1.6449 + 1.5238 / freedom + 1.4202 / freedom ** 2 + \
        0.983 / freedom ** 3
