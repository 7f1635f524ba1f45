"""The open database of a state: its rows, checked against their digest, or those of its copy if it is damaged.

The newest intact rows count: those of edgecl.db, unless it is damaged, missing, or older than edgecl.copy (somebody has
restored one file alone). Then rows in memory serve, until a process that may write builds the database again.
"""
from __future__ import annotations

import json
import os
import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING

from edgecl.errors import StateError
from edgecl.files.regular import read_regular
from edgecl.state.database import DATABASE_FILE, MODELS, RESTORE, connect, gone, is_damage, is_failure
from edgecl.state.file_locks import check_locks
from edgecl.state.rows import (
    COPY_FILE,
    FORMAT,
    MASTER,
    OLDEST_FORMAT,
    SENSELESS,
    Rows,
    bit_apart,
    read_rows,
    rows_of_copy,
    schema_of,
    write_rows,
)
from edgecl.state.write_ahead_log import LOG_FILE

if TYPE_CHECKING:
    from pathlib import Path

SQLITE = b"SQLite format 3\0"
MISSING = "it is missing"
ATTEMPTS = 10   # to open a file that other processes replace at the same time


class OpenDatabase:
    """The database of a state directory, opened.

    rows: all of them as they were read last; damage: what is wrong with the file, if the rows do not come from it;
    failure: why the disk does not give the file back, None if it does; served_by: what the rows come from then, in
    words; writable: whether the file system lets this process write.
    """

    rows: Rows

    def __init__(self, folder: Path) -> None:
        """Raises StateError if there is no state, if it is of another format, or if neither the database nor its copy
        is intact; OSError and sqlite3.Error if the file can't be read."""
        self.folder, self.path = folder, folder / DATABASE_FILE
        self._seen: object = None   # what tells the file from another one in its place,
        self._key: object = None    # and the rows from later ones
        self.damage: str | None = None
        self.failure: sqlite3.Error | None = None
        self.served_by = ""
        self._begun = self._clean = 0
        self._stale: tuple[Rows | None, bool] = None, True  # of which rows it is known whether the copy is stale
        self.connection = _nothing()
        self.open()

    def open(self) -> None:
        """Open what lies on the disk now; see `__init__`."""
        copy = read_copy(self.folder)   # first: it is written after the database, so it is not newer
        if copy is None and not self._is_file:
            self._serve_without_files()
            return
        there = self.path if self._is_file else self.folder
        if not os.access(there, os.R_OK):
            raise StateError(f"{there} can't be read by this user", "run it as its owner, or give the rights")
        self.writable = os.access(self.folder, os.W_OK) and os.access(there, os.W_OK)
        check_locks(self.folder)
        rows, problem = self._read_file()
        if problem is None and rows is not None and copy is not None:
            problem = self._outdated(rows, copy)
            rows = rows if problem is None else copy
        rows = rows or copy
        if rows is None and self.failure is not None:
            raise self.failure
        if rows is None:
            raise StateError(f"{self.path} is damaged, or is not an edgecl state ({problem})",
                             f"choose another --state, {RESTORE}")
        self._key = self.damage = None
        self.rows, self.served_by = rows, COPY_FILE if rows is copy else "what can still be read of it"
        if problem is not None:
            self.serve_from_memory(problem)
        self.stale = copy is None or rows.meta.get("digest") != copy.meta["digest"]

    @property
    def stale(self) -> bool:
        """Whether the copy on the disk is not of the rows read last. Another process that has committed them may be
        killed before it writes the copy."""
        if self._stale[0] is not self.rows:
            copy = read_copy(self.folder)
            self.stale = copy is None or self.rows.meta.get("digest") != copy.meta["digest"]
        return self._stale[1]

    @stale.setter
    def stale(self, value: bool) -> None:
        self._stale = self.rows, value

    def _serve_without_files(self) -> None:
        """Have the rows that this process has read before serve, if the rest of the state is there. Raises StateError
        if it is not, or if this process has read none."""
        models, lost = self.folder / MODELS, f"{DATABASE_FILE} and {COPY_FILE} are missing or damaged"
        rest = [name for name in (LOG_FILE, MODELS) if (self.folder / name).exists()]
        if hasattr(self, "rows"):
            if not (any((models / name).exists() for name in self.rows.names()) or len(rest) == 2):
                raise gone(self.folder, [name for name in (DATABASE_FILE, COPY_FILE, LOG_FILE, MODELS)
                                         if not (self.folder / name).exists()])
            self.served_by, self.stale = "what this process has read before", True
            self.writable = os.access(self.folder, os.W_OK)
            self.serve_from_memory(f"it is missing, and so is {COPY_FILE}")
        elif rest:
            raise StateError(f"{self.folder} is damaged: {lost}", "bring one of them back, or restore the state with "
                             "`edgecl restore BACKUP`")
        else:
            raise StateError(f"there is no edgecl state in {self.folder}", "name one with --state, or create it with "
                             "`edgecl init`")

    @property
    def only_in_memory(self) -> bool:
        """Whether neither the database nor its copy is there, so that what this process has read is all that is left.
        """
        return not (os.path.lexists(self.path) or os.path.lexists(self.folder / COPY_FILE))

    def _read_file(self) -> tuple[Rows | None, str | None]:
        """The rows of the file, and what is wrong with it. It stays open if nothing is."""
        self.failure = None
        if not self._is_file:
            self._seen = self._identity()
            return None, MISSING if not os.path.lexists(self.path) else "it is not a regular file"
        try:
            for _ in range(ATTEMPTS):
                self._seen = self._identity()
                self.connection = connect(self.folder, "rw" if self.writable else "ro")
                if self._seen == self._identity():
                    break
                self._connect_to_nothing()
            else:
                raise sqlite3.OperationalError("database is locked: it is replaced again and again")
            self.begin()
            rows = _intact(self.connection, self.folder)
            if self.connection.execute("PRAGMA integrity_check(1)").fetchall() != [("ok",)]:
                self._connect_to_nothing()
                return rows if rows.format == FORMAT else None, "its pages contradict each other"
            self.connection.execute("ROLLBACK")
            return rows, None
        except (sqlite3.Error, *SENSELESS) as error:
            self._connect_to_nothing()
            if is_failure(error):
                self.failure = error
            elif not is_damage(error):
                raise
            return None, str(error) or type(error).__name__
        except BaseException:
            self._connect_to_nothing()
            raise

    @property
    def _is_file(self) -> bool:
        """Whether there is a file; a link is none, since what it leads to is not the state's."""
        return self.path.is_file() and not self.path.is_symlink()

    def _connect_to_nothing(self) -> None:
        """Close the file; what is asked then is answered by an error of SQLite, until it is opened again."""
        self.connection.close()
        self.connection = _nothing()

    def _outdated(self, rows: Rows, copy: Rows) -> str | None:
        """Why the copy counts, not the intact database; None if it does not."""
        if rows.meta["id"] != copy.meta["id"]:
            models = self.folder / MODELS
            complete = [all((models / name).exists() for name in each.names()) for each in (rows, copy)]
            return "it is of another state" if complete == [False, True] else None
        if rows.revision < copy.revision:
            return f"it is older than {COPY_FILE}: it stands at change {rows.revision}, the copy at {copy.revision}"
        return None

    def serve_from_memory(self, problem: str) -> None:
        """Have the rows read last serve from memory, because of a problem with the file."""
        self._connect_to_nothing()
        write_rows(self.connection, self.rows)
        self._key, self.damage, self._seen = None, problem, self._identity(whole=True)

    def moved(self) -> bool:
        """Whether another file lies there now than the one that was opened, or none."""
        found = self._identity(whole=self.damage is not None)
        if found is None and self.damage is None and not self.connection.in_transaction:
            with suppress(sqlite3.Error, *SENSELESS):   # what was deleted can still be read: another process may have
                self.begin()                            # changed it before
                self.read()
            if self.connection.in_transaction:
                self.connection.execute("ROLLBACK")
        return found != self._seen

    def _identity(self, whole: bool = False) -> object:
        """What tells the file from others; whole: also from what it was before a change."""
        try:
            about = self.path.lstat()
        except OSError:
            return None
        return (about.st_dev, about.st_ino, *((about.st_size, about.st_mtime_ns) if whole else ()))

    def close(self) -> None:
        """Close the file; `moved` is true from then on."""
        self._connect_to_nothing()
        self._seen = ()

    def begin(self, how: str = "") -> None:
        """Begin a transaction. Raises sqlite3.Error."""
        self.connection.execute(f"BEGIN {how}")
        self._clean, self._begun = self.connection.total_changes, self._begun + 1

    @property
    def changed(self) -> bool:
        """Whether the open transaction has changed a row."""
        return self.connection.in_transaction and self.connection.total_changes != self._clean

    def read(self) -> Rows:
        """All rows as the open transaction sees them, read again only if something may have changed. Raises
        sqlite3.Error, ValueError or another of SENSELESS if they are not intact."""
        key = self._state_key()
        if key != self._key:
            rows = read_rows(self.connection)
            self.rows, self._key = rows if self.changed else _checked(rows, self.folder), key
        return self.rows

    def _state_key(self) -> object:
        version = self.connection.execute("PRAGMA data_version").fetchone()
        return version, self.connection.total_changes, self._begun if self.changed else 0

    def commit(self) -> bool:
        """Commit the open transaction, with a new digest if a row has changed; whether one has. Raises sqlite3.Error.

        The only place that commits a change of a state's database.
        """
        if not self.changed:
            self.connection.execute("COMMIT")
            return False
        rows = read_rows(self.connection).sealed()
        self.connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)",
                                    [(key, rows.meta[key]) for key in ("revision", "digest")])
        version = self.connection.execute("PRAGMA data_version").fetchone()
        self.connection.execute("COMMIT")
        self.rows, self._key = rows, (version, self.connection.total_changes, 0)
        self.stale = True
        return True


def _nothing() -> sqlite3.Connection:
    """A connection to an empty database in memory."""
    return sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)


def read_copy(folder: Path) -> Rows | None:
    """The rows that edgecl.copy holds; None if it is missing or damaged."""
    try:
        data = read_regular(folder / COPY_FILE, os.O_NOFOLLOW)
        if data.startswith(SQLITE):     # somebody has exchanged the two
            data = read_regular(folder / DATABASE_FILE, os.O_NOFOLLOW)
        return rows_of_copy(data)
    except (OSError, *SENSELESS):
        return None


def _intact(connection: sqlite3.Connection, folder: Path) -> Rows:
    """All rows of a database. Raises StateError for another format, sqlite3.Error or one of SENSELESS if they are not
    as they were written."""
    schema = set(connection.execute(MASTER))
    if "meta" not in {name for _, name, *_ in schema}:
        raise ValueError("it has no table meta")
    if not schema >= schema_of(FORMAT):
        _check_format(dict(connection.execute("SELECT key, value FROM meta")), folder)
    rows = _checked(read_rows(connection), folder)
    if not schema >= schema_of(rows.format):
        raise ValueError("its tables are not as they were made")
    return rows


def _checked(rows: Rows, folder: Path) -> Rows:
    found = rows.meta["format"]
    ours = rows._replace(meta={**rows.meta, "format": str(FORMAT)})
    if bit_apart(found, str(FORMAT)) and ours.meta.get("digest") == json.dumps(ours.digest):
        raise ValueError("its format is not the one that was written")
    _check_format(rows.meta, folder)
    return rows.check()


def _check_format(meta: dict[str, str], folder: Path) -> None:
    """Raise StateError if a state is of a format that this edgecl does not know."""
    found = int(json.loads(meta["format"]))
    if not OLDEST_FORMAT <= found <= FORMAT:
        raise StateError(f"{folder} has format {found}, this edgecl reads formats {OLDEST_FORMAT} and {FORMAT}",
                         "upgrade edgecl, or create a new state" if found > FORMAT else "create a new state")
