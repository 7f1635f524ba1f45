"""What a learner knows while it writes: class statistics per transform, and stored samples."""
from __future__ import annotations

import json
from itertools import compress, repeat, takewhile
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgecl.errors import StateError
from edgecl.exemplars.buffer import Buffer, KeptSamples, Picked, held_places
from edgecl.exemplars.columns import GrowingColumns
from edgecl.exemplars.known_samples import KnownSamples
from edgecl.exemplars.origin import NOWHERE
from edgecl.exemplars.pseudo_samples import MIN_SAMPLES, width
from edgecl.exemplars.recognition import CommonSamples, Recognised, common_samples, recognise
from edgecl.exemplars.selection import GROUP_SHIFT, near_duplicates
from edgecl.exemplars.stored import StoredSample, file_bytes
from edgecl.exemplars.tally import Tally
from edgecl.learning.forgetting import EXACT, MEAN_ROUNDED, after_forgetting
from edgecl.learning.judges import judges_of, pseudo_judges
from edgecl.learning.judging import Judge, Judgement
from edgecl.learning.snapshots import add_again, packed, unpacked
from edgecl.settings import counted
from edgecl.statistics.class_statistics import ClassStatistics, check_features
from edgecl.statistics.feature_drift import Pairs, moved

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence, Set

    from numpy.typing import NDArray

    from edgecl.exemplars.origin import Origin
    from edgecl.exemplars.pseudo_samples import ClassGaussians
    from edgecl.heads.head import Head
    from edgecl.learning.judges import Judges
    from edgecl.statistics.form import Form
    from edgecl.statistics.transform import FeatureTransform


class Names(NamedTuple):
    """The class names: in alphabetical order, characters of the longest one, and bytes: of all in JSON, and of what the
    files of exemplars take besides samples, at most."""

    labels: list[str]
    longest: int
    text: int
    frame: int


UNNAMED = None, 0, Names([], 0, 0, 0)


class Knowledge:
    """Class statistics and stored samples of one learner, in memory. gaussians: a covariance of each class, where no
    sample may be kept: what is `stored` then is never an exemplar, pseudo-samples judge, and no sample is recognised.
    keys: bytes of the keys of samples in a snapshot, at most."""

    def __init__(self, transforms: Sequence[FeatureTransform], form: Form, buffer: Buffer,
                 gaussians: ClassGaussians | None = None, photos: bool = False, keys: int = 0) -> None:
        self.transforms, self.form, self.buffer, self.gaussians = tuple(transforms), form, buffer, gaussians
        self.photos, self.known = photos, KnownSamples(keys)
        self.statistics: dict[FeatureTransform, ClassStatistics] = {}
        self.stored: list[StoredSample] = []
        self._names: tuple[ClassStatistics | None, int, Names] = UNNAMED
        self._tally, self._columns, self._picked = Tally(), GrowingColumns(), Picked()
        self.remains = ""   # of the class that was forgotten last, for people; "" if nothing

    @property
    def plain(self) -> ClassStatistics:
        """The statistics of the features themselves."""
        return self.statistics[self.transforms[0]]

    @property
    def labels(self) -> list[str]:
        """The known classes in alphabetical order, as a list that is not to be changed."""
        return self.names.labels

    @property
    def names(self) -> Names:
        """What the class names are; found again only if there are others."""
        plain = self.plain if self.statistics else None
        if plain is not None and (self._names[0] is not plain or self._names[1] != len(plain.counts)):
            labels = plain.labels
            self._names = plain, len(labels), Names(
                labels, max(map(len, labels), default=0), sum(len(json.dumps(label)) + 2 for label in labels),
                file_bytes(self.buffer.limit, self.buffer.segment, labels))
        return self._names[2] if plain is not None else UNNAMED[2]

    @property
    def fresh(self) -> list[StoredSample]:
        """The stored samples that are not committed yet."""
        count = sum(1 for _ in takewhile(lambda row: row.id is None, reversed(self.stored)))
        return self.stored[len(self.stored) - count:]

    def number(self, rows: Sequence[StoredSample]) -> None:
        """The samples that were not committed are, as these."""
        self.stored[len(self.stored) - len(rows):] = rows

    @property
    def all_fit(self) -> bool:
        """Whether the buffer has room for all stored samples as they were learned."""
        size = self._tally.bytes(self.stored, self.buffer, self.transforms[0].source)
        return size <= self.buffer.limit - self.names.frame

    def recognise(self, label: str, keys: Sequence[int], features: NDArray[np.float32]) -> Recognised:
        """Which samples, given by their keys and features [n, d], a class has been taught already."""
        codec = self.buffer.codec.feature
        return recognise((label, keys, features), self.known, self.stored, lambda: self._columns(self.stored),
                         lambda some: codec.decode(codec.encode(some)))

    def add(self, label: str, keys: Sequence[int], features: NDArray[np.float32],
            inputs: Sequence[bytes] | None = None, origins: Iterable[tuple[Origin, int]] | None = None,
            known: NDArray[np.bool_] | None = None) -> None:
        """Learn features [n, d] of one class, as the codec keeps them: what is stored is what was learned. inputs: the
        encoded samples, if the codec keeps them; origins: of `edgecl.exemplars.origin.origins_of`; known: of
        `recognise`: those are not learned, but near-duplicates of them are such. Raises BadInput, see `check_features`;
        then nothing has changed."""
        check_features(label, features)
        codec = self.buffer.codec.feature
        features = codec.decode(codec.encode(features))
        spare = near_duplicates(features, np.asarray(keys, np.int64) >> GROUP_SHIFT, self.buffer.kind)
        if known is not None and known.any():
            new = (~known).tolist()
            keys, features, spare = [*compress(keys, new)], features[~known], spare[~known]
            inputs, origins = [*compress(inputs or (), new)], [*compress(origins, new)] if origins else None
        transformed = {transform: transform(features) for transform in self.transforms}
        for h in transformed.values():
            check_features(label, h)
        if not self.statistics:
            self.statistics = {transform: ClassStatistics(h.mean(0, np.float64), self.form.second_moment)
                               for transform, h in transformed.items()}
        count = self.plain.counts.get(label, 0)
        for transform, h in transformed.items():
            self.statistics[transform].add(label, h)
        if self.gaussians is not None:
            h = transformed[self.transforms[0]]
            self.gaussians.add(label, h, width(label, h, keys, self.plain), count)
        else:
            self.known.add(label, keys)
        self.stored += [StoredSample(None, None, label, key, feature, data, near, origin=origin, tick=tick)
                        for key, feature, data, near, (origin, tick) in zip(
                            keys, features, inputs or repeat(b""), spare.tolist(), origins or repeat((NOWHERE, 0)))]

    def shown_to_backbone(self, label: str) -> bool:
        """Whether a backbone may have been tuned on samples of a class: on one that is stored, or on one that is not
        any more."""
        mine = [row for row in self.stored if row.label == label]
        return any(row.trained for row in mine) or len(mine) < self.plain.counts[label]

    def forget(self, label: str) -> bool:
        """Forget a class; whether that was exact: every sample of it was still stored as it was learned, and could be
        subtracted without drowning what is left in rounding, or all that is left could be learned again. If not,
        `remains` says what is left of the class."""
        features = [s.feature for s in self.stored if s.label == label and not s.coded]
        complete = len(features) == self.plain.counts[label] and self.form.rank is None
        for transform, statistics in self.statistics.items():
            whole = transform(np.stack(features)) if complete else None
            self.statistics[transform] = statistics.without(label, whole).about_its_mean(self.form.second_moment)
        self.stored = [s for s in self.stored if s.label != label]
        self.known.forget(label)
        if self.gaussians is not None:
            self.gaussians.forget(label)
        self.remains = ""
        if self.form.second_moment and self.labels:
            self.remains = after_forgetting(self.statistics, self.stored, self.gaussians, complete,
                                            self.form.rank is None)
        return not self.remains

    def let_go(self, kept: Set[int]) -> list[StoredSample]:
        """Let go of the stored samples that are not among `kept`, given by id, and not new either; these samples. The
        buffer had no room for them: if some came back where others go, it would depend on the order of teaching
        which."""
        gone = [row for row in self.stored if row.id is not None and row.id not in kept]
        if gone:
            self.stored = [row for row in self.stored if row.id is None or row.id in kept]
        return gone

    def kept_ids(self) -> set[int]:
        """The ids of the stored samples that the exemplar buffer keeps."""
        return {number for place in self.kept().columns.rows["place"].tolist()
                if (number := self.stored[place].id) is not None}

    def remove(self, rows: Sequence[StoredSample]) -> None:
        """Take stored samples, as they were learned, out of the statistics and of what is stored; `remains` says how
        rounding has moved what is left, if it has. Raises StateError, see `ClassStatistics.remove`."""
        gone = {row.id for row in rows}
        left: dict[str, list[NDArray[np.float32]]] = {}
        self.stored = [row for row in self.stored if row.id not in gone]
        features = _by_class(rows)
        for label in features:
            self.known.remove(label, [row.key for row in rows if row.label == label])
        for row in self.stored:
            if row.label in features and not row.coded:
                left.setdefault(row.label, []).append(row.feature)
        moved = 0.0
        for transform, statistics in self.statistics.items():
            for label, mine in features.items():
                size = float(np.abs(statistics.sums[label]).max())
                statistics.remove(label, transform(mine))
                count = statistics.counts.get(label, 0)
                rounding = statistics.rounding_of_mean(label, size) if count else 0.0
                if rounding > EXACT and count == len(left.get(label, ())):
                    statistics.take_mean(label, transform(np.stack(left[label])))
                else:
                    moved = max(moved, rounding)
        self.remains, self._names = "", UNNAMED
        if self.labels and not all(each.barely_rounded(EXACT) for each in self.statistics.values()):
            self.remains = after_forgetting(self.statistics, self.stored, None, True)
        if moved > EXACT and not self.remains:
            self.remains = MEAN_ROUNDED.format(moved)

    def about_its_mean(self) -> None:
        """Keep the statistics about the mean of what is known: their reference may be a sample that was removed."""
        self.statistics = {transform: statistics.about_its_mean(self.form.second_moment)
                           for transform, statistics in self.statistics.items()}

    def take_in(self, rows: Sequence[StoredSample], learned: bool = False) -> None:
        """Store samples that were stored before as new ones, and learn them, unless they are `learned` already."""
        for label, mine in ({} if learned else _by_class(rows)).items():
            for transform, statistics in self.statistics.items():
                statistics.add(label, transform(mine))
            self.known.add(label, [row.key for row in rows if row.label == label])
        self.stored, self._names = [*self.stored, *rows], UNNAMED

    def rename(self, label: str, name: str) -> list[StoredSample]:
        """Give a class another name; if that is a class as well, the two become one. Its stored samples, which are not
        stored any more."""
        if self.gaussians is not None:
            self.gaussians.rename(label, name, self.plain.counts)
        for statistics in self.statistics.values():
            statistics.rename(label, name)
        self.known.rename(label, name)
        mine = [row for row in self.stored if row.label == label]
        self.stored, self._names = [row for row in self.stored if row.label != label], UNNAMED
        return mine

    def mark(self, tuned: Set[int], held: Set[int]) -> None:
        """Keep in mind that a backbone was tuned on samples, given by id, which judge no more, and that others were
        held back from it."""
        self.stored = [row._replace(trained=row.trained or row.id in tuned, judges=row.judges or row.id in held)
                       for row in self.stored]

    def mark_like(self, rows: Sequence[StoredSample]) -> None:
        """Give the samples that were learned last the marks of others, in their order: near-duplicates, and what a
        learning round has done with them."""
        begin = len(self.stored) - len(rows)
        self.stored = [*self.stored[:begin], *(
            mine._replace(spare=other.spare, trained=other.trained, judges=other.judges)
            for mine, other in zip(self.stored[begin:], rows))]

    def moved(self, features: Mapping[int, NDArray[np.float32]]) -> Knowledge:
        """The same by another backbone: what is stored is learned again, what is not is moved, see
        `edgecl.statistics.feature_drift`.

        features: row id -> its new feature [d]; rows without one are let go of. Raises StateError, BadInput.
        """
        codec, rows = self.buffer.codec.feature, [row for row in self.stored if row.id in features]
        new = np.stack([features[row.id] for row in rows if row.id is not None])
        new = codec.decode(codec.encode(new))
        known = Knowledge(self.transforms, self.form, self.buffer, photos=self.photos)
        known.known = self.known
        places = {label: [i for i, row in enumerate(rows) if row.label == label] for label in self.labels}
        if self.gaussians is not None:
            known.gaussians = self.gaussians.moved({
                label: self.transforms[0](new[mine]) for label, mine in places.items() if mine})
        for transform, statistics in self.statistics.items():
            pairs = {label: Pairs(transform(np.stack([rows[i].feature for i in mine])), transform(new[mine]),
                                  np.array([not rows[i].coded for i in mine]))
                     for label, mine in places.items() if mine}
            known.statistics[transform] = moved(statistics, pairs)
        known.stored = [row._replace(feature=h) for row, h in zip(rows, new)]
        return known

    def merge(self, other: Knowledge) -> CommonSamples:
        """Add all that another learner with the same transforms knows; what both know is subtracted from its statistics
        if that can be done. Where no sample may be kept, its new classes come with their Gaussians, and those that both
        know keep the one that is here; raises StateError for a class of so few samples that its mean would tell
        them."""
        if self.gaussians is not None:
            for label in sorted(other.plain.counts.keys() - (self.plain.counts.keys() if self.statistics else set())):
                self._take(label, other)
        if not self.statistics:
            self.statistics = {transform: ClassStatistics(s.reference, self.form.second_moment)
                               for transform, s in other.statistics.items()}
        common = common_samples(self.known, self.stored, other.known, other.stored, other.form.rank is None and all(
            each.diagonal is None for each in other.statistics.values()))
        for transform, statistics in self.statistics.items():
            theirs = other.statistics[transform]
            if common.left_out:
                theirs = theirs.copy()
                for label, pairs in common.left_out.items():
                    theirs.remove(label, transform(np.stack([feature for _, feature in pairs])))
            statistics.merge(theirs)
        if self.gaussians is None:
            self.known.take(other.known, {label: [key for key, _ in pairs] for label, pairs in common.left_out.items()})
        self.stored += [s._replace(id=None, generation=None) for place, s in enumerate(other.stored)
                        if not s.coded and place not in common.places]
        return common

    def _take(self, label: str, other: Knowledge) -> None:
        """Another learner's class, which this one does not know, as a Gaussian."""
        assert self.gaussians is not None
        if other.plain.counts[label] < MIN_SAMPLES:
            raise StateError(f"class {label!r} has {counted(other.plain.counts[label], 'sample')} there, which its "
                             "statistics tell, and this state keeps none",
                             f"teach it {MIN_SAMPLES} or more there, or forget it there")
        if other.gaussians is not None:
            self.gaussians.widths[label] = other.gaussians.widths[label]
            self.gaussians.take(label, other.gaussians.of.get(label))
        elif mine := [row for row in other.stored if row.label == label]:
            h = self.transforms[0](np.stack([row.feature for row in mine]))
            self.gaussians.add(label, h, width(label, h, [row.key for row in mine], other.plain))
        else:
            self.gaussians.widths[label] = 1.0

    def kept(self, buffer: Buffer | None = None) -> KeptSamples:
        """Which of the stored samples the exemplar buffer, or another one, keeps."""
        columns, buffer = self._columns(self.stored), buffer or self.buffer
        if not self.stored or self.gaussians is not None:
            return KeptSamples(columns._replace(rows=columns.rows[:0]), np.zeros(0, np.bool_))
        if buffer.codebook is None and self.all_fit:
            return KeptSamples(columns, np.ones(len(self.stored), np.bool_))
        return buffer.keep(self.stored, columns, self.plain, self.transforms[0])

    def exemplars(self, buffer: Buffer | None = None, kept: KeptSamples | None = None) -> list[StoredSample]:
        """The stored samples that the exemplar buffer, or another one, keeps, as it keeps them. kept: of
        `kept(buffer)`, if it is known."""
        return (buffer or self.buffer).as_kept(self.stored, kept or self.kept(buffer))

    def held_back(self) -> list[StoredSample]:
        """The exemplars that a learning round must not tune on, so that they can judge its backbone."""
        if not self.labels or self.gaussians is not None:
            return [row for row in self.stored if row.judges]
        held = held_places(self.stored, self.kept().columns, self.plain, self._picked)
        return [self.stored[place] for mine in held.values() for place in mine]

    def judges(self, kept: KeptSamples | None = None) -> Judges:
        """The samples that judge heads: exemplars, or pseudo-samples where none are kept. kept: of `kept()`."""
        if self.gaussians is None:
            return judges_of(self.stored, (kept or self.kept()).columns, self.plain, self.transforms[0],
                             self.buffer.admission == "reservoir")
        drawn = {label: [row for row in self.stored if row.judges and row.label == label]
                 or self.gaussians.draw(label, self.plain, self.transforms[0], True) for label in self.labels}
        return pseudo_judges([row for rows in drawn.values() for row in rows], self.labels, self.transforms[0])

    def pseudo_samples(self) -> list[StoredSample]:
        """What a learning round goes through where no sample is kept; see `ClassGaussians.samples`."""
        return self.gaussians.samples(self.plain, self.transforms[0]) if self.gaussians is not None else []

    def judge(self, head: str, kept: KeptSamples | None = None, trained: Head | None = None) -> Judgement:
        """The head for all that is known, see `Judge.choose`. kept: of `kept()`."""
        if not self.labels:
            return Judgement(None)
        judge = Judge(self.statistics, self.photos, self.gaussians is None, self.buffer.limit)
        return judge.choose(head, self.judges(kept), trained)

    def become(self, form: Form, buffer: Buffer, stored: list[StoredSample]) -> None:
        """What a commit made of it: the form of the statistics and the buffer from now on, and the stored samples."""
        self.form, self.buffer, self.stored = form, buffer, stored

    def snapshot(self, form: Form | None = None, keys: bool = True) -> bytes:
        """The statistics and the keys of samples as one .npz file. form: another one in which to write the statistics;
        keys: False leaves the keys out."""
        return packed([self.statistics[transform] for transform in self.transforms], self.gaussians,
                      (form or self.form).rank, self.known.to_arrays(self.labels) if keys else {})

    def load(self, snapshot: bytes | None, since: Iterable[StoredSample], stored: list[StoredSample]) -> None:
        """Become what a snapshot knew, plus the samples that came `since`; `stored`: all stored samples."""
        if snapshot is not None:
            self.statistics, keys = unpacked(snapshot, self.transforms, self.gaussians)
            self.known.load(keys, self.labels)
        since = [*since]
        add_again(self.statistics, since)
        self.stored = stored
        if self.gaussians is None:
            self.known.add_rows(since)
            if self.known.total < self.plain.total:
                self.known.add_missing(stored)


def _by_class(rows: Sequence[StoredSample]) -> dict[str, NDArray[np.float32]]:
    """The features [n, d] of each class."""
    found: dict[str, list[NDArray[np.float32]]] = {}
    for row in rows:
        found.setdefault(row.label, []).append(row.feature)
    return {label: np.stack(mine) for label, mine in found.items()}
