"""Samples on their way through a round."""
from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from torch import Tensor

HELD_BACK = 10      # one in so many samples is held back if a part asks for it


@dataclass(frozen=True)
class Batch:
    """Samples as they came, uint8 or float32 [n, ...], and their columns (outputs of the network), int64 [n].

    weight [n]: what the loss of a replayed sample's label counts against that of a new one, None for the mean over all;
    recorded [n, k]: logits that a replayed sample was stored with, NaN if there are none; place: of activations, the
    layers of the network below them, None for what the network takes; replayed: how many of the last samples are;
    above: replayed activations that go with them and enter the network at a place of their own; old, old_features:
    logits [m, k] and features [m, d] of the first m samples by the network as it was, None if no part needs them.
    """

    x: Tensor
    y: Tensor
    weight: Tensor | None = None
    recorded: Tensor | None = None
    place: int | None = None
    replayed: int = 0
    above: Batch | None = None
    old: Tensor | None = None
    old_features: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def count(self) -> int:
        """Samples, including those above."""
        return len(self) + (0 if self.above is None else len(self.above))

    @property
    def fresh(self) -> int:
        """How many of the first samples are not replayed."""
        return len(self) - self.replayed

    def take(self, rows: Tensor) -> Batch:
        """The samples of those rows, int64 [m], copied."""
        return Batch(self.x.index_select(0, rows), self.y.index_select(0, rows))

    def join(self, other: Batch) -> Batch:
        """Both, copied; weights and recorded logits, if only the other has them, are 1 and NaN here."""
        weight = None if other.weight is None else torch.cat([torch.ones(len(self)), other.weight])
        recorded = None if other.recorded is None else torch.cat([
            other.recorded.new_full((len(self), other.recorded.shape[1]), torch.nan), other.recorded])
        return Batch(torch.cat([self.x, other.x]), torch.cat([self.y, other.y]), weight, recorded)

    def with_replayed(self, samples: Batch) -> Batch:
        """These new samples, then replayed ones, at whatever layer those enter the network."""
        samples = replace(samples, replayed=len(samples))
        return replace(self.join(samples), replayed=len(samples)) if samples.place is None else \
            replace(self, above=samples)

    def mirrored(self, axis: int, generator: np.random.Generator) -> Batch:
        """Half of the samples, drawn at random, flipped along an axis; those above stay as they are."""
        flipped = torch.from_numpy(generator.random(len(self)) < 0.5).view(-1, *[1] * (self.x.dim() - 1))
        return replace(self, x=torch.where(flipped, self.x.flip(axis), self.x))

    def pieces(self, size: int) -> Iterator[Batch]:
        """All samples in order, `size` at most at a time, those above last and by themselves; not copied."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size)

            def cut(values: Tensor | None, rows: slice = rows) -> Tensor | None:
                return None if values is None or rows.start >= len(values) else values[rows]

            y = self.y[rows]
            yield Batch(self.x[rows], y, cut(self.weight), cut(self.recorded), self.place,
                        len(y) - min(max(self.fresh - start, 0), len(y)), None, cut(self.old), cut(self.old_features))
        if self.above is not None:
            yield from self.above.pieces(size)


class Seen(NamedTuple):
    """What the network made of samples in the step that trained them, before that step: features [n, d] and logits
    [n, C]; and of those replayed in it [m, ...], with their columns."""

    features: Tensor
    logits: Tensor
    old_features: Tensor
    old_logits: Tensor
    old_columns: Tensor


def held_back(batch: Batch) -> NDArray[np.bool_]:
    """Which samples are held back, about one in `HELD_BACK`: decided by their content, so always the same ones, and
    nothing needs to be stored. A class has none unless at least two of its samples are left."""
    held = np.array([is_held(sample) for sample in batch.x], bool)
    for column in batch.y.unique().tolist():
        mine = batch.y.numpy() == column
        if (mine & ~held).sum() < 2:
            held[mine] = False
    return held


def is_held(sample: Tensor) -> bool:
    """Whether a sample is held back, by its content alone."""
    digest = hashlib.blake2b(sample.contiguous().numpy().tobytes(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % HELD_BACK == 0
