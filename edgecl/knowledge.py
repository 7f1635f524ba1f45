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
from edgecl.statistics import ClassStatistics, check_features
from edgecl.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from edgecl.budget import Form
    from edgecl.lift import Lift
    from edgecl.pooled import Pooled

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


class Knowledge:
    """Class statistics and stored samples of one learner, in memory."""

    def __init__(self, lifts: Sequence[Lift], form: Form, exemplar_limit: int) -> None:
        self.lifts, self.form = tuple(lifts), form
        self.capacity = exemplar_limit // exemplar_bytes(lifts[0].source)
        self.statistics: dict[Lift, ClassStatistics] = {}
        self.stored: list[Row] = []

    @property
    def plain(self) -> ClassStatistics:
        """The statistics of the features themselves."""
        return self.statistics[self.lifts[0]]

    @property
    def labels(self) -> list[str]:
        """The known classes in alphabetical order."""
        return self.plain.labels if self.statistics else []

    def add(self, label: str, keys: Sequence[int], features: NDArray[np.float32]) -> None:
        """Learn features [n, d] of one class. Raises BadInput, see `check_features`; then nothing has changed."""
        lifted = {lift: lift(features) for lift in self.lifts}
        for h in lifted.values():
            check_features(label, h)
        if not self.statistics:
            self.statistics = {lift: ClassStatistics(h.mean(0, np.float64), self.form.second_moment)
                               for lift, h in lifted.items()}
        for lift, h in lifted.items():
            self.statistics[lift].add(label, h)
        self.stored += [Row(None, None, label, key, feature) for key, feature in zip(keys, features)]

    def forget(self, label: str) -> bool:
        """Forget a class; whether that was exact: True where every sample of it was still stored."""
        features = [s.feature for s in self.stored if s.label == label]
        complete = len(features) == self.plain.counts[label] and self.form.rank is None
        exact = complete or not self.form.second_moment
        for lift, statistics in self.statistics.items():
            whole = lift(np.stack(features)) if complete else None
            self.statistics[lift] = statistics.without(label, whole).about_its_mean(self.form.second_moment)
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
        places = {label: place for place, label in enumerate(self.labels)}
        truth = np.repeat([places[label] for label in held], [len(h) for h in held.values()]).astype(np.int64)
        best: Trial | None = None
        rests: dict[Lift, tuple[Pooled, NDArray[np.float32]]] = {}
        for kind in self._candidates(head, len(truth)):
            lift = next(lift for lift in self.lifts if lift.projected == KINDS[kind].lifted)
            if lift not in rests:
                rests[lift] = self._rest(held, lift)
            trial = Trial.run(solve(kind, rests[lift][0], lift), *rests[lift], truth)
            if best is None or trial.beats(best):
                best = trial
        assert best is not None
        lift, hits = best.head.lift, best.logits.argmax(1) == truth
        accuracy = {label: float(hits[truth == places[label]].mean()) for label in held}
        full = self.statistics[lift].pooled() if held else rests[lift][0]
        final = replace(solve(best.head.kind, full, lift), temperature=best.head.temperature)
        return Judgement(replace(final, novelty=self._novelty(final, full, best, rests[lift][0])), accuracy)

    def _rest(self, held: dict[str, NDArray[np.float32]], lift: Lift) -> tuple[Pooled, NDArray[np.float32]]:
        """What is known without the samples held back, and those samples [n, d], both lifted."""
        lifted = {label: lift(features) for label, features in held.items()}
        none = np.zeros((0, lift.dimension), np.float32)
        return self.statistics[lift].pooled(lifted), np.concatenate([none, *lifted.values()])

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

    def _novelty(self, final: Head, full: Pooled, trial: Trial, rest: Pooled) -> novelty.Novelty | None:
        """How the final head tells unknown samples, its threshold set where the head on trial saw unseen ones."""
        if KINDS[final.kind].normalised:
            return None
        fitted, judged = novelty.fit(final, full), novelty.fit(trial.head, rest)
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
