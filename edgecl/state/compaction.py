"""What keeps a state inside its quota and free of what it has forgotten: retire, move the log, prune, compact.

Every function works on a transaction that is open. Samples are deleted by rewriting the file that holds them, a few at
a time, so that it takes room for one file. Until that is done, samples of generations that were rolled back, those of a
class that a `forget` still names, and those that a correction has taken out count as gone.
"""
from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from edgecl.state.corrections import NOTES, SPARE, former_names, noted_since, without_names
from edgecl.state.database import connect
from edgecl.state.epoch import new_epoch
from edgecl.state.exemplar_files import Replacement, arrangement, replace_files
from edgecl.state.history import HISTORY
from edgecl.state.journals import add_journal
from edgecl.state.quota import PAGE
from edgecl.state.reader import FEATURES, JOURNAL, KEPT_HEADS, PARTS
from edgecl.state.taken_out import drop_notes, for_the_way_back
from edgecl.state.transaction import insert_generation

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgecl.exemplars.stored import StoredSample
    from edgecl.state.generations import Generation
    from edgecl.state.transaction import Transaction

KEPT_SNAPSHOTS = 2  # the current one, and the one to go back to if that is damaged
ERASED = 2          # `undone` of a generation whose samples are deleted
OF_A_HEAD = "judged", "accuracy", "held_back", "known"     # details that tell of a generation's head: gone with it


class Kept(NamedTuple):
    """What is kept of some generations: ids of those that keep a head and a snapshot, and names of backbones."""

    heads: set[int]
    snapshots: set[int]
    backbones: set[str | None]

    @classmethod
    def of(cls, alive: list[Generation], heads: int, snapshots: int, intact: Callable[[str], bool]) -> Kept:
        """The newest heads, the current snapshot and the newest intact ones before it, and the backbones that go with
        them."""
        named = [g.id for g in alive if g.snapshot]
        older = [g.id for g in alive if snapshots > 1 and g.snapshot and g.id < named[-1] and intact(g.snapshot)]
        kept = {g.id for g in [g for g in alive if g.head][-heads:]}, {*named[-1:], *older[1 - snapshots:]}
        oldest = min(kept[1], default=0)
        return cls(*kept, {g.backbone for g in alive if g.id in kept[0] or g.id >= oldest})

    def files(self, g: Generation) -> tuple[str | None, str | None, str | None]:
        """Backbone, head and snapshot that a generation keeps."""
        return (g.backbone if g.backbone in self.backbones else None, g.head if g.id in self.heads else None,
                g.snapshot if g.id in self.snapshots else None)


def retire(state: Transaction, heads: int, snapshots: int, erased: frozenset[str] | None = None,
           connection: sqlite3.Connection | None = None) -> None:
    """Drop all but the newest heads and snapshots, backbones that go with none of these, and old history; with
    `erased`, also everything that is older than the current generation, and the names of these classes. connection: to
    a copy of the database, in which this is to be tried out."""
    every = state.generations()
    alive = [g for g in every if not g.undone]
    current = alive[-1]
    kept = Kept.of(alive if erased is None else [current], heads, snapshots, state.blobs.intact)
    run, unfinished = (connection or state.connection).execute, erasing(state)
    names = former_names(every, erased or (), current.id)
    noted = [g.id for g in alive if any(note in g.detail for note in NOTES)]
    needed = {state.tuned(), *(number for _, number, _ in state.files(FEATURES)),
              max((g.id for g in alive if g.detail.get("exact") is False), default=None),  # for `Status.exact`
              *(g.id for g in alive if "merged" in g.detail), *noted}
    for g in every:
        if g.id == current.id:
            continue
        backbone, head, snapshot = kept.files(g)
        detail = g.detail if g.id in noted else without_names(g, names)     # else `taken_out.erase_names` does it
        detail = {key: value for key, value in detail.items() if head or key not in OF_A_HEAD}
        if (backbone, head, snapshot, detail) != (g.backbone, g.head, g.snapshot, g.detail):
            run("UPDATE generations SET backbone = ?, head = ?, snapshot = ?, detail = ? WHERE id = ?",
                (backbone, head, snapshot, json.dumps(detail), g.id))
        if not (head or snapshot or g in unfinished or g.id in needed):
            run("DELETE FROM generations WHERE id = ? AND id <= ? AND undone <> 1", (g.id, every[-1].id - HISTORY))


def prune(state: Transaction) -> bool:
    """Drop the oldest head or snapshot that only a rollback needs, or free pages of the database, and commit; False if
    there is nothing left to drop. To be called before anything else is changed."""
    if state.logged() or state.log.damaged:
        move_log(state)
        retire(state, KEPT_HEADS, KEPT_SNAPSHOTS)
        state.step()
        return True
    alive = state.alive()
    heads, snapshots = (sum(getattr(g, kind) is not None for g in alive) for kind in ("head", "snapshot"))
    if heads > 2:
        retire(state, heads - 1, snapshots)
    elif snapshots > 1:
        retire(state, heads, 1)
    elif heads > 1:
        retire(state, 1, 1)
    else:
        length, packed = packed_database(state)
        if packed == length:
            return False
    state.step(vacuum=heads < 2 and snapshots < 2)
    return True


def packed_database(state: Transaction, pruned: bool = False) -> tuple[int, int]:
    """Bytes of the database as it is and after a vacuum, tried out on a copy in memory; pruned: when the log has moved
    into it and all that only rollbacks need is dropped."""
    memory = sqlite3.connect(":memory:", isolation_level=None)
    with closing(connect(state.path, "ro")) as source, closing(memory) as copy:
        source.backup(copy)  # SQLite refuses this to the connection that holds the lock
        if pruned and (rows := moved_rows(state)):
            for g in rows:
                insert_generation(copy, g)
            copy.execute("INSERT INTO files (name, oldest, newest) VALUES (?, ?, ?)",
                         (f"{'0' * 64}.{JOURNAL}", rows[0].id, rows[-1].id))
        length = copy.execute("PRAGMA page_count").fetchone()[0] * PAGE
        if pruned:
            retire(state, 1, 1, connection=copy)
        copy.execute("VACUUM")
        return length, copy.execute("PRAGMA page_count").fetchone()[0] * PAGE


def moved_rows(state: Transaction) -> list[Generation]:
    """The generations of the log as `move_log` writes them into the database."""
    entries, backbone = state.logged(), state.newest.backbone
    heads = [g.id for g in state.alive() if g.head][-KEPT_HEADS:]
    every, named = [entry.generation for entry in entries], state.logged_heads()
    return [g._replace(backbone=backbone, head=g.head if g.id in heads and g.head in named else None) for g in every
            if g.id in heads or g.id > every[-1].id - HISTORY]


def move_log(state: Transaction, packed_into: int | None = None) -> None:
    """Move the generations of the log into the transaction, their samples into a file of their own: that of the log
    itself, which takes no room, or, with `packed_into`, a new one with all of them in one record. packed_into: bytes
    that it may take to merge that with other files."""
    entries = state.logged()
    if not (entries or state.log.damaged):
        return
    for g in moved_rows(state):
        state.insert(g)
    state.log.trim()
    if packed_into is not None or state.log.damaged:  # a damaged one is set aside when the next one begins
        rows = [row for entry in entries for row in entry.rows or ()]
        spans = [row.generation for row in rows if row.generation is not None]
        if rows:
            add_journal(state, state.packed(rows), min(spans), max(spans), packed_into or 0)
    else:
        name = state.blobs.adopt(state.log.path, JOURNAL)
        state.name_file(name, entries[0].generation.id, entries[-1].generation.id)
    state.set_meta("before", [state.epoch, state.log.digest()])
    state.set_meta("epoch", new_epoch())


def compact(state: Transaction, kept: list[StoredSample] | None = None) -> None:
    """Delete samples that are gone; with `kept`, which are the exemplars, also those that no rollback needs.

    Commits. Raises BudgetError if the quota has no room for one more file.
    """
    steps = replacements(state, needed_since(state), kept)
    dropped = {name for step in steps if not step.parts for name in step.names}
    lost = [[oldest, state.current] for name, oldest, _ in state.files(JOURNAL)
            if name in dropped and not state.blobs.intact(name)]
    if lost:    # what is built on these samples can't be gone back to exactly
        state.note_lost(lost)
    for step in steps:
        replace_files(state, step)
    state.drop_codebooks()
    drop_notes(state, needed_since(state), kept is not None)


def replacements(state: Transaction, since: int, kept: list[StoredSample] | None) -> list[Replacement]:
    """What `compact` replaces if `since` is the oldest generation whose snapshot is kept; reads only."""
    alive, every = state.living(since), list[Replacement]()
    if kept is not None and (noted_since(state.alive(), since, SPARE) or any(
            number > since for _, number, _ in state.files(FEATURES))):
        then = {row.id: row for row in state.samples(since)}  # going back takes features by the backbone of then
        kept = [then[row.id] for row in kept if row.id in then]
    if kept is not None and noted_since(state.alive(), since):
        every += for_the_way_back(state, since)
    base = max((g.id for g in state.alive() if g.snapshot), default=0)
    spent: list[str] = []
    for name, _, newest in state.files(JOURNAL):
        if kept is not None and newest <= since:
            spent.append(name)
            continue
        if not state.blobs.intact(name):
            spent += [name] if newest <= base else []
            continue
        found = state.rows(name)
        left = [row for row in found if alive(row)]
        if len(left) < len(found):
            every.append(Replacement([name], [left] if left else [], JOURNAL))
    numbers = {g.id for g in state.alive()}
    for name, number, _ in state.files(FEATURES):
        if number not in numbers or (kept is not None and number <= since):
            spent.append(name)
        elif not state.blobs.intact(name):
            every += [Replacement([name], [[]], FEATURES, number)] if erasing(state) else []  # it may hold the class
        else:
            found = state.rows(name)
            left = [row for row in found if alive(row)]
            if len(left) < len(found):
                every.append(Replacement([name], [left] if left else [], FEATURES, number))
    spent += [name for name, number, _ in state.files(PARTS)
              if number not in numbers or number < (state.tuned(since) or 0)]
    exemplars = None if kept is None else [row for row in kept if (row.generation or 0) <= since]
    return [*every, *arrangement(state, alive, exemplars, spent)]


def needed_since(state: Transaction) -> int:
    """The oldest generation whose snapshot is kept: a rollback may take every sample that came after it."""
    return min((g.id for g in state.alive() if g.snapshot), default=0)


def erasing(state: Transaction) -> list[Generation]:
    """Generations that have erased a class or samples that may still be on the disk."""
    return [g for g in state.generations() if "erasing" in g.detail or (g.action == "forget" and "class" in g.detail)]
