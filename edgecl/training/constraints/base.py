"""What a part does in each step of the loop, so that what was learned before is kept."""
from __future__ import annotations

from typing import TYPE_CHECKING

from edgecl.training.part import Part

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np
    from torch import Tensor, nn

    from edgecl.training.batch import Batch
    from edgecl.training.memory.base import Memory
    from edgecl.training.step import Step

    Gradients = Sequence[Tensor | None]     # in the order of the network's parameters


class Constraint(Part):
    """Changes nothing; the base of all."""

    needs_old = False               # the old network's logits of the round's data set
    needs_old_features = False      # and its features

    def reserves(self, parameters: int, memory: Memory) -> int:
        """Bytes of the room for exemplars that the next round takes for itself. parameters: numbers of the network."""
        return 0

    def begin(self, network: nn.Module, rates: Sequence[Tensor | float]) -> None:
        """Before the first step of a round, with the network as the last round left it, plus the outputs of new
        classes. rates: the largest step of each parameter, or of each row of it, for a gradient of 1."""

    def label_weight(self, step: Step) -> float:
        """What the head's loss is multiplied by."""
        return 1.0

    def penalty(self, step: Step) -> Tensor | float:
        """A scalar that is added to the loss: this piece's share of the whole step's. A part that adds the gradient of
        its penalty in `project` returns it without one."""
        return 0.0

    def observe(self, batch: Batch, gradients: Gradients) -> None:
        """Each step's samples and the gradients of its loss, before any part projects them or adds to them; neither may
        be changed or kept."""

    def references(self, memory: Memory, generator: np.random.Generator) -> Sequence[Batch]:
        """Samples whose mean gradients `project` needs, asked for before each step."""
        return ()

    def project(self, gradients: Gradients, references: Iterable[Gradients] = ()) -> Gradients:
        """The gradients to step with; they may be changed in place. references: the gradients of the head's loss over
        each of `references`, computed one by one as they are used."""
        return gradients

    def after_step(self, share: float) -> bool:
        """After each step, with the share of the phase that is done; whether the optimiser is to restart."""
        return False

    def end(self, network: nn.Module, new: Batch, generator: np.random.Generator) -> None:
        """After the last step, with the network in evaluation mode."""
