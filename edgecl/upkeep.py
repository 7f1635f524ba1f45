"""What keeps a state inside its quota and free of what it has forgotten: retire, prune, pack, erase, sweep.

Every function works on a store that is held exclusively. Samples are deleted by writing the file that holds them
anew, a few at a time, so that it takes room for one file. Until that is done, samples of generations that were rolled
back, and those of a class that a `forget` still names, count as gone.
"""
from __future__ import annotations

import json
import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING

from edgecl.budget import PAGE, pages, require
from edgecl.database import NAME, PATIENCE
from edgecl.errors import EdgeclError, StateError
from edgecl.records import Generation, Row, packed_bytes, unpack

if TYPE_CHECKING:
    from edgecl.store import Store

SNAPSHOTS = 2  # kept: the current one, and the one to go back to where it is damaged
HEADS = 8      # kept: each makes a generation one that can be gone back to
HISTORY = 50   # generations that the history names; forgotten classes and merges stay in it for good
ERASED = 2     # `undone` of a generation whose samples are deleted


def retire(store: Store, heads: int, snapshots: int, erased: str | None = None) -> None:
    """Let go of all but the newest heads and snapshots, and of old history; with `erased`, of everything that is older
    than the current generation, and of that class's name."""
    every = store.generations()
    alive = [g for g in every if not g.undone] if erased is None else every[-1:]
    keep = [g.id for g in alive if g.head][-heads:], [g.id for g in alive if g.snapshot][-snapshots:]
    run, unfinished = store.connection.execute, erasing(store)
    for g in every[:-1]:
        head, snapshot = (name if g.id in kept else None for name, kept in zip((g.head, g.snapshot), keep))
        detail = {key: value for key, value in g.detail.items()
                  if (head or key != "held_back") and (key != "class" or value != erased)}
        if (head, snapshot, detail) != (g.head, g.snapshot, g.detail):
            run("UPDATE generations SET head = ?, snapshot = ?, detail = ? WHERE id = ?",
                (head, snapshot, json.dumps(detail), g.id))
        if not (head or snapshot or "merged" in detail or detail.get("exact") is False or g in unfinished):
            run("DELETE FROM generations WHERE id = ? AND id <= ? AND undone <> 1", (g.id, every[-1].id - HISTORY))


def prune(store: Store) -> bool:
    """Free the oldest thing that only a rollback would need, or unused pages; False where there is neither.

    To be called before anything else is changed: commits.
    """
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
    _go_on(store, vacuum=heads < 2 and snapshots < 2)
    return True


def compact(store: Store, kept: set[int | None] | None = None) -> None:
    """Delete samples that are gone, and those that are not `kept` (ids) and that no way back needs; join small files.

    Commits. Raises BudgetError where the quota has no room for one file more.
    """
    alive, since = store.living(), needed_since(store)
    base = max((g.id for g in store.alive() if g.snapshot), default=0)
    names: list[str] = []
    rows: list[Row] = []
    changed = False
    for name, _, newest in store.files():
        try:
            found = unpack(store.blob_path(name).read_bytes())
        except StateError:
            if newest > base:
                continue
            found = []  # damaged exemplars, which nothing else needs
        left = [row for row in found if alive(row) and (
            kept is None or row.id in kept or (row.generation or 0) > since)]
        whole = bool(found) and len(left) == len(found)
        if whole and 2 * packed_bytes(left) > store.segment:
            continue
        if names and packed_bytes(rows + left) > store.segment:
            _rewrite(store, names, rows, changed)
            names, rows, changed = [], [], False
        names, rows, changed = [*names, name], rows + left, changed or bool(names) or not whole
    _rewrite(store, names, rows, changed)


def _rewrite(store: Store, names: list[str], rows: list[Row], changed: bool) -> None:
    """Put samples from several files into one."""
    if not changed:
        return
    need = pages(packed_bytes(rows)) + PAGE + store.journal_bytes()
    require(store.used_bytes(), need, store.quota, "packing samples")
    store.connection.executemany("DELETE FROM files WHERE name = ?", [(name,) for name in names])
    store.add_files(rows)
    _go_on(store)


def needed_since(store: Store) -> int:
    """The oldest generation whose snapshot is kept: going back may take every sample that came after it."""
    return min((g.id for g in store.alive() if g.snapshot), default=0)


def evict(store: Store, kept: set[int | None]) -> None:
    """Delete the samples that are not `kept` (ids) and that no way back needs, as far as the disk and other processes
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
        sweep(store)
        if (store.path / f"{NAME}-journal").exists():  # of a kill before it counted: a write lets SQLite delete it
            run("PRAGMA user_version = 0")
            _go_on(store)
        marked = erasing(store)
        if marked or store.query("SELECT 1 FROM generations WHERE undone = 1"):
            compact(store)
            run("UPDATE generations SET undone = ? WHERE undone = 1", (ERASED,))
            for g in marked:
                run("UPDATE generations SET detail = ? WHERE id = ?", (
                    json.dumps({**{k: v for k, v in g.detail.items() if k != "class"}, "erasing": True}), g.id))
            _go_on(store, vacuum=bool(marked))
            for g in marked:
                run("UPDATE generations SET detail = ? WHERE id = ?", (
                    json.dumps({k: v for k, v in g.detail.items() if k not in ("class", "erasing")}), g.id))
            run("COMMIT")
    with suppress(sqlite3.Error):
        if store.connection.in_transaction:
            run("ROLLBACK")
        run(f"PRAGMA busy_timeout = {PATIENCE}")


def sweep(store: Store) -> None:
    """Delete every file that no row names. Raises OSError."""
    store.blobs.sweep({name for row in store.query(
        "SELECT backbone, head, snapshot FROM generations WHERE NOT undone UNION SELECT name, '', '' FROM files")
        for name in row})


def _go_on(store: Store, vacuum: bool = False) -> None:
    """Commit, rebuild the database without free space where `vacuum` is set, and begin the next step. Raises
    StateError where another process came between."""
    run = store.connection.execute
    before = store.query("PRAGMA data_version")
    run("COMMIT")
    if vacuum:
        require(store.used_bytes(), store.journal_bytes(), store.quota, "packing the database")
        run("VACUUM")
    run("BEGIN IMMEDIATE")
    if store.query("PRAGMA data_version") != before:
        raise StateError(f"{store.path} was changed by another edgecl process", "try again")
    sweep(store)
