"""What passes between the learner and the store: stored samples, generations, changes."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Row(NamedTuple):
    """One stored sample: its feature float32 [d]; key: see `edgecl.samples.sample_keys`. id and generation are None
    until it is committed."""

    id: int | None
    generation: int | None
    label: str
    key: int
    feature: NDArray[np.float32]


class Generation(NamedTuple):
    """One committed state of knowledge. snapshot: name of the statistics kept at exactly this generation, or None;
    journaled: whether all samples that it added are still stored; undone: rolled back."""

    id: int
    created: str
    action: str
    detail: dict[str, Any]
    backbone: str | None
    head: str | None
    snapshot: str | None
    journaled: bool
    undone: bool


@dataclass
class Change:
    """What one commit does. rows: samples to add; drop: samples to delete; snapshot: the statistics after it, where
    they are written anew; meta: values to set; erase: forget older generations too; undo_after: roll back to that."""

    action: str
    detail: dict[str, Any]
    backbone: bytes | None = None
    head: bytes | None = None
    snapshot: bytes | None = None
    rows: list[Row] = field(default_factory=list)
    drop: list[Row] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    erase: bool = False
    undo_after: int | None = None
