"""Advice: which classes are confused and where, which need more samples, and when more will not help.

All of it is judged out of fold, as the accuracy of classes is; what the numbers can't carry is not said.
"""
from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgecl.errors import StateError
from edgecl.heads.solvers import KINDS
from edgecl.learning.judges import MIN_JUDGED, judges_of
from edgecl.learning.learning_curve import learning_curve
from edgecl.learning.sentences import sentences
from edgecl.results import ClassAdvice, Confusion, TeachingAdvice
from edgecl.settings import counted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecl.exemplars.columns import SampleColumns
    from edgecl.exemplars.stored import StoredSample
    from edgecl.learning.judges import Judges
    from edgecl.learning.learning_curve import Curve
    from edgecl.learning.repository import Repository
    from edgecl.statistics.class_statistics import ClassStatistics
    from edgecl.statistics.transform import FeatureTransform

STANDARD_ERRORS = 2.5   # that a difference must have, as many classes are compared
WORTH = 0.05            # of a class: fewer confusions are not worth a word
CLEARLY = 1.96          # standard errors of the share that is confused (Wilson 1927)
FEWEST_WRONG = 3        # samples of a class that are taken for another one
NO_JUDGES = "no stored sample can judge: teach two or more samples of each class"
GOOD = 0.9              # of a class: right enough


class GainLimits(NamedTuple):
    """What is said of a gain: from `worth` on more samples help, judged by `few` samples or more; they hardly
    do if it is surely below `bound`, judged by `many`."""

    worth: float
    few: int
    bound: float
    many: int


OF_CLASS, OVERALL = GainLimits(0.05, 10, 0.1, 20), GainLimits(0.01, 50, 0.02, 100)


class JudgedSamples(NamedTuple):
    """What was known at a generation, for a judgement in any thread. stored: its samples; columns: of those that are
    kept; statistics: of all samples; in_parts: see `judges_of`; kind: of the head."""

    generation: int
    stored: list[StoredSample]
    columns: SampleColumns
    statistics: dict[FeatureTransform, ClassStatistics]
    in_parts: bool
    kind: str

    @classmethod
    def of(cls, repository: Repository) -> JudgedSamples:
        """What a state knows now. Raises StateError if it can't be read, or keeps nothing that could be judged."""
        served = repository.heads.summary().get("head")
        with repository.store.reading():
            known = repository.known()      # raises StateError if nothing was taught yet
            if known.gaussians is not None:
                raise StateError(f"{repository.store.path} keeps no samples that could judge",
                                 "create a state that keeps exemplars, see docs/privacy.md")
            if len(known.labels) < 2:
                raise StateError(f"{repository.store.path} knows {counted(len(known.labels), 'class')}: there is "
                                 "nothing to confuse", "teach another class first")
            kind = served if served in KINDS else "slda" if known.plain.second_moment else "nearest-mean"
            return cls(repository.store.current, [*known.stored], known.kept().columns,
                       {transform: each.copy() for transform, each in known.statistics.items()},
                       known.buffer.admission == "reservoir", kind)

    def advice(self) -> TeachingAdvice:
        """What can be said for sure."""
        plain_transform, plain = next(iter(self.statistics.items()))
        judges = judges_of(self.stored, self.columns, plain, plain_transform, self.in_parts)
        labels = plain.labels
        if not len(judges.truth):
            return TeachingAdvice(self.generation, self.kind, 0, advice=[NO_JUDGES])
        stored = np.bincount(judges.rows.classes, minlength=len(labels))
        transform = next(each for each in self.statistics if each.projected == KINDS[self.kind].projected)
        curve, said = learning_curve(self.statistics[transform], judges._replace(rows=judges.rows.on(transform)),
                                     self.kind)
        classes = [_class_advice(judges, curve, number, (label, plain.counts[label], int(stored[number])))
                   for number, label in enumerate(labels)]
        full, three_quarters, half = (None if np.isnan(each).any() else round(float(each.mean()), 4) for each in curve)
        need = None if half is None else _need(curve.full - curve.half, judges.groups, OVERALL)
        found = TeachingAdvice(self.generation, self.kind, len(judges.truth), full, three_quarters, half, need,
                       _confusions(self, judges, said, labels), classes)
        return replace(found, advice=sentences(found))


def _confusions(known: JudgedSamples, judges: Judges, said: NDArray[np.int64], labels: list[str]) -> list[Confusion]:
    """The pairs that are confused beyond doubt, the worst first."""
    table = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(table, (judges.truth, said), 1)
    of = table.sum(1)
    np.fill_diagonal(table, 0)
    found = []
    for one, other in zip(*np.nonzero(np.triu(table + table.T))):
        a, b = (one, other) if table[one, other] >= table[other, one] else (other, one)
        if table[a, b] >= FEWEST_WRONG and _at_least(int(table[a, b]), int(of[a])) >= WORTH:
            source, theirs = _mostly_from(known, judges, (judges.truth == a) & (said == b), judges.truth == a)
            found.append(Confusion(labels[a], labels[b], int(table[a, b]), int(of[a]), int(table[b, a]), int(of[b]),
                                   source, theirs))
    return sorted(found, key=lambda each: (-(each.wrong + each.back_wrong), each.label, each.taken_for))


def _at_least(hits: int, n: int) -> float:
    """The lower end of Wilson's interval of a share."""
    p, z = hits / n, CLEARLY
    return (p + z * z / (2 * n) - z * float(np.sqrt(p * (1 - p) / n + z * z / (4 * n * n)))) / (1 + z * z / n)


def _mostly_from(known: JudgedSamples, judges: Judges, wrong: NDArray[np.bool_],
                 mine: NDArray[np.bool_]) -> tuple[str | None, int]:
    """The source or folder that most of the wrong samples come from, and how many, if it has twice its share of them.
    wrong, mine: which judging samples are taken for another class, and which are of the class, bool [m]."""
    of_feature = {id(row.feature): row.source for row in known.stored}
    names = [of_feature[id(judges.rows.features[row])] for row in judges.left.rows[mine].tolist()]
    per_name = Counter(names)
    places = [name if per_name[name] > 1 else str(PurePath(name).parent) if name else "" for name in names]
    theirs = Counter(place for place, bad in zip(places, wrong[mine].tolist()) if bad)
    place, count = theirs.most_common(1)[0]
    share = Counter(places)[place] / len(places)
    if place in ("", ".") or count < FEWEST_WRONG or 2 * count < wrong.sum() or count < 2 * share * wrong.sum():
        return None, 0
    return place, count


def _class_advice(judges: Judges, curve: Curve, number: int, about: tuple[str, int, int]) -> ClassAdvice:
    """Whether a class needs more samples, as far as its numbers tell. about: its name, and how many samples were
    taught, and are stored as they were learned."""
    mine = judges.truth == number
    n, half = int(mine.sum()), float(curve.half[mine].mean()) if mine.any() else np.nan
    need = None
    if n >= MIN_JUDGED and not np.isnan(half):
        need = _need(curve.full[mine] - curve.half[mine], judges.groups[mine], OF_CLASS)
        if need == "enough" and curve.full[mine].mean() < GOOD:
            need = "other"
    return ClassAdvice(*about, n, int(curve.full[mine].sum()), None if np.isnan(half) else round(half, 4), need)


def _need(gain: NDArray[np.float64], groups: NDArray[np.int64], limits: GainLimits) -> str | None:
    """Whether samples are missing, by what the second half of them has gained: "more" or "enough"; None if it can't be
    told."""
    mean, error = _paired(gain, groups)
    if len(gain) >= limits.few and mean >= limits.worth and mean > STANDARD_ERRORS * error:
        return "more"
    sure = len(gain) >= limits.many and mean + max(STANDARD_ERRORS * error, 1 / len(gain)) < limits.bound
    return "enough" if sure and mean < limits.worth else None


def _paired(gain: NDArray[np.float64], groups: NDArray[np.int64]) -> tuple[float, float]:
    """The mean of paired differences, and its standard error, summed by session or by near-copies."""
    of, mean = np.unique(groups, return_inverse=True)[1], float(gain.mean())
    sums = np.bincount(of, gain) - mean * np.bincount(of)
    return mean, float(np.sqrt((sums ** 2).sum())) / len(gain)
