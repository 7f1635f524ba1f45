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
    from edgecl.samples import Place, SampleBatch


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
    found = Taught(np.concatenate(features), keys, inputs, places, len(keys), 0, sum(map(bool, shows)))
    if label == NOTHING or not found.blank or 2 * found.blank >= found.given:
        return found
    taken = [place for place, why in enumerate(shows) if not why]
    return Taught(found.features[taken], [keys[i] for i in taken], [inputs[i] for i in taken] if inputs else [],
                  [places[i] for i in taken], found.given, found.blank, 0)
