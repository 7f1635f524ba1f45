"""The state directory: one SQLite file and models/, a hard quota, generations, and recovery.

    STATE/edgecl.db              the truth: settings, generations, and which files hold the stored samples
    STATE/learned.log            generations that only added samples, until they move into the database
    STATE/reserved               what the quota has left, kept on the disk
    STATE/models/<sha256>.onnx   backbones and heads;  .npz  snapshots of class statistics;  .journal  samples learned
                                 between two snapshots;  .exemplars  the exemplar buffer;  .codebook  of its codec

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
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecl import database, upkeep
from edgecl.blobs import Blobs, sync_folder
from edgecl.budget import PAGE, Ledger, pages, segment_bytes
from edgecl.codebook import Codebook
from edgecl.codec import Float32, Int8
from edgecl.config import Settings
from edgecl.database import NAME, connect, damaged, in_words, translated
from edgecl.errors import BadInput, StateError
from edgecl.log import NAME as LOG
from edgecl.log import Entry, Log, first_record, new_epoch
from edgecl.records import Change, Generation, Row, pack, packed_bytes, rows_of
from edgecl.shelves import EXEMPLARS, JOURNAL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgecl.codec import FeatureCodec


class Store:
    """An open state directory. `create` makes one, `Store(path)` opens it and clears what a kill left behind."""

    def __init__(self, path: Path) -> None:
        self.path, self.blobs = path, Blobs(path / "models")
        self.log = Log(path, self.codec)
        self.writing = False
        self._listed: tuple[object, list[Generation]] = (None, [])
        self.books: dict[str, Codebook] = {}
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
        self.ledger, self.segment = Ledger(path, self.settings.quota), segment_bytes(self.settings.exemplars)
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
                connection, epoch = connect(making, "rwc"), new_epoch()
                (making / LOG).write_bytes(first_record(epoch))
                connection.executescript(database.SCHEMA)
                connection.executemany("INSERT INTO meta VALUES (?, ?)", [
                    (key, json.dumps(value)) for key, value in
                    {"format": database.FORMAT, "epoch": epoch, **meta}.items()])
                connection.close()
                store = cls(making)
                with store.exclusive():
                    store.commit(first)
                    store.ledger.hold()
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
        with self.reading():
            logged = [entry.generation for entry in self.logged()]
            logged = [g for g in logged if g.head or g.id > logged[-1].id - upkeep.HISTORY]
            key = (self.query("PRAGMA data_version"), self.connection.total_changes, self.writing)
            if self._listed[0] != key:
                try:
                    self._listed = key, [
                        Generation(row[0], row[1], row[2], json.loads(row[3]), row[4], row[5], row[6], bool(row[7]),
                                   bool(row[8]))
                        for row in self.query("SELECT * FROM generations ORDER BY id")]
                except ValueError as error:
                    raise damaged(self.path, "its history can't be read") from error
            stored = self._listed[1]
            backbone = next((g.backbone for g in reversed(stored) if g.backbone and not g.undone), None)
            return [*stored, *(g._replace(backbone=backbone) for g in logged)]

    def logged(self) -> list[Entry]:
        """The generations that stand in the log, with their samples."""
        with self.reading():
            epoch = self.query("SELECT value FROM meta WHERE key = 'epoch'")
            with translated(self.path):
                return self.log.entries(json.loads(epoch[0][0])) if epoch else []

    @property
    def current(self) -> int:
        """Id of the current generation: the newest that was not rolled back."""
        return max((g.id for g in self.generations() if not g.undone), default=0)

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
        """Ids of the generations that can be gone back to exactly, all files that this takes being intact. A head that
        was not written is solved again, as long as no exemplar was evicted since: until the next snapshot."""
        with self.reading():
            found: set[int] = set()
            alive = self.alive()
            lost = [span for name, *span in self.files(JOURNAL) if not self.blobs.intact(name)]
            lost += [[e.generation.id] * 2 for e in self.logged() if e.rows is None]
            last = max((g.id for g in alive if g.snapshot), default=0)
            base: int | None = None
            for g in alive:
                if g.action == "init":
                    base = g.id
                elif g.snapshot:
                    base = g.id if self.blobs.intact(g.snapshot) else None
                elif not g.journaled:
                    base = None
                complete = base is not None and not any(oldest <= g.id and newest > base for oldest, newest in lost)
                headless = not g.detail.get("classes") or (g.head is None and g.id > last)
                if complete and (self.blobs.intact(g.head) if g.head else headless):
                    found.add(g.id)
            return found

    def files(self, kind: str) -> list[tuple[str, int, int]]:
        """The files of samples of a kind: name, and the oldest and newest generation in it."""
        return [(str(name), oldest, newest) for name, oldest, newest
                in self.query("SELECT name, oldest, newest FROM files WHERE name LIKE ? ORDER BY oldest, newest, name",
                              f"%.{kind}")]

    def rows(self, name: str) -> list[Row]:
        """The samples of a file. Raises StateError where it is damaged."""
        return rows_of(self.blob_path(name).read_bytes(), self.codec, str(self.blobs.folder / name))

    def samples(self, until: int, since: int) -> list[Row]:
        """All samples stored up to generation `until`, in the order in which they came.

        Raises StateError where one newer than `since` is damaged; older ones are exemplars only, and damaged ones are
        left out.
        """
        alive, found = self.living(), dict[int, Row]()
        for name, oldest, _ in self.files(EXEMPLARS):
            if oldest <= until and self.blobs.intact(name):
                found |= {row.id or 0: row for row in self.rows(name)}
        for name, oldest, newest in self.files(JOURNAL):
            if oldest <= until and (newest > since or self.blobs.intact(name)):
                found |= {row.id or 0: row for row in self.rows(name)}
        for generation, rows, *_ in self.logged():
            if generation.id <= until:
                if rows is None:
                    raise StateError(f"{self.log.path} is damaged at generation {generation.id}",
                                     "go back with `edgecl rollback N`, see `edgecl history`")
                found |= {row.id or 0: row for row in rows}
        return [row for _, row in sorted(found.items()) if alive(row) and (row.generation or 0) <= until]

    def codec(self, name: str) -> FeatureCodec:
        """The feature codec of a name, as this state uses it. Raises StateError where its codebook is damaged."""
        if name == "raw":
            return Float32()
        if "foundation" not in self.meta:
            self.refresh()
        if name == "int8-feature":
            return Int8(self.meta["foundation"]["power"])
        return self._codebook(name, 0).codec

    @property
    def codebook(self) -> Codebook | None:
        """The codebook of exemplars that are not held back, where there is one."""
        books = self.meta.get("codebooks")
        return self._codebook(*books[-1]) if books else None

    def _codebook(self, name: str, classes: int) -> Codebook:
        if name not in self.books:
            data = self.blob_path(name).read_bytes()
            self.books[name] = Codebook.read(name, data, self.meta["foundation"]["power"], classes)
        return replace(self.books[name], classes=classes)

    def drop_codebooks(self) -> None:
        """Let go of codebooks that no exemplar needs any more, in the transaction that is open."""
        books = self.meta.get("codebooks", [])
        if len(books) > 1:
            self.meta = {**self.meta, "codebooks": books[-1:]}
            self.connection.execute("UPDATE meta SET value = ? WHERE key = 'codebooks'", (json.dumps(books[-1:]),))
            self.step()

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
        """Bytes of the whole directory, counted in pages; what is only reserved does not count."""
        with translated(self.path):
            return self.ledger.usage().total

    # writing ------------------------------------------------------------------------------------

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the state for writing; nothing that is not committed inside survives."""
        if not self.writable:
            raise StateError(f"{self.path} is read-only", "make it writable, or choose another --state")
        self.query("BEGIN IMMEDIATE")
        self.writing, self._listed = True, (None, [])
        try:
            self.refresh()
            self.ledger.release(self.journal_bytes() + upkeep.ROOM)
            upkeep.start_log(self)
            upkeep.sweep(self)
            yield
        except (sqlite3.Error, OSError) as error:
            raise in_words(error, self.path) from error
        finally:
            self.writing, self._listed = False, (None, [])
            upkeep.tidy(self, patience=0)
            self.refresh()
        if upkeep.erasing(self):
            upkeep.tidy(self, database.PATIENCE)
            if upkeep.erasing(self):
                raise StateError(f"{self.path} has forgotten the class, but its samples could not be erased yet",
                                 "free some space; the next edgecl command erases them")

    def fits(self, change: Change) -> bool:
        """Whether the change, its temporaries and what it must spare included, stays within the quota."""
        return self.ledger.fits(self.needed_bytes(change))

    def needed_bytes(self, change: Change) -> int:
        """Bytes the change may add at its peak, and must spare: new files, and what the database grows by."""
        blobs = change.backbone, change.head, change.snapshot, change.codebook
        files = sum(pages(len(blob)) for blob in blobs if blob)
        text = len(json.dumps([change.detail, change.meta])) + 400
        samples = pages(packed_bytes([(change.rows, self.exact)], text)) + PAGE if change.rows else 0
        if change.logs:
            return files + samples + change.spare
        return files + samples + self.transaction_bytes(text) + change.spare

    def transaction_bytes(self, text: int) -> int:
        """Bytes that a transaction takes which writes `text` bytes and moves the log into the database."""
        moved = sum(len(json.dumps(entry.generation.detail)) + 400 for entry in self.logged()[-upkeep.HISTORY:])
        return pages(text + moved) + 5 * PAGE + self.journal_bytes()

    def packing_bytes(self) -> int:
        """Bytes that it may take to bring all exemplars into their files."""
        missing = pages(self.settings.exemplars) - self.ledger.usage().exemplars
        return max(missing, 0) + self.segment + 2 * PAGE + self.journal_bytes()

    @property
    def exact(self) -> FeatureCodec:
        """The codec in which features are learned, and can be forgotten exactly."""
        about = self.meta["foundation"]
        return self.codec("raw" if (about["codec"], about["kind"]) == ("raw", "feature") else "int8-feature")

    def journal_bytes(self) -> int:
        """Bytes of SQLite's rollback journal, at most: one copy of every page."""
        size = (self.path / NAME).stat().st_size
        return pages(size + size // 256 + 1024)

    def commit(self, change: Change) -> tuple[int, list[Row]]:
        """Commit a change inside `exclusive`: its generation's id, and its rows with theirs. Raises BudgetError past
        the quota or on a full disk; then nothing has changed."""
        self.ledger.ask(self.needed_bytes(change), f"`{change.action}`")
        newest = max((g.id for g in self.generations()), default=0)
        number = max(newest, *(seq for seq, in self.query("SELECT seq FROM sqlite_sequence")), 0) + 1
        rows = [row._replace(id=number << 32 | place, generation=number) for place, row in enumerate(change.rows)]
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        head = self.blobs.write(change.head, "onnx") if change.head else None
        if change.logs:
            self.log.append(pack([(rows, self.exact)], {"id": number, "created": now, "action": change.action,
                                                        "detail": change.detail, "head": head}))
        else:
            self._transact(change, Generation(number, now, change.action, change.detail, None, head, None,
                                              not change.snapshot, False), rows)
        return number, rows

    def name_head(self, generation: int, head: bytes) -> None:
        """Write the head of a generation of the log, inside `exclusive`. Raises BudgetError."""
        self.ledger.ask(pages(len(head)) + 2 * PAGE, "the head")
        self.log.append(pack([], {"head_of": generation, "head": self.blobs.write(head, "onnx")}))

    def _transact(self, change: Change, generation: Generation, rows: list[Row]) -> None:
        """Commit a change that an append to the log does not express; the log's generations move into the database."""
        run, every = self.connection.execute, self.generations()
        snapshot = self.blobs.write(change.snapshot, "npz") if change.snapshot else None
        backbone = self.blobs.write(change.backbone, "onnx") if change.backbone else next(
            (g.backbone for g in reversed(every) if g.backbone), None)
        if change.codebook:
            self.blobs.write(change.codebook, "codebook")
        upkeep.move_log(self)
        if change.undo_after is not None:
            target = next(g for g in every if g.id == change.undo_after)
            generation = generation._replace(head=target.head or generation.head)
            backbone = target.backbone or backbone
            run("UPDATE generations SET undone = 1 WHERE id > ? AND NOT undone", (target.id,))
        for key, value in change.meta.items():
            run("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))
        self.insert(generation._replace(backbone=backbone, snapshot=snapshot))
        self.add_file(rows, JOURNAL)
        upkeep.retire(self, upkeep.HEADS, upkeep.SNAPSHOTS, change.detail["class"] if change.erase else None)
        growth = self.query("PRAGMA page_count")[0][0] * PAGE - (self.path / NAME).stat().st_size
        self.ledger.ask(max(growth, 0), f"`{change.action}`")
        run("COMMIT")

    def step(self, vacuum: bool = False) -> None:
        """Commit, rebuild the database without free space where `vacuum` is set, and begin the next step of a change.
        Raises StateError where another process came between."""
        run, before = self.connection.execute, self.query("PRAGMA data_version")
        run("COMMIT")
        if vacuum:
            self.ledger.ask(self.journal_bytes(), "packing the database")
            run("VACUUM")
        run("BEGIN IMMEDIATE")
        if self.query("PRAGMA data_version") != before:
            raise StateError(f"{self.path} was changed by another edgecl process", "try again")
        upkeep.start_log(self)
        upkeep.sweep(self)

    def insert(self, g: Generation) -> None:
        """Write a generation into the database, in the transaction that is open."""
        self.connection.execute("INSERT INTO generations VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)", (
            g.id, g.created, g.action, json.dumps(g.detail), g.backbone, g.head, g.snapshot, g.journaled))

    def add_file(self, rows: list[Row], kind: str) -> None:
        """Write committed samples as one file, and name it in the transaction that is open."""
        if rows:
            spans = [row.generation for row in rows if row.generation is not None]
            self.connection.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?)",
                                    (self.blobs.write(pack(self.by_codec(rows)), kind), min(spans), max(spans)))

    def by_codec(self, rows: list[Row]) -> list[tuple[list[Row], FeatureCodec]]:
        """The samples that are as they were learned, and those of each codebook, with their codec."""
        return [([row for row in rows if row.coded == name], self.codec(name) if name else self.exact)
                for name in sorted({row.coded for row in rows})]


def _clear_unfinished(path: Path) -> None:
    """Delete what a killed `create` of the same state left beside it."""
    prefix = f".{path.name}."
    for entry in path.parent.iterdir():
        number = entry.name.removeprefix(prefix).removesuffix(".new")
        if entry.name == f"{prefix}{number}.new" and number.isdecimal() and (
                int(number) == os.getpid() or not Path("/proc", number).exists()):
            shutil.rmtree(entry, ignore_errors=True)
