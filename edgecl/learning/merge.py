"""Two boards' states into one: exactly what one board would have learned from both."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgecl.errors import StateError

if TYPE_CHECKING:
    from edgecl.learning.foundation import Foundation
    from edgecl.learning.repository import Repository
    from edgecl.state.generations import Change


def merge_into(journal: Repository, others: list[Repository]) -> int:
    """Add all that `others` know to a state; the new generation's id. To be called in `Store.exclusive`.

    Raises StateError where one has another backbone or form of statistics, or was merged here before.
    """
    from edgecl.state.generations import Change

    change = Change("merge", {"merged": []})
    entries: list[dict[str, Any]] = change.detail["merged"]
    foundation, theirs = journal.foundation, []
    for other in others:
        with other.store.reading():
            entries += _new(journal, other, entries)
            theirs.append(other.known())
            foundation = foundation or _adopt(other, change)
            _check_alike(journal, other, foundation, change)
    knowledge = journal.known(foundation)
    for each in theirs:
        knowledge.merge(each)
    return journal.commit(knowledge, change, rewrite=True)[0]


def _adopt(other: Repository, change: Change) -> Foundation:
    """Take over the other state's backbone, where this one has none yet."""
    foundation = other.foundation
    assert foundation is not None
    change.backbone = other.store.blob_path(_backbone(other)).read_bytes()
    if other.store.tuned() is not None:
        change.detail["tuned"] = True
    change.meta["foundation"] = foundation.to_meta()
    return foundation


def _backbone(journal: Repository) -> str:
    return str(journal.store.newest.backbone)


def _merged(journal: Repository) -> list[dict[str, Any]]:
    """What was merged into a state, each as the id of a state and its generation."""
    return [entry for g in journal.store.alive() for entry in g.detail.get("merged", [])]


def _new(journal: Repository, other: Repository, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What merging a state adds: itself, and what was merged into that. Raises StateError where any of it is here."""
    store, path = other.store, other.store.path
    added = [{"id": store.meta["id"], "generation": store.current}, *_merged(other)]
    if added[0]["id"] == journal.store.meta["id"]:
        raise StateError(f"{path} is this state itself or a copy of it", "merge states that learned other samples")
    here = {entry["id"] for entry in (*_merged(journal), *entries)} | {journal.store.meta["id"]}
    if any(entry["id"] in here for entry in added):
        raise StateError(f"{path}, or what it has merged itself, was merged here before: samples would count twice",
                         "`edgecl rollback` to before that merge, then merge it again")
    return added


def _check_alike(journal: Repository, other: Repository, foundation: Foundation, change: Change) -> None:
    theirs = other.foundation
    mine = None if change.backbone else _backbone(journal)
    differ = [name for name in ("name", "dimension", "power", "codec")
              if getattr(theirs, name) != getattr(foundation, name)]
    if theirs is None or theirs.form._replace(rank=None) != foundation.form._replace(rank=None):
        differ.append("form of statistics")
    if mine is not None and mine != _backbone(other):
        differ.append("backbone file")
    if differ == ["backbone file"] and {journal.store.tuned(), other.store.tuned()} != {None}:
        raise StateError(f"{other.store.path} can't be merged: a learning round has changed one's backbone",
                         "merge before the first round, or `edgecl rollback` to before it")
    if differ or journal.settings.seed != other.settings.seed:
        raise StateError(f"{other.store.path} can't be merged: it differs in {', '.join(differ) or 'seed'}",
                         "create states that shall be merged with the same --backbone, --calibrate, --quota, --codec "
                         "and --head")
