"""Suspicious labels: stored samples that fit another class better than their own, each judged as if it had never been
taught.

The margin of a sample is its distance from the border between its own class and the nearest other one, by SLDA, in
standard deviations within classes; negative beyond the border. Two heads judge it in closed form
(`edgecl.heads.out_of_fold`): one that lacks only the sample, and one that lacks its session as well, or its near-copies
where there are no sessions. The first finds a single wrong label among right ones, the second a recording that was
taught under a wrong name as a whole; their mean finds both, see docs/suspicious.md.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgecl.exemplars.sample_ids import sample_id
from edgecl.exemplars.selection import GROUP_SHIFT, own_hashes
from edgecl.heads.head import chunks
from edgecl.heads.left_out import LearnedRows, LeftOut, by_sessions, left_out
from edgecl.heads.out_of_fold import OutOfFold
from edgecl.learning.judging import SHRINKAGES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from edgecl.exemplars.stored import StoredSample
    from edgecl.learning.knowledge import Knowledge
    from edgecl.statistics.covariance import PooledCovariance

DEVIATIONS = 2.5        # robust standard deviations below the median of all margins: from here on one is suspicious ...
MAD_OF_NORMAL = 1.4826  # ... a standard deviation, in medians of the distance from the median
FEWEST_MARGINS = 20     # that have a usual spread
NEARLY = 0.1            # of the mean squared distance of two samples of a class: nearer ones are nearly the same
MOST_COMPARED = 1024    # samples of the smallest margins that are compared with all others
LEAST_APART = 1e-9      # of the largest squared distance of two classes: less is rounding
AT_ONCE = 2 ** 22       # numbers of features that are compared at a time


class Evidence(NamedTuple):
    """What tells which samples are suspicious. rows: all that are stored; learned: the same as arrays; pooled: of all
    that were taught; spread: the mean squared distance of two samples of a class."""

    rows: list[StoredSample]
    learned: LearnedRows
    pooled: PooledCovariance
    spread: float

    @classmethod
    def of(cls, known: Knowledge) -> Evidence:
        """Of what is known, which may change afterwards."""
        plain, rows = known.plain, [*known.stored]
        place = {label: number for number, label in enumerate(plain.labels)}
        keys = np.array([row.key for row in rows], np.int64)
        classes = np.array([place[row.label] for row in rows], np.int64)
        learned = LearnedRows([row.feature for row in rows], known.transforms[0], classes, keys >> GROUP_SHIFT,
                              own_hashes(keys), np.ones(len(rows), np.bool_))
        told = plain.second_moment and plain.degrees_of_freedom > 0
        spread = plain.spread(np.zeros((0, plain.dimension), np.float32)) if told else 0.0
        return cls(rows, learned, plain.pooled(), spread)


class Margins(NamedTuple):
    """of [n]: margins, 1 for a usual sample; NaN for the only sample of its class. other [n], int64: the nearest class
    but its own."""

    of: NDArray[np.float64]
    other: NDArray[np.int64]


class Suspicion(NamedTuple):
    """A suspicious sample. place: among the stored ones; margin: None if it has none; looks_like: the class that it
    fits better, or None; reason: why, for people."""

    place: int
    margin: float | None
    looks_like: str | None
    reason: str


def margins_of(evidence: Evidence) -> Margins:
    """The margin of each stored sample; of a coded one approximately, since the statistics hold the original."""
    rows, pooled = evidence.learned, evidence.pooled
    n, counts = len(rows.classes), pooled.counts
    found = Margins(np.full(n, np.nan), np.zeros(n, np.int64))
    able = np.flatnonzero(counts[rows.classes] > 1)
    if len(counts) < 2 or not len(able):
        return found
    sessions = by_sessions(rows, able)
    mates = left_out(rows, able, counts, evidence.spread, sessions)
    more = np.flatnonzero(mates.sizes() > 1)
    judging = np.concatenate([able, able[more]])
    order = np.argsort(judging, kind="stable")      # so that a sample is whitened once
    of = [*able[:, None], *(mates.of[place] for place in more.tolist())]
    judged = _margins(evidence, LeftOut(judging[order], [of[place] for place in order.tolist()], sessions))
    back = np.argsort(order)
    alone = Margins(judged.of[back[:len(able)]], judged.other[back[:len(able)]])
    both = Margins(alone.of.copy(), alone.other.copy())
    both.of[more], both.other[more] = judged.of[back[len(able):]], judged.other[back[len(able):]]
    one, two = _standardised(alone.of), _standardised(both.of)
    found.of[able] = (one + two) / 2
    found.other[able] = np.where(one < two, alone.other, both.other)
    return found


def _standardised(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """In medians of the positive ones."""
    positive = margins[(margins > 0) & np.isfinite(margins)]
    return margins / (float(np.median(positive)) if len(positive) else 1.0)


def _margins(evidence: Evidence, left: LeftOut) -> Margins:
    """The margins of the judging rows in standard deviations within classes."""
    pooled, shrunk = evidence.pooled, None
    if pooled.covariance is not None:
        shrunk = max(pooled.shrinkage, SHRINKAGES[0]) if left.sessions else pooled.shrinkage
    kind = "slda" if shrunk is not None else "nearest-mean"
    found = Margins(np.empty(len(left.rows)), np.empty(len(left.rows), np.int64))
    for some, out in OutOfFold.in_parts(pooled, evidence.learned, left, shrunk):
        logits, at = out.logits(kind), np.arange(len(out.truth))
        own = logits[at, out.truth]
        logits[at, out.truth] = -np.inf
        other = logits.argmax(1)
        found.other[some] = other
        found.of[some] = own - logits[at, other]
    return found._replace(of=found.of / _apart(pooled, shrunk, evidence.learned.classes[left.rows], found.other))


def _apart(pooled: PooledCovariance, e: float | None, one: NDArray[np.int64],
           other: NDArray[np.int64]) -> NDArray[np.float64]:
    """How far the means of two classes are apart in standard deviations within classes, or by plain distance if no
    covariance is known (e = None), for each pair: float64 [n]."""
    weight = pooled.means if e is None else pooled.whiten(e).weight
    found = np.empty(len(one))
    for some in chunks(len(one), weight.shape[1], AT_ONCE):
        a, b = one[some], other[some]
        found[some] = np.einsum("nd,nd->n", pooled.means[a] - pooled.means[b], weight[a] - weight[b])
    return np.sqrt(np.maximum(found, LEAST_APART * float(found.max(initial=1.0))))


def limit_of(margins: NDArray[np.float64]) -> float:
    """Below this a margin is suspicious: it is negative, and DEVIATIONS below the usual ones. -inf if there are too few
    to tell what is usual."""
    told = margins[np.isfinite(margins)]
    if len(told) < FEWEST_MARGINS:
        return -np.inf
    middle = float(np.median(told))
    return min(middle - DEVIATIONS * MAD_OF_NORMAL * float(np.median(abs(told - middle))), 0.0)


def suspicions(evidence: Evidence) -> list[Suspicion]:
    """The suspicious samples, worst first: those whose margin is suspicious, and those that are also in another class,
    or nearly so."""
    margins, labels = margins_of(evidence), evidence.pooled.labels
    limit, of = limit_of(margins.of), evidence.learned.classes
    twins = _twins(evidence, margins.of)
    found: list[Suspicion] = []
    for place in np.lexsort((np.arange(len(of)), margins.of)).tolist():
        margin, twin = float(margins.of[place]), twins.get(place)
        told = round(margin, 3) if np.isfinite(margin) else None
        if twin is not None:
            other, same = evidence.rows[twin[0]], twin[1]
            found.append(Suspicion(place, told, other.label, f"{'the same' if same else 'nearly the same'} as "
                                   f"{sample_id(other)} of {other.label!r}"))
        elif margin < limit:
            other_label = labels[int(margins.other[place])]
            found.append(Suspicion(place, told, other_label, f"nearer to {other_label!r} than to its own class"))
    return found


def _twins(evidence: Evidence, margins: NDArray[np.float64]) -> dict[int, tuple[int, bool]]:
    """Samples that are in two classes: place of the one with the smaller margin -> place of the other, and whether both
    have one content."""
    rows, n = evidence.learned, len(margins)
    order = np.lexsort((np.arange(n), np.where(np.isfinite(margins), margins, -np.inf)))
    rank = np.empty(n, np.int64)
    rank[order] = np.arange(n)
    some = order[:MOST_COMPARED]
    found: dict[int, tuple[int, bool]] = {}
    for place, other in _same_keys(rows):
        first, second = sorted((place, other), key=lambda each: int(rank[each]))
        found.setdefault(first, (second, True))
    if n < 2 or not evidence.spread:
        return found
    ours = rows.h(some)
    centre = ours.mean(0)
    ours -= centre
    size = np.einsum("kd,kd->k", ours, ours)
    best, nearest = np.full(len(some), np.inf), np.zeros(len(some), np.int64)
    for part in chunks(n, ours.shape[1] + len(some), AT_ONCE):
        theirs = np.arange(n)[part]
        h = rows.h(theirs) - centre
        apart = size[:, None] + np.einsum("kd,kd->k", h, h) - 2 * (ours @ h.T)
        apart[rows.classes[some][:, None] == rows.classes[theirs]] = np.inf
        at = apart.argmin(1)
        value = apart[np.arange(len(some)), at]
        better = value < best
        best[better], nearest[better] = value[better], theirs[at[better]]
    for place, other, apart_of in zip(some.tolist(), nearest.tolist(), best.tolist()):
        if apart_of < NEARLY * evidence.spread and rank[place] < rank[other]:
            found.setdefault(place, (other, False))
    return found


def _same_keys(rows: LearnedRows) -> Iterator[tuple[int, int]]:
    """Neighbours among the samples of one content that are of different classes."""
    order = np.lexsort((rows.classes, rows.own))
    same = (np.diff(rows.own[order]) == 0) & (np.diff(rows.classes[order]) != 0)
    for at in np.flatnonzero(same).tolist():
        one, other = int(order[at]), int(order[at + 1])
        if np.allclose(rows.features[one], rows.features[other], rtol=1e-3, atol=1e-3):
            yield one, other
