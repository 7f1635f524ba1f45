"""What the network answered before it was trained, for parts that hold it to that."""
from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from edgecl.training.networks.network import outputs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from edgecl.training.batch import Batch
    from edgecl.training.constraints.base import Constraint
    from edgecl.training.networks.heads import Head
    from edgecl.training.networks.network import Network


class Teacher:
    """Logits and features by the network as it is now, if any part needs them: of a data set computed once, in advance;
    of replayed samples by a copy of the network, in each step."""

    def __init__(self, network: Network, pupils: Iterable[Head | Constraint], data: Batch, replays: bool) -> None:
        """pupils: what may need the answers; replays: whether samples are replayed beside the data set."""
        self.known = network.head.classes
        needed = [(pupil.needs_old, getattr(pupil, "needs_old_features", False)) for pupil in pupils]
        self.featured = any(features for _, features in needed)
        asked = self.known > 0 and (self.featured or any(logits for logits, _ in needed))
        self.network = deepcopy(network).eval() if asked and replays else None
        self.answers = self._answered(network, data.x) if asked else None

    def teach(self, batch: Batch, rows: Tensor) -> Batch:
        """The batch with the old answers for its samples, the first of which are those rows of the data set."""
        if self.answers is None:
            return batch
        old = self.answers[rows]
        if batch.replayed and self.network is not None:
            old = torch.cat([old, self._answered(self.network, batch.x[batch.fresh:])])
        return replace(batch, old=old[:, -self.known:], old_features=old[:, :-self.known] if self.featured else None)

    def _answered(self, network: Network, x: Tensor) -> Tensor:
        """Features, if they are needed, and logits side by side, float32 [n, ...]."""
        def answered(part: Tensor) -> Tensor:
            return torch.cat(network(part), 1) if self.featured else network(part)[1]

        return outputs(answered, x, network.block)
