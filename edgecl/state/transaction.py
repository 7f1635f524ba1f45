"""The open transaction of a state directory: what it writes, and how a long change commits it step by step.

A file is always written, synced and renamed before a row names it, and deleted after the commit that no longer does:
no name in the database is ever without its file, whenever a change is interrupted.
"""
from __future__ import annotations

import json
import os
from contextlib import suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from edgecl.errors import BudgetError, ChangedMeanwhile, StateError
from edgecl.exemplars.stored import codecs_of, pack
from edgecl.files.atomic import give_owner
from edgecl.files.regular import is_something_else, open_regular
from edgecl.settings import counted
from edgecl.state.acknowledged import ACKNOWLEDGED_FILE
from edgecl.state.blobs import OURS
from edgecl.state.database import DATABASE_FILE
from edgecl.state.gathered_file import GATHERED_FILE
from edgecl.state.log_damage import WRONG, joined
from edgecl.state.quota import PAGE, RESERVE, pages
from edgecl.state.reader import EXEMPLARS, FEATURES, JOURNAL, StateReader
from edgecl.state.rows import COPY_FILE, FORMAT, MOST_NOTES, copy_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from edgecl.exemplars.stored import StoredSample
    from edgecl.state.generations import Generation
    from edgecl.state.rows import Rows

SMALL_CHANGE = 8 * PAGE    # bytes that small writes to the database take


class Transaction(StateReader):
    """A state directory inside `BEGIN IMMEDIATE`: no other process writes it."""

    def journal_bytes(self) -> int:
        """Bytes of SQLite's rollback journal, at most: one copy of every page."""
        return journal_of((self.path / DATABASE_FILE).stat().st_size)

    def naming_bytes(self, head: bytes, summary: dict[str, Any]) -> int:
        """Bytes that naming a head takes, at most."""
        return pages(len(head)) + pages(len(json.dumps(summary))) + 3 * PAGE + self.journal_bytes()

    def set_meta(self, key: str, value: object) -> None:
        """Set a value."""
        self.meta = {**self.meta, key: value}
        self.connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def note_damage(self, what: str) -> None:
        """Note damage in the open transaction, with the date, once; `damage()` says it until `edgecl check --repair`
        clears it. The newest are kept."""
        note = datetime.now(timezone.utc).date().isoformat(), what
        self.set_meta("damage", [*(old for old in self._noted() if old[1] != what), note][-MOST_NOTES:])

    def note_lost(self, spans: Iterable[Sequence[int]]) -> None:
        """Note, in the open transaction, from which generation to which samples are lost: what is built on these can't
        be gone back to exactly. As many spans are kept as there are generations, at most."""
        alive = self.alive()
        bases = [g.id for g in alive if g.snapshot or g.action == "init"]
        self.set_meta("lost", joined([*self.value("lost", []), *spans], [g.id for g in alive], bases))

    def insert(self, g: Generation) -> None:
        """Write a generation into the database."""
        insert_generation(self.connection, g)

    def add_samples(self, rows: list[StoredSample], kind: str, tuned: int | None = None,
                    newest: int | None = None) -> None:
        """Write committed samples as one file, and name it. tuned: the round that gave them their features, if the
        file is for those; newest: the generation that has taken them out, if the file is for going back across it.
        Raises OSError."""
        if rows or tuned is not None:
            spans = [row.generation for row in rows if row.generation is not None] if tuned is None else [tuned]
            self.add_file(self.packed(rows, tuned or newest), kind, min(spans), newest or max(spans))

    def packed(self, rows: list[StoredSample], by: int | None = None) -> bytes:
        """Content of a file of committed samples. by: the generation that it is written for, if there may be the same
        samples in the file of another one: no two of them are one."""
        return pack(self.by_codec(rows), None if by is None else {"round": by})

    def add_file(self, blob: bytes, kind: str, oldest: int, newest: int | None = None) -> None:
        """Write a file, and name it. oldest, newest: the generations in it. Raises OSError."""
        self.name_file(self.blobs.write(blob, kind), oldest, oldest if newest is None else newest)

    def name_file(self, name: str, oldest: int, newest: int, origin: str | None = None) -> None:
        """Name a file that is written. origin: the board whose knowledge it holds, None for this one's own."""
        self.connection.execute("INSERT OR REPLACE INTO files (name, oldest, newest, origin) VALUES (?, ?, ?, ?)",
                                (name, oldest, newest, origin))

    def add_codebook(self, blob: bytes, classes: int) -> None:
        """Write the codebook that codes exemplars from now on, and name it. Raises OSError."""
        name = self.blobs.write(blob, "codebook")
        self.set_meta("codebooks", [*self.meta.get("codebooks", []), [name, classes]])

    def drop_codebooks(self) -> None:
        """Drop the codebooks that code nothing any more, and commit. Raises StateError."""
        books = self.meta.get("codebooks", [])
        if len(books) < 2:
            return
        names = [name for kind in (EXEMPLARS, JOURNAL, FEATURES) for name, *_ in self.files(kind)]
        used = {codec for name in names if self.blobs.intact(name)
                for codec in codecs_of((self.blobs.folder / name).read_bytes())}
        kept = [book for book in books[:-1] if book[0] in used] + books[-1:]
        if kept != books:
            self.set_meta("codebooks", kept)
            self.step()

    _swept: tuple[Rows | None, object] = None, None    # the rows and the files when these were swept
    _wrong_log = False  # whether the log was not that of the database, and files were not swept since

    def commit_rows(self) -> None:
        """Commit what was changed in the database, under a new digest. The copy is written by the next transaction:
        without a lock, another process could use or reserve its room. Raises sqlite3.Error."""
        if self.database.commit():
            self._take(self.database.rows, mine=True)

    def roll_back(self) -> None:
        """End the transaction, if one is open, without what it has changed. Raises sqlite3.Error."""
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    def write_copy(self) -> None:
        """Write edgecl.copy, inside a transaction that has changed nothing. It is not synced: the database has been. If
        the quota or the disk has no room for it, there is none until there is room again: an old one may name what was
        forgotten."""
        path, content = self.path / COPY_FILE, copy_of(self.database.rows)
        try:
            if is_something_else(path):
                self.set_aside.keep(path)
            used = self.ledger.usage().total - self.ledger.giving_way(COPY_FILE)
            self.ledger.check(used - self.ledger.giving_way(GATHERED_FILE), pages(len(content)), COPY_FILE)
            self.ledger.release(pages(len(content)), used)
            with open(open_regular(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW), "r+b") as file:
                give_owner(file.fileno(), self.path)
                file.write(content)
                file.truncate()
            self.database.stale = False
        except (OSError, BudgetError):
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def step(self, vacuum: bool = False) -> None:
        """Commit, rebuild the database without free pages if `vacuum` is set, and begin the next step of a change.
        Raises ChangedMeanwhile if another process came in between."""
        connection, before = self.connection, self.query("PRAGMA data_version")
        log = None if self.log.stale(self.epoch) else self.log.version   # None: it moves with this commit
        self.commit_rows()
        if vacuum:
            self._vacuum()
        self.begin("IMMEDIATE")
        self.ledger.release(self.journal_bytes() + SMALL_CHANGE)    # another process may have filled the reserve
        if (self.connection is not connection or self.query("PRAGMA data_version") != before
                or (self.logged() if log is None else self.log.version != log)):
            raise ChangedMeanwhile(f"{self.path} was changed by another edgecl process", "try again")
        if self.database.stale:
            self.write_copy()
        self.start_log()
        self.sweep()

    def _vacuum(self) -> None:
        """Rebuild the database without free pages. SQLite allows no transaction around that, but in this mode keeps the
        lock of the one before, so that no other process takes the room for the journal. Raises BudgetError,
        sqlite3.Error."""
        self.begin("IMMEDIATE")
        run = self.connection.execute
        run("PRAGMA locking_mode = EXCLUSIVE")
        try:
            run("COMMIT")
            self.ledger.ask(self.journal_bytes(), "packing the database")
            run("VACUUM")
        finally:
            run("PRAGMA locking_mode = NORMAL")
            self.roll_back()    # if a reader kept the commit from its lock
            run("SELECT 1 FROM meta").fetchall()    # the lock is given back after the next access

    def start_log(self) -> None:
        """Note what is damaged in the log, cut off what was never acknowledged, and begin the log of the current epoch
        if another one is there: one that has not moved, or that has damaged parts, is set aside. Commits what it notes,
        and comes here again. Raises OSError, StateError."""
        self._clear_the_way()
        if self.log.failure:    # which may pass: nothing is noted, moved or cut off
            raise StateError(f"{self.log.path} can't be read ({self.log.failure}), so nothing can be learned",
                             "check the disk and its cable; `edgecl backup` copies what can still be read")
        if self._note_log():
            return
        log = self.log
        if log.stale(self.epoch):
            self.ledger.release(SMALL_CHANGE)
            if is_something_else(log.path) or (log.length and (log.damaged or not self.log_has_moved())):
                self.set_aside.keep(log.path)   # a missing or empty one leaves nothing to keep
            log.begin(self.epoch, self.next_number() - 1)
        elif tail := log.tail:
            self.dropped.append(f"{log.path.name} did not end with a whole record, as after a power cut or a kill; "
                                f"{log.tail_is_lost}; dropped: {counted(tail, 'byte')}")
            log.trim()
        if not log.is_acknowledged:
            self.ledger.release(PAGE)
            log.acknowledge()
        keys = self.noted_keys()
        if left := [key for key in keys if key.startswith(WRONG)]:  # the next wrong log is another problem
            self.set_meta("log_noted", [self.epoch, [key for key in keys if key not in left]])
            self.step()

    def _clear_the_way(self) -> None:
        """Set aside what lies in the place of a file beside models/ and is not a regular one. Raises OSError,
        StateError."""
        for name in (ACKNOWLEDGED_FILE, RESERVE, COPY_FILE, GATHERED_FILE):
            if is_something_else(self.path / name):
                self.set_aside.keep(self.path / name)

    def _note_log(self) -> bool:
        """Note and commit what is damaged in the log and was not noted yet; whether there was anything."""
        problems = self.log_problems()
        if not problems:
            return False
        self._wrong_log |= any(problem.key.startswith(WRONG) for problem in problems)
        newest = self.next_number() - 1
        self.ledger.release(self.journal_bytes() + SMALL_CHANGE)
        for problem in problems:
            self.note_damage(problem.line)
        self.note_lost([problem.lost[0], self.current] for problem in problems if problem.lost)
        self.set_meta("numbered", max(newest, *(problem.newest for problem in problems)))
        self.set_meta("log_noted", [self.epoch, [*self.noted_keys(), *(problem.key for problem in problems)]])
        if self.database.rows.format == FORMAT:
            self.step()  # an older format is brought over by what comes next, which commits
        return True

    def next_number(self) -> int:
        """The id of the next generation: past every one that was ever seen."""
        acknowledged, every = self.log.acknowledged(), self.generations()
        return 1 + max(every[-1].id if every else 0, self.value("numbered", 0),
                       acknowledged.generation if acknowledged else 0,
                       *(number for number, in self.query("SELECT seq FROM sqlite_sequence")))

    def sweep(self) -> None:
        """Delete every file that no row and no generation of the log names. They are set aside if the rows seem to be
        older than the files, and statistics or samples are among them: nothing else may hold these. Raises OSError."""
        rows = self.database.read()
        if self._swept[0] is not rows or self._swept[1] != self.blobs.version:
            named, there = self._named(), set(os.listdir(self.blobs.folder))
            strange = self._wrong_log or (self._swept[0] is None and not named <= there)
            knowledge = any(OURS.fullmatch(name) and not name.endswith(".onnx") for name in there - named)
            self.blobs.sweep(named, keep=strange and knowledge)
            self._swept, self._wrong_log = (rows, self.blobs.version), False


def insert_generation(connection: sqlite3.Connection, g: Generation) -> None:
    """Write a generation into a database."""
    connection.execute("INSERT INTO generations VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0)", (
        g.id, g.created, g.action, json.dumps(g.detail), g.backbone, g.head, g.snapshot, g.journaled))


def journal_of(database: int) -> int:
    """Bytes of the rollback journal of a database of that many bytes, at most."""
    return pages(database + database // 256 + 1024)
