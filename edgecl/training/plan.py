"""How a round trains: epochs, batch, rate and its course, phase after phase."""
from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple


@dataclass(frozen=True)
class Plan:
    """How a round is trained.

    epochs: 0 leaves the network as it is; batch: new samples per step; rate, momentum, decay: of SGD; milestones: the
    shares of all steps after which the rate is divided by `factor`; clip: the largest norm of all gradients, 0 for any;
    head_rate: of the head, 0 for the same; cosine: the rate falls to 0 along a half wave (Loshchilov & Hutter 2017);
    smoothing: of labels (Szegedy et al. 2016, section 7); mirror: half of the images are flipped left to right.
    """

    epochs: int
    batch: int
    rate: float
    momentum: float = 0.0
    decay: float = 0.0
    milestones: tuple[float, ...] = ()
    factor: float = 1.0
    clip: float = 0.0
    head_rate: float = 0.0
    cosine: bool = False
    smoothing: float = 0.0
    mirror: bool = False

    def for_epochs(self, epochs: int) -> Plan:
        """The same for another number of epochs."""
        return replace(self, epochs=epochs)

    def slower(self, by: float, epochs: int) -> Plan:
        """With the rate divided by `by`."""
        return replace(self, epochs=epochs, rate=self.rate / by, head_rate=self.head_rate / by)

    @property
    def head_pace(self) -> float:
        """What the head's gradient is multiplied by."""
        return (self.head_rate or self.rate) / (self.rate or 1.0)

    def rate_after(self, share: float) -> float:
        """The rate after that share of all steps."""
        wave = (1 + math.cos(math.pi * share)) / 2 if self.cosine else 1.0
        return self.rate * wave / self.factor ** sum(share >= milestone for milestone in self.milestones)


class Phase(NamedTuple):
    """Part of a round's training. balanced: on the same number of exemplars of each class instead of the round's new
    samples; restart: with all weights initialised again, and nothing trained before it."""

    plan: Plan
    balanced: bool = False
    restart: bool = False
