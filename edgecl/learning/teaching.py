"""Teaching: samples of one class, prepared without those that show nothing, and learned in one generation."""
from __future__ import annotations

import time
from itertools import chain
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
from edgecl.results import Learned
from edgecl.samples import NOTHING, SampleBatch, blank, check_new_name, kind_of, prepare, sample_keys
from edgecl.settings import counted
from edgecl.state.generations import Append, Rewrite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from edgecl.exemplars.codecs import Codec
    from edgecl.learning.foundation import Foundation
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
              distinct: bool = False) -> Learned:
        """See `Learner.learn`. label: a checked class name."""
        started = time.perf_counter()
        foundation, model, batches, again = self._founded(batches, label)
        backbone = Backbone(model, self.settings.threads) if model else self.sessions.backbone()
        used, tuned = None if model else self.sessions.opened, self.store.tuned()
        codec = foundation.buffer(self.settings).codec
        given = taught(batches, label, backbone, foundation, codec, progress)
        count = len(given.keys)
        if self.settings.memory == "statistics" and count < MIN_SAMPLES:
            raise BadInput(f"{counted(count, 'sample')} of {label!r}: the statistics of so few are the "
                           "samples themselves, and this state keeps none", f"teach {MIN_SAMPLES} or more at once")
        detail = {"class": label, "samples": count}
        meta: dict[str, Any] = {} if model is None else {"foundation": foundation.to_meta()}
        if given.blank and label != NOTHING and not self.store.meta.get("blank"):
            meta["blank"] = True
        change = Rewrite("learn", detail, backbone=model, meta=meta) if meta else Append("learn", detail)
        taught_at = int(time.time())

        def commit() -> tuple[int, list[str], Figures, bool]:
            now, learned, origins = self.store.newest.backbone, given.features, None
            if used is not None and now is not None and used != now:  # a round, or a way back across one, was faster
                if codec.input is None and tuned is not None:
                    raise StateError(f"the backbone of {self.store.path} has just changed", "try again")
                learned = rerun(backbone_bytes(self.store, foundation, now), learned, given.inputs, codec.input)
            if self.settings.memory != "statistics":
                origins = origins_of(given.places, taught_at)
            before = self.repository.heads.last_figures()
            knowledge = self.repository.known(foundation)
            new = label not in knowledge.labels
            if new and not distinct:
                check_new_name(label, knowledge.labels)
            knowledge.add(label, given.keys, learned, given.inputs, origins)
            return self.repository.commit(knowledge, change), knowledge.labels, before, new

        try:
            generation, labels, before, new = exclusively(self.store, commit)
        except FoundedMeanwhile:
            if not again:
                raise
            return self.teach(iter(again), label, distinct=distinct)

        def figures(name: str) -> Callable[[], BeforeAndAfter]:
            def worked_out() -> BeforeAndAfter:
                was, now = (getattr(each, name) for each in (before, self.repository.heads.figures_since(generation)))
                return {each: (was.get(each), now.get(each)) for each in labels}
            return worked_out

        return Learned(label, count, 1000 * (time.perf_counter() - started) / given.given, generation,
                       self.store.used_bytes(), figures("accuracy"), ON[self.settings.memory != "statistics"],
                       given.left_out, given.blank, new, figures("judged"))

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
    none; places: where each came from; given: samples that came, of which `left_out` show nothing and are not among
    these, and `blank` show nothing and are."""

    features: np.ndarray
    keys: list[int]
    inputs: list[bytes]
    places: list[Place]
    given: int
    left_out: int
    blank: int


def taught(batches: Iterable[SampleBatch], label: str, backbone: Backbone, foundation: Foundation, codec: Codec,
           progress: Progress | None = None) -> Taught:
    """The samples of one class as they are to be learned. A few among others that show nothing, see `samples.blank`,
    are left out, unless the class is `nothing`; if half of them or more show nothing, that is what the class looks
    like. progress: called with the number of samples done. Raises BadInput if a sample does not fit the backbone."""
    features: list[np.ndarray] = []
    shows: list[str] = []
    keys: list[int] = []
    inputs: list[bytes] = []
    places: list[Place] = []
    recordings: dict[str, int] = {}
    for batch in batches:
        fitted = prepare(batch.data, foundation.kind, foundation.input_shape)
        features.append(backbone.features(fitted))
        keys += sample_keys(fitted, batch.groups, recordings, batch.sessions)
        shows += blank(fitted, foundation.kind)
        inputs += [codec.input.encode(sample) for sample in fitted] if codec.input else []
        places += batch.places
        if progress:
            progress(len(fitted))
    found = Taught(np.concatenate(features), keys, inputs, places, len(keys), 0, sum(map(bool, shows)))
    if label == NOTHING or not found.blank or 2 * found.blank >= found.given:
        return found
    taken = [place for place, why in enumerate(shows) if not why]
    return Taught(found.features[taken], [keys[i] for i in taken], [inputs[i] for i in taken] if inputs else [],
                  [places[i] for i in taken], found.given, found.blank, 0)
