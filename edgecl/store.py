"""The state directory: one SQLite file and models/, a hard quota, generations, and recovery.

    STATE/edgecl.db              the truth: settings, generations, samples (the journal and the exemplars)
    STATE/models/<sha256>.onnx   backbones and heads;  <sha256>.npz  snapshots of class statistics

What a generation knows is its latest snapshot at or before it plus the samples journaled since. Files are
content-addressed: written, fsynced and renamed before the transaction that names them, deleted after the one
that no longer does. All writing happens inside one exclusive transaction, so a kill leaves before or after.
"""
from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sqlite3
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecl.budget import PAGE, directory_bytes, pages, require
from edgecl.errors import BudgetError, StateError
from edgecl.records import Change, Generation, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMAT = 1
KEPT = 2  # heads and snapshots kept: the current one, and the one that serves where it is damaged
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE generations (
    id INTEGER PRIMARY KEY AUTOINCREMENT, created TEXT NOT NULL, action TEXT NOT NULL, detail TEXT NOT NULL,
    backbone TEXT, head TEXT, snapshot TEXT, journaled INTEGER NOT NULL, undone INTEGER NOT NULL DEFAULT 0);
CREATE TABLE samples (
    id INTEGER PRIMARY KEY, generation INTEGER NOT NULL, label TEXT NOT NULL, key INTEGER NOT NULL,
    feature BLOB NOT NULL);
"""


class Store:
    """An open state directory. `create` makes one, `Store(path)` opens it and clears what a kill left behind."""

    def __init__(self, path: Path) -> None:
        self.path, self.models = path, path / "models"
        if not (path / "edgecl.db").is_file():
            raise StateError(f"there is no edgecl state in {path}", f"create one with `edgecl init --state {path}`")
        self.writable = os.access(path, os.W_OK) and os.access(path / "edgecl.db", os.W_OK)
        self._connection = _connect(path / "edgecl.db", self.writable)
        try:
            self.meta = self._read_meta()
        except sqlite3.DatabaseError as error:
            raise self._translate(error) from error
        found = self.meta.get("format")
        if found != FORMAT:
            raise StateError(f"{path} has format {found}, this edgecl reads format {FORMAT}",
                             "upgrade edgecl, or create a new state")
        self.quota: int = self.meta["settings"]["quota"]
        if self.writable:
            self._recover()

    @classmethod
    def create(cls, path: Path, meta: dict[str, Any], first: Change) -> Store:
        """A new state directory (mode 0700) with its first generation. It appears at `path` at once and whole, or not
        at all. Raises StateError where something is there already, BudgetError where the quota is too small."""
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise StateError(f"{path} exists already", "choose another --state, or delete it first")
        making = path.with_name(f".{path.name}.{os.getpid()}.new")
        try:
            (making / "models").mkdir(parents=True)
            making.chmod(0o700)
            connection = _connect(making / "edgecl.db", writable=True)
            connection.executescript("PRAGMA auto_vacuum = INCREMENTAL;" + SCHEMA)
            connection.executemany("INSERT INTO meta VALUES (?, ?)",
                                   [(k, json.dumps(v)) for k, v in {"format": FORMAT, **meta}.items()])
            connection.close()
            store = cls(making)
            with store.exclusive():
                store.commit(first)
            store.close()
            making.rename(path)
            _sync_folder(path.parent)
        except (OSError, sqlite3.Error) as error:
            raise _storage_error(error, path) from error
        finally:
            shutil.rmtree(making, ignore_errors=True)
        return cls(path)

    def close(self) -> None:
        """Close the database; the store must not be used afterwards."""
        self._connection.close()

    # reading ------------------------------------------------------------------------------------

    def _read_meta(self) -> dict[str, Any]:
        return {k: json.loads(v) for k, v in self._connection.execute("SELECT key, value FROM meta")}

    def generations(self) -> list[Generation]:
        """Every generation, the oldest first."""
        rows = self._connection.execute("SELECT * FROM generations ORDER BY id")
        return [Generation(i, created, action, json.loads(detail), backbone, head, snapshot, bool(journaled),
                           bool(undone))
                for i, created, action, detail, backbone, head, snapshot, journaled, undone in rows]

    @property
    def current(self) -> int:
        """Id of the current generation: the newest that was not rolled back."""
        return int(self._connection.execute("SELECT max(id) FROM generations WHERE NOT undone").fetchone()[0])

    @property
    def newest(self) -> Generation:
        """The current generation."""
        current = self.current
        return next(g for g in self.generations() if g.id == current)

    def restorable(self) -> set[int]:
        """Ids of the generations whose knowledge can be rebuilt exactly."""
        found: set[int] = set()
        reachable = False
        for generation in self.generations():
            if generation.undone:
                continue
            reachable = generation.snapshot is not None or (reachable and generation.journaled)
            if reachable:
                found.add(generation.id)
        return found

    def samples(self) -> list[Row]:
        """All stored samples, in the order in which they came."""
        return [Row(*row[:4], np.frombuffer(row[4], np.float32))
                for row in self._connection.execute("SELECT * FROM samples ORDER BY id")]

    def blob_path(self, name: str) -> Path:
        """The path of a content-addressed file. Raises StateError where it is missing or altered."""
        path = self.models / name
        try:
            with path.open("rb") as file:
                intact = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else \
                    hashlib.sha256(file.read())
        except OSError as error:
            raise StateError(f"{path} can't be read ({error.strerror})",
                             "go back with `edgecl rollback`, or restore the file") from error
        if intact.hexdigest() != name.partition(".")[0]:
            raise StateError(f"{path} is damaged: its SHA-256 does not match its name",
                             "go back with `edgecl rollback`, or restore the file")
        return path

    def used_bytes(self) -> int:
        """Bytes of the whole directory, counted in pages."""
        return directory_bytes(self.path)

    # writing ------------------------------------------------------------------------------------

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the state for writing; nothing that is not committed inside survives."""
        if not self.writable:
            raise StateError(f"{self.path} is read-only", "make it writable, or choose another --state")
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise self._translate(error) from error
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise self._translate(error) from error
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            self._recover()

    def fits(self, change: Change) -> bool:
        """Whether the change would stay within the quota, its temporaries included."""
        return self.used_bytes() + self.needed_bytes(change) <= self.quota

    def needed_bytes(self, change: Change) -> int:
        """Bytes the change may add at its peak: new files, new rows, and the rollback journal."""
        files = sum(pages(len(blob)) for blob in (change.backbone, change.head, change.snapshot) if blob)
        free = self._connection.execute("PRAGMA freelist_count").fetchone()[0] * PAGE
        return files + max(_row_bytes(change.rows) - free, 0) + _row_bytes(change.drop) + 12 * PAGE

    def prune(self) -> bool:
        """Free the oldest thing that only a rollback would need, or unused pages; False where there is neither.

        To be called in `exclusive`, before anything is changed there.
        """
        run = self._connection.execute
        every = self.generations()
        alive = [g for g in every if not g.undone]
        snapshots, heads = ([g.id for g in alive if getattr(g, kind)] for kind in ("snapshot", "head"))
        if len(snapshots) > 1:
            run("UPDATE generations SET snapshot = NULL WHERE id = ?", (snapshots[0],))
        elif len(heads) > 1:
            run("UPDATE generations SET head = NULL WHERE id = ?", (heads[0],))
        elif run("PRAGMA freelist_count").fetchone()[0] < 16:
            return False
        run("COMMIT")
        run("PRAGMA incremental_vacuum(16)").fetchall()
        run("BEGIN IMMEDIATE")
        if self.generations()[-1].id != every[-1].id:
            raise StateError(f"{self.path} was changed by another edgecl process", "try again")
        self._sweep()
        return True

    def commit(self, change: Change) -> tuple[int, int]:
        """Commit a change inside `exclusive`: its generation's id, and the id of the first of its rows (the others
        follow). Raises BudgetError past the quota or on a full disk; then nothing has changed."""
        require(self.used_bytes(), self.needed_bytes(change), self.quota, f"`{change.action}`")
        run = self._connection.execute
        files = {kind: self._write(blob, suffix) if blob else None for kind, blob, suffix in (
            ("backbone", change.backbone, "onnx"), ("head", change.head, "onnx"),
            ("snapshot", change.snapshot, "npz"))}
        if change.undo_after is not None:
            run("UPDATE generations SET undone = 1 WHERE id > ?", (change.undo_after,))
            run("DELETE FROM samples WHERE generation > ?", (change.undo_after,))
        if change.snapshot:
            run("UPDATE generations SET journaled = 0")
        if change.erase:
            run("UPDATE generations SET snapshot = NULL, head = NULL, journaled = 0")
        if change.drop:
            self._connection.executemany("DELETE FROM samples WHERE id = ?", [(row.id,) for row in change.drop])
        for key, value in change.meta.items():
            run("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))
        backbone = files["backbone"] or (self.newest.backbone if self.generations() else None)
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        generation = run(
            "INSERT INTO generations (created, action, detail, backbone, head, snapshot, journaled)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (now, change.action, json.dumps(change.detail), backbone, files["head"], files["snapshot"],
             not change.snapshot)).lastrowid
        assert generation is not None
        first = int(run("SELECT coalesce(max(id), 0) + 1 FROM samples").fetchone()[0])
        self._connection.executemany(
            "INSERT INTO samples VALUES (?, ?, ?, ?, ?)",
            [(first + i, generation, row.label, row.key, row.feature.tobytes()) for i, row in enumerate(change.rows)])
        for kind in ("head", "snapshot"):
            run(f"UPDATE generations SET {kind} = NULL WHERE id NOT IN"
                f" (SELECT id FROM generations WHERE {kind} NOT NULL AND NOT undone ORDER BY id DESC LIMIT {KEPT})")
        run("COMMIT")
        self.meta.update(change.meta)
        return generation, first

    def _write(self, blob: bytes, suffix: str) -> str:
        name = f"{hashlib.sha256(blob).hexdigest()}.{suffix}"
        path, temporary = self.models / name, self.models / f"{os.getpid()}.tmp"
        with temporary.open("wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
        _sync_folder(self.models)
        return name

    def _recover(self) -> None:
        """Delete what no row names, unless another process is writing just now (its files may not be named yet)."""
        try:
            self._connection.execute("PRAGMA busy_timeout = 0")
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return
        finally:
            self._connection.execute("PRAGMA busy_timeout = 10000")
        self._sweep()
        self._connection.execute("ROLLBACK")

    def _sweep(self) -> None:
        named = {name for row in self._connection.execute("SELECT backbone, head, snapshot FROM generations"
                                                          " WHERE NOT undone") for name in row}
        for path in self.models.iterdir():
            if path.name not in named:
                path.unlink(missing_ok=True)

    def _translate(self, error: Exception) -> StateError | BudgetError:
        return _storage_error(error, self.path)


def _row_bytes(rows: list[Row]) -> int:
    return sum(row.feature.nbytes + 4 * len(row.label) + 96 for row in rows) * 9 // 8


def _connect(path: Path, writable: bool) -> sqlite3.Connection:
    try:
        mode = "rwc" if writable else "ro"
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None,
                                     timeout=10, check_same_thread=False)
        for pragma in ("synchronous = EXTRA", "secure_delete = ON", "temp_store = MEMORY", "cache_spill = OFF"):
            connection.execute(f"PRAGMA {pragma}")
    except sqlite3.Error as error:
        raise _storage_error(error, path.parent) from error
    return connection


def _storage_error(error: Exception, path: Path) -> StateError | BudgetError:
    number = getattr(error, "errno", None)
    text = str(error)
    if number in (errno.ENOSPC, errno.EDQUOT) or "is full" in text:
        return BudgetError(f"the disk that holds {path} is full", "free some space; nothing was changed")
    if number in (errno.EROFS, errno.EACCES, errno.EPERM) or "readonly" in text:
        return StateError(f"{path} can't be written", "make it writable, or choose another --state")
    if "locked" in text:
        return StateError(f"{path} is in use by another edgecl process", "wait for it to end, then try again")
    if "malformed" in text or "not a database" in text:
        return StateError(f"{path / 'edgecl.db'} is damaged ({text})", "restore it from a copy, or create a new state")
    return StateError(f"{path} can't be used ({text})", "check the disk, then try again")


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
