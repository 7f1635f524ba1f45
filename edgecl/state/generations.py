"""Generations, and the changes that make them."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from edgecl.exemplars.stored import StoredSample


class Generation(NamedTuple):
    """One committed state of knowledge. snapshot: name of the statistics kept at exactly this generation, or None;
    journaled: whether it is made of samples that it added to the one before, not of a snapshot; undone: rolled back;
    logged: whether it stands in the log, not in the database yet."""

    id: int
    created: str
    action: str
    detail: dict[str, Any]
    backbone: str | None
    head: str | None
    snapshot: str | None
    journaled: bool
    undone: bool
    logged: bool = False


@dataclass
class Change:
    """What one commit does. rows: samples to add; snapshot: the statistics after it, where they are written anew;
    meta: values to set; erase: forget older generations too, and the class that `detail` names without a trace;
    undo_after: go back to that generation, its head included; codebook: of the exemplars from now on; spare: bytes of
    the quota that must stay free; moved: stored samples with the features that they have from now on, without
    their inputs; parts: what the
    method of a learning round keeps until the next."""

    action: str
    detail: dict[str, Any]
    backbone: bytes | None = None
    head: bytes | None = None
    snapshot: bytes | None = None
    rows: list[StoredSample] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    erase: bool = False
    undo_after: int | None = None
    codebook: bytes | None = None
    spare: int = 0
    moved: list[StoredSample] = field(default_factory=list)
    parts: bytes | None = None

    @property
    def logs(self) -> bool:
        """Whether it only adds samples, so that one append to the log commits it."""
        return bool(self.rows) and not (self.backbone or self.snapshot or self.undo_after or self.meta)
