"""What brings the database of a state to what it should be: built again from intact rows if it is damaged, brought over
from an older format, and its copy written."""
from __future__ import annotations

import errno
import fcntl
import json
import os
import sqlite3
import time
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from edgecl.errors import BudgetError, StateError
from edgecl.files.atomic import give_owner, sync_folder
from edgecl.state import compaction
from edgecl.state.database import DATABASE_FILE, connect, is_damage, translated
from edgecl.state.quota import PAGE
from edgecl.state.rows import FILES, FORMAT, MOST_NOTES, Rows, write_rows
from edgecl.state.space import Space

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgecl.state.transaction import Transaction


def rebuild(state: Transaction, patience: int, discard: bool = False) -> int:
    """Build the database again from the rows that serve from memory, and set the damaged file aside; the number of
    files that were deleted.

    patience: milliseconds to wait for another process; discard: delete what is set aside first and, if there is still
    no room, the damaged file. Raises StateError if the other process is not done by then, or the disk does not give the
    file back; BudgetError if the quota has no room for both files; then nothing has changed.
    """
    database = state.database
    with translated(state.path), _alone(state.blobs.folder, patience):
        database.open()
        if database.damage is None:     # another process was faster, or the disk gives it back again
            return 0
        if database.failure is not None:    # which may pass: its copy may be older
            raise StateError(f"{database.path} can't be read ({database.failure}), so nothing can be learned",
                             "check the disk and its cable; if it stays so, move the file away: the next change "
                             f"builds it again from {database.served_by}")
        with _held(state.path, patience):
            what = f"was damaged ({database.damage})" if os.path.lexists(database.path) else "was lost"
            rows = _with_note(database.rows, f"{DATABASE_FILE} {what}; it was built again from {database.served_by}"
                              ).sealed()
            memory = sqlite3.connect(":memory:", isolation_level=None)
            with closing(memory):
                write_rows(memory, rows)
                size = memory.execute("PRAGMA page_count").fetchone()[0] * PAGE
            deleted = state.set_aside.discard() if discard else 0
            used = state.ledger.usage().total
            if discard and used + size + PAGE > state.ledger.quota and not database.stale:
                deleted += _delete_damaged(state.path)      # a kill now leaves the copy, which is of these rows
                used = state.ledger.usage().total
            try:
                state.ledger.check(used, size + PAGE, f"{DATABASE_FILE} is damaged; building it again")
            except BudgetError as error:
                raise BudgetError(error.what, "delete what is set aside, and the damaged file, with `edgecl check "
                                  "--discard`; or use `edgecl backup OUT` and `edgecl restore OUT --state NEW`, which "
                                  "leave out the damaged file") from error
            state.ledger.release(size + PAGE, used)
            temporary = state.blobs.folder / f".{DATABASE_FILE}.{os.getpid()}.tmp"
            try:
                _build(temporary, rows)
                for name in (f"{DATABASE_FILE}-journal", DATABASE_FILE):   # a journal must not be played on the new one
                    state.set_aside.keep(state.path / name)
                temporary.replace(database.path)
            finally:
                temporary.unlink(missing_ok=True)
            sync_folder(state.path)
        database.close()
        database.open()
    return deleted


def _delete_damaged(folder: Path) -> int:
    """Delete the damaged database and its journal; the number of files. Raises OSError."""
    found = [path for name in (f"{DATABASE_FILE}-journal", DATABASE_FILE) if (path := folder / name).is_file()]
    for path in found:
        path.unlink()
    sync_folder(folder)
    return len(found)


def _with_note(rows: Rows, what: str) -> Rows:
    """The rows with a note of damage, see `Transaction.note_damage`."""
    today = datetime.now(timezone.utc).date().isoformat()
    noted = [*json.loads(rows.meta.get("damage", "[]")), [today, what]]
    return rows._replace(meta={**rows.meta, "damage": json.dumps(noted[-MOST_NOTES:])})


def _build(path: Path, rows: Rows) -> None:
    """Write a database whole, and sync it. Raises OSError, sqlite3.Error."""
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = OFF")
        write_rows(connection, rows)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        give_owner(descriptor, path.parent)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _alone(folder: Path, patience: int) -> Iterator[None]:
    """Have no other process build the same database, where the file system can lock a folder: the one of models, since
    a daemon holds the lock of the state's own as long as it runs."""
    descriptor, until = os.open(folder, os.O_RDONLY | os.O_DIRECTORY), time.monotonic() + patience / 1000
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
                    break
                if time.monotonic() > until:
                    raise sqlite3.OperationalError("database is locked") from error
                time.sleep(0.02)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _held(folder: Path, patience: int) -> Iterator[None]:
    """Hold the lock of the damaged file, so that no process that still has it open writes; a file that is no database
    any more has none. Raises sqlite3.Error if another process keeps it."""
    if not (folder / DATABASE_FILE).is_file() or (folder / DATABASE_FILE).is_symlink():
        yield
        return
    connection = None
    try:
        connection = connect(folder, "rw")
        connection.execute(f"PRAGMA busy_timeout = {patience}")
        connection.execute("BEGIN IMMEDIATE")
    except (sqlite3.Error, UnicodeDecodeError) as error:
        if not is_damage(error):
            if connection is not None:
                connection.close()
            raise
    try:
        yield
    finally:
        if connection is not None:
            connection.close()


def bring_over(state: Transaction) -> None:
    """Bring a state of format 2 to the current format, inside a transaction: its log moves into the database, and
    another one begins. Commits. Raises BudgetError; then nothing has changed."""
    run = state.connection.execute
    if state.database.rows.format == FORMAT:
        return
    state.ledger.ask(Space.now(state).transaction(PAGE), f"to bring the state to format {FORMAT}")
    run("DROP TABLE files")
    run(FILES)
    for name, oldest, newest, _ in state.database.rows.files:
        state.name_file(name, oldest, newest)
    state.set_meta("format", FORMAT)
    compaction.move_log(state)
    state.step()
