"""What is kept of the data between rounds, and how it joins the new samples."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from edgecl.training.batch import Batch, held_back
from edgecl.training.part import Part

if TYPE_CHECKING:
    from torch import Tensor

    from edgecl.training.batch import Seen
    from edgecl.training.networks.network import Network


class Memory(Part):
    """Keeps nothing; the base of all memories."""

    bounded = True      # by the bytes that the user allows for exemplars
    replays = False     # whether `replay` returns anything once something is kept
    each = 0            # samples of a round that a constraint is to look at, 0 for all
    lasting = False     # a worker keeps its state from round to round; else the state's own exemplars are held
    place, pace = 0, 1.0    # the first `place` layers learn at that pace after the first round
    reserved = 0        # bytes of the room that the next round takes for other than exemplars, see `reserve`
    withholds = False   # whether some of what is kept must not be trained on, see `split`

    def __init__(self, room: int, nothing: Batch) -> None:
        """`room`: bytes for exemplars; `nothing`: a batch without samples that has their shape and dtype."""
        self.room, self.nothing = room, nothing

    # before a round

    def reserve(self, size: int) -> None:
        """Leave so many bytes of the room to the constraints of the next round."""
        self.reserved = size

    def check(self, classes: int) -> None:
        """Raises BudgetError if exemplars of so many classes would not fit."""

    @property
    def reserved_text(self) -> str:
        """For error messages: what the room must also hold."""
        return f"{self.reserved} bytes of tasks' gradients and " if self.reserved else ""

    def hold(self, old: Batch) -> None:
        """Take samples as kept from earlier rounds, without copying them."""

    def enter(self, new: Batch, network: Network, generator: np.random.Generator) -> tuple[Network, Batch]:
        """Called once at the start of a round, before the network has new outputs: what is trained, and on what. If the
        lower layers stay as they are, that is the part above them, and their activations."""
        return network, new

    def split(self, new: Batch, hold_back: bool) -> tuple[Batch, Batch]:
        """What is learned, and what is held back for parts that fit numbers of their own; from now on, nothing that is
        held back is replayed either."""
        self.withholds = hold_back
        held = held_back(new) if hold_back else np.zeros(len(new), bool)
        return (_rows(new, ~held) if hold_back else new), _rows(new, held)

    def begin(self, network: Network, known: int) -> None:
        """Before the first step, with the network as the last round left it, plus the outputs of new classes, those
        from `known` on."""

    def dataset(self, new: Batch) -> Batch:
        """What a round goes through: its new samples first, then what the memory adds as a whole."""
        return new

    # in each step

    def mix(self, new: Batch, generator: np.random.Generator) -> Batch:
        """New samples, and those that are replayed with them."""
        replayed = self.replay(self.amount(len(new)), generator)
        return new if replayed is None else new.with_replayed(replayed)

    def amount(self, n: int) -> int:
        """How many samples are to be replayed with n new ones."""
        return n

    def replay(self, n: int, generator: np.random.Generator) -> Batch | None:
        """n samples to train on with new ones, or None."""
        return None

    def observe(self, new: Batch, generator: np.random.Generator, seen: Seen | None = None) -> None:
        """Called with each new sample once per round, after it was trained on, if it was. seen: what the network made
        of it then."""

    # after the last step on new samples

    def update(self, new: Batch, network: Network) -> None:
        """Called once at the end of a round with all its new samples and the network in evaluation mode."""

    def exemplars(self) -> dict[int, Tensor]:
        """Column -> samples kept [m, ...]."""
        return {}

    def learned(self) -> dict[int, Tensor]:
        """Those of them that may be trained on."""
        return {column: samples[torch.from_numpy(~held_back(of_column(samples, column)))] if self.withholds else samples
                for column, samples in self.exemplars().items()}

    def balanced(self) -> Batch:
        """The same number of exemplars of each class: of each the first ones, as many as the smallest class has. None
        of them is held back."""
        kept = [of_column(samples, column) for column, samples in self.learned().items() if len(samples)]
        least = min(map(len, kept), default=0)
        return Batch(torch.cat([self.nothing.x, *(each.x[:least] for each in kept)]),
                     torch.cat([self.nothing.y, *(each.y[:least] for each in kept)]))

    def tasks(self) -> list[Batch]:
        """What is kept of each round, if rounds are kept apart; else nothing."""
        return []


def of_column(samples: Tensor, column: int) -> Batch:
    """Samples [n, ...] that are all of one class."""
    return Batch(samples, torch.full((len(samples),), column))


def _rows(batch: Batch, chosen: np.ndarray) -> Batch:
    return batch.take(torch.from_numpy(np.flatnonzero(chosen)))
