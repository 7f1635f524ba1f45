"""Two boards' states into one: exactly what one board would have learned from both."""
from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from edgecl.errors import StateError
from edgecl.learning.backbone_file import backbone_bytes
from edgecl.samples import NOTHING
from edgecl.state.generations import Rewrite

if TYPE_CHECKING:
    from edgecl.learning.foundation import Foundation
    from edgecl.learning.knowledge import Knowledge
    from edgecl.learning.repository import Repository


def merge_into(repository: Repository, others: list[Repository], nothing: bool = False) -> int:
    """Add all that `others` know to a state, their class `nothing` only if asked; the new generation's id. To be called
    in `Store.exclusive`.

    Raises StateError if one has another backbone or form of statistics, was merged here before, or knows no class that
    may be merged.
    """
    left_out, exact, blanks = 0, True, False
    entries: list[dict[str, Any]] = []
    known: list[Knowledge] = []
    foundation, change = repository.foundation, Rewrite("merge", {"merged": entries})
    for other in others:
        with other.store.reading():
            entries += _new(repository, other, entries)
            known.append(theirs := other.known())
            blanks = blanks or bool(other.store.meta.get("blank"))
            if not nothing and NOTHING in theirs.labels:
                left_out += theirs.plain.counts[NOTHING]
                exact = _without_nothing(theirs, other) and exact
            if foundation is None:
                foundation, change = _adopted(other, change)
            _check_alike(repository, other, foundation, change.backbone is not None)
    if left_out:
        change = replace(change, detail={**change.detail, "left_out": left_out, **({} if exact else {"exact": False})})
    if blanks and not repository.store.meta.get("blank"):
        change = replace(change, meta={**change.meta, "blank": True})
    knowledge = repository.known(foundation)
    common = [knowledge.merge(each) for each in known]
    figures = {"already_known": sum(each.subtracted for each in common),
               "counted_twice": sum(each.twice for each in common),
               "in_two_classes": sum(each.elsewhere for each in common)}
    change = replace(change, detail={**change.detail, **{name: count for name, count in figures.items() if count}})
    return repository.commit(knowledge, change)


def _without_nothing(theirs: Knowledge, other: Repository) -> bool:
    """Take the class `nothing` out of what another state knows, in memory; whether that was exact."""
    if len(theirs.labels) == 1:
        raise StateError(f"{other.store.path} knows only the class {NOTHING!r}, which is not merged",
                         "what is nothing there may be something here; if it is not, give --nothing")
    other.release()     # what was kept is changed here
    return theirs.forget(NOTHING)


def _adopted(other: Repository, change: Rewrite) -> tuple[Foundation, Rewrite]:
    """The other state's foundation, for a state that has none yet, and the change that brings it with its backbone."""
    foundation = other.foundation
    assert foundation is not None
    detail = change.detail if other.store.tuned() is None else {**change.detail, "tuned": True}
    backbone = backbone_bytes(other.store, foundation, _backbone(other))
    return foundation, replace(change, detail=detail, backbone=backbone, meta={"foundation": foundation.to_meta()})


def _backbone(repository: Repository) -> str:
    return str(repository.store.newest.backbone)


def _merged(repository: Repository) -> list[dict[str, Any]]:
    """What was merged into a state, each as the id of a state and its generation."""
    return [entry for g in repository.store.alive() for entry in g.detail.get("merged", [])]


def _new(repository: Repository, other: Repository, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What merging a state adds: itself, and what was merged into that. Raises StateError if any of it is here."""
    store, path = other.store, other.store.path
    added = [{"id": store.meta["id"], "generation": store.current}, *_merged(other)]
    if added[0]["id"] == repository.store.meta["id"]:
        raise StateError(f"{path} is this state itself or a copy of it", "merge states that learned other samples")
    here = {entry["id"] for entry in (*_merged(repository), *entries)} | {repository.store.meta["id"]}
    if any(entry["id"] in here for entry in added):
        raise StateError(f"{path}, or what it has merged itself, was merged here before: samples would count twice",
                         "`edgecl rollback` to before that merge, then merge it again")
    return added


def _check_alike(repository: Repository, other: Repository, foundation: Foundation, adopted: bool) -> None:
    """Raise StateError if another state differs. adopted: whether this one takes its backbone from there."""
    theirs = other.foundation
    mine = None if adopted else _backbone(repository)
    differ = [name for name in ("name", "dimension", "power", "codec")
              if getattr(theirs, name) != getattr(foundation, name)]
    if theirs is None or theirs.form._replace(rank=None) != foundation.form._replace(rank=None):
        differ.append("form of statistics")
    if mine is not None and mine != _backbone(other):
        differ.append("backbone file")
    if differ == ["backbone file"] and {repository.store.tuned(), other.store.tuned()} != {None}:
        raise StateError(f"{other.store.path} can't be merged: a learning round has changed one's backbone",
                         "merge before the first round, or `edgecl rollback` to before it")
    if differ or repository.settings.seed != other.settings.seed:
        raise StateError(f"{other.store.path} can't be merged: it differs in {', '.join(differ) or 'seed'}",
                         "create states that shall be merged with the same --backbone, --calibrate, --quota, --codec "
                         "and --head")
