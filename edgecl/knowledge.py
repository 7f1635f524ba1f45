"""What a learner knows while it writes: class statistics a lift, stored samples, and the head they call for."""
from __future__ import annotations

import io
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecl import novelty
from edgecl.exemplars import admitted, held_back, herding, margins, near_duplicates
from edgecl.heads import KINDS, solve
from edgecl.records import Row, file_bytes, row_bytes
from edgecl.statistics import ClassStatistics, check_features
from edgecl.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from edgecl.budget import Form
    from edgecl.codebook import Codebook
    from edgecl.codec import Codec, FeatureCodec
    from edgecl.heads import Head
    from edgecl.lift import Lift
    from edgecl.pooled import Pooled

ENOUGH = 20          # held-back samples without which the kind of head is not chosen by score
HELD_BACK_ROOM = 4   # a quarter of the buffer at most is for held-back samples where the others are coded
PENALTIES = 1 / 3, 3.0  # times the analytic shrinkage, again and again as long as that is better


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
class Buffer:
    """What the exemplar buffer is made of. limit: bytes of its files; segment: of one of them; admission: see
    `edgecl.exemplars`; codec: of what is stored; codebook: of features that are not held back, or None."""

    limit: int
    segment: int
    admission: str
    codec: Codec
    codebook: Codebook | None = None

    @property
    def common(self) -> FeatureCodec:
        """The codec of most features."""
        return self.codebook.codec if self.codebook else self.codec.feature


class Knowledge:
    """Class statistics and stored samples of one learner, in memory."""

    def __init__(self, lifts: Sequence[Lift], form: Form, buffer: Buffer) -> None:
        self.lifts, self.form, self.buffer = tuple(lifts), form, buffer
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

    def add(self, label: str, keys: Sequence[int], features: NDArray[np.float32],
            inputs: Sequence[bytes] | None = None) -> None:
        """Learn features [n, d] of one class, as the codec keeps them: what is stored is what was learned. inputs: the
        encoded samples, where the codec keeps them. Raises BadInput, see `check_features`; then nothing has changed."""
        check_features(label, features)
        codec = self.buffer.codec.feature
        features = codec.decode(codec.encode(features))
        lifted = {lift: lift(features) for lift in self.lifts}
        for h in lifted.values():
            check_features(label, h)
        if not self.statistics:
            self.statistics = {lift: ClassStatistics(h.mean(0, np.float64), self.form.second_moment)
                               for lift, h in lifted.items()}
        for lift, h in lifted.items():
            self.statistics[lift].add(label, h)
        spare = near_duplicates(lifted[self.lifts[0]], self.plain.spread(lifted[self.lifts[0]]))
        self.stored += map(Row._make, zip(
            [None] * len(keys), [None] * len(keys), [label] * len(keys), keys, features,
            inputs or [b""] * len(keys), spare.tolist(), [""] * len(keys)))

    def forget(self, label: str) -> bool:
        """Forget a class; whether that was exact: True where every sample of it was still stored as it was learned."""
        features = [s.feature for s in self.stored if s.label == label and not s.coded]
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
        self.stored += [s._replace(id=None, generation=None) for s in other.stored
                        if not s.coded]

    # exemplars ----------------------------------------------------------------------------------

    def exemplars(self, reserved: int = 0) -> list[Row]:
        """The stored samples that the exemplar buffer keeps, as it keeps them. reserved: bytes of it to leave free."""
        rows = self.stored
        if not rows:
            return []
        buffer, d = self.buffer, self.lifts[0].source
        room = buffer.limit - reserved - file_bytes(buffer.limit, buffer.segment, self.labels)
        labels, ranks = [row.label for row in rows], self._ranks(rows)
        sizes = row_bytes(buffer.common, d) + np.array([len(row.input) for row in rows])
        if buffer.codebook is None:
            return [row for row, kept in zip(rows, admitted(labels, ranks, sizes, room)) if kept]
        room -= buffer.codebook.length
        exact = self._exact_ones(rows, row_bytes(buffer.codec.feature, d), room // HELD_BACK_ROOM)
        sizes[exact] = 0
        keep = admitted(labels, ranks, sizes, room - int(exact.sum()) * row_bytes(buffer.codec.feature, d)) | exact
        return buffer.codebook.take([row for row, kept in zip(rows, keep) if kept], exact[keep])

    def buffer_bytes(self, exemplars: list[Row]) -> int:
        """Bytes that these exemplars take in the files of the buffer, at most: never over its limit."""
        if not exemplars:
            return 0
        d, coded = self.lifts[0].source, sum(bool(row.coded) for row in exemplars)
        labels = sorted({row.label for row in exemplars})
        shared = self.buffer.codebook.length if self.buffer.codebook else 0
        return (file_bytes(self.buffer.limit, self.buffer.segment, labels) + shared
                + coded * row_bytes(self.buffer.common, d) + sum(len(row.input) for row in exemplars)
                + (len(exemplars) - coded) * row_bytes(self.buffer.codec.feature, d))

    def _exact_ones(self, rows: list[Row], size: int, room: int) -> NDArray[np.bool_]:
        """Which samples [n] stay as they were learned, so that heads can be judged on them: those held back, where the
        room is enough for a judgement."""
        if room < ENOUGH * size:
            return np.zeros(len(rows), np.bool_)
        held = {id(row) for rows in self._held_back([row for row in rows if not row.coded]).values() for row in rows}
        exact = np.array([id(row) in held for row in rows])
        places = np.flatnonzero(exact)
        fits = admitted([rows[i].label for i in places], np.array([rows[i].key for i in places], np.int64),
                        np.full(len(places), size), room)
        exact[places[~fits]] = False
        return exact

    def _ranks(self, rows: list[Row]) -> NDArray[np.int64]:
        """The rank of each sample in its class [n]: the smallest stay the longest, near-duplicates go first."""
        ranks = self._own_ranks(rows)
        order = np.lexsort((ranks, np.array([row.spare for row in rows])))
        ranks[order] = np.arange(len(rows))
        return ranks

    def _own_ranks(self, rows: list[Row]) -> NDArray[np.int64]:
        admission = self.buffer.admission
        if admission == "reservoir":
            return np.array([row.key for row in rows], np.int64)
        if admission == "ring":
            return np.arange(len(rows), 0, -1)
        ranks, lift, labels = np.empty(len(rows), np.int64), self.lifts[0], np.array([row.label for row in rows])
        means = np.stack([self.plain.mean(label) for label in self.labels])
        for place, label in enumerate(self.labels):
            mine = np.flatnonzero(labels == label)
            if len(mine):
                h = lift(np.stack([rows[i].feature for i in mine]))
                ranks[mine] = herding(h, means[place]) if admission == "herding" else \
                    np.argsort(np.argsort(margins(h.astype(np.float64), place, means), kind="stable"))
        return ranks

    def judge(self, head: str, exemplars: list[Row] | None = None) -> Judgement:
        """The head for all that is known, chosen and calibrated on held-back exemplars. exemplars: of `exemplars()`.

        The samples that judge are subtracted from the statistics first, exactly: no head is learned from them, neither
        those that are tried nor the one that serves. head: "auto" or a kind.
        """
        if not self.labels:
            return Judgement(None, {})
        exemplars = self.exemplars() if exemplars is None else exemplars
        held = {label: np.stack([row.feature for row in rows])
                for label, rows in self._held_back([row for row in exemplars if not row.coded]).items()}
        places = {label: place for place, label in enumerate(self.labels)}
        truth = np.repeat([places[label] for label in held], [len(h) for h in held.values()]).astype(np.int64)
        rests: dict[Lift, tuple[Pooled, NDArray[np.float32]]] = {}
        best: Trial | None = None
        for kind in self._candidates(head, len(truth)):
            lift = next(lift for lift in self.lifts if lift.projected == KINDS[kind].lifted)
            if lift not in rests:
                rests[lift] = self._rest(held, lift)
            trial = Trial.run(solve(kind, rests[lift][0], lift), *rests[lift], truth)
            if best is None or trial.beats(best):
                best = trial
        assert best is not None
        lift = best.head.lift
        best = self._penalised(best, *rests[lift])
        hits = best.logits.argmax(1) == truth
        accuracy = {label: round(float(hits[truth == places[label]].mean()), 4) for label in held}
        return Judgement(replace(best.head, novelty=self._novelty(best, rests[lift][0])), accuracy)

    def _penalised(self, best: Trial, rest: Pooled, held: NDArray[np.float32]) -> Trial:
        """The same kind of head with another ridge penalty, where held-back samples call for it."""
        default = best.head
        if len(best.truth) < ENOUGH or not KINDS[default.kind].second_moment:
            return best
        for factor in PENALTIES:
            e = rest.shrinkage
            while 1e-4 < e * factor <= 1:
                e *= factor
                trial = Trial.run(solve(default.kind, replace(rest, penalty=e), default.lift), rest, held, best.truth)
                if not trial.beats(best):
                    break
                best = trial
        return best

    def _rest(self, held: dict[str, NDArray[np.float32]], lift: Lift) -> tuple[Pooled, NDArray[np.float32]]:
        """What is known without the samples held back, and those samples [n, d], both lifted."""
        lifted = {label: lift(features) for label, features in held.items()}
        none = np.zeros((0, lift.dimension), np.float32)
        return self.statistics[lift].pooled(lifted), np.concatenate([none, *lifted.values()])

    def _held_back(self, rows: list[Row]) -> dict[str, list[Row]]:
        """Those of the exemplars that no head is learned from, by class."""
        chosen: dict[str, list[Row]] = {}
        by_class: dict[str, list[Row]] = {label: [] for label in self.labels}
        for row in rows:
            by_class[row.label].append(row)
        for label, mine in by_class.items():
            if mine:
                mine.sort(key=lambda row: row.key)
                picked = held_back(np.stack([row.feature for row in mine]), [row.key for row in mine],
                                   self.plain.counts[label], len(by_class))
                if len(picked):
                    chosen[label] = [mine[i] for i in picked]
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

    def _novelty(self, trial: Trial, rest: Pooled) -> novelty.Novelty | None:
        """How the head tells unknown samples, its threshold set on held-back ones."""
        fitted = None if KINDS[trial.head.kind].normalised else novelty.fit(trial.head, rest)
        return None if fitted is None else fitted.with_threshold(fitted.distance(trial.logits))

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
        for (_, label), rows in groupby(since, key=lambda row: (row.generation, row.label)):
            features = np.stack([row.feature for row in rows])
            for lift, statistics in self.statistics.items():
                statistics.add(label, lift(features))
        self.stored = stored
