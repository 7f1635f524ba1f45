"""What keeps a state inside its quota and free of what it has forgotten: retire, prune, pack, erase, sweep.

Every function works on a store that is held exclusively. Samples are deleted by writing the file that holds them
anew, a few at a time, so that it takes room for one file. Until that is done, samples of generations that were rolled
back, and those of a class that a `forget` still names, count as gone.
"""
from __future__ import annotations

import json
import sqlite3
from contextlib import suppress
from itertools import takewhile
from typing import TYPE_CHECKING

from edgecl.archive import EXEMPLARS, FEATURES, HISTORY, JOURNAL, PARTS
from edgecl.budget import PAGE
from edgecl.database import NAME, PATIENCE
from edgecl.errors import EdgeclError, StateError
from edgecl.log import new_epoch
from edgecl.records import Generation
from edgecl.shelves import arrange, put

if TYPE_CHECKING:
    from edgecl.records import Row
    from edgecl.store import Store

SNAPSHOTS = 2  # kept: the current one, and the one to go back to where it is damaged
HEADS = 8      # kept: each makes a generation one that can be gone back to
ROOM = 8 * PAGE  # that small writes to the database take
ERASED = 2     # `undone` of a generation whose samples are deleted


def retire(store: Store, heads: int, snapshots: int, erased: str | None = None) -> None:
    """Let go of all but the newest heads and snapshots, and of old history; with `erased`, of everything that is older
    than the current generation, and of that class's name."""
    every = store.generations()
    alive = [g for g in every if not g.undone] if erased is None else every[-1:]
    keep = [g.id for g in alive if g.head][-heads:], [g.id for g in alive if g.snapshot][-snapshots:]
    run, unfinished, tuned = store.connection.execute, erasing(store), store.tuned()
    for g in every[:-1]:
        head, snapshot = (name if g.id in kept else None for name, kept in zip((g.head, g.snapshot), keep))
        detail = {key: value for key, value in g.detail.items()
                  if (head or key != "held_back") and (key != "class" or value != erased)}
        if (head, snapshot, detail) != (g.head, g.snapshot, g.detail):
            run("UPDATE generations SET head = ?, snapshot = ?, detail = ? WHERE id = ?",
                (head, snapshot, json.dumps(detail), g.id))
        if not (head or snapshot or "merged" in detail or detail.get("exact") is False or g in unfinished
                or g.id == tuned):
            run("DELETE FROM generations WHERE id = ? AND id <= ? AND undone <> 1", (g.id, every[-1].id - HISTORY))


def prune(store: Store) -> bool:
    """Free the oldest thing that only a rollback would need, or unused pages; False where there is neither.

    To be called before anything else is changed: commits.
    """
    if store.logged():
        move_log(store)
        retire(store, HEADS, SNAPSHOTS)
        store.step()
        return True
    alive = store.alive()
    heads, snapshots = (sum(getattr(g, kind) is not None for g in alive) for kind in ("head", "snapshot"))
    if heads > 2:
        retire(store, heads - 1, snapshots)
    elif snapshots > 1:
        retire(store, heads, 1)
    elif heads > 1:
        retire(store, 1, 1)
    elif store.query("PRAGMA freelist_count")[0][0] < 4:
        return False
    store.step(vacuum=heads < 2 and snapshots < 2)
    return True


def move_log(store: Store) -> None:
    """Move the generations of the log into the transaction that is open, their samples into a file of their own."""
    entries = store.logged()
    if not entries:
        return
    heads = [g.id for g in store.alive() if g.head][-HEADS:]
    backbone = store.newest.backbone
    for g, *_ in entries:
        if g.id in heads or g.id > entries[-1].generation.id - HISTORY:
            store.insert(g._replace(backbone=backbone, head=g.head if g.id in heads else None))
    whole = list(takewhile(lambda entry: entry.rows is not None, entries))
    if len(whole) == len(entries):
        store.log.trim()
        store.connection.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", (
            store.blobs.adopt(store.log.path, JOURNAL), entries[0].generation.id, entries[-1].generation.id))
    else:
        store.add_file([row for entry in whole for row in entry.rows or ()], JOURNAL)
        store.connection.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", (
            f"{'0' * 64}.{JOURNAL}", entries[len(whole)].generation.id, entries[-1].generation.id))  # never intact
    store.connection.execute("UPDATE meta SET value = ? WHERE key = 'epoch'", (json.dumps(new_epoch()),))


def start_log(store: Store) -> None:
    """Begin an empty log where the one on the disk has moved into the database. Raises OSError."""
    epoch = json.loads(store.query("SELECT value FROM meta WHERE key = 'epoch'")[0][0])
    if store.log.stale(epoch):
        store.ledger.release(ROOM)
        store.log.begin(epoch)


def compact(store: Store, kept: list[Row] | None = None) -> None:
    """Delete samples that are gone; with `kept`, which are the exemplars, also those that no way back needs.

    Commits. Raises BudgetError where the quota has no room for one file more.
    """
    alive, since, tuned = store.living(), needed_since(store), store.tuned()
    kept = _as_on_disk(store, kept) if kept is not None and tuned is not None and since < tuned else kept
    base = max((g.id for g in store.alive() if g.snapshot), default=0)
    spent: list[str] = []
    for name, _, newest in store.files(JOURNAL):
        if kept is not None and newest <= since:
            spent.append(name)
            continue
        try:
            found = store.rows(name)
        except StateError:
            spent += [name] if newest <= base else []
            continue
        left = [row for row in found if alive(row)]
        if len(left) < len(found):
            put(store, [name], [left] if left else [], JOURNAL)
    numbers = {g.id for g in store.alive()}
    spent += [name for name, number, _ in store.files(FEATURES)
              if number not in numbers or (kept is not None and number <= since)]
    spent += [name for name, number, _ in store.files(PARTS) if number not in numbers or number < min(tuned or 0, since)]
    arrange(store, alive, None if kept is None else [row for row in kept if (row.generation or 0) <= since], spent)


def _as_on_disk(store: Store, kept: list[Row]) -> list[Row]:
    """The same samples with the features of the backbone before the last round, as long as a way back needs those."""
    names = [name for kind in (EXEMPLARS, JOURNAL) for name, *_ in store.files(kind) if store.blobs.intact(name)]
    found = {row.id: row for name in names for row in store.rows(name)}
    return [found[row.id] for row in kept if row.id in found]


def needed_since(store: Store) -> int:
    """The oldest generation whose snapshot is kept: going back may take every sample that came after it."""
    return min((g.id for g in store.alive() if g.snapshot), default=0)


def evict(store: Store, kept: list[Row]) -> None:
    """Delete the samples that are not `kept` and that no way back needs, as far as the disk and other processes
    allow: those that stay are deleted later, and make no difference."""
    with suppress(sqlite3.Error, OSError, EdgeclError):
        store.connection.execute("PRAGMA busy_timeout = 0")  # until `tidy`
        store.connection.execute("BEGIN IMMEDIATE")
        compact(store, kept)


def erasing(store: Store) -> list[Generation]:
    """Generations that have forgotten a class whose samples or name may still be on the disk."""
    return [g for g in store.generations() if g.action == "forget" and {"class", "erasing"} & set(g.detail)]


def tidy(store: Store, patience: int) -> None:
    """Clear what a kill, an error or a change left behind: unnamed files, and samples that count as gone.

    Where another process is writing, for longer than `patience` milliseconds, it is left to that one.
    """
    run = store.connection.execute
    with suppress(sqlite3.Error, OSError, EdgeclError):
        if store.connection.in_transaction:
            run("ROLLBACK")
        run(f"PRAGMA busy_timeout = {patience}")
        run("BEGIN IMMEDIATE")
        start_log(store)
        sweep(store)
        hot, marked = (store.path / f"{NAME}-journal").exists(), erasing(store)
        gone = marked or store.query("SELECT 1 FROM generations WHERE undone = 1")
        if hot or gone:
            store.ledger.release(store.journal_bytes() + ROOM)
        if hot:  # of a kill before it counted: a write lets SQLite delete it
            run("PRAGMA user_version = 0")
            store.step()
        if gone:
            compact(store)
            run("UPDATE generations SET undone = ? WHERE undone = 1", (ERASED,))
            for g in marked:
                run("UPDATE generations SET detail = ? WHERE id = ?", (
                    json.dumps({**{k: v for k, v in g.detail.items() if k != "class"}, "erasing": True}), g.id))
            store.step(vacuum=bool(marked))
            for g in marked:
                run("UPDATE generations SET detail = ? WHERE id = ?", (
                    json.dumps({k: v for k, v in g.detail.items() if k not in ("class", "erasing")}), g.id))
            store.step()
        store.ledger.hold()
    with suppress(sqlite3.Error):
        if store.connection.in_transaction:
            run("ROLLBACK")
        run(f"PRAGMA busy_timeout = {PATIENCE}")


def sweep(store: Store) -> None:
    """Delete every file that no row and no generation of the log names. Raises OSError."""
    named = {name for row in store.query(
        "SELECT backbone, head, snapshot FROM generations WHERE NOT undone UNION SELECT name, '', '' FROM files")
        for name in row}
    named |= {name for value, in store.query("SELECT value FROM meta WHERE key = 'codebooks'")
              for name, _ in json.loads(value)}
    heads = [entry.generation.head for entry in store.logged() if entry.generation.head]
    store.blobs.sweep(named | set(heads[-HEADS:]))
