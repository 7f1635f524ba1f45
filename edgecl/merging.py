"""Two boards' states into one: exactly what one board would have learned from both."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgecl.errors import StateError

if TYPE_CHECKING:
    from edgecl.founding import Foundation
    from edgecl.journal import Journal
    from edgecl.records import Change


def merge_into(journal: Journal, others: list[Journal]) -> int:
    """Add all that `others` know to a state; the new generation's id. To be called in `Store.exclusive`.

    Raises StateError where one has another backbone or form of statistics, or was merged here before.
    """
    from edgecl.records import Change

    store = journal.store
    change = Change("merge", {"merged": []})
    done = [entry for g in store.generations() if not g.undone for entry in g.detail.get("merged", [])]
    foundation = journal.foundation
    for other in others:
        entry = {"id": other.store.meta["id"], "generation": other.store.current}
        _check_new(journal, other, done + change.detail["merged"])
        theirs = other.known()
        if foundation is None:
            foundation = _adopt(other, change)
        _check_alike(journal, other, foundation, change)
        knowledge = journal.known(foundation)
        knowledge.merge(theirs)
        change.detail["merged"].append(entry)
    return journal.commit(journal.known(foundation), change, rewrite=True)[0]


def _adopt(other: Journal, change: Change) -> Foundation:
    """Take over the other state's backbone, where this one has none yet."""
    foundation = other.foundation
    assert foundation is not None
    change.backbone = other.store.blob_path(_backbone(other)).read_bytes()
    change.meta["foundation"] = foundation.to_meta()
    return foundation


def _backbone(journal: Journal) -> str:
    return str([g for g in journal.store.generations() if not g.undone][-1].backbone)


def _check_new(journal: Journal, other: Journal, done: list[dict[str, Any]]) -> None:
    identity, path = other.store.meta["id"], other.store.path
    if identity == journal.store.meta["id"]:
        raise StateError(f"{path} is this state itself or a copy of it", "merge states that learned other samples")
    if any(entry["id"] == identity for entry in done):
        raise StateError(f"{path} was merged here before: its samples would count twice",
                         "`edgecl rollback` to before that merge, then merge it again")


def _check_alike(journal: Journal, other: Journal, foundation: Foundation, change: Change) -> None:
    theirs = other.foundation
    mine = None if change.backbone else _backbone(journal)
    differ = [name for name in ("name", "dimension", "form", "power")
              if getattr(theirs, name) != getattr(foundation, name)]
    if mine is not None and mine != _backbone(other):
        differ.append("backbone file")
    if differ or journal.settings.seed != other.settings.seed:
        raise StateError(f"{other.store.path} can't be merged: it differs in {', '.join(differ) or 'seed'}",
                         "create states that shall be merged with the same backbone, --calibrate, --quota and --head")
