"""What passes between the learner and the store: stored samples and their files, generations, changes."""
from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Row(NamedTuple):
    """One stored sample: its feature float32 [d]; key: see `edgecl.samples.sample_keys`. id and generation are None
    until it is committed; ids rise in the order in which samples came."""

    id: int | None
    generation: int | None
    label: str
    key: int
    feature: NDArray[np.float32]


class Generation(NamedTuple):
    """One committed state of knowledge. snapshot: name of the statistics kept at exactly this generation, or None;
    journaled: whether it is made of samples that it added to the one before, not of a snapshot; undone: rolled back."""

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
    """What one commit does. rows: samples to add; snapshot: the statistics after it, where they are written anew;
    meta: values to set; erase: forget older generations too, and the class that `detail` names without a trace;
    undo_after: go back to that generation, its head included; spare: bytes of the quota that must stay free."""

    action: str
    detail: dict[str, Any]
    backbone: bytes | None = None
    head: bytes | None = None
    snapshot: bytes | None = None
    rows: list[Row] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    erase: bool = False
    undo_after: int | None = None
    spare: int = 0


def pack(rows: list[Row]) -> bytes:
    """Committed samples as one .npy file, a record each."""
    labels = [row.label.encode() for row in rows]
    records = np.zeros(len(rows), [("id", "<i8"), ("generation", "<i8"), ("key", "<i8"),
                                   ("label", f"S{max(map(len, labels))}"), ("feature", "<f4", len(rows[0].feature))])
    for name, values in (("label", labels), ("feature", [row.feature for row in rows]), ("id", [r.id for r in rows]),
                         ("generation", [r.generation for r in rows]), ("key", [r.key for r in rows])):
        records[name] = values
    file = io.BytesIO()
    np.save(file, records, allow_pickle=False)
    return file.getvalue()


def packed_bytes(rows: list[Row]) -> int:
    """Bytes of `pack(rows)`, at most."""
    if not rows:
        return 0
    return len(rows) * (24 + 4 * len(rows[0].feature) + max(len(row.label.encode()) for row in rows)) + 256


def unpack(file: bytes) -> list[Row]:
    """The inverse of `pack`."""
    records = np.load(io.BytesIO(file), allow_pickle=False)
    return [Row(int(r["id"]), int(r["generation"]), r["label"].decode(), int(r["key"]), r["feature"]) for r in records]
