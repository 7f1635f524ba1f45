"""A state directory as it is written: a hard quota, one exclusive change at a time, recovery."""
from __future__ import annotations

import json
import os
import shutil
import sqlite3
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecl.errors import BudgetError, StateError
from edgecl.exemplars.stored import StoredSample, pack, packed_bytes
from edgecl.settings import format_size
from edgecl.state import compaction, database
from edgecl.state.blobs import sync_folder
from edgecl.state.database import NAME, connect, in_words, translated
from edgecl.state.exemplar_files import split
from edgecl.state.generations import Change, Generation
from edgecl.state.quota import PAGE, pages
from edgecl.state.reader import FEATURES, HISTORY, JOURNAL, PARTS, StateReader
from edgecl.state.write_ahead_log import NAME as LOG
from edgecl.state.write_ahead_log import first_record, new_epoch

if TYPE_CHECKING:
    from collections.abc import Iterator


class Store(StateReader):
    """An open state directory. `create` makes one, `Store(path)` opens it and clears what a kill left behind."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if self.writable:
            compaction.tidy(self, patience=0)

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
            quota, free = meta["settings"]["quota"], shutil.disk_usage(path.parent).free
            if free < quota - 2 * PAGE:  # two folders, which not every file system counts
                raise BudgetError(f"the disk that holds {path} has only {format_size(free)} free: too little to "
                                  f"reserve a quota of {format_size(quota)}",
                                  "free some space, or give a smaller --quota")
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

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the state for writing; nothing that is not committed inside survives."""
        if not self.writable:
            raise StateError(f"{self.path} is read-only", "make it writable, or choose another --state")
        self.query("BEGIN IMMEDIATE")
        self.writing, self._listed = True, (None, [])
        try:
            self.refresh()
            self.ledger.release(self.journal_bytes() + compaction.ROOM)
            compaction.start_log(self)
            compaction.sweep(self)
            yield
        except (sqlite3.Error, OSError) as error:
            raise in_words(error, self.path) from error
        finally:
            self.writing, self._listed = False, (None, [])
            compaction.tidy(self, patience=0)
            self.refresh()
        if compaction.erasing(self):
            compaction.tidy(self, database.PATIENCE)
            if compaction.erasing(self):
                raise StateError(f"{self.path} has forgotten the class, but its samples could not be erased yet",
                                 "free some space; the next edgecl command erases them")

    def fits(self, change: Change, freed: int = 0) -> bool:
        """Whether the change, its temporaries and what it must spare included, stays within the quota once `freed`
        bytes more are."""
        return self.ledger.fits(self.needed_bytes(change) - freed)

    def needed_bytes(self, change: Change) -> int:
        """Bytes the change may add at its peak, and must spare: new files, and what the database grows by."""
        blobs = change.backbone, change.head, change.snapshot, change.codebook, change.parts
        files = sum(pages(len(blob)) for blob in blobs if blob)
        files += sum(pages(packed_bytes(self.by_codec(part))) + PAGE for part in split(self, change.moved))
        text = len(json.dumps([change.detail, change.meta])) + 400
        samples = pages(packed_bytes([(change.rows, self.exact)], text)) + PAGE if change.rows else 0
        if change.logs:
            return files + samples + change.spare
        return files + samples + self.transaction_bytes(text) + change.spare

    def transaction_bytes(self, text: int) -> int:
        """Bytes that a transaction takes which writes `text` bytes and moves the log into the database."""
        moved = sum(len(json.dumps(entry.generation.detail)) + 400 for entry in self.logged()[-HISTORY:])
        return pages(text + moved) + 5 * PAGE + self.journal_bytes()

    def packing_bytes(self) -> int:
        """Bytes that it may take to bring all exemplars into their files."""
        if self.settings.memory == "statistics":
            return 2 * PAGE + self.journal_bytes()
        missing = pages(self.settings.exemplars) - self.ledger.usage().exemplars
        return max(missing, 0) + self.segment + 2 * PAGE + self.journal_bytes()

    def journal_bytes(self) -> int:
        """Bytes of SQLite's rollback journal, at most: one copy of every page."""
        size = (self.path / NAME).stat().st_size
        return pages(size + size // 256 + 1024)

    def commit(self, change: Change) -> tuple[int, list[StoredSample]]:
        """Commit a change inside `exclusive`: its generation's id, and its rows with theirs. Raises BudgetError past
        the quota or on a full disk; then nothing has changed."""
        self.ledger.ask(self.needed_bytes(change), f"`{change.action}`")
        number = self.next_number()
        rows = [row._replace(id=number << 32 | place, generation=number) for place, row in enumerate(change.rows)]
        now = _now()
        head = self.blobs.write(change.head, "onnx") if change.head else None
        if change.logs:
            self.log.append(pack([(rows, self.exact)], {"id": number, "created": now, "action": change.action,
                                                        "detail": change.detail, "head": head}))
        else:
            self._transact(change, Generation(number, now, change.action, change.detail, None, head, None,
                                              not change.snapshot, False), rows)
        return number, rows

    def name_head(self, generation: int, head: bytes) -> None:
        """Write the head of a generation that has none, inside `exclusive`. Raises BudgetError."""
        self.ledger.ask(pages(len(head)) + 2 * PAGE + self.journal_bytes(), "the head")
        name = self.blobs.write(head, "onnx")
        if any(entry.generation.id == generation for entry in self.logged()):
            self.log.append(pack([], {"head_of": generation, "head": name}))
        else:
            self.connection.execute("UPDATE generations SET head = ? WHERE id = ?", (name, generation))

    def note(self, action: str, detail: dict[str, Any]) -> int:
        """Write into the history, inside `exclusive`, what has changed nothing; its number. Raises BudgetError."""
        self.ledger.ask(pages(len(json.dumps(detail)) + 400) + 2 * PAGE + self.journal_bytes(), f"`{action}`")
        number, run = self.next_number(), self.connection.execute
        self.insert(Generation(number, _now(), action, detail, None, None, None, False, True))
        run("UPDATE generations SET undone = ? WHERE id = ?", (compaction.ERASED, number))
        run("DELETE FROM generations WHERE action = ? AND undone = ? AND id <= ?",
            (action, compaction.ERASED, number - HISTORY))
        run("COMMIT")
        return number

    def next_number(self) -> int:
        """The id of the next generation."""
        newest = max((g.id for g in self.generations()), default=0)
        return max(newest, *(seq for seq, in self.query("SELECT seq FROM sqlite_sequence")), 0) + 1

    def set_meta(self, key: str, value: object) -> None:
        """Set a value in the transaction that is open."""
        self.meta = {**self.meta, key: value}
        self.connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def _transact(self, change: Change, generation: Generation, rows: list[StoredSample]) -> None:
        """Commit a change that an append to the log does not express; the log's generations move into the database."""
        run, every = self.connection.execute, self.generations()
        snapshot = self.blobs.write(change.snapshot, "npz") if change.snapshot else None
        backbone = self.blobs.write(change.backbone, "onnx") if change.backbone else next(
            (g.backbone for g in reversed(every) if g.backbone), None)
        if change.codebook:
            self.blobs.write(change.codebook, "codebook")
        compaction.move_log(self)
        if change.undo_after is not None:
            target = next(g for g in every if g.id == change.undo_after)
            generation = generation._replace(head=target.head or generation.head)
            backbone = target.backbone or backbone
            run("UPDATE generations SET undone = 1 WHERE id > ? AND NOT undone", (target.id,))
        for key, value in change.meta.items():
            self.set_meta(key, value)
        self.insert(generation._replace(backbone=backbone, snapshot=snapshot))
        self.add_file(rows, JOURNAL)
        for part in split(self, change.moved):
            self.add_file(part, FEATURES, generation.id)
        if change.erase:  # a method keeps what it has learned of every class
            run("DELETE FROM files WHERE name LIKE ?", (f"%.{PARTS}",))
        if change.parts:
            self._add(change.parts, PARTS, generation.id)
        compaction.retire(self, compaction.HEADS, compaction.SNAPSHOTS,
                          change.detail["class"] if change.erase else None)
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
        compaction.start_log(self)
        compaction.sweep(self)

    def drop_codebooks(self) -> None:
        """Let go of codebooks that no exemplar needs any more, in the transaction that is open."""
        books = self.meta.get("codebooks", [])
        if len(books) > 1:
            self.set_meta("codebooks", books[-1:])
            self.step()

    def insert(self, g: Generation) -> None:
        """Write a generation into the database, in the transaction that is open."""
        self.connection.execute("INSERT INTO generations VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)", (
            g.id, g.created, g.action, json.dumps(g.detail), g.backbone, g.head, g.snapshot, g.journaled))

    def add_file(self, rows: list[StoredSample], kind: str, tuned: int | None = None) -> None:
        """Write committed samples as one file, and name it in the transaction that is open. tuned: the round that gave
        them their features, where the file is for those."""
        if rows:
            spans = [row.generation for row in rows if row.generation is not None] if tuned is None else [tuned]
            about = None if tuned is None else {"round": tuned}  # so that no two rounds' files are one
            self._add(pack(self.by_codec(rows), about), kind, min(spans), max(spans))

    def _add(self, blob: bytes, kind: str, oldest: int, newest: int | None = None) -> None:
        self.connection.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?)",
                                (self.blobs.write(blob, kind), oldest, oldest if newest is None else newest))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _clear_unfinished(path: Path) -> None:
    """Delete what a killed `create` of the same state left beside it."""
    prefix = f".{path.name}."
    for entry in path.parent.iterdir():
        number = entry.name.removeprefix(prefix).removesuffix(".new")
        if entry.name == f"{prefix}{number}.new" and number.isdecimal() and (
                int(number) == os.getpid() or not Path("/proc", number).exists()):
            shutil.rmtree(entry, ignore_errors=True)
