"""What holds old knowledge in place while the network learns: the hooks of the loop, and penalties on activations."""
from __future__ import annotations

from typing import TYPE_CHECKING

from torch.nn import functional as F  # noqa: N812

from edgecl.training.part import Part

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from torch import Tensor, nn

    from edgecl.training.heads import Step
    from edgecl.training.memory import Batch, Nothing


class Constraint(Part):
    """Constrains nothing; the base of all."""

    needs_old = False   # the old network's logits of the round's data set

    def beside(self, numbers: int, memory: Nothing) -> int:
        """Bytes that the next round takes of those for exemplars. numbers: of all parameters."""
        return 0

    def begin(self, network: nn.Module, rates: Sequence[Tensor | float]) -> None:
        """Before the first step of a round, with the network as it was left but for the outputs of new classes. rates:
        the largest step of each parameter, or of each row of it, for a gradient of 1."""

    def penalty(self, step: Step) -> Tensor | float:
        """A scalar that is added to the loss: this piece's share of the whole step's. A part that adds its gradient in
        `project` gives it without one."""
        return 0.0

    def observe(self, batch: Batch, gradients: Sequence[Tensor | None]) -> None:
        """Each step's samples and the gradients of its loss, in the order of the network's parameters, before any part
        projects them or adds to them; neither may be changed or kept."""

    def references(self, memory: Nothing, generator: np.random.Generator) -> Sequence[Batch]:
        """Samples whose mean gradients `project` wants to see, asked for before each step."""
        return ()

    def project(self, gradients: Sequence[Tensor | None],
                references: Iterable[Sequence[Tensor | None]] = ()) -> Sequence[Tensor | None]:
        """The gradients to step with; they may be changed in place. references: the gradients of the head's loss over
        each of `references`, computed one by one as they are asked for."""
        return gradients

    def after_step(self) -> None:
        """After each step."""

    def end(self, network: nn.Module, new: Batch, generator: np.random.Generator) -> None:
        """After the last step, with the network in evaluation mode."""


class Distillation(Constraint):
    """Cross-entropy between softened old and new responses of the old outputs (Li & Hoiem 2016, equations 2 and 3).

    squared: multiply by T^2, so that the gradient does not shrink with T (Hinton et al. 2015, section 2); Li & Hoiem
    do not. Its least value, the entropy of the old responses, is subtracted: 0 where nothing changed, same gradient.
    """

    needs_old = True

    def __init__(self, temperature: float, strength: float, squared: bool) -> None:
        self.temperature = temperature
        self.factor = strength * (temperature ** 2 if squared else 1.0)

    def penalty(self, step: Step) -> Tensor | float:
        if step.old is None:
            return 0.0
        now = F.log_softmax(step.logits[:len(step.old), :step.known] / self.temperature, 1)
        before = F.log_softmax(step.old / self.temperature, 1)
        return self.factor * F.kl_div(now, before, reduction="sum", log_target=True) / step.old_of
