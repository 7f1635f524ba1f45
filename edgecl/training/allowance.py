"""What a round may take: time, which it learns to fit in, and memory, for which it cuts its batches into pieces."""
from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import torch

from edgecl.errors import BudgetError
from edgecl.training.heads import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from edgecl.training.constraints import Constraint
    from edgecl.training.memory import Batch
    from edgecl.training.network import Network


class Allowance:
    """piece: samples that go through the network at a time, None for the whole batch; spent: the share of the time that
    has passed, 1 or more to stop; tight: whether memory is nearly used up."""

    def __init__(self, piece: int | None = None, spent: Callable[[], float] = lambda: 0.0,
                 tight: Callable[[], bool] = lambda: False) -> None:
        self.piece, self.spent, self.tight = piece, spent, tight

    def passes(self, network: Network, constraints: Sequence[Constraint], batch: Batch, old: Tensor | None, known: int,
               weights: Sequence[Tensor], smoothing: float) -> tuple[float, Sequence[Tensor | None]]:
        """The loss and its gradients over a whole batch. old: logits of its first samples, see `Step`.

        Where memory runs out, pieces are halved and the batch begins anew; raises BudgetError where one sample is too
        much.
        """
        while True:
            piece = min(self.piece or len(batch), len(batch))
            try:
                with reduced_precision(network.device):
                    found = _accumulated(network, constraints, batch, old, known, weights, smoothing, piece)
                if self.tight():
                    self.piece = max(piece // 2, 1)
                return found
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                if piece == 1:
                    raise BudgetError("one sample is too much for the memory of this round", "give --memory more") \
                        from error
                self.piece = piece // 2
            gc.collect()    # outside the handler: its traceback holds what was allocated


def _accumulated(network: Network, constraints: Sequence[Constraint], batch: Batch, old: Tensor | None, known: int,
                 weights: Sequence[Tensor], smoothing: float, piece: int) -> tuple[float, Sequence[Tensor | None]]:
    total: list[Tensor | None] = []
    value, olds = 0.0, 0 if old is None else len(old)
    for start in range(0, len(batch), piece):
        x, y = batch.x[start:start + piece], batch.y[start:start + piece]
        features, logits = network(x)
        before = None if old is None or start >= olds else old[start:start + piece].to(logits.device)
        step = Step(features, logits, y.to(logits.device), before, known, len(batch), olds, smoothing)
        loss = network.head.loss(step)
        for part in constraints:
            loss = loss + part.penalty(step)
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        value += loss.item()
        total = [a if b is None else b if a is None else a.add_(b) for a, b in zip(total, gradients)] or list(gradients)
    return value, total


def reduced_precision(device: torch.device) -> torch.autocast:
    """bfloat16 where the device computes in it; elsewhere nothing changes."""
    able = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=able)


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        sign in str(error) for sign in ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc"))
