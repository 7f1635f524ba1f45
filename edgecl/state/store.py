"""A state directory as it is written: a hard quota, one exclusive change at a time, recovery."""
from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import time
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecl.errors import BudgetError, EdgeclError, StateError
from edgecl.exemplars.stored import StoredSample, pack
from edgecl.files.atomic import appearing, make_parents, sync_folder, write_atomically
from edgecl.settings import format_size
from edgecl.state import compaction, database
from edgecl.state.corrections import GONE, former_names
from edgecl.state.database import DATABASE_FILE, MODELS, connect, damaged, in_words, translated
from edgecl.state.epoch import first_record, new_epoch, tagged
from edgecl.state.exemplar_files import split
from edgecl.state.gathered_file import discard_gathered
from edgecl.state.generations import Append, Generation, Rewrite
from edgecl.state.history import HISTORY
from edgecl.state.quota import PAGE, pages
from edgecl.state.reader import FEATURES, JOURNAL, KEPT_HEADS, PARTS
from edgecl.state.recovery import bring_over, rebuild
from edgecl.state.rows import FORMAT, Rows, write_rows
from edgecl.state.space import Present, Space, check_room
from edgecl.state.taken_out import erase_names
from edgecl.state.transaction import SMALL_CHANGE, Transaction
from edgecl.state.write_ahead_log import LOG_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MOST_LOGGED = 64      # generations in the log: all of it is read when a state is opened
REBUILDS = 3          # of a damaged database in a row, before its disk counts as broken
ERASE_ATTEMPTS = 20   # another process may change the state between two steps of one attempt


class Store(Transaction):
    """An open state directory. `create` makes one, `Store(path)` opens it and clears what a kill left behind."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._appended = False  # whether the change is one append to the log
        self._erases = ""      # what it must leave nothing of, in words
        self._fitted: tuple[Append | Rewrite | None, Space] = None, Space(0, 0, 0, 0)   # the change asked for last
        if self.writable:
            self.tidy(patience=0)

    @classmethod
    def create(cls, path: Path, meta: dict[str, Any], first: Rewrite) -> Store:
        """A new state directory (mode 0700) with its first generation. It appears at `path` at once and whole, or not
        at all. Raises StateError if something is there already, BudgetError if the quota is too small."""
        with translated(path):
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise StateError(f"{path} exists already", "choose another --state, or delete it first")
            make_parents(path)
            quota, free = meta["settings"]["quota"], shutil.disk_usage(path.parent).free
            if free < quota - 2 * PAGE:  # two folders, which not every file system counts
                raise BudgetError(f"the disk that holds {path} has only {format_size(free)} free: too little to "
                                  f"reserve a quota of {format_size(quota)}",
                                  "free some space, or give a smaller --quota")
            with appearing(path) as making:
                making.mkdir(mode=0o700)
                (making / MODELS).mkdir()
                connection, epoch = connect(making, "rwc"), new_epoch()
                write_atomically(making / LOG_FILE, first_record(epoch))
                values = {"format": FORMAT, "epoch": epoch, **meta}
                rows = Rows({key: json.dumps(value) for key, value in values.items()}, [], [], 0)
                write_rows(connection, rows.sealed())
                connection.close()
                store = cls(making)
                with store.exclusive():
                    store.commit(first)
                    store.ledger.hold()
                store.close()
                sync_folder(making)
        return cls(path)

    def close(self) -> None:
        """Close the database, which is written first if its rows are nowhere but in memory."""
        if self.writable and self.database.only_in_memory:
            self.tidy(patience=0)
        super().close()

    @contextmanager
    def exclusive(self, patience: int | None = None) -> Iterator[None]:
        """Hold the state for writing; what is not committed at the end is rolled back. patience: milliseconds to wait
        for another process, by default LOCK_TIMEOUT. Raises StateError if the state is read-only, or in use for
        longer."""
        if not self.writable:
            raise StateError(f"{self.path} is read-only", "make it writable, or choose another --state")
        try:
            self.begin_writing(database.LOCK_TIMEOUT if patience is None else patience)
        finally:
            self.connection.execute(f"PRAGMA busy_timeout = {database.LOCK_TIMEOUT}")
        self.writing, self._appended, self._held, tidy = True, False, None, False
        self._erases = ""
        try:
            self.start_log()
            self.sweep()
            bring_over(self)
            yield
            tidy = (self._appended and len(self.logged()) < MOST_LOGGED and not compaction.erasing(self)
                    and not self.database.stale)
        except (sqlite3.Error, OSError) as error:
            raise in_words(error, self.path) from error
        finally:
            self.writing = False
            if tidy:
                self.roll_back()    # which ends the transaction: there is nothing to undo
            else:
                self.tidy(patience=0)
            self.refresh()
        if tidy:
            return
        until = time.monotonic() + database.LOCK_TIMEOUT / 1000
        for _ in range(ERASE_ATTEMPTS):
            if not compaction.erasing(self) or time.monotonic() > until:
                break
            self.tidy(database.LOCK_TIMEOUT)
        if self._erases and compaction.erasing(self):  # any other change is made, and this is not its concern
            raise StateError(f"{self.path} has {self._erases}, but not all samples could be erased yet",
                             "free some space; the next edgecl command erases them")

    def begin_writing(self, patience: int) -> None:
        """Begin a change of the database, which is built again first if it is damaged. patience: milliseconds to wait
        for another process. Raises StateError, BudgetError."""
        with translated(self.path):
            for _ in range(REBUILDS):
                if self.database.damage is not None:
                    rebuild(self, patience)
                self.connection.execute(f"PRAGMA busy_timeout = {patience}")
                try:
                    self.begin("IMMEDIATE")
                except sqlite3.OperationalError as error:
                    if "readonly" not in str(error) or not os.access(self.database.path, os.W_OK):
                        raise
                    self.database.close()   # a flipped bit in its header says that a later SQLite has written it
                    self.database.serve_from_memory(f"it can't be written ({error})")
                if self.database.damage is None:
                    return
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
            raise damaged(self.path, self.database.damage or "")

    def fits(self, change: Append | Rewrite) -> bool:
        """Whether a change, its temporaries and what it must leave free included, stays within the quota."""
        space = Space.now(self)
        self._fitted = change, space
        return space.used + space.needed(self, change) <= self.ledger.quota

    def make_room(self, change: Append | Rewrite, present: Callable[[], Present] | None = None) -> None:
        """Drop what only a rollback needs, the oldest first, then samples that are not exemplars, until a change fits.
        Commits; what is served and known stays as it is. present: see `check_room`. Raises BudgetError, before anything
        is dropped, if all that is not enough."""
        check_room(self, change, present)
        if self.fits(change):
            return
        self.ledger.release(self.journal_bytes() + SMALL_CHANGE)
        while not self.fits(change):
            if not compaction.prune(self):
                if present is not None:
                    self._drop_samples(*present())
                return

    def _drop_samples(self, exemplars: list[StoredSample], head: bytes | None, summary: dict[str, Any]) -> None:
        """Drop samples that are not exemplars. Heads can't be solved again from then on, so the one that serves is
        written first."""
        newest = self.newest
        if head is not None:
            self.name_head(newest, head, summary)
        self.set_meta("evicted", newest.id)
        compaction.compact(self, exemplars)

    def evict(self, kept: list[StoredSample]) -> None:
        """Delete, in a transaction of its own, the samples that are not `kept` and that no rollback needs, as far as
        the disk and other processes allow: those that stay are deleted later, and make no difference."""
        with suppress(sqlite3.Error, OSError, EdgeclError):
            self.begin_writing(0)   # until `tidy`
            self.start_log()  # before the file that it has moved into may be dropped
            compaction.compact(self, kept)

    def tidy(self, patience: int) -> None:
        """Clear what a kill, an error or a change left behind: unnamed files, samples that count as gone, and a log of
        so many generations that reading it takes long.

        If another process is writing for longer than `patience` milliseconds, it is left to that one.
        """
        with suppress(sqlite3.Error, OSError, EdgeclError):
            self.roll_back()
            self.begin_writing(patience)
            self.start_log()
            self.sweep()
            bring_over(self)
            if self.database.stale and not self.database.changed:
                self.ledger.release(SMALL_CHANGE)
                self.write_copy()
            hot, marked = (self.path / f"{DATABASE_FILE}-journal").exists(), compaction.erasing(self)
            gone = marked or self.query("SELECT 1 FROM generations WHERE undone = 1")
            if hot or gone:
                self.ledger.release(self.journal_bytes() + SMALL_CHANGE)
            if hot:  # of a kill before it counted: a write lets SQLite delete it
                self.connection.execute("PRAGMA user_version = 0")
                self.step()
            if gone:
                self._erase(marked)
            if len(self.logged()) >= MOST_LOGGED:
                space = Space.now(self)
                need = space.transaction(PAGE) + pages(self.log.length)
                self.ledger.ask(need, "moving the log")
                compaction.move_log(self, max(self.ledger.quota - space.used - need, 0))
                compaction.retire(self, KEPT_HEADS, compaction.KEPT_SNAPSHOTS)
                self.step()
            self.ledger.hold()
        with suppress(sqlite3.Error):
            self.roll_back()
            self.connection.execute(f"PRAGMA busy_timeout = {database.LOCK_TIMEOUT}")

    def _erase(self, marked: list[Generation]) -> None:
        """Delete the samples of generations that were rolled back, and of the classes that those `marked` have
        forgotten, then these names."""
        run = self.connection.execute
        compaction.compact(self)
        if marked:
            self.set_aside.discard()
            discard_gathered(self.path)     # it may show what was forgotten
            erase_names(self, marked)
        run("UPDATE generations SET undone = ? WHERE undone = 1", (compaction.ERASED,))
        details = {g.id: {key: value for key, value in g.detail.items() if key not in ("class", "erasing", GONE)}
                   for g in self.generations() if g.id in {each.id for each in marked}}
        for number, detail in details.items():
            run("UPDATE generations SET detail = ? WHERE id = ?", (json.dumps({**detail, "erasing": True}), number))
        self.step(vacuum=bool(marked))
        for number, detail in details.items():
            run("UPDATE generations SET detail = ? WHERE id = ?", (json.dumps(detail), number))
        self.step()

    def commit(self, change: Append | Rewrite) -> tuple[int, list[StoredSample]]:
        """Commit a change inside `exclusive`: its generation's id, and its rows with theirs. Raises BudgetError past
        the quota or on a full disk; then nothing has changed."""
        space = self._fitted[1] if isinstance(change, Append) and self._fitted[0] is change else Space.now(self)
        self.ledger.check(space.used, space.needed(self, change), f"`{change.action}`")
        number = self.next_number()
        rows = [row._replace(id=number << 32 | place, generation=number) for place, row in enumerate(change.rows)]
        if isinstance(change, Append):
            about = {"id": number, "created": _now(), "action": change.action, "detail": change.detail}
            self._append(pack([(rows, self.exact)], tagged(self.epoch, about)), space.used)
        else:
            self.ledger.release(space.needed(self, change))
            self._rewrite(change, number, rows)
        return number, rows

    def _append(self, record: bytes, used: int) -> None:
        """Append a record to the log. used: bytes of the quota. Raises OSError."""
        self.ledger.give_way(pages(self.log.length + len(record)) - pages(self.log.length), used)
        try:
            self.log.append(record)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.ledger.release(len(record) + PAGE)
            self.log.append(record)
        self._appended = True

    def _rewrite(self, change: Rewrite, number: int, rows: list[StoredSample]) -> None:
        """Commit the change as one transaction, into which the generations of the log move."""
        run, every = self.connection.execute, self.generations()
        head = self.blobs.write(change.head, "onnx") if change.head else None
        snapshot = self.blobs.write(change.snapshot, "npz") if change.snapshot else None
        backbone = self.blobs.write(change.backbone, "onnx") if change.backbone else next(
            (g.backbone for g in reversed(every) if g.backbone), None)
        if change.codebook:
            self.add_codebook(*change.codebook)
        compaction.move_log(self)
        if change.way_back:
            self._set_head([g for g in every if not g.undone][-1], self.blobs.write(change.way_back[0], "onnx"),
                           change.way_back[1])
        if change.undo_after is not None:
            target = next(g for g in every if g.id == change.undo_after)
            head, backbone = head or target.head, target.backbone or backbone
            run("UPDATE generations SET undone = 1 WHERE id > ? AND NOT undone", (target.id,))
        for key, value in change.meta.items():
            self.set_meta(key, value)
        self.insert(Generation(number, _now(), change.action, change.detail, backbone, head, snapshot,
                               not change.snapshot, False))
        self.add_samples(rows, JOURNAL)
        for part in split(self, change.moved):
            self.add_samples(part, FEATURES, number)
        if change.erase is not None or change.parts == b"":     # a method keeps what it has learned of every class
            run("DELETE FROM files WHERE name LIKE ?", (f"%.{PARTS}",))
        if change.erase is not None:
            self._erases = "forgotten the class" if change.action == "forget" else "removed the samples"
            names = [repr(name) for name in former_names(every, change.erase, number)]
            self.set_meta("damage", [note for note in self._noted() if not any(name in note[1] for name in names)])
        if change.parts:
            self.add_file(change.parts, PARTS, number)
        compaction.retire(self, KEPT_HEADS, compaction.KEPT_SNAPSHOTS, change.erase)
        growth = self.query("PRAGMA page_count")[0][0] * PAGE - (self.path / DATABASE_FILE).stat().st_size
        self.ledger.ask(max(growth, 0), f"`{change.action}`")
        self.commit_rows()

    def name_head(self, g: Generation, head: bytes, summary: dict[str, Any]) -> None:
        """Write the head of a generation that has none, and what its history keeps of it, inside `exclusive`; one of
        the database is left to be committed. Raises BudgetError."""
        self.ledger.ask(self.naming_bytes(head, summary), "the head")
        name = self.blobs.write(head, "onnx")
        if g.logged:
            self.log.append(pack([], tagged(self.epoch, {"head_of": g.id, "head": name, "summary": summary})))
        else:
            self._set_head(g, name, summary)

    def _set_head(self, g: Generation, name: str, summary: dict[str, Any]) -> None:
        self.connection.execute("UPDATE generations SET head = ?, detail = ? WHERE id = ?",
                                (name, json.dumps({**g.detail, **summary}), g.id))

    def note(self, action: str, detail: dict[str, Any]) -> int:
        """Record an action that changed nothing in the history, inside `exclusive`; its number. Raises BudgetError."""
        self.ledger.ask(pages(len(json.dumps(detail)) + 400) + 2 * PAGE + self.journal_bytes(), f"`{action}`")
        number, run = self.next_number(), self.connection.execute
        self.insert(Generation(number, _now(), action, detail, None, None, None, False, True))
        run("UPDATE generations SET undone = ? WHERE id = ?", (compaction.ERASED, number))
        run("DELETE FROM generations WHERE action = ? AND undone = ? AND id <= ?",
            (action, compaction.ERASED, number - HISTORY))
        self.commit_rows()
        return number


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
