"""Samples on their way through a round."""
from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

HOLD = 10       # one in so many samples is held back, where a part asks for it


@dataclass(frozen=True)
class Batch:
    """Samples as they came, uint8 or float32 [n, ...], and their columns (outputs of the network), int64 [n].

    weight [n]: what the loss of a replayed sample's label counts against that of a new one, None for the mean over all;
    recorded [n, k]: logits that a replayed sample was stored with, NaN where there are none; place: of activations, the
    layers of the network that lie below them, None for what the network takes.
    """

    x: Tensor
    y: Tensor
    weight: Tensor | None = None
    recorded: Tensor | None = None
    place: int | None = None

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: Tensor) -> Batch:
        """The samples of those rows, int64 [m], copied."""
        return Batch(self.x.index_select(0, rows), self.y.index_select(0, rows))

    def join(self, other: Batch) -> Batch:
        """Both, copied; what the other has besides is 1 and NaN here."""
        weight = None if other.weight is None else torch.cat([torch.ones(len(self)), other.weight])
        recorded = None if other.recorded is None else torch.cat([
            other.recorded.new_full((len(self), other.recorded.shape[1]), torch.nan), other.recorded])
        return Batch(torch.cat([self.x, other.x]), torch.cat([self.y, other.y]), weight, recorded)

    def mirrored(self, axis: int, generator: np.random.Generator) -> Batch:
        """Every other sample, drawn by lot, turned round along an axis."""
        lots = torch.from_numpy(generator.random(len(self)) < 0.5).view(-1, *[1] * (self.x.dim() - 1))
        return replace(self, x=torch.where(lots, self.x.flip(axis), self.x))


class Seen(NamedTuple):
    """What the network made of samples in the step that they were trained in, before it: features [n, d] and logits
    [n, C]; and of those that were replayed beside them [m, ...], with their columns."""

    features: Tensor
    logits: Tensor
    old_features: Tensor
    old_logits: Tensor
    old_columns: Tensor


def held_back(batch: Batch) -> NDArray[np.bool_]:
    """Which samples are held back, one in HOLD, for ever and without a note of it: by their content. Classes with less
    than two that are not have none."""
    held = np.array([is_held(sample) for sample in batch.x], bool)
    for column in batch.y.unique().tolist():
        mine = batch.y.numpy() == column
        if (mine & ~held).sum() < 2:
            held[mine] = False
    return held


def is_held(sample: Tensor) -> bool:
    """By its content."""
    digest = hashlib.blake2b(sample.contiguous().numpy().tobytes(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % HOLD == 0
