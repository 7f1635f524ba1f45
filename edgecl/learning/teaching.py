"""Teaching: samples of one class, prepared without those that show nothing, and learned in one generation."""
from __future__ import annotations

import time
from itertools import chain, compress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgecl.backbones.session import Backbone
from edgecl.errors import BadInput, FoundedMeanwhile, StateError
from edgecl.exemplars.origin import origins_of
from edgecl.exemplars.pseudo_samples import MIN_SAMPLES
from edgecl.learning.backbone_file import backbone_bytes
from edgecl.learning.changes import exclusively
from edgecl.learning.foundation import create_foundation
from edgecl.learning.judging import ON
from edgecl.learning.rerun import rerun
from edgecl.learning.sharpness import blurred
from edgecl.results import Learned
from edgecl.samples import NOTHING, SampleBatch, blank, check_new_name, kind_of, prepare, sample_keys
from edgecl.settings import counted
from edgecl.state.generations import Append, Rewrite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from edgecl.exemplars.codecs import Codec
    from edgecl.exemplars.known_samples import KnownSamples
    from edgecl.exemplars.stored import StoredSample
    from edgecl.learning.foundation import Foundation
    from edgecl.learning.knowledge import Knowledge
    from edgecl.learning.repository import Repository
    from edgecl.learning.sessions import Sessions
    from edgecl.learning.solved_heads import Figures
    from edgecl.results import BeforeAndAfter
    from edgecl.samples import Place

    Progress = Callable[[int], None]


class Teaching:
    """Teaches a state samples of one class at a time."""

    def __init__(self, repository: Repository, sessions: Sessions) -> None:
        self.repository, self.sessions = repository, sessions
        self.store, self.settings = repository.store, repository.settings

    def teach(self, batches: Iterator[SampleBatch], label: str, progress: Progress | None = None,
              again: bool = False, distinct: bool = False) -> Learned:
        """See `Learner.learn`. label: a checked class name."""
        started = time.perf_counter()
        foundation, model, batches, everything = self._founded(batches, label)
        backbone = Backbone(model, self.settings.threads) if model else self.sessions.backbone()
        used, tuned = None if model else self.sessions.opened, self.store.tuned()
        codec = foundation.buffer(self.settings).codec
        recognises = not again and model is None and self.settings.memory != "statistics"
        known = self.repository.known().known if recognises else None
        given = taught(batches, label, Model(backbone, foundation, codec), known, progress)
        try:
            return self._commit(given, label, again, ComputedBy(foundation, model, used, tuned), started, distinct)
        except FoundedMeanwhile:
            if not everything:
                raise
            return self.teach(iter(everything), label, again=again, distinct=distinct)

    def take_back(self, given: Taught, label: str, by: ComputedBy, again: bool = False) -> Learned:
        """Learn samples of one class that another state has stored. Raises FoundedMeanwhile too, see `by`."""
        return self._commit(given, label, again, by, time.perf_counter())

    def _commit(self, given: Taught, label: str, again: bool, by: ComputedBy, started: float,
                distinct: bool = True) -> Learned:
        """Learn what counts of prepared samples, in one generation. started: on `time.perf_counter`."""
        foundation, model = by.foundation, by.model
        codec = foundation.buffer(self.settings).codec
        meta: dict[str, Any] = {} if model is None else {"foundation": foundation.to_meta()}
        if (by.blank_there or (any(given.blank) and label != NOTHING)) and not self.store.meta.get("blank"):
            meta["blank"] = True
        taught_at = int(time.time())

        def commit() -> tuple[int, list[str], Figures, Count]:
            now, learned, origins = self.store.newest.backbone, given.features, None
            if by.used is not None and now is not None and by.used != now:  # a round, or a way back, was faster
                if codec.input is None and by.tuned is not None:
                    raise StateError(f"the backbone of {self.store.path} has just changed", "try again")
                learned = rerun(backbone_bytes(self.store, foundation, now), learned, given.inputs, codec.input)
            if self.settings.memory != "statistics":
                origins = [(row.origin, row.tick) for row in given.stored] or origins_of(given.places, taught_at)
            before = self.repository.heads.last_figures()
            knowledge = self.repository.known(foundation)
            if not distinct:
                check_new_name(label, knowledge.labels)
            if given.known and not knowledge.known.has(label, given.known).all():
                raise StateError(f"{self.store.path}: samples of {label!r} were taken out while others were read",
                                 "try again")
            told = counting(knowledge, label, given._replace(features=learned), again)
            count = told.samples
            if self.settings.memory == "statistics" and count < MIN_SAMPLES:
                raise BadInput(f"{counted(count, 'sample')} of {label!r}: the statistics of so few are the samples "
                               "themselves, and this state keeps none", f"teach {MIN_SAMPLES} or more at once")
            if not count:
                self.repository.unchanged(knowledge)
                return self.store.current, knowledge.labels, before, told
            knowledge.add(label, given.keys, learned, given.inputs, origins, told.known)
            if given.stored:
                knowledge.mark_like([*compress(given.stored, (~told.known).tolist())])
            detail = {"class": label, "samples": count, **({"tuned": True} if by.tuned_there else {})}
            change = Rewrite("learn", detail, backbone=model, meta=meta) if meta else Append("learn", detail)
            return self.repository.commit(knowledge, change), knowledge.labels, before, told

        generation, labels, before, told = exclusively(self.store, commit)

        def figures(name: str) -> Callable[[], BeforeAndAfter]:
            def worked_out() -> BeforeAndAfter:
                was, now = (getattr(each, name) for each in (before, self.repository.heads.figures_since(generation)))
                return {each: (was.get(each), now.get(each)) for each in labels}
            return worked_out

        return Learned(label, told.samples, 1000 * (time.perf_counter() - started) / given.given, generation,
                       self.store.used_bytes(), figures("accuracy"), ON[self.settings.memory != "statistics"],
                       given.left_out, told.blank, told.new, figures("judged"),
                       len(given.known) + len(given.keys) - told.samples,
                       told.also_in, told.unrecognised, told.blurred)

    def _founded(self, batches: Iterator[SampleBatch], label: str
                 ) -> tuple[Foundation, bytes | None, Iterator[SampleBatch], list[SampleBatch]]:
        """The foundation, a new backbone's bytes where this is the first thing taught, and all batches; these again as
        a list if they are held in memory anyway, else []."""
        first = next(batches, None)
        if first is None:
            raise BadInput(f"there is no sample of {label!r}", "give at least one photo, recording or array")
        batches = chain([first], batches)
        if self.repository.foundation is not None:
            return self.repository.foundation, None, batches, []
        probe, everything = first.data, list[SampleBatch]()
        if kind_of(probe) != "image":  # scales and biases come from all of it
            everything = list(batches)
            probe, batches = np.concatenate([batch.data for batch in everything]), iter(everything)
        return *create_foundation(self.settings, probe), batches, everything


class Taught(NamedTuple):
    """Samples to learn: features float32 [n, d]; keys: of `sample_keys`; inputs: encoded samples, [] if the codec keeps
    none; places: where each came from; blank, blurred: whether each shows nothing, or looks blurred; given: samples
    that came, of which `left_out` show nothing and are not among these, and neither are those with the keys `known`,
    which the class knows. stored: what another state has stored of them, origins and marks included; none if they come
    from elsewhere."""

    features: np.ndarray
    keys: list[int]
    inputs: list[bytes]
    places: list[Place]
    blank: list[bool]
    blurred: list[bool]
    given: int
    left_out: int
    known: list[int]
    stored: Sequence[StoredSample] = ()


class ComputedBy(NamedTuple):
    """What features were computed by. model: the backbone, if it is new to the state; used: the name of its file, if it
    is known there; tuned: the generation of the round that it came from; tuned_there, blank_there: whether a round of
    another state has made the new one, and whether that state was taught what shows nothing."""

    foundation: Foundation
    model: bytes | None
    used: str | None
    tuned: int | None
    tuned_there: bool = False
    blank_there: bool = False


class Model(NamedTuple):
    """What makes features of samples, and what is kept of them."""

    backbone: Backbone
    foundation: Foundation
    codec: Codec


class Count(NamedTuple):
    """What counts of samples that were taught: samples, blank ones among them; known: which don't count, bool [n]; new:
    whether the class is; also_in, unrecognised, blurred: see `Learned`."""

    samples: int
    blank: int
    known: np.ndarray
    new: bool
    also_in: dict[str, list[str]]
    unrecognised: int
    blurred: list[str]


def taught(batches: Iterable[SampleBatch], label: str, model: Model, known: KnownSamples | None = None,
           progress: Progress | None = None) -> Taught:
    """The samples of one class as they are to be learned. A few among others that show nothing, see `samples.blank`,
    are left out, unless the class is `nothing`; if half of them or more show nothing, that is what the class looks
    like. known: what is known already: then samples of the class that are recordings of their own are left out before
    the backbone sees them. progress: called with the number of samples done. Raises BadInput if a sample does not fit
    the backbone."""
    backbone, foundation, codec = model
    features: list[np.ndarray] = []
    shows: list[str] = []
    soft: list[bool] = []
    keys: list[int] = []
    inputs: list[bytes] = []
    places: list[Place] = []
    recordings: dict[str, int] = {}
    before, given, nothing = list[int](), 0, 0
    for batch in batches:
        fitted = prepare(batch.data, foundation.kind, foundation.input_shape)
        mine, shown = sample_keys(fitted, batch.groups, recordings, batch.sessions), blank(fitted, foundation.kind)
        given, nothing = given + len(fitted), nothing + sum(map(bool, shown))
        new = [True] * len(fitted)
        if known is not None:
            alone = [not group and not session for group, session in zip(batch.groups, batch.sessions)]
            new = (~(known.has(label, mine) & alone)).tolist()
            before += [key for key, stays in zip(mine, new) if not stays]
            fitted = fitted[new]
        features.append(backbone.features(fitted) if len(fitted) else np.zeros((0, foundation.dimension), np.float32))
        keys += compress(mine, new)
        shows += compress(shown, new)
        soft += blurred(fitted) if foundation.kind == "image" else [False] * len(fitted)
        inputs += [codec.input.encode(sample) for sample in fitted] if codec.input else []
        places += compress(batch.places, new)
        if progress:
            progress(len(new))
    taken = [not why for why in shows]
    if label == NOTHING or 2 * nothing >= given:
        taken = [True] * len(shows)
    return Taught(np.concatenate(features)[taken], [*compress(keys, taken)], [*compress(inputs, taken)],
                  [*compress(places, taken)], [bool(why) for why in compress(shows, taken)],
                  [*compress(soft, taken)], given, taken.count(False), before)


def counting(knowledge: Knowledge, label: str, given: Taught, again: bool) -> Count:
    """What counts of what is taught; again: all of it."""
    before = knowledge.plain.counts.get(label, 0) if knowledge.statistics else 0
    found = knowledge.recognise(label, given.keys, given.features)
    known = np.zeros(len(given.keys), np.bool_) if again else found.known
    also_in = {other: [str(given.places[place]) for place in places] for other, places in found.elsewhere.items()}
    blanks = int(np.count_nonzero(~known & np.array(given.blank, np.bool_)))
    return Count(int(np.count_nonzero(~known)), blanks, known, not before, also_in,
                 0 if again or knowledge.gaussians is not None else before - knowledge.known.count(label),
                 [str(place) for place, out, nothing, soft in zip(given.places, known, given.blank, given.blurred)
                  if soft and not (out or nothing)])
