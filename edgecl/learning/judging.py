"""Chooses and calibrates the head of what is known, on held-back samples that no head is solved from."""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgecl.exemplars.buffer import MIN_HELD_BACK
from edgecl.exemplars.selection import HELD_BACK_MAX_ONE_IN
from edgecl.heads import unknown
from edgecl.heads.calibration import Trial, class_weights
from edgecl.heads.solvers import KINDS, SERVED, TRAINED, solve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from edgecl.exemplars.stored import StoredSample
    from edgecl.heads.head import Head, Novelty
    from edgecl.statistics.class_statistics import ClassStatistics
    from edgecl.statistics.covariance import PooledCovariance
    from edgecl.statistics.form import Form
    from edgecl.statistics.transform import FeatureTransform

    Rest = tuple[PooledCovariance, NDArray[np.float32]]     # see `Judge.rest`

ON = {True: "held-back samples", False: "pseudo-samples"}     # what is judged on; whether samples are kept
PENALTIES = 1 / 3, 3.0  # times the analytic shrinkage, again and again as long as that is better
LEAST_SHRINKAGE = 1e-4
MAX_JUDGES = 1000       # held-back samples that judge; more would make a judgement slower, but not much surer
MOST_LOGITS = 10 ** 6   # of all judges: with over 1,000 classes there are fewer of them ...
FEWEST_JUDGES = 100     # ... but no fewer than this
TRIED_AGAIN = 1.1       # times as many samples are held back: heads of other kinds and penalties are tried again
KEPT_OF_JUDGEMENT = "held_back", "head", "unknown_above", "choice"  # of `Judgement.summary`, by a rollback


class Choice(NamedTuple):
    """What was chosen when heads were last compared: kind; penalty: times the analytic shrinkage; judges: samples held
    back then, 0 if there were too few to compare heads."""

    kind: str
    penalty: float = 1.0
    judges: int = 0


@dataclass(frozen=True)
class Judgement:
    """The head to serve (None where no class is known), the held-back accuracy of each class that has held-back
    samples, how many it has, and the class-balanced log loss over all of them (None without any); on: what they are;
    choice: for the next judgement (None if a learning round trained the head)."""

    head: Head | None
    accuracy: dict[str, float]
    held: dict[str, int] = field(default_factory=dict)
    loss: float | None = None
    on: str = ON[True]
    choice: Choice | None = None

    def summary(self) -> dict[str, Any]:
        """What a generation's history keeps of it."""
        threshold = self.head.novelty.threshold if self.head and self.head.novelty else float("inf")
        drawn = {"judged_on": self.on} if self.on != ON[True] else {}
        return {"held_back": self.accuracy, "head": self.head.kind if self.head else None,
                "unknown_above": threshold if np.isfinite(threshold) else None, **drawn,
                **({"choice": list(self.choice)} if self.choice else {})}


@dataclass(frozen=True)
class Judge:
    """Class statistics by transform, those of the features themselves first, and their form. kept: whether the samples
    that judge are stored ones, which the statistics contain; pseudo-samples are not."""

    statistics: Mapping[FeatureTransform, ClassStatistics]
    form: Form
    kept: bool = True

    @property
    def plain(self) -> ClassStatistics:
        """The statistics of the features themselves."""
        return next(iter(self.statistics.values()))

    @property
    def source(self) -> int:
        """Length of a feature."""
        return next(iter(self.statistics)).source

    @cached_property
    def labels(self) -> list[str]:
        """The known classes in alphabetical order."""
        return self.plain.labels

    def choose(self, head: str, every: Mapping[str, list[StoredSample]], trained: Head | None = None,
               chosen: Choice | None = None) -> Judgement:
        """The head for all that is known, chosen and calibrated on the samples that are held back (`every`, by class),
        of which at most MAX_JUDGES are used, fewer with over 1,000 classes. trained: by a learning round on what is not
        held back, on trial like any other; chosen: when heads were last compared. They are compared again once
        TRIED_AGAIN times as many samples are held back; leave it out if classes have gone or came from elsewhere.

        The samples that judge are subtracted from the statistics first, exactly: no head is learned from them, neither
        those that are tried nor the one that serves. head: "auto" or a kind.
        """
        judges = limited(every, min(MAX_JUDGES, max(MOST_LOGITS // max(len(self.labels), 1), FEWEST_JUDGES)))
        sizes = {label: len(rows) for label, rows in judges.items()}
        features = np.array([row.feature for rows in judges.values() for row in rows], np.float32)
        features = features.reshape(-1, self.source)
        ends = np.cumsum(list(sizes.values()), dtype=np.int64)
        held = {label: features[end - sizes[label]:end] for label, end in zip(sizes, ends)}
        places = {label: place for place, label in enumerate(self.labels)}
        truth = np.repeat(np.array([places[label] for label in held], np.int64), list(sizes.values()))
        told = sum(map(len, every.values()))
        told = told if self.kept else min(told, self.plain.total // HELD_BACK_MAX_ONE_IN)  # as samples would
        kinds = self._candidates(head, told)
        settled = chosen if chosen is not None and trained is None and chosen.kind in kinds \
            and told < TRIED_AGAIN * chosen.judges else None
        rests: dict[FeatureTransform, Rest] = {}
        best: Trial | None = None
        for kind in kinds if settled is None else [settled.kind]:
            transform = next(transform for transform in self.statistics if transform.projected == KINDS[kind].projected)
            if transform not in rests:
                rests[transform] = self.rest(held, transform)
            rest = rests[transform]
            trial = _tried(kind, transform, rest, truth, 1.0 if settled is None else settled.penalty)
            if best is None or trial.beats(best):
                best = trial
        assert best is not None
        rest = rests.pop(best.head.transform)
        rests.clear()
        if trained is not None and len(truth) and trained.labels == tuple(self.labels):
            trial = Trial.run(trained, rest[0], trained.transform(features), truth)
            best = trial if trial.beats(best) else best
        penalty = 1.0
        if settled is None and self.kept:     # draws are of the covariance that is to be shrunk
            best, penalty = self._penalised(best, rest)
        choice = settled or Choice(best.head.kind, penalty, told if told >= MIN_HELD_BACK else 0)
        hits = np.diff(np.cumsum(best.logits.argmax(1) == truth)[ends - 1], prepend=0)
        accuracy = {label: round(hit / sizes[label], 4) for label, hit in zip(held, hits.tolist())}
        loss = float(class_weights(truth) @ best.losses) if len(truth) else None
        return Judgement(replace(best.head, novelty=self._novelty(best, rest[0])), accuracy, sizes, loss, ON[self.kept],
                         choice if choice.kind in KINDS else None)

    def _penalised(self, best: Trial, rest: Rest) -> tuple[Trial, float]:
        """The same kind of head with another penalty, if held-back samples call for it, and how many times the analytic
        shrinkage that is."""
        kind, penalty = best.head.kind, 1.0
        if len(best.truth) < MIN_HELD_BACK or not SERVED[kind].second_moment:
            return best, penalty
        for factor in PENALTIES:
            there = 1.0
            while LEAST_SHRINKAGE < rest[0].shrinkage * there * factor <= 1:
                there *= factor
                trial = _tried(kind, best.head.transform, rest, best.truth, there)
                if not trial.beats(best):
                    break
                best, penalty = trial, there
        return best, penalty

    def rest(self, held: Mapping[str, NDArray[np.float32]],
              transform: FeatureTransform) -> Rest:
        """What is known without the samples held back, and those samples [n, d], both transformed. Pseudo-samples were
        never part of it."""
        none = np.zeros((0, self.source), np.float32)
        h = transform(np.concatenate([none, *held.values()]))
        ends = np.cumsum([len(features) for features in held.values()], dtype=np.int64)
        contained = {label: h[end - len(held[label]):end] for label, end in zip(held, ends)}
        return self.statistics[transform].pooled(contained if self.kept else None), h

    def _candidates(self, head: str, held: int) -> list[str]:
        """Kinds to try: the default first, then by bytes."""
        if head != "auto":
            return [head]
        default = "slda" if self.form.second_moment else "nearest-mean"
        if self.form.second_moment and self.plain.degrees_of_freedom <= len(self.labels):
            default = "ridge"  # two samples a class or fewer tell too little of the scatter within them
        if held < MIN_HELD_BACK:
            return [default]
        able = [kind for kind, needs in KINDS.items() if (self.form.second_moment or not needs.second_moment)
                and any(transform.projected == needs.projected for transform in self.statistics)]
        return [default, *(kind for kind in able if kind != default)]

    def _novelty(self, trial: Trial, rest: PooledCovariance) -> Novelty | None:
        """How the head tells unknown samples, its threshold set on held-back ones."""
        unfit = trial.head.normalised or trial.head.kind in TRAINED
        fitted = None if unfit else unknown.fit(trial.head, rest, trial.rest)
        return None if fitted is None else fitted.with_threshold(fitted.distance(trial.logits))


def limited(judges: Mapping[str, list[StoredSample]], most: int = MAX_JUDGES) -> Mapping[str, list[StoredSample]]:
    """At most so many of the held-back samples, of each class equally many as far as it has them: evenly spread over
    them, and over the classes if there are too many of those."""
    counts, level = [*map(len, judges.values())], most
    if sum(counts) <= most:
        return judges
    while level > 1 and (level >= max(counts) or sum(min(len(rows), level) for rows in judges.values()) > most):
        level -= 1 + (level > 100) * (level // 50)
    few = {label: rows if len(rows) <= level else [rows[i * len(rows) // level] for i in range(level)]
           for label, rows in judges.items() if rows}
    names = sorted(few)
    if len(names) > most:
        names = [names[i * len(names) // most] for i in range(most)]
    return {label: few[label] for label in names}


def _tried(kind: str, transform: FeatureTransform, rest: Rest,
           truth: NDArray[np.int64], penalty: float) -> Trial:
    """A head of a kind on trial. penalty: times the analytic shrinkage."""
    pooled = rest[0]
    if penalty != 1 and KINDS[kind].second_moment:
        pooled = replace(pooled, penalty=min(max(pooled.shrinkage * penalty, LEAST_SHRINKAGE), 1.0))
    return Trial.run(solve(kind, pooled, transform), pooled, rest[1], truth)
