"""What a round may take: time, which it learns to fit in, and memory, for which it cuts its batches into pieces."""
from __future__ import annotations

import gc
import math
import time
from typing import TYPE_CHECKING, NamedTuple

import torch

from edgecl.training.batch import Seen
from edgecl.training.step import Step
from edgecl.training.worker.limits import out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from edgecl.training.batch import Batch
    from edgecl.training.constraints.base import Constraint
    from edgecl.training.networks.network import Network

FORWARD = 1 / 3     # of a pass forward and back
LATE = 1.3          # times what is forecast of the work after the last step
FIRST = 3           # times a later step that the first one may take: code is loaded


class Deadline:
    """When the last step must be done. left: seconds until all must be done; closing: samples that go forward after the
    last step; files: seconds that it takes to write them; each: seconds of a sample forward and back, until steps tell;
    batch: samples of a step."""

    def __init__(self, left: float, closing: float, files: float, each: float, batch: int,
                 now: Callable[[], float] = time.monotonic) -> None:
        self.now, self.begun, self.left, self.closing, self.files, self.each, self.batch = \
            now, now(), left, closing, files, each, batch
        self._first: tuple[float, int] | None = None

    def spent(self, samples: int) -> float:
        """The share of the time for steps that has passed; samples: done by now. The first step is slower than others:
        the pace is that of those since."""
        now = self.now()
        if samples and self._first is None:
            self._first = now, samples
        elif self._first is not None and samples > self._first[1]:
            self.each = (now - self._first[0]) / (samples - self._first[1])
        whole = self.left - self.last
        return (now - self.begun) / whole if whole > 0 else 1.0

    @property
    def last(self) -> float:
        """Seconds that one more step and all that comes after it take."""
        step = self.batch * (FIRST if self._first is None else 1)
        return self.files + self.each * (step + LATE * FORWARD * self.closing)


class Pass(NamedTuple):
    """The loss, its gradients, and features [n, d] and logits [n, C] of the batch as they were before the step."""

    loss: float
    gradients: Sequence[Tensor | None]
    features: Tensor
    logits: Tensor

    def seen(self, places: Tensor, batch: Batch, fresh: int) -> Seen:
        """Of samples at these places, and of those that were replayed: the last ones, from `fresh` on."""
        return Seen(self.features[places].float(), self.logits[places].float(), self.features[fresh:].float(),
                    self.logits[fresh:].float(), batch.y[fresh:])


class Allowance:
    """piece: samples that go through the network at a time, None for the whole batch; clock: of the time, None for any;
    stopped: whether to end at once; tight: whether memory is nearly used up, asked after each step."""

    def __init__(self, piece: int | None = None, clock: Deadline | None = None,
                 stopped: Callable[[], bool] = lambda: False, tight: Callable[[], bool] = lambda: False) -> None:
        self.piece, self.clock, self.stopped, self.tight, self.samples = piece, clock, stopped, tight, 0

    def spent(self) -> float:
        """The share of the time that has passed, 1 or more to stop."""
        if self.stopped():
            return 1.0
        return self.clock.spent(self.samples) if self.clock else 0.0

    def passes(self, network: Network, constraints: Sequence[Constraint], batch: Batch, old: Tensor | None, known: int,
               weights: Sequence[Tensor], smoothing: float, old_features: Tensor | None = None,
               fresh: int | None = None, above: Batch | None = None) -> Pass:
        """One pass over a whole batch. old, old_features: logits and features of its first samples; fresh: those of its
        first samples that are not replayed, None for all; see `Step`; above: samples beside
        them that enter the network at a layer of their own.

        Where memory runs out, pieces are halved and the batch begins anew; raises what torch does where one sample is
        too much.
        """
        while True:
            parts = [batch] if above is None else [batch, above]
            piece = min(self.piece or len(batch), max(map(len, parts)))
            try:
                with reduced_precision(network.device):
                    found = _accumulated(network, constraints, parts, (old, old_features), known, weights, smoothing,
                                         piece, len(batch) if fresh is None else fresh)
            except (RuntimeError, MemoryError) as error:
                if piece == 1 or not out_of_memory(error):
                    raise
                self.piece = piece // 2
            else:
                self.samples += sum(map(len, parts))
                if self.tight():
                    self.piece = max(piece // 2, 1)
                return found
            gc.collect()    # outside the handler: its traceback holds what was allocated


def _accumulated(network: Network, constraints: Sequence[Constraint], parts: Sequence[Batch],
                 old: tuple[Tensor | None, Tensor | None], known: int, weights: Sequence[Tensor], smoothing: float,
                 piece: int, fresh: int) -> Pass:
    total: list[Tensor | None] = []
    value, olds, made = 0.0, max(0 if each is None else len(each) for each in old), []
    batch, count = parts[0], sum(map(len, parts))
    present = batch.y[:fresh].unique().to(network.device)
    weight = None if batch.weight is None else batch.weight * (len(batch) / max(fresh, 1))
    for each, start in [(part, start) for part in parts for start in range(0, len(part), piece)]:
        end, first = start + piece, each is batch
        features, logits = network(each.x[start:end], each.place)

        def part_of(values: Tensor | None, here: slice = slice(start, end), to: Tensor = logits, none: bool = not first
                    ) -> Tensor | None:
            return None if none or values is None or here.start >= len(values) else values[here].to(to.device)

        y = each.y[start:end].to(logits.device)
        step = Step(features, logits, y, part_of(old[0]), known, count, olds, smoothing, part_of(old[1]),
                    min(max(fresh - start, 0), len(y)) * first, present, part_of(weight), part_of(batch.recorded))
        loss = network.head.loss(step) * math.prod(part.of_labels(step) for part in constraints)
        for part in constraints:
            loss = loss + part.penalty(step)
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        value += loss.item()
        if first:
            made.append((features.detach().cpu(), logits.detach().cpu()))
        total = [a if b is None else b if a is None else a.add_(b) for a, b in zip(total, gradients)] or list(gradients)
        del features, logits, step, loss, gradients, part_of    # or they would be held while the next piece is computed
    return Pass(value, total, *(torch.cat(each) for each in zip(*made)))


def reduced_precision(device: torch.device) -> torch.autocast:
    """bfloat16 where the device computes in it; elsewhere nothing changes."""
    able = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=able)
