"""The SQLite file of a state: its schema, how it is opened, and its errors in words."""
from __future__ import annotations

import errno
import json
import shutil
import sqlite3
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from edgecl.errors import BudgetError, StateError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATABASE_FILE = "edgecl.db"
FORMAT = 2
LOCK_TIMEOUT = 15_000  # milliseconds that a process waits for another one's change
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE generations (
    id INTEGER PRIMARY KEY AUTOINCREMENT, created TEXT NOT NULL, action TEXT NOT NULL, detail TEXT NOT NULL,
    backbone TEXT, head TEXT, snapshot TEXT, journaled INTEGER NOT NULL, undone INTEGER NOT NULL DEFAULT 0);
CREATE TABLE files (name TEXT PRIMARY KEY, oldest INTEGER NOT NULL, newest INTEGER NOT NULL);
"""


def connect(folder: Path, mode: str) -> sqlite3.Connection:
    """A connection to a state's database; mode: ro, rw or rwc. Raises sqlite3.Error.

    A change stays in memory until its commit (`cache_spill`), so that only a commit lets the file grow.
    """
    address = f"{(folder / DATABASE_FILE).absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False)
    for pragma in ("synchronous = EXTRA", "secure_delete = ON", "temp_store = MEMORY", "cache_spill = OFF",
                   f"busy_timeout = {LOCK_TIMEOUT}"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def read_meta(connection: sqlite3.Connection, folder: Path) -> dict[str, Any]:
    """What is fixed for a state's life. Raises StateError for a database that is none of ours or is damaged."""
    path = folder / DATABASE_FILE
    tables = {name for name, in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "meta" not in tables:
        raise StateError(f"{path} is not an edgecl state", "choose another --state, or restore the file from a copy")
    try:
        meta = {key: json.loads(value) for key, value in connection.execute("SELECT key, value FROM meta")}
        found = meta["format"]
        readable = tables >= {"generations", "files"} and isinstance(meta.get("id"), str) and "settings" in meta
    except (sqlite3.OperationalError, ValueError, TypeError, KeyError) as error:
        raise StateError(f"{path} is not an edgecl state, or is damaged",
                         "choose another --state, or restore the file from a copy") from error
    if found != FORMAT:
        raise StateError(f"{folder} has format {found}, this edgecl reads format {FORMAT}",
                         "upgrade edgecl, or create a new state")
    if not readable:
        raise damaged(folder, "a part of it is missing")
    return meta


def damaged(folder: Path, what: str) -> StateError:
    """The error for a damaged database."""
    return StateError(f"{folder / DATABASE_FILE} is damaged ({what})", "restore it from a copy, or create a new state")


@contextmanager
def translated(folder: Path) -> Iterator[None]:
    """Turn errors of SQLite and of the disk into StateError and BudgetError."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise in_words(error, folder) from error


def in_words(error: sqlite3.Error | OSError, folder: Path) -> StateError | BudgetError:
    """What an error of SQLite or of the disk means for the state in `folder`, and the cure."""
    number = error.errno if isinstance(error, OSError) else None
    text = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    if number in (errno.ENOSPC, errno.EDQUOT) or "is full" in text or _disk_is_full(folder):
        return BudgetError(f"the disk that holds {folder} is full", "free some space, then try again")
    if isinstance(error, sqlite3.Error):
        if "locked" in text:
            return StateError(f"{folder} is in use by another edgecl process", "wait for it to end, then try again")
        if "malformed" in text or "not a database" in text or "unsupported file format" in text:
            return damaged(folder, text)
        if "readonly" in text and (folder / f"{DATABASE_FILE}-journal").exists():
            return StateError(f"{folder} was left in the middle of a change, and it can't be written",
                              "make it writable and run any edgecl command once")
    if number in (errno.EROFS, errno.EACCES, errno.EPERM) or "readonly" in text:
        return StateError(f"{folder} can't be used ({text})", "give the rights to it, or choose another --state")
    return StateError(f"{folder} can't be used ({text})", "check the path and the disk, then try again")


def _disk_is_full(folder: Path) -> bool:
    with suppress(OSError):
        return shutil.disk_usage(folder).free < 4096
    return False
