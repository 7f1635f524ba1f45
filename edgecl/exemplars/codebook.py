"""The codebook of a learner's exemplars: when product quantisation takes over from int8, and what it makes of them."""
from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgecl.errors import BadInput
from edgecl.exemplars.product_quantiser import ProductQuantiser, plan
from edgecl.exemplars.selection import OWN_BITS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecl.exemplars.stored import StoredSample

FIRST_CLASSES = 4   # the first codebook is made from so many classes,
CLASS_GROWTH = 4    # the next one from so many times as many
ARRAYS = ("mean", "scale", "books", "units")
FILE_FRAME = 512    # bytes of a codebook's file beside its numbers


@dataclass(frozen=True)
class Codebook:
    """A product quantiser and the file that holds it. name, length: of the file; classes: known when it was made."""

    name: str
    codec: ProductQuantiser
    length: int
    classes: int

    @classmethod
    def read(cls, name: str, data: bytes, power: float, classes: int) -> Codebook:
        """From a file's content; power: of the learner's `FeatureTransform`."""
        file = io.BytesIO(data)
        arrays = {part: np.load(file, allow_pickle=False) for part in ARRAYS}
        return cls(name, ProductQuantiser.from_arrays(arrays, power), len(data), classes)

    @classmethod
    def make(cls, rows: list[StoredSample], sizes: tuple[int, int], power: float, classes: int, seed: int) -> tuple[
            Codebook, bytes] | None:
        """One for such samples, and its file's content; None if it gets too large. sizes: of `codebook_sizes`."""
        order = sorted(rows, key=lambda row: (row.key & OWN_BITS, row.label))
        try:
            features = np.stack([row.feature for row in order])
            found = ProductQuantiser.train(features, sizes[0], sizes[1] - FILE_FRAME, seed, power)
        except BadInput:
            return None
        file = io.BytesIO()
        for part in ARRAYS:
            np.save(file, found.to_arrays()[part], allow_pickle=False)
        data = file.getvalue()
        return cls(f"{hashlib.sha256(data).hexdigest()}.codebook", found, len(data), classes), data

    def take(self, rows: list[StoredSample], whole: NDArray[np.bool_]) -> list[StoredSample]:
        """The samples as they are kept: all but those that stay `whole` [n] went through the codec."""
        fresh = [i for i, (row, exact) in enumerate(zip(rows, whole)) if not exact and row.coded != self.name]
        if not fresh:
            return rows
        decoded = self.codec.decode(self.codec.encode(np.stack([rows[i].feature for i in fresh])))
        taken = list(rows)
        for i, feature in zip(fresh, decoded):
            taken[i] = rows[i]._replace(feature=feature, coded=self.name)
        return taken


def codebook_sizes(codec: str, limit: int, dimension: int, classes: int,
                   now: Codebook | None) -> tuple[int, int] | None:
    """(code_bytes, codebook_bytes) of a codebook that is to be made, for a buffer of `limit` bytes; None if the present
    one, or int8, is good enough. codec: as the user calls it."""
    if codec not in ("auto", "pq") or classes < (CLASS_GROWTH * now.classes if now else FIRST_CLASSES):
        return None
    sizes = plan(limit, dimension, classes)
    if sizes is None and codec == "pq":
        sizes = max(dimension // 4, 8), limit // 3
    return sizes
