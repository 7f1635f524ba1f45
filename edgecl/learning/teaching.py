"""What is taught: features, keys and encoded inputs of the samples of one class, without those that show nothing."""
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgecl.samples import NOTHING, blank, prepare, sample_keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from edgecl.backbones.session import Backbone
    from edgecl.exemplars.codecs import Codec
    from edgecl.learning.foundation import Foundation
    from edgecl.learning.knowledge import Knowledge
    from edgecl.samples import Place, SampleBatch


class Taught(NamedTuple):
    """Samples to learn: features float32 [n, d]; keys: of `sample_keys`; inputs: encoded samples, [] if the codec keeps
    none; places: where each came from; blank: whether each shows nothing; given: samples that came, of which `left_out`
    show nothing and are not among these."""

    features: np.ndarray
    keys: list[int]
    inputs: list[bytes]
    places: list[Place]
    blank: list[bool]
    given: int
    left_out: int


class Count(NamedTuple):
    """What counts of samples that were taught: samples, blank ones among them; known: which don't count, bool [n]; new:
    whether the class is; also_in, unrecognised: see `Learned`."""

    samples: int
    blank: int
    known: np.ndarray
    new: bool
    also_in: dict[str, list[str]]
    unrecognised: int


def taught(batches: Iterable[SampleBatch], label: str, backbone: Backbone, foundation: Foundation, codec: Codec,
           progress: Callable[[int], None] | None = None) -> Taught:
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
    count = sum(map(bool, shows))
    found = Taught(np.concatenate(features), keys, inputs, places, [*map(bool, shows)], len(keys), 0)
    if label == NOTHING or not count or 2 * count >= found.given:
        return found
    taken = [place for place, why in enumerate(shows) if not why]
    return Taught(found.features[taken], [keys[i] for i in taken], [inputs[i] for i in taken] if inputs else [],
                  [places[i] for i in taken], [False] * len(taken), found.given, count)


def counting(knowledge: Knowledge, label: str, given: Taught, again: bool) -> Count:
    """What counts of what is taught; again: all of it."""
    before = knowledge.plain.counts.get(label, 0) if knowledge.statistics else 0
    found = knowledge.recognise(label, given.keys, given.features)
    known = np.zeros(len(given.keys), np.bool_) if again else found.known
    also_in = {other: [str(given.places[place]) for place in places] for other, places in found.elsewhere.items()}
    return Count(int(np.count_nonzero(~known)), int(np.count_nonzero(~known & given.blank)), known, not before, also_in,
                 0 if again or knowledge.gaussians is not None else before - knowledge.known.count(label))
