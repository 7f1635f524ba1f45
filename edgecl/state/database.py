"""The SQLite file of a state: how it is opened, and its errors in words."""
from __future__ import annotations

import errno
import shutil
import sqlite3
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TypeGuard

from edgecl.errors import BudgetError, StateError
from edgecl.state.file_locks import check_locks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

DATABASE_FILE = "edgecl.db"
MODELS = "models"    # the folder of content-addressed files
LOCK_TIMEOUT = 15_000  # milliseconds that a process waits for another one's change
RESTORE = "restore the state with `edgecl restore BACKUP`, or create a new one"
IO_ERROR = "disk I/O error"
NO_DAMAGE = ("locked", "is full", IO_ERROR, "unable to open", "readonly", "out of memory", "permission",
             "interrupted")  # what SQLite says of an error that is not one of the file's content


def connect(folder: Path, mode: str) -> sqlite3.Connection:
    """A connection to a state's database; mode: ro, rw or rwc. Raises sqlite3.Error.

    A change stays in memory until its commit (`cache_spill`), so that only a commit lets the file grow. The journal of
    a VACUUM, during which the lock is kept, is emptied at its end, and deleted by the next commit.
    """
    address = f"{(folder / DATABASE_FILE).absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(address, uri=True, isolation_level=None, check_same_thread=False)
    try:
        for pragma in ("synchronous = EXTRA", "secure_delete = ON", "temp_store = MEMORY", "cache_spill = OFF",
                       "journal_size_limit = 0", f"busy_timeout = {LOCK_TIMEOUT}"):
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def damaged(folder: Path, what: str) -> StateError:
    """The error for a damaged database."""
    return StateError(f"{folder / DATABASE_FILE} is damaged ({what})", RESTORE)


def gone(folder: Path, missing: Sequence[str] = ()) -> StateError:
    """The error for a state that was there when it was opened, and is not any more. missing: what is, if the folder is
    still there."""
    what = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing" if folder.exists() and missing else \
        "the folder does not exist any more"
    return StateError(f"{folder} is gone: {what}", "bring it back (is its disk mounted?), or restore a backup with "
                      f"`edgecl restore BACKUP --state {folder}`; until then nothing can be saved")


def is_failure(error: BaseException) -> TypeGuard[sqlite3.Error]:
    """Whether the disk did not give back what was read, which may pass."""
    return isinstance(error, sqlite3.Error) and IO_ERROR in str(error)


def is_damage(error: BaseException) -> bool:
    """Whether an error that reading the database has raised comes from what stands in the file."""
    if isinstance(error, OSError):
        return False
    return not isinstance(error, sqlite3.Error) or not any(text in str(error) for text in NO_DAMAGE)


@contextmanager
def translated(folder: Path) -> Iterator[None]:
    """Turn errors of SQLite and of the disk into StateError and BudgetError."""
    try:
        yield
    except (sqlite3.Error, OSError, UnicodeDecodeError) as error:   # of a message that quotes damaged bytes
        raise in_words(error, folder) from error


def in_words(error: sqlite3.Error | OSError | UnicodeDecodeError, folder: Path) -> StateError | BudgetError:
    """What an error of SQLite or of the disk means for the state in `folder`, and the cure."""
    number = error.errno if isinstance(error, OSError) else None
    text = error.strerror or str(error) if isinstance(error, OSError) else str(error)
    if number in (errno.ENOSPC, errno.EDQUOT) or "is full" in text or _disk_is_full(folder):
        return BudgetError(f"the disk that holds {folder} is full", "free some space, then try again")
    if not isinstance(error, OSError):
        try:
            check_locks(folder)
        except StateError as no_locks:
            return no_locks
        if "locked" in text:
            return StateError(f"{folder} is in use by another edgecl process", "wait for it to end, then try again")
        if "readonly" in text and (folder / f"{DATABASE_FILE}-journal").exists():
            return StateError(f"{folder} was left in the middle of a change, and it can't be written",
                              "make it writable and run any edgecl command once")
        if is_damage(error):
            return damaged(folder, text)
    if number == errno.ENOENT:
        if not folder.exists():
            return gone(folder)
        if not any((folder / name).exists() for name in (DATABASE_FILE, MODELS)):
            return gone(folder, [DATABASE_FILE, MODELS])
        missing = error.filename if isinstance(error, OSError) and error.filename else "one of its files"
        return _broken(folder, f"{missing} is missing")
    if number in (errno.ENOTDIR, errno.ELOOP) and folder.is_dir() and not (folder / MODELS).is_dir():
        return _broken(folder, f"{folder / MODELS} is not a folder")
    if number in (errno.EROFS, errno.EACCES, errno.EPERM) or "readonly" in text:
        return StateError(f"{folder} can't be used ({text})", "give the rights to it, or choose another --state")
    return StateError(f"{folder} can't be used ({text})", "check the path and the disk, then try again")


def _broken(folder: Path, what: str) -> StateError:
    return StateError(f"{folder} can't be used: {what}",
                      "`edgecl check` says what can be restored, `edgecl check --repair` does it")


def _disk_is_full(folder: Path) -> bool:
    with suppress(OSError):
        return shutil.disk_usage(folder).free < 4096
    return False
