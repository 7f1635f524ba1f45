"""Constraints on the head alone: margins between outputs, fixed weights, positive weights."""
from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional as F  # noqa: N812

from edgecl.training.constraints.base import Constraint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from edgecl.training.step import Step


class MarginRanking(Constraint):
    """max(0, margin - cos(h, w_y) + cos(h, w_k)), summed over the `hardest` new outputs k of each sample of
    an old class (Hou et al. 2019, section 3.4, equation 8); mean over those samples."""

    def __init__(self, margin: float, hardest: int) -> None:
        self.margin, self.hardest = margin, hardest

    def begin(self, network: nn.Module, rates: Sequence[Tensor | float]) -> None:
        self.head = network.head

    def penalty(self, step: Step) -> Tensor | float:
        new, old = step.logits.shape[1] - step.known, step.targets < step.known
        if not step.known or not new or not old.any():
            return 0.0
        cosine = self.head.cosines(step.features[old])
        own = cosine.gather(1, step.targets[old][:, None])
        rivals = cosine[:, step.known:].topk(min(self.hardest, new), 1).values
        return F.relu(self.margin - own + rivals).sum() / step.of


class FixedClasses(Constraint):
    """The weights of outputs that were known before the round stay as they are (Hou et al. 2019, section 4.1, the
    authors' program): against gradient, momentum and decay alike."""

    def begin(self, network: nn.Module, rates: Sequence[Tensor | float]) -> None:
        self.known = 0
        self.rows = [(p.detach(), p.detach().clone()) for p in network.head.parameters() if p.dim()]

    def penalty(self, step: Step) -> Tensor | float:
        self.known = step.known
        return 0.0

    def after_step(self, share: float) -> bool:
        for now, then in self.rows:
            now[:self.known] = then[:self.known]
        return False


class PositiveWeights(Constraint):
    """The head's weights are clamped to 0 or more after each step, so that, for features that are not negative, their
    norms say how large logits are (Zhao et al. 2020, section 3.3, "restriction to the weights")."""

    def begin(self, network: nn.Module, rates: Sequence[Tensor | float]) -> None:
        self.weight = network.head.weight.detach()
        self.weight.clamp_(min=0)

    def after_step(self, share: float) -> bool:
        self.weight.clamp_(min=0)
        return False
