"""What a learner knows while it writes: class statistics a lift, stored samples, and the head they call for."""
from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecl import novelty
from edgecl.exemplars import admitted, exemplar_bytes, held_back
from edgecl.heads import KINDS, Head, solve
from edgecl.records import Row
from edgecl.statistics import ClassStatistics

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from edgecl.budget import Form
    from edgecl.lift import Lift

ENOUGH = 20  # held-back samples without which the kind of head is not chosen by score


@dataclass(frozen=True)
class Judgement:
    """The head to serve (None where no class is known), and the held-back accuracy of each class that has held-back
    samples."""

    head: Head | None
    accuracy: dict[str, float]

    def summary(self) -> dict[str, Any]:
        """What a generation's history keeps of it."""
        threshold = self.head.novelty.threshold if self.head and self.head.novelty else float("inf")
        return {"held_back": self.accuracy, "head": self.head.kind if self.head else None,
                "unknown_above": threshold if np.isfinite(threshold) else None}


@dataclass(frozen=True)
class Trial:
    """A head tried on held-back samples that it has not seen: logits [n, C] and log losses [n] of them, true classes
    [n] as places in `labels`."""

    head: Head
    logits: NDArray[np.float64]
    losses: NDArray[np.float64]
    truth: NDArray[np.int64]

    @classmethod
    def run(cls, head: Head, rest: ClassStatistics, held: dict[str, NDArray[np.float32]],
            truth: NDArray[np.int64]) -> Trial:
        """Try a head that was solved from `rest`."""
        if not held:
            logits = np.zeros((0, len(head.labels)))
            return cls(replace(head, temperature=_guess_temperature(head, rest)), logits, np.zeros(0), truth)
        logits = head.logits(head.lift(np.concatenate(list(held.values()))))
        temperature, losses = calibrate(logits, truth)
        return cls(replace(head, temperature=temperature), logits, losses, truth)

    def beats(self, other: Trial) -> bool:
        """Whether this head is better than one tried before it: by its class-balanced loss where it takes fewer bytes,
        by two standard errors of the paired difference where it does not."""
        gain, weight = other.losses - self.losses, class_weights(self.truth)
        mean = float(weight @ gain)
        smaller = list(KINDS).index(self.head.kind) < list(KINDS).index(other.head.kind)
        return mean > (0 if smaller else 2 * float(np.sqrt((weight ** 2) @ (gain - mean) ** 2)))


class Knowledge:
    """Class statistics and stored samples of one learner, in memory."""

    def __init__(self, lifts: Sequence[Lift], form: Form, exemplar_limit: int) -> None:
        self.lifts, self.form = tuple(lifts), form
        self.capacity = exemplar_limit // exemplar_bytes(lifts[0].source)
        self.statistics: dict[Lift, ClassStatistics] = {}
        self.stored: list[Row] = []
        self.erased: list[Row] = []  # of forgotten classes, still to be deleted on disk

    @property
    def plain(self) -> ClassStatistics:
        """The statistics of the features themselves."""
        return self.statistics[self.lifts[0]]

    @property
    def labels(self) -> list[str]:
        """The known classes in alphabetical order."""
        return self.plain.labels if self.statistics else []

    def set_reference(self, features: NDArray[np.float32]) -> None:
        """Fix the reference of every lift: the mean of the lifted features [n, d]."""
        self.statistics = {lift: ClassStatistics(lift(features).mean(0), self.form.second_moment)
                           for lift in self.lifts}

    def add(self, label: str, keys: Sequence[int], features: NDArray[np.float32]) -> None:
        """Learn features [n, d] of one class."""
        if not self.statistics:
            self.set_reference(features)
        for lift, statistics in self.statistics.items():
            statistics.add(label, lift(features))
        self.stored += [Row(None, None, label, key, feature) for key, feature in zip(keys, features)]

    def forget(self, label: str) -> bool:
        """Forget a class; whether that was exact: True where every sample of it was still stored."""
        features = [s.feature for s in self.stored if s.label == label]
        exact = len(features) == self.plain.counts[label] or not self.form.second_moment
        for lift, statistics in self.statistics.items():
            whole = lift(np.stack(features)) if exact and features else None
            self.statistics[lift] = statistics.without(label, whole)
        self.erased += [s for s in self.stored if s.label == label]
        self.stored = [s for s in self.stored if s.label != label]
        return exact

    def merge(self, other: Knowledge) -> None:
        """Add all that another learner with the same lifts knows."""
        if not self.statistics:
            self.statistics = {lift: ClassStatistics(s.reference, self.form.second_moment)
                               for lift, s in other.statistics.items()}
        for lift, statistics in self.statistics.items():
            statistics.merge(other.statistics[lift])
        self.stored += [s._replace(id=None, generation=None) for s in other.stored]

    def exemplars(self) -> list[Row]:
        """The stored samples that the exemplar buffer keeps."""
        keep = admitted([s.label for s in self.stored], [s.key for s in self.stored], self.capacity)
        return [s for s, kept in zip(self.stored, keep) if kept]

    def judge(self, head: str) -> Judgement:
        """The head for all that is known, chosen and calibrated on held-back exemplars.

        The samples that judge are subtracted from the statistics first, exactly, so that no head is judged on what it
        has learned; the head that serves is then solved with them. head: "auto" or a kind.
        """
        if not self.labels:
            return Judgement(None, {})
        held = self._held_back()
        truth = np.array([self.labels.index(label) for label in held for _ in range(len(held[label]))], np.int64)
        best: Trial | None = None
        rests = {lift: self._without(held, lift) for lift in self.lifts}
        for kind in self._candidates(head, len(truth)):
            lift = next(lift for lift in self.lifts if lift.projected == KINDS[kind].lifted)
            trial = Trial.run(solve(kind, rests[lift], lift), rests[lift], held, truth)
            if best is None or trial.beats(best):
                best = trial
        assert best is not None
        hits = best.logits.argmax(1) == truth
        accuracy = {label: float(hits[truth == self.labels.index(label)].mean()) for label in held}
        final = solve(best.head.kind, self.statistics[best.head.lift], best.head.lift)
        return Judgement(replace(final, temperature=best.head.temperature,
                                 novelty=self._novelty(final, best, rests[best.head.lift])), accuracy)

    def _without(self, held: dict[str, NDArray[np.float32]], lift: Lift) -> ClassStatistics:
        return self.statistics[lift].minus({label: lift(features) for label, features in held.items()})

    def _held_back(self) -> dict[str, NDArray[np.float32]]:
        chosen: dict[str, NDArray[np.float32]] = {}
        by_class: dict[str, list[Row]] = {label: [] for label in self.labels}
        for sample in self.exemplars():
            by_class[sample.label].append(sample)
        for label, samples in by_class.items():
            if samples:
                samples.sort(key=lambda s: s.key)
                features = np.stack([s.feature for s in samples])
                picked = features[held_back(features, [s.key for s in samples], self.plain.counts[label])]
                if len(picked):
                    chosen[label] = picked
        return chosen

    def _candidates(self, head: str, held: int) -> list[str]:
        """Kinds to try: the default first, then by bytes."""
        if head != "auto":
            return [head]
        default = "slda" if self.form.second_moment else "nearest-mean"
        if held < ENOUGH:
            return [default]
        able = [kind for kind, needs in KINDS.items() if (self.form.second_moment or not needs.second_moment)
                and any(lift.projected == needs.lifted for lift in self.lifts)]
        return [default, *(kind for kind in able if kind != default)]

    def _novelty(self, final: Head, trial: Trial, rest: ClassStatistics) -> novelty.Novelty | None:
        if not self.form.second_moment or KINDS[final.kind].normalised:
            return None
        fitted = novelty.fit(self.statistics[final.lift], final.weight, final.bias)
        judged = novelty.fit(rest, trial.head.weight, trial.head.bias)
        if fitted is None or judged is None:
            return None
        return fitted.with_threshold(judged.distance(trial.logits))

    def snapshot(self) -> bytes:
        """The statistics as one .npz file."""
        arrays = {f"{number}.{name}": array for number, lift in enumerate(self.lifts)
                  for name, array in self.statistics[lift].to_arrays(self.form.rank).items()}
        file = io.BytesIO()
        np.savez(file, **arrays)  # type: ignore[arg-type]
        return file.getvalue()

    def load(self, snapshot: bytes | None, since: Iterable[Row], stored: list[Row]) -> None:
        """Become what a snapshot knew, plus the samples that came `since`; `stored`: all stored samples."""
        if snapshot is not None:
            with np.load(io.BytesIO(snapshot), allow_pickle=False) as file:
                self.statistics = {
                    lift: ClassStatistics.from_arrays({name.partition(".")[2]: file[name] for name in file.files
                                                       if name.startswith(f"{number}.")})
                    for number, lift in enumerate(self.lifts)}
        groups: dict[str, list[NDArray[np.float32]]] = {}
        for sample in since:
            groups.setdefault(sample.label, []).append(sample.feature)
        for label, features in groups.items():
            for lift, statistics in self.statistics.items():
                statistics.add(label, lift(np.stack(features)))
        self.stored = stored


def calibrate(logits: NDArray[np.float64], truth: NDArray[np.int64]) -> tuple[float, NDArray[np.float64]]:
    """The temperature that minimises the class-balanced log loss of logits [n, C] (Guo et al. 2017), and each sample's
    loss at it, float64 [n]."""
    weight = class_weights(truth)
    shifted = logits - logits.max(1, keepdims=True)
    spread = float(np.abs(shifted).mean()) + 1e-30
    own = shifted[np.arange(len(truth)), truth]

    def losses(temperature: float) -> NDArray[np.float64]:
        return np.log(np.exp(shifted / temperature).sum(1)) - own / temperature

    grid = spread * np.geomspace(1e-3, 1e2, 26)
    best = int(np.argmin([weight @ losses(t) for t in grid]))
    fine = np.geomspace(grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)], 17)
    chosen = float(fine[int(np.argmin([weight @ losses(t) for t in fine]))])
    return chosen, losses(chosen)


def class_weights(truth: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weights [n] with which every class counts the same; they sum to 1."""
    weight = 1.0 / np.bincount(truth)[truth]
    return weight / weight.sum()


def _guess_temperature(head: Head, statistics: ClassStatistics) -> float:
    """Where nothing is held back yet: the class means themselves are called with a confidence of about 0.95."""
    logits = head.logits((statistics.means() + statistics.reference).astype(np.float32))
    if len(logits) < 2:
        return 1.0
    np.fill_diagonal(other := logits.copy(), -np.inf)
    return max(float(np.median(np.diag(logits) - other.max(1))) / 3, 1e-6)
