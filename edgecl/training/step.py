"""What the parts of a method see of one training step."""
from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F  # noqa: N812


class Step(NamedTuple):
    """What the parts may see of one step, or of a piece of it if memory is short: losses are sums over the piece,
    divided by `of` or `old_of`, so that those of all pieces add up to the means over the step.

    features [n, d]; logits [n, C]; targets: columns, int64 [n]; old, old_features: logits and features of the first m
    samples by the network as it was, or None if no part needs them or nothing was known; known: outputs before the
    round; of, old_of: samples of the whole step, and those of them with old logits; smoothing: of labels; fresh: how
    many of the first samples are not replayed; present: their columns, of the whole step; weight [n]: what each label's
    loss counts, None for 1; recorded [n, k]: logits that replayed samples were stored with, else NaN.
    """

    features: Tensor
    logits: Tensor
    targets: Tensor
    old: Tensor | None
    known: int
    of: int
    old_of: int
    smoothing: float = 0.0
    old_features: Tensor | None = None
    fresh: int = 0
    present: Tensor | None = None
    weight: Tensor | None = None
    recorded: Tensor | None = None

    @property
    def share(self) -> float:
        """How much of the step it is."""
        return len(self.targets) / self.of

    def mean(self, losses: Tensor) -> Tensor:
        """This piece's part of the mean over the step of each sample's loss [n]."""
        return (losses if self.weight is None else losses * self.weight).sum() / self.of

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """The mean over the step's samples."""
        return self.mean(F.cross_entropy(logits, self.targets, reduction="none", label_smoothing=self.smoothing))
