"""How one method and seed is trained; without torch."""
from __future__ import annotations

from dataclasses import dataclass

from edgecl.errors import BadInput


@dataclass(frozen=True)
class RunOptions:
    """How a `MethodRun` trains. epochs, batch: of each round; rate: of SGD, None for the method's own; blocks: of a
    pretrained backbone to tune, None for the usual number. Raises BadInput for a number that can't be."""

    epochs: int = 1
    batch: int = 32
    rate: float | None = None
    threads: int = 1
    blocks: int | None = None

    def __post_init__(self) -> None:
        if min(self.epochs, self.batch, self.threads) < 1:
            raise BadInput(f"epochs {self.epochs}, batch {self.batch}, threads {self.threads}", "give 1 or more")
        if self.rate is not None and not 0 < self.rate < 1e6:
            raise BadInput(f"a rate of {self.rate}", "give a positive number, or None for the method's own")
