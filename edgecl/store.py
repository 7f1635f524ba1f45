"""The state directory: one SQLite file and models/, a hard quota, generations, and recovery.

    STATE/edgecl.db              the truth: settings, generations, and which files hold the stored samples
    STATE/models/<sha256>.onnx   backbones and heads;  .npz  snapshots of class statistics;  .npy  stored samples

What a generation knows is its latest snapshot at or before it plus the samples journaled since. Files are
content-addressed: written, fsynced and renamed before the transaction that names them, deleted after the one
that no longer does. All writing happens inside one exclusive transaction, so a kill leaves before or after.
Samples lie in files, not in a table: each is checked by its hash, and deleting one leaves no copy behind, which a
b-tree does when it rebalances, `secure_delete` or not (1 of 800 deleted rows, measured).
"""
from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecl import database, upkeep
from edgecl.blobs import Blobs, sync_folder
from edgecl.budget import PAGE, directory_bytes, pages, require, segment_bytes
from edgecl.config import Settings
from edgecl.database import NAME, connect, damaged, in_words, translated
from edgecl.errors import BadInput, StateError
from edgecl.records import Change, Generation, Row, pack, packed_bytes, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Store:
    """An open state directory. `create` makes one, `Store(path)` opens it and clears what a kill left behind."""

    def __init__(self, path: Path) -> None:
        self.path, self.blobs = path, Blobs(path / "models")
        self.writing = False
        with translated(path):
            if not (path / NAME).is_file():
                raise StateError(f"there is no edgecl state in {path}", "name one with --state, or create it with "
                                 "`edgecl init`")
            self.writable = os.access(path, os.W_OK) and os.access(path / NAME, os.W_OK)
            self.connection = connect(path, "rw" if self.writable else "ro")
        try:
            with translated(path):
                self.meta = database.read_meta(self.connection, path)
                self.settings = self._settings()
                if self.writable and self.query("PRAGMA quick_check(1)") != [("ok",)]:
                    raise damaged(path, "its pages contradict each other")
        except BaseException:
            self.close()
            raise
        self.quota, self.segment = self.settings.quota, segment_bytes(self.settings.exemplars)
        if self.writable:
            upkeep.tidy(self, patience=0)

    def _settings(self) -> Settings:
        try:
            return Settings(**{"quota": None, **self.meta["settings"]})
        except (TypeError, BadInput) as error:
            raise damaged(self.path, "its settings can't be read") from error

    @classmethod
    def create(cls, path: Path, meta: dict[str, Any], first: Change) -> Store:
        """A new state directory (mode 0700) with its first generation. It appears at `path` at once and whole, or not
        at all. Raises StateError where something is there already, BudgetError where the quota is too small."""
        making = path.with_name(f".{path.name}.{os.getpid()}.new")
        with translated(path):
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise StateError(f"{path} exists already", "choose another --state, or delete it first")
            path.parent.mkdir(parents=True, exist_ok=True)
            _clear_unfinished(path)
            try:
                making.mkdir(mode=0o700)
                (making / "models").mkdir()
                connection = connect(making, "rwc")
                connection.executescript(database.SCHEMA)
                connection.executemany("INSERT INTO meta VALUES (?, ?)", [
                    (key, json.dumps(value)) for key, value in {"format": database.FORMAT, **meta}.items()])
                connection.close()
                store = cls(making)
                with store.exclusive():
                    store.commit(first)
                store.close()
                making.rename(path)
                sync_folder(path.parent)
            finally:
                shutil.rmtree(making, ignore_errors=True)
        return cls(path)

    def close(self) -> None:
        """Close the database; the store must not be used afterwards."""
        self.connection.close()

    # reading ------------------------------------------------------------------------------------

    def query(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """All rows of a statement. Raises StateError, BudgetError."""
        with translated(self.path):
            return self.connection.execute(statement, values).fetchall()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold the state still: until the end, no other process deletes a file that is named now."""
        outermost = not self.connection.in_transaction
        if outermost:
            self.query("BEGIN")
        try:
            yield
        finally:
            if outermost and self.connection.in_transaction:
                self.query("ROLLBACK")

    def refresh(self) -> None:
        """Read again what another process may have set."""
        with translated(self.path):
            self.meta = database.read_meta(self.connection, self.path)

    def generations(self) -> list[Generation]:
        """The history, the oldest generation first. Raises StateError where it is damaged."""
        try:
            return [Generation._make((*row[:3], json.loads(row[3]), *row[4:7], bool(row[7]), bool(row[8])))
                    for row in self.query("SELECT * FROM generations ORDER BY id")]
        except ValueError as error:
            raise damaged(self.path, "its history can't be read") from error

    @property
    def current(self) -> int:
        """Id of the current generation: the newest that was not rolled back."""
        return int(self.query("SELECT coalesce(max(id), 0) FROM generations WHERE NOT undone")[0][0])

    @property
    def newest(self) -> Generation:
        """The current generation."""
        alive = self.alive()
        if not alive:
            raise damaged(self.path, "it names no generation")
        return alive[-1]

    def alive(self) -> list[Generation]:
        """The generations that were not rolled back, the oldest first."""
        return [g for g in self.generations() if not g.undone]

    def restorable(self) -> set[int]:
        """Ids of the generations that can be gone back to exactly, all files that this takes being intact."""
        with self.reading():
            found: set[int] = set()
            lost = [span for name, *span in self.files() if not self.blobs.intact(name)]
            base: int | None = None
            for g in self.alive():
                if g.action == "init":
                    base = g.id
                elif g.snapshot:
                    base = g.id if self.blobs.intact(g.snapshot) else None
                elif not g.journaled:
                    base = None
                complete = base is not None and not any(oldest <= g.id and newest > base for oldest, newest in lost)
                if complete and (self.blobs.intact(g.head) if g.head else not g.detail.get("classes")):
                    found.add(g.id)
            return found

    def files(self) -> list[tuple[str, int, int]]:
        """The files of samples: name, and the oldest and newest generation in it."""
        return [(str(name), oldest, newest) for name, oldest, newest
                in self.query("SELECT name, oldest, newest FROM files ORDER BY oldest, newest, name")]

    def samples(self, until: int, since: int) -> list[Row]:
        """All samples stored up to generation `until`, in the order in which they came.

        Raises StateError where a file that holds samples newer than `since` is damaged; older ones are exemplars only,
        and a damaged file of them is left out.
        """
        found: list[Row] = []
        alive = self.living()
        for name, oldest, newest in self.files():
            if (since < newest and oldest <= until) or self.blobs.intact(name):
                found += [row for row in unpack(self.blob_path(name).read_bytes())
                          if alive(row) and (row.generation or 0) <= until]
        return sorted(found, key=lambda row: row.id or 0)

    def living(self) -> Callable[[Row], bool]:
        """A function that tells whether a stored sample was neither rolled back nor forgotten."""
        every = self.generations()
        undone = {g.id for g in every if g.undone}
        forgotten = {g.detail["class"]: g.id for g in every if g.action == "forget" and "class" in g.detail}
        return lambda row: row.generation not in undone and (row.generation or 0) > forgotten.get(row.label, 0)

    def blob_path(self, name: str) -> Path:
        """The path of a content-addressed file. Raises StateError where it is missing or altered."""
        try:
            return self.blobs.path(name, "go back with `edgecl rollback N`, see `edgecl history`")
        except StateError as error:
            if any(g.backbone == name for g in self.generations()):
                raise StateError(error.what, "restore it from a copy, or create a new state") from error
            raise

    def used_bytes(self) -> int:
        """Bytes of the whole directory, counted in pages."""
        with translated(self.path):
            return directory_bytes(self.path)

    # writing ------------------------------------------------------------------------------------

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the state for writing; nothing that is not committed inside survives."""
        if not self.writable:
            raise StateError(f"{self.path} is read-only", "make it writable, or choose another --state")
        self.query("BEGIN IMMEDIATE")
        self.writing = True
        try:
            self.refresh()
            upkeep.sweep(self)
            yield
        except (sqlite3.Error, OSError) as error:
            raise in_words(error, self.path) from error
        finally:
            self.writing = False
            upkeep.tidy(self, patience=0)
        if upkeep.erasing(self):
            upkeep.tidy(self, database.PATIENCE)
            if upkeep.erasing(self):
                raise StateError(f"{self.path} has forgotten the class, but its samples could not be erased yet",
                                 "free some space; the next edgecl command erases them")

    def fits(self, change: Change) -> bool:
        """Whether the change, its temporaries and what it must spare included, stays within the quota."""
        return self.used_bytes() + self.needed_bytes(change) <= self.quota

    def needed_bytes(self, change: Change) -> int:
        """Bytes the change may add at its peak, and must spare: new files, and what the database grows by."""
        files = sum(pages(len(blob)) for blob in (change.backbone, change.head, change.snapshot) if blob)
        samples = packed_bytes(change.rows)
        count = samples // self.segment + 1
        text = len(json.dumps([change.detail, change.meta])) + 200 * count
        return files + pages(samples) + count * PAGE + pages(text) + 4 * PAGE + self.journal_bytes() + change.spare

    def journal_bytes(self) -> int:
        """Bytes of SQLite's rollback journal, at most: one copy of every page."""
        size = (self.path / NAME).stat().st_size
        return pages(size + size // 256 + 1024)

    def commit(self, change: Change) -> tuple[int, list[Row]]:
        """Commit a change inside `exclusive`: its generation's id, and its rows with theirs. Raises BudgetError past
        the quota or on a full disk; then nothing has changed."""
        require(self.used_bytes(), self.needed_bytes(change), self.quota, f"`{change.action}`")
        run, names = self.connection.execute, dict.fromkeys(("backbone", "head", "snapshot"), "")
        for kind, suffix in (("backbone", "onnx"), ("head", "onnx"), ("snapshot", "npz")):
            if blob := getattr(change, kind):
                names[kind] = self.blobs.write(blob, suffix)
        every = self.generations()
        names["backbone"] = names["backbone"] or next((g.backbone for g in reversed(every) if g.backbone), "")
        if change.undo_after is not None:
            target = next(g for g in every if g.id == change.undo_after)
            names = {**names, "head": target.head or "", "backbone": target.backbone or names["backbone"]}
            run("UPDATE generations SET undone = 1 WHERE id > ? AND NOT undone", (target.id,))
        for key, value in change.meta.items():
            run("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        generation = run(
            "INSERT INTO generations (created, action, detail, backbone, head, snapshot, journaled)"
            " VALUES (?, ?, ?, nullif(?, ''), nullif(?, ''), nullif(?, ''), ?)",
            (now, change.action, json.dumps(change.detail), *names.values(), not change.snapshot)).lastrowid
        assert generation is not None
        rows = [row._replace(id=generation << 32 | number, generation=generation)
                for number, row in enumerate(change.rows)]
        self.add_files(rows)
        upkeep.retire(self, upkeep.HEADS, upkeep.SNAPSHOTS, change.detail["class"] if change.erase else None)
        growth = self.query("PRAGMA page_count")[0][0] * PAGE - (self.path / NAME).stat().st_size
        require(self.used_bytes(), max(growth, 0), self.quota, f"`{change.action}`")
        run("COMMIT")
        self.meta.update(change.meta)
        return generation, rows

    def add_files(self, rows: list[Row]) -> None:
        """Write committed samples as files of `segment` bytes, and name them in the transaction that is open."""
        step = max(1, self.segment * len(rows) // max(packed_bytes(rows), 1))
        for start in range(0, len(rows), step):
            part = rows[start:start + step]
            spans = [row.generation for row in part if row.generation is not None]
            self.connection.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?)",
                                    (self.blobs.write(pack(part), "npy"), min(spans), max(spans)))


def _clear_unfinished(path: Path) -> None:
    """Delete what a killed `create` of the same state left beside it."""
    prefix = f".{path.name}."
    for entry in path.parent.iterdir():
        number = entry.name.removeprefix(prefix).removesuffix(".new")
        if entry.name == f"{prefix}{number}.new" and number.isdecimal() and (
                int(number) == os.getpid() or not Path("/proc", number).exists()):
            shutil.rmtree(entry, ignore_errors=True)
