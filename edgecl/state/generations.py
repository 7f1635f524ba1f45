"""Generations, and the two kinds of change that make them."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from edgecl.exemplars.stored import StoredSample
from edgecl.files.forms import COUNT

RUNS = [(COUNT, COUNT, COUNT)]
DETAIL = {"class": str, "classes": COUNT, "samples": COUNT, "held_back": dict, "judged": dict, "accuracy": dict,
          "refused": [str], "removed": RUNS, "dropped": RUNS, "renamed": bool, "from": str, "spare": (RUNS, RUNS),
          "gone": [str], "certificate": str}      # forms of details


class Generation(NamedTuple):
    """One committed state of knowledge. snapshot: name of the statistics kept at exactly this generation, or None;
    journaled: whether it consists of samples added to the generation before, not of a snapshot; undone: rolled back;
    logged: whether it is still in the log, not yet in the database."""

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


@dataclass(frozen=True)
class Append:
    """A change that only adds samples: one append to the log commits it.

    rows: the samples; spare: bytes of the quota that must stay free, for the head, which is solved when it is asked
    for, and for the statistics and the head of a later rewrite.
    """

    action: str
    detail: dict[str, Any]
    rows: list[StoredSample] = field(default_factory=list)
    spare: int = 0


@dataclass(frozen=True)
class Rewrite:
    """A change that is one transaction of the database: new statistics, a new backbone, a way back.

    rows: samples to add; snapshot: the statistics after the change; meta: values to set; erase: also forget all older
    generations, what the change takes out, and these classes, without a trace; None: nothing of that; undo_after: go
    back to that generation and its head; codebook: content of the file, and the number of classes it was made from;
    spare: bytes of the quota that must stay free beside those for packing the exemplars, None if neither must; moved:
    stored samples with their features by the new backbone, without inputs and origins; parts: what the method of a
    learning round keeps until the next, b"" for no longer; way_back: head of the generation before, which has none, and
    what its history keeps of it.
    """

    action: str
    detail: dict[str, Any]
    backbone: bytes | None = None
    head: bytes | None = None
    snapshot: bytes | None = None
    rows: list[StoredSample] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)
    erase: frozenset[str] | None = None
    undo_after: int | None = None
    codebook: tuple[bytes, int] | None = None
    spare: int | None = None
    moved: list[StoredSample] = field(default_factory=list)
    parts: bytes | None = None
    way_back: tuple[bytes, dict[str, Any]] | None = None
