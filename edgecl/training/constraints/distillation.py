"""Constraints on outputs: the network's answers are kept close to those that it gave before."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from edgecl.training.constraints.base import Constraint

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from edgecl.training.batch import Batch
    from edgecl.training.part import Arrays
    from edgecl.training.step import Step

STEP_OF_RECORDED = 3    # a step has this many times as many samples as recorded logits, see `replay.Recorded`


class Distillation(Constraint):
    """Cross-entropy between softened old and new responses of the old outputs (Li & Hoiem 2016, equations 2 and 3).

    squared: multiply by T^2, so that the gradient does not shrink with T (Hinton et al. 2015, section 2); Li & Hoiem
    don't. Its least value, the entropy of the old responses, is subtracted: it is 0 if nothing changed, with the same
    gradient.
    """

    needs_old = True

    def __init__(self, temperature: float, strength: float, squared: bool) -> None:
        self.temperature = temperature
        self.factor = strength * (temperature ** 2 if squared else 1.0)

    def penalty(self, step: Step) -> Tensor | float:
        return 0.0 if step.old is None else self.factor * self.divergence(step, slice(0, step.old.shape[1]))

    def divergence(self, step: Step, outputs: slice) -> Tensor:
        """The distillation loss over some outputs."""
        assert step.old is not None
        now = F.log_softmax(step.logits[:len(step.old), outputs] / self.temperature, 1)
        before = F.log_softmax(step.old[:, outputs] / self.temperature, 1)
        return F.kl_div(now, before, reduction="sum", log_target=True) / step.old_of


class ClassShare(Distillation):
    """(1 - s) x loss + s x distillation, s = n / (n + m), n old and m new outputs (Wu et al. 2019, section 3; Zhao et
    al. 2020, section 3.1)."""

    def __init__(self, temperature: float) -> None:
        super().__init__(temperature, 1.0, False)

    def label_weight(self, step: Step) -> float:
        return 1.0 - self._share(step)

    def penalty(self, step: Step) -> Tensor | float:
        return self._share(step) * super().penalty(step)

    @staticmethod
    def _share(step: Step) -> float:
        return step.known / step.logits.shape[1] if step.old is not None or step.known else 0.0


class ByRound(Distillation):
    """One distillation loss for the outputs of each earlier round, each with a softmax of its own (Castro et al. 2018,
    section 3.2, equation 3)."""

    def __init__(self, temperature: float) -> None:
        super().__init__(temperature, 1.0, False)
        self.ends: list[int] = []

    def penalty(self, step: Step) -> Tensor | float:
        if step.old is None:
            return 0.0
        width = step.old.shape[1]
        ends = sorted({end for end in self.ends if end < width} | {step.known, width} - {0})
        return sum(self.divergence(step, slice(begin, end)) for begin, end in zip([0, *ends], ends))

    def end(self, network: nn.Module, new: Batch, generator: np.random.Generator) -> None:
        self.ends = sorted({*self.ends, network.head.classes})

    def state(self) -> Arrays:
        return {"ends": np.array(self.ends, np.int32)} if self.ends else {}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self.ends = [int(end) for end in state.get("ends", ())]


class LogitReplay(Constraint):
    """strength x mean squared difference from the logits that replayed samples were stored with (Buzzega et al. 2020,
    equation 6), see `replay.Recorded`."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def penalty(self, step: Step) -> Tensor | float:
        if step.recorded is None:
            return 0.0
        known = step.recorded.isfinite()
        gap = torch.where(known, step.logits[:, :step.recorded.shape[1]] - step.recorded.nan_to_num(), 0.0)
        losses = gap.square().sum(1) / known.sum(1).clamp(min=1)
        return self.strength * losses.sum() / step.of * STEP_OF_RECORDED
