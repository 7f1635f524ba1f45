"""Why an answer is what it is: the likeliest classes, the stored samples that the sample is most like, and how far
outside of what is known it is."""
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgecl.errors import BadInput
from edgecl.exemplars.sample_ids import parse_sample_id, sample_id
from edgecl.heads.nearest import NearestSamples
from edgecl.results import LikelyClass, StoredMatch, Why
from edgecl.samples import Place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgecl.exemplars.origin import Origin
    from edgecl.exemplars.stored import StoredSample
    from edgecl.heads.onnx_head import HeadSession
    from edgecl.learning.repository import Repository
    from edgecl.statistics.transform import FeatureTransform

TOP = 3             # classes that are named
DIGITS = 4          # of a similarity: 8-bit integers tell no more
ROW_BYTES = 150     # of what is kept of a stored sample beside its numbers, about
KEEPS_NONE = "this state keeps no samples (memory: statistics)"
NONE_STORED = "no sample is stored"


class Row(NamedTuple):
    """What an answer says of a stored sample."""

    id: int
    label: str
    origin: Origin
    tick: int
    picture: bool

    def match(self, similarity: float) -> StoredMatch:
        """The sample as a match."""
        source = str(Place(self.origin.name, self.origin.position(self.tick), self.origin.unit))
        return StoredMatch(sample_id(self.id), self.label, source, similarity, self.picture)


class Explainer:
    """Explains the answers of one generation. bytes: of memory that it holds; note: why it names no stored samples, ""
    if it does."""

    def __init__(self, rows: Sequence[StoredSample], transform: FeatureTransform, photos: bool, note: str = "") -> None:
        """rows: the stored samples; transform: of their features, without a projection."""
        self.note = note or ("" if rows else NONE_STORED)
        self._rows = [Row(row.id or 0, row.label, row.origin, row.tick, bool(row.input)) for row in rows]
        self._nearest: NearestSamples | None = None
        if rows:
            classes = np.unique([row.label for row in rows], return_inverse=True)[1].astype(np.int64)
            self._nearest = NearestSamples([row.feature for row in rows], classes, transform, photos)
        self.bytes = (self._nearest.bytes if self._nearest else 0) + ROW_BYTES * len(rows)

    def __call__(self, head: HeadSession, features: NDArray[np.float32], probabilities: NDArray[np.float32],
                 novelty: NDArray[np.float32]) -> list[Why]:
        """Explain the answers of a head to features float32 [n, d]; the other two are `HeadSession.scores` of them."""
        best = np.argsort(-probabilities, 1, kind="stable")[:, :TOP]
        shares, outside = probabilities[np.arange(len(best))[:, None], best], head.outside(novelty)
        matches: list[tuple[StoredMatch, ...]] = [()] * len(features)
        if self._nearest is not None:
            places, similarities = self._nearest(features)
            matches = [tuple(self._rows[place].match(similarity) for place, similarity in zip(*each))
                       for each in zip(places.tolist(), similarities.round(DIGITS).tolist())]
        told = [None] * len(features) if outside is None else outside.tolist()
        tops = [tuple(LikelyClass(head.labels[place], share) for place, share in zip(*each))
                for each in zip(best.tolist(), shares.tolist())]
        return [Why(*each, self.note) for each in zip(tops, matches, told)]


def explainer_of(repository: Repository, generation: int) -> Explainer:
    """An explainer of the answers of a generation. Raises StateError before anything was taught."""
    foundation, settings = repository.foundation, repository.settings
    assert foundation is not None
    transform, photos = foundation.transforms(settings.seed)[0].plain, foundation.kind == "image"
    if settings.memory == "statistics":
        return Explainer([], transform, photos, KEEPS_NONE)
    with repository.store.reading():
        return Explainer(repository.store.samples(generation), transform, photos)


def stored_input(repository: Repository, text: str) -> NDArray[np.generic] | None:
    """The input of a stored sample, uint8 [h, w, 3] or float32 [time, channels], by its id as people write it; None if
    only its feature is stored. Raises BadInput for an unknown one."""
    number, foundation = parse_sample_id(text), repository.foundation
    row = None
    if foundation is not None and repository.settings.memory != "statistics":
        row = next((row for row in repository.known().stored if row.id == number), None)
    if foundation is None or row is None:
        raise BadInput(f"no sample {text} is stored", "see `edgecl samples`; what a correction moves has a new id")
    codec = foundation.buffer(repository.settings).codec.input
    return codec.decode(row.input) if codec is not None and row.input else None
