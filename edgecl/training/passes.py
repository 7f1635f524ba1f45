"""Passes forward and back: of a whole batch or in pieces, within the time and the memory that a round may take."""
from __future__ import annotations

import gc
import math
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import torch

from edgecl.training.batch import Seen
from edgecl.training.step import Step
from edgecl.training.worker.limits import out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from edgecl.training.batch import Batch
    from edgecl.training.constraints.base import Constraint, Gradients
    from edgecl.training.networks.network import Network

FORWARD = 1 / 3         # of a pass forward and back
CLOSING_MARGIN = 1.3    # times the forecast of the work after the last step
FIRST_STEP = 3          # times a later step that the first one may take: code is loaded


class Deadline:
    """When the last step must be done. left: seconds until everything must be done; closing: samples that go forward
    after the last step; files: seconds to write them; each: seconds per sample forward and back, until steps show it;
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
        """Seconds that one more step takes, and all that comes after it."""
        step = self.batch * (FIRST_STEP if self._first is None else 1)
        return self.files + self.each * (step + CLOSING_MARGIN * FORWARD * self.closing)


@dataclass(frozen=True)
class Objective:
    """What the steps of a phase minimise: the loss of the network's head and the penalties of parts. known: outputs
    before the round; smoothing: of labels."""

    network: Network
    parts: Sequence[Constraint]
    known: int
    smoothing: float = 0.0

    @cached_property
    def weights(self) -> list[Tensor]:
        """What is trained."""
        return list(self.network.parameters())

    @cached_property
    def head_only(self) -> Objective:
        """Without the parts."""
        return replace(self, parts=())

    def loss(self, step: Step) -> Tensor:
        """A scalar."""
        loss = self.network.head.loss(step) * math.prod(part.label_weight(step) for part in self.parts)
        for part in self.parts:
            loss = loss + part.penalty(step)
        return loss


class Pass(NamedTuple):
    """The loss, its gradients, and features [n, d] and logits [n, C] of the batch as they were before the step."""

    loss: float
    gradients: Gradients
    features: Tensor
    logits: Tensor

    def seen(self, places: Tensor, batch: Batch) -> Seen:
        """Of samples at these places, and of those that were replayed."""
        fresh = batch.fresh
        return Seen(self.features[places].float(), self.logits[places].float(), self.features[fresh:].float(),
                    self.logits[fresh:].float(), batch.y[fresh:])


class Allowance:
    """What a round may take. piece: samples that go through the network at a time, None for the whole batch; clock: of
    the time, None for no limit; stopped: whether to end at once; tight: whether memory is nearly used up, asked after
    each step; progress: called after each step with the samples done, replayed ones included, and the loss."""

    def __init__(self, piece: int | None = None, clock: Deadline | None = None,
                 stopped: Callable[[], bool] = lambda: False, tight: Callable[[], bool] = lambda: False,
                 progress: Callable[[int, float], None] = lambda done, loss: None) -> None:
        self.piece, self.clock, self.stopped, self.tight, self.progress = piece, clock, stopped, tight, progress
        self.samples = 0

    def report_to(self, progress: Callable[[int, float], None]) -> None:
        """Call this with the progress from now on."""
        self.progress = progress

    def spent(self) -> float:
        """The share of the time that has passed, 1 or more to stop."""
        if self.stopped():
            return 1.0
        return self.clock.spent(self.samples) if self.clock else 0.0

    def passes(self, objective: Objective, batch: Batch) -> Pass:
        """One pass over a whole batch.

        If memory runs out, pieces are halved and the batch starts again; raises what torch does if one sample is too
        much.
        """
        while True:
            most = len(batch) if batch.above is None else max(len(batch), len(batch.above))
            piece = min(self.piece or len(batch), most)
            try:
                with reduced_precision(objective.network.device):
                    found = _accumulated(objective, batch, piece)
            except (RuntimeError, MemoryError) as error:
                if piece == 1 or not out_of_memory(error):
                    raise
                self.piece = piece // 2
            else:
                self.samples += batch.count
                if self.tight():
                    self.piece = max(piece // 2, 1)
                return found
            gc.collect()    # outside the handler: its traceback holds what was allocated


class Course:
    """How far a phase is: by its steps, or by its time if that passes sooner. until: the share of the round's time at
    which it ends."""

    def __init__(self, allowance: Allowance, steps: int, until: float) -> None:
        self.allowance, self.steps, self.until, self.begun = allowance, steps, until, allowance.spent()

    def share(self, done: int) -> float:
        """1 or more once no step is left. done: steps by now."""
        spent = self.allowance.spent()
        return max(done / self.steps,
                   1.0 if spent >= self.until else (spent - self.begun) / (self.until - self.begun))


def _accumulated(objective: Objective, batch: Batch, piece: int) -> Pass:
    """Loss and gradients, summed over pieces of so many samples."""
    network, device = objective.network, objective.network.device
    total: list[Tensor | None] = []
    value, made, old_of = 0.0, [], 0 if batch.old is None else len(batch.old)
    present = batch.y[:batch.fresh].unique().to(device)
    scale = len(batch) / max(batch.fresh, 1)       # of weights: those of new samples are 1
    for number, part in enumerate(batch.pieces(piece)):
        features, logits = network(part.x, part.place)

        def moved(values: Tensor | None, to: torch.device = logits.device) -> Tensor | None:
            return None if values is None else values.to(to)

        weight = None if part.weight is None else part.weight * scale
        step = Step(features, logits, part.y.to(logits.device), moved(part.old), objective.known, batch.count, old_of,
                    objective.smoothing, moved(part.old_features), part.fresh, present, moved(weight),
                    moved(part.recorded))
        loss = objective.loss(step)
        gradients = torch.autograd.grad(loss, objective.weights, allow_unused=True)
        value += loss.item()
        if number * piece < len(batch):
            made.append((features.detach().cpu(), logits.detach().cpu()))
        total = [a if b is None else b if a is None else a.add_(b) for a, b in zip(total, gradients)] or list(gradients)
        del features, logits, step, loss, gradients     # or they would be held while the next piece is computed
    return Pass(value, total, *(torch.cat(each) for each in zip(*made)))


def reduced_precision(device: torch.device) -> torch.autocast:
    """bfloat16 if the device computes in it; else nothing changes."""
    able = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=able)
