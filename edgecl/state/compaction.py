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

from edgecl.errors import EdgeclError, StateError
from edgecl.state.database import NAME, PATIENCE
from edgecl.state.exemplar_files import arrange, put
from edgecl.state.generations import Generation
from edgecl.state.quota import PAGE, pages
from edgecl.state.reader import FEATURES, HISTORY, JOURNAL, PARTS
from edgecl.state.write_ahead_log import new_epoch

if TYPE_CHECKING:
    from edgecl.exemplars.stored import StoredSample
    from edgecl.state.store import Store

SNAPSHOTS = 2  # kept: the current one, and the one to go back to where it is damaged
HEADS = 8      # kept: each makes a generation one that can be gone back to
ROOM = 8 * PAGE  # that small writes to the database take
ERASED = 2     # `undone` of a generation whose samples are deleted


def retire(store: Store, heads: int, snapshots: int, erased: str | None = None) -> None:
    """Let go of all but the newest heads and snapshots, of backbones that go with none of these, and of old history;
    with `erased`, of everything that is older than the current generation, and of that class's name."""
    every = store.generations()
    alive = [g for g in every if not g.undone]
    current = alive[-1]
    alive = alive if erased is None else [current]
    keep = [g.id for g in alive if g.head][-heads:], [g.id for g in alive if g.snapshot][-snapshots:]
    oldest = min(keep[1], default=0)
    backbones = {g.backbone for g in alive if g.id in keep[0] or g.id >= oldest}
    run, unfinished = store.connection.execute, erasing(store)
    rounds = {store.tuned(), *(number for _, number, _ in store.files(FEATURES))}
    for g in every:
        if g.id == current.id:
            continue
        head, snapshot = (name if g.id in kept else None for name, kept in zip((g.head, g.snapshot), keep))
        backbone = g.backbone if g.backbone in backbones else None
        detail = {key: value for key, value in g.detail.items()
                  if (head or key != "held_back") and (key != "class" or value != erased)}
        if erased is not None and "refused" in detail:
            detail["refused"] = [why.partition(":")[0] if erased in why else why for why in detail["refused"]]
        if (backbone, head, snapshot, detail) != (g.backbone, g.head, g.snapshot, g.detail):
            run("UPDATE generations SET backbone = ?, head = ?, snapshot = ?, detail = ? WHERE id = ?",
                (backbone, head, snapshot, json.dumps(detail), g.id))
        if not (head or snapshot or "merged" in detail or detail.get("exact") is False or g in unfinished
                or g.id in rounds):
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


def spendable(store: Store) -> int:
    """Bytes that `prune` can free, one call after the other."""
    alive = store.alive()
    named = {name for g in alive for name in (g.backbone, g.head, g.snapshot) if name}
    heads, snapshots = ([name for g in alive if (name := getattr(g, kind))] for kind in ("head", "snapshot"))
    return sum(pages(store.blobs.bytes(name)) for name in named - {alive[-1].backbone, *heads[-1:], *snapshots[-1:]})


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


def compact(store: Store, kept: list[StoredSample] | None = None) -> None:
    """Delete samples that are gone; with `kept`, which are the exemplars, also those that no way back needs.

    Commits. Raises BudgetError where the quota has no room for one file more.
    """
    alive, since = store.living(), needed_since(store)
    if kept is not None and any(number > since for _, number, _ in store.files(FEATURES)):
        then = {row.id: row for row in store.samples(since, since)}  # going back takes features by the backbone of then
        kept = [then[row.id] for row in kept if row.id in then]
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
    for name, number, _ in store.files(FEATURES):
        if number not in numbers or (kept is not None and number <= since):
            spent.append(name)
        elif store.blobs.intact(name):
            found = store.rows(name)
            left = [row for row in found if alive(row)]
            if len(left) < len(found):
                put(store, [name], [left] if left else [], FEATURES, number)
    spent += [name for name, number, _ in store.files(PARTS)
              if number not in numbers or number < (store.tuned(since) or 0)]
    arrange(store, alive, None if kept is None else [row for row in kept if (row.generation or 0) <= since], spent)


def needed_since(store: Store) -> int:
    """The oldest generation whose snapshot is kept: going back may take every sample that came after it."""
    return min((g.id for g in store.alive() if g.snapshot), default=0)


def evict(store: Store, kept: list[StoredSample]) -> None:
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
