"""Chooses and calibrates the head of what is known: solved from all samples, judged out of fold by those stored."""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgecl.heads import calibration, unknown
from edgecl.heads.calibration import Calibration
from edgecl.heads.out_of_fold import OutOfFold
from edgecl.heads.solvers import KINDS, solve
from edgecl.learning.judges import MIN_JUDGED
from edgecl.statistics.covariance import MAX_SHRINKAGE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgecl.heads.head import Head
    from edgecl.learning.judges import Judges
    from edgecl.statistics.class_statistics import ClassStatistics
    from edgecl.statistics.covariance import PooledCovariance
    from edgecl.statistics.transform import FeatureTransform

ON = {True: "left-out samples", False: "pseudo-samples"}     # what is judged on; whether samples are kept
RIDGE_BELOW = 2             # N - C up to this many times C: three samples per class tell little of their covariance
PHOTO_GAP, OTHER_GAP = 7.0, 3.5     # temperatures in a gap between class means, measured; see `calibration.prior`
LEAKY = 1.3     # times that, at most, if sessions are not whole: what is left of one makes the judges of it look better
RIDGE_PHOTO_GAP, RIDGE_OTHER_GAP = 3.4, 2.35    # the same of ridge, times log(1 + C): its gap hardly depends on C
SHRINKAGES = 0.05, 0.1, 0.2, 0.35, 0.5, 0.7     # with sessions: the least, and what is tried as long as it is better
CLIMBERS = 1000             # samples that another shrinkage or the random projection is tried on
LONG = 1024                 # features, which call for the second of these if no session is whole, measured
STANDARD_ERRORS = 2         # of a paired difference, summed by session, that another head must be better by
PRIOR_SAMPLES = 5           # of average accuracy, that each class's accuracy begins with
KEPT_OF_JUDGEMENT = ("judged", "accuracy", "head", "unknown_above", "unknown_needs",    # of `Judgement.summary`, by a
                     "judged_on")                                                       # rollback


@dataclass(frozen=True)
class Judgement:
    """The head to serve (None if no class is known). judged: of each class that has judging samples, how many of them
    it gets right out of fold, and how many they are; accuracy: of each class with MIN_JUDGED or more, (right +
    PRIOR_SAMPLES times the mean of all classes) / (of + PRIOR_SAMPLES); loss: log loss of the judging samples, of all
    classes alike, None without any; on: what they are."""

    head: Head | None
    judged: dict[str, tuple[int, int]] = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)
    loss: float | None = None
    on: str = ON[True]

    def summary(self) -> dict[str, Any]:
        """What a generation's history keeps of it."""
        novelty = self.head.novelty if self.head else None
        threshold = novelty.threshold if novelty else float("inf")
        needs = {"unknown_needs": novelty.needs} if novelty and novelty.needs and not np.isfinite(threshold) else {}
        drawn = {"judged_on": self.on} if self.on != ON[True] else {}
        return {"judged": {label: list(pair) for label, pair in self.judged.items()}, "accuracy": self.accuracy,
                "head": self.head.kind if self.head else None,
                "unknown_above": threshold if np.isfinite(threshold) else None, **needs, **drawn}


class Trial(NamedTuple):
    """A head, its logits of the judging samples out of fold [m, C], and what those say of its confidence."""

    head: Head
    logits: NDArray[np.float64]
    calibration: Calibration
    pooled: PooledCovariance
    out: OutOfFold | None


@dataclass(frozen=True)
class Judge:
    """Class statistics by transform, those of the features themselves first. photos: whether samples are photos; kept:
    whether the samples that judge are stored ones, which the statistics contain; pseudo-samples are not; room: bytes
    for exemplars."""

    statistics: Mapping[FeatureTransform, ClassStatistics]
    photos: bool = False
    kept: bool = True
    room: int = 0

    @property
    def plain(self) -> ClassStatistics:
        """The statistics of the features themselves."""
        return next(iter(self.statistics.values()))

    @cached_property
    def labels(self) -> list[str]:
        """The known classes in alphabetical order."""
        return self.plain.labels

    def choose(self, head: str, judges: Judges, trained: Head | None = None) -> Judgement:
        """The head for all that is known, calibrated on the judging samples. head: "auto" or a kind; trained: by a
        learning round on samples that do not judge, on trial beside the other.

        "auto": nearest-mean without a covariance; ridge up to three samples per class; then slda, projected if those
        statistics are kept and its loss is lower by STANDARD_ERRORS.
        """
        best = self._tried(head if head != "auto" else self._default(), judges)
        if head == "auto" and best.head.kind == "slda" and any(each.projected for each in self.statistics):
            best = self._projected(best, judges)
        if trained is not None and len(judges.truth) and trained.labels == tuple(self.labels):
            best = _better(best, self._of_round(trained, judges), judges)
        plain = self.plain.pooled() if best.head.transform.projected else best.pooled
        judged = unknown.Judged(judges.rows, judges.left, judges.groups, best.logits.argmax(1), plain, self.photos,
                                self.room if self.kept else 0, judges.in_sessions)
        head_found = replace(best.head, temperature=best.calibration.temperature,
                             smoothing=best.calibration.smoothing,
                             novelty=unknown.fit(best.head, best.pooled, best.out, judged))
        truth, right = judges.truth, best.logits.argmax(1) == judges.truth
        if len(judges.more.rows):
            truth = np.concatenate([truth, judges.rows.classes[judges.more.rows]])
            right = np.concatenate([right, _more_right(best, judges)])
        return Judgement(head_found, *_figures(self.labels, right, truth),
                         _alike(best.calibration.losses, judges.truth), ON[self.kept])

    def _default(self) -> str:
        """The kind that "auto" begins with."""
        if not self.plain.second_moment:
            return "nearest-mean"
        return "ridge" if self.plain.degrees_of_freedom <= RIDGE_BELOW * len(self.labels) else "slda"

    def _tried(self, kind: str, judges: Judges) -> Trial:
        """A kind of head on trial, at the best shrinkage."""
        transform = next(each for each in self.statistics if each.projected == KINDS[kind].projected)
        pooled, judges = self.statistics[transform].pooled(), judges._replace(rows=judges.rows.on(transform))
        if not KINDS[kind].second_moment:
            return self._trial(kind, pooled, transform, judges)
        least = min(pooled.shrinkage, MAX_SHRINKAGE)
        if judges.in_sessions:
            long = not judges.left.sessions and transform.source >= LONG
            least = max(least, SHRINKAGES[long])
        found = self._trial(kind, replace(pooled, penalty=least), transform, judges)
        if not judges.left.sessions or len(self.labels) < 2 or not pooled.exact:
            return found
        some = judges.some(CLIMBERS)
        few, best = judges.only(some), found
        for e in SHRINKAGES:
            if e > least:
                at_e = replace(pooled, penalty=e)
                other = self._trial(kind, at_e, transform, few)
                if len(some) < len(judges.truth):
                    if other.calibration.losses.mean() >= self._only(best, some, judges).calibration.losses.mean():
                        break
                    other = self._trial(kind, at_e, transform, judges)
                if _better(best, other, judges) is best:    # the loss is convex in e: nor would a larger one be
                    break
                best = other
        return best

    def _projected(self, plain: Trial, judges: Judges) -> Trial:
        """slda-projected if it is better than slda, whose shrinkage it has."""
        kind = "slda-projected"
        transform = next(each for each in self.statistics if each.projected)
        pooled, judges = self.statistics[transform].pooled(), judges._replace(rows=judges.rows.on(transform))
        pooled = replace(pooled, penalty=max(min(pooled.shrinkage, MAX_SHRINKAGE), plain.pooled.shrinkage))
        some = judges.some(CLIMBERS)
        few = judges.only(some)
        other = self._trial(kind, pooled, transform, few)
        if _better(self._only(plain, some, judges), other, few) is not other:
            return plain
        return other if len(some) == len(judges.truth) else self._trial(kind, pooled, transform, judges)

    def _only(self, trial: Trial, some: NDArray[np.int64], judges: Judges) -> Trial:
        """A trial on some of the judging samples alone."""
        if len(some) == len(judges.truth):
            return trial
        logits, pooled = trial.logits[some], trial.pooled
        means = (pooled.means + pooled.centre).astype(np.float32)
        return trial._replace(logits=logits, out=None, calibration=self._calibrated(
            trial.head, means, logits, judges.only(some)))

    def _trial(self, kind: str, pooled: PooledCovariance, transform: FeatureTransform, judges: Judges) -> Trial:
        """A kind of head at the shrinkage of `pooled`."""
        e = pooled.shrinkage if KINDS[kind].second_moment else None
        out = OutOfFold.of(pooled, judges.rows, judges.left, e, ridge=kind.startswith("ridge"))
        head, logits = solve(kind, pooled, transform), out.logits(kind)
        found = self._calibrated(head, (pooled.means + pooled.centre).astype(np.float32), logits, judges)
        return Trial(head, logits, found, pooled, out)

    def _of_round(self, head: Head, judges: Judges) -> Trial:
        """A head that a learning round has trained on trial, which knows none of the judging samples."""
        transform, plain = next(iter(self.statistics.items()))
        pooled = plain.pooled()
        logits = head.logits(judges.rows.on(head.transform).h(judges.left.rows))
        found = self._calibrated(head, transform.back(pooled.means + pooled.centre), logits, judges)
        return Trial(head, np.asarray(logits, np.float64), found, pooled, None)

    def _calibrated(self, head: Head, means: NDArray[np.float32], logits: NDArray[np.floating[Any]],
                    judges: Judges) -> Calibration:
        """The confidence that logits of the judging samples call for. means: of the classes, as the head takes them."""
        photo_gap, other_gap = PHOTO_GAP, OTHER_GAP
        if head.kind.startswith("ridge"):
            photo_gap, other_gap = (each * np.log(1 + len(head.labels)) for each in (RIDGE_PHOTO_GAP, RIDGE_OTHER_GAP))
        divisor = photo_gap if self.photos else other_gap
        floor = np.inf if judges.left.sessions else min(photo_gap, LEAKY * divisor) if judges.in_sessions else photo_gap
        known = calibration.prior(head, means, divisor, floor)
        counts = self.plain.counts
        usable = np.array([counts[label] >= MIN_JUDGED for label in self.labels])
        return calibration.fit(logits, judges.truth, usable[judges.truth], known)


def _better(one: Trial, other: Trial, judges: Judges) -> Trial:
    """The other trial if its loss is lower by STANDARD_ERRORS of the paired difference, summed by session or by
    near-copies, else the one."""
    gain = one.calibration.losses - other.calibration.losses
    if not len(gain):
        return one
    of = np.unique(judges.groups, return_inverse=True)[1]
    mean = float(gain.mean())
    error = float(np.sqrt(((np.bincount(of, gain) - mean * np.bincount(of)) ** 2).sum())) / len(gain)
    return other if mean > STANDARD_ERRORS * error else one


def _more_right(trial: Trial, judges: Judges) -> NDArray[np.bool_]:
    """Which of `Judges.more` the head of a trial gets right, bool [m]."""
    rows, more = judges.rows.on(trial.head.transform), judges.more
    if trial.out is None:   # a learning round's head, which knows none of them
        return np.asarray(trial.head.logits(rows.h(more.rows)).argmax(1) == rows.classes[more.rows], np.bool_)
    e = trial.pooled.shrinkage if KINDS[trial.head.kind].second_moment else None
    return OutOfFold.right(trial.head.kind, trial.pooled, rows, more, e)


def _figures(labels: list[str], hits: NDArray[np.bool_],
             truth: NDArray[np.int64]) -> tuple[dict[str, tuple[int, int]], dict[str, float]]:
    """See `Judgement.judged` and `Judgement.accuracy`. hits: which samples a head gets right, bool [m]."""
    of = np.bincount(truth, minlength=len(labels))
    right = np.bincount(truth[hits], minlength=len(labels))
    there = np.flatnonzero(of)
    mean = float((right[there] / of[there]).mean()) if len(there) else 0.0
    judged = {labels[i]: (int(right[i]), int(of[i])) for i in there.tolist()}
    return judged, {label: round((hits + PRIOR_SAMPLES * mean) / (count + PRIOR_SAMPLES), 4)
                    for label, (hits, count) in judged.items() if count >= MIN_JUDGED}


def _alike(losses: NDArray[np.float64], truth: NDArray[np.int64]) -> float | None:
    """The mean over classes of the mean loss of their samples."""
    if not len(truth):
        return None
    weight = 1 / np.bincount(truth)[truth]
    return float(weight @ losses / weight.sum())
