"""An export of samples is learned: what another state has stored, by the same backbone exactly as it was learned there.

See `edgecl.learning.sample_export` for what is in the folder. If the state has another backbone, or a photo was changed
since, the sample itself goes through the backbone again; its source, session and time stay.
"""
from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecl.backbones.session import Backbone
from edgecl.errors import BackboneError, BadInput, FoundedMeanwhile, StateError
from edgecl.exemplars.origin import origins_of
from edgecl.exemplars.stored import StoredSample
from edgecl.heads.solvers import forms
from edgecl.learning.foundation import create_foundation
from edgecl.learning.plan import FEW_CLASSES, fitting, plan_statistics
from edgecl.learning.sample_archive import AGAIN, seconds_of
from edgecl.learning.sample_export import FEATURES
from edgecl.learning.teaching import ComputedBy, Taught
from edgecl.samples import Place, prepare, sample_keys

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecl.exemplars.codecs import Codec
    from edgecl.learning.foundation import Foundation
    from edgecl.learning.repository import Repository
    from edgecl.learning.sample_archive import SampleArchive
    from edgecl.learning.sessions import Sessions
    from edgecl.learning.teaching import Teaching
    from edgecl.results import Learned
    from edgecl.settings import Settings

CODED, MISSING, OTHER = "coded", "missing", "other_backbone"    # why samples are left out
LEFT_OUT = {CODED: "kept as product codes only, which are not what was learned",
            MISSING: "whose files are not there any more",
            OTHER: "kept as features only, by another backbone than that of this state"}


@dataclass
class ArchiveNotes:
    """What was not learned as it was stored. left_out: why -> samples; changed: samples that were learned as their
    files are now; computed: samples of which the backbone of this state has made other features."""

    left_out: Counter[str] = field(default_factory=Counter)
    changed: int = 0
    computed: int = 0


def learn_archive(archive: SampleArchive, label: str, repository: Repository, sessions: Sessions,
                  teaching: Teaching, again: bool = False) -> tuple[Learned | None, ArchiveNotes]:
    """Learn the samples of one class of an export, in one generation; None if all of them are left out. Raises
    BadInput, BudgetError, StateError; then nothing has changed."""
    for last in (False, True):
        by, backbone = _computed_by(archive, label, repository, sessions)
        reader = _ClassReader(archive, label, by, backbone, by.foundation.buffer(repository.settings).codec)
        given = reader.read()
        if given is None:
            return None, reader.notes
        try:
            return teaching.take_back(given, label, by, again), reader.notes
        except FoundedMeanwhile:
            if last:
                raise
    raise AssertionError


def _computed_by(archive: SampleArchive, label: str, repository: Repository, sessions: Sessions
                 ) -> tuple[ComputedBy, Backbone | None]:
    """What the features of the state are computed by, and that if it is not what computed those of the export. A state
    without a backbone takes that of the export, if its settings allow it."""
    foundation, settings, blank = repository.foundation, repository.settings, archive.about["blank"]
    if foundation is not None:
        name, tuned = repository.store.newest.backbone, repository.store.tuned()
        same = name == archive.backbone_name
        return ComputedBy(foundation, None, name, tuned, False, blank), None if same else sessions.backbone(name)
    theirs = archive.foundation()
    if settings.backbone in ("auto", theirs.name) and settings.precision in ("auto", theirs.precision):
        model = archive.backbone()
        return ComputedBy(_planned(theirs, settings, model), model, None, None, archive.about["tuned"], blank), None
    samples = [each for each in _ClassReader(archive, label, None, None, None).samples() if each is not None]
    if not samples:
        raise BadInput(f"{archive.path} holds features of backbone {theirs.name}, and this state is to have "
                       f"{settings.backbone}", "create the state without --backbone")
    try:
        foundation, model = create_foundation(settings, np.stack(samples))
    except ValueError as error:
        raise BadInput(f"the samples of {label!r} differ in shape", "give samples of one kind and size") from error
    return ComputedBy(foundation, model, None, None, False, blank), Backbone(model, settings.threads)


def _planned(theirs: Foundation, settings: Settings, model: bytes) -> Foundation:
    """The foundation of an export, with the richest statistics that this quota affords. Raises BackboneError,
    BudgetError."""
    info = Backbone(model).info
    if (info.kind, tuple(info.input_shape), info.dimension) != (theirs.kind, theirs.input_shape, theirs.dimension):
        raise BackboneError("the backbone of the export is not the one that its manifest names", AGAIN)
    possible, size = forms(settings.head, info.dimension), {theirs.precision: len(model)}
    form = theirs.form
    if form not in possible or fitting(settings.quota, settings.exemplars, size, info.dimension, [form],
                                       FEW_CLASSES) is None:
        form = plan_statistics(settings.quota, settings.exemplars, size, info.dimension, possible).form
    codec = settings.codec if settings.codec != "auto" or info.kind != "feature" else theirs.codec
    return replace(theirs, form=form, codec=codec)


class _ClassReader:
    """Reads the samples of one class. by: None to read only the samples themselves; backbone: what features are to be
    computed by, None if those of the export are."""

    def __init__(self, archive: SampleArchive, label: str, by: ComputedBy | None, backbone: Backbone | None,
                 codec: Codec | None) -> None:
        self.archive, self.label, self.by, self.backbone, self.codec = archive, label, by, backbone, codec
        self.lines = archive.samples(label)
        self.notes = ArchiveNotes()
        self._ends: NDArray[np.int64] | None = None

    def samples(self) -> list[NDArray[Any] | None]:
        """The samples themselves; None for those of which only features are stored."""
        return [None if line["kept"] == CODED else self._sample(line)[0] for line in self.lines]

    def read(self) -> Taught | None:
        """What is to be learned; None if nothing is left."""
        assert self.by is not None
        left = self.notes.left_out
        rows: list[StoredSample] = []
        waiting: list[tuple[int, NDArray[Any]]] = []    # samples that go through the backbone
        for line in self.lines:
            if line["kept"] == CODED:
                left[CODED] += 1
                continue
            sample, content, intact = self._sample(line)
            if sample is None and not intact:
                left[MISSING] += 1
                continue
            feature = None if self.backbone is not None or not intact else self._feature(line)
            if feature is None and sample is None:
                left[OTHER] += 1
                continue
            row = self._row(line, feature, content)
            if feature is None:
                assert sample is not None
                fitted = prepare(sample[None], self.by.foundation.kind, self.by.foundation.input_shape)
                waiting.append((len(rows), fitted[0]))
                row = row._replace(trained=False, judges=False)
                self.notes.computed += intact
                self.notes.changed += not intact
                if not intact:
                    row = row._replace(key=sample_keys(fitted)[0], spare=False)
            rows.append(self._with_input(row, sample))
        if not rows:
            return None
        rows = self._computed(rows, waiting)
        places = [Place(row.source, row.at, row.origin.unit) for row in rows]
        inputs = [row.input for row in rows] if self.codec is not None and self.codec.input else []
        return Taught(np.stack([row.feature for row in rows]), [row.key for row in rows], inputs, places,
                      [False] * len(rows),
                      [False] * len(rows), len(rows), 0, [], rows)

    def _computed(self, rows: list[StoredSample], waiting: list[tuple[int, NDArray[Any]]]) -> list[StoredSample]:
        """The rows with the features of those that wait for them."""
        assert self.by is not None
        dimension = self.by.foundation.dimension
        if waiting:
            backbone = self.backbone or Backbone(self.by.model or self.archive.backbone())
            for place, sample in waiting:
                rows[place] = rows[place]._replace(feature=backbone.features(sample[None])[0])
        for row in rows:
            if row.feature.shape != (dimension,) or not np.isfinite(row.feature).all():
                raise BadInput(f"{self.archive.path} can't be learned: a feature of {self.label!r} has shape "
                               f"{list(row.feature.shape)}, or is not finite", AGAIN)
        return rows

    def _sample(self, line: dict[str, Any]) -> tuple[NDArray[Any] | None, bytes, bool]:
        """A sample itself, None if only its feature is stored or its file is gone; its bytes, if it is a photo or a
        window as it was encoded; whether it is as it was written."""
        if not line["file"].endswith(".npz"):
            found = self.archive.photo(line["file"])
            return (None, b"", False) if found is None else (self._pixels(*found, line), *found)
        if line["file"].endswith("/features.npz"):
            return None, b"", True
        sample = self.archive.at(line["file"], "x_train", line.get("index")).astype(np.float32)
        return sample, self._encoded(line), True

    def _pixels(self, content: bytes, intact: bool, line: dict[str, Any]) -> NDArray[np.uint8]:
        """A photo: as it is stored, or, if somebody has changed the file, as any other."""
        from edgecl.images import decode_image, pixels_of

        if intact:
            return pixels_of(content)
        height, width = (self.by.foundation if self.by else self.archive.foundation()).input_shape[:2]
        return decode_image(content, str(self.archive.path / line["file"]), height, width)

    def _encoded(self, line: dict[str, Any]) -> bytes:
        """A window as it was encoded; b"" if it was not, or that is not in the export."""
        place = line.get("feature")
        if place is None or not self.archive.has(FEATURES, "lengths"):
            return b""
        if self._ends is None:
            self._ends = np.cumsum(self.archive.array(FEATURES, "lengths"), dtype=np.int64)
        end = int(self._ends[place]) if 0 <= place < len(self._ends) else 0
        begin = end - int(self.archive.at(FEATURES, "lengths", place))
        return self.archive.array(FEATURES, "inputs")[begin:end].tobytes()

    def _feature(self, line: dict[str, Any]) -> NDArray[np.float32]:
        place = line.get("feature")
        found = self.archive.at(line["file"], "x_train", line.get("index")) if place is None else \
            self.archive.at(FEATURES, "features", place)
        return np.asarray(found, np.float32)

    def _row(self, line: dict[str, Any], feature: NDArray[np.float32] | None, content: bytes) -> StoredSample:
        """A sample as it was stored, without an id."""
        place = Place(line["source"], line.get("position"), line["unit"])
        (origin, tick), = origins_of([place], seconds_of(line.get("taught")))
        return StoredSample(None, None, self.label, int(line["key"], 16), np.zeros(0, np.float32) if feature is None
                            else feature, content, line["near_duplicate"], "", line["tuned_on"], line["held_back"],
                            origin, tick)

    def _with_input(self, row: StoredSample, sample: NDArray[Any] | None) -> StoredSample:
        """The sample as the codec of the state keeps it: the bytes of the export, if they are of that form."""
        codec = self.codec.input if self.codec is not None else None
        if codec is None or sample is None:
            return row._replace(input=b"")
        assert self.by is not None
        theirs = self.archive.foundation()
        if row.input and codec.name in ("jpeg", "delta16") and theirs.input_shape == self.by.foundation.input_shape:
            try:
                codec.decode(row.input)
                return row
            except StateError:
                pass
        fitted = prepare(sample[None], self.by.foundation.kind, self.by.foundation.input_shape)
        return row._replace(input=codec.encode(fitted[0]))
