"""What holds old knowledge in place while the network learns: the hooks of the loop."""
from __future__ import annotations

from typing import TYPE_CHECKING

from edgecl.training.part import Part

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from torch import Tensor, nn

    from edgecl.training.batch import Batch
    from edgecl.training.memory.exemplars import Nothing
    from edgecl.training.step import Step


class Constraint(Part):
    """Constrains nothing; the base of all."""

    needs_old = False               # the old network's logits of the round's data set
    needs_old_features = False      # and its features

    def beside(self, numbers: int, memory: Nothing) -> int:
        """Bytes that the next round takes of those for exemplars. numbers: of all parameters."""
        return 0

    def begin(self, network: nn.Module, rates: Sequence[Tensor | float]) -> None:
        """Before the first step of a round, with the network as it was left but for the outputs of new classes. rates:
        the largest step of each parameter, or of each row of it, for a gradient of 1."""

    def of_labels(self, step: Step) -> float:
        """What the head's loss is multiplied with."""
        return 1.0

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
