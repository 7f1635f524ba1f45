"""A state as it is at one moment, while other processes go on writing it: what a backup is made of.

Under a read transaction every file that the state names is opened, and the rows of the database and the whole records
of the log are taken; what is read from then on can't change. Files in models/ are never altered, and a deleted one
stays readable while it is open, so that processes that write the state wait for milliseconds only.
"""
from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
import tempfile
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edgecl.files import tar
from edgecl.files.regular import NotRegular, open_regular, read_regular
from edgecl.state.acknowledged import ACKNOWLEDGED_FILE
from edgecl.state.database import DATABASE_FILE, MODELS, translated
from edgecl.state.epoch import first_record
from edgecl.state.integrity import named_files
from edgecl.state.reader import StateReader
from edgecl.state.rows import COPY_FILE, FORMAT, copy_of
from edgecl.state.write_ahead_log import LOG_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator


class StateFile(NamedTuple):
    """A file of a copy. blocks: its content, which is read once."""

    name: str
    size: int
    blocks: Iterator[bytes]


class Copied(NamedTuple):
    """A copy that was made. generation: the current one in it; damaged: what was damaged in the state already, one line
    each; such files are copied as they are."""

    generation: int
    files: int
    bytes: int
    damaged: list[str]


class Frozen:
    """A state as it is at one moment, while it goes on being written. parts: its files, each to be read once, in their
    order; damaged: grows while they are read."""

    def __init__(self, state: StateReader, files: ExitStack) -> None:
        self.damaged: list[str] = []
        self.generation, log = 0, None
        with state.reading():
            state.refresh()
            acknowledged = _content(state.path / ACKNOWLEDGED_FILE)     # first: it may lag behind the log
            with closing(sqlite3.connect(":memory:")) as copy:
                state.connection.backup(copy)
                rows = _file_of(copy)
            while (whole := state.log.whole()) != log:  # it may grow while we look, and let go of heads that it names
                files.close()
                log, self.generation = whole, state.current
                opened = {name: _opened(state.blobs.folder / name, files) for name in sorted(named_files(state))}
            if why := state.log.failure:
                self.damaged.append(f"{LOG_FILE} can't be read ({why}): what can't be read is left out of the copy")
            self.damaged += [problem.line for problem in state.log_problems()]
            moved = not self.damaged and state.log.stale(state.epoch)   # its samples are in a file by now
            log = first_record(state.epoch) if moved else whole
            database = state.database.rows
        self.parts = [_of_bytes(DATABASE_FILE, rows), _of_bytes(LOG_FILE, log)]
        self.parts += [_of_bytes(COPY_FILE, copy_of(database))] if database.format == FORMAT else []
        self.parts += [_of_bytes(ACKNOWLEDGED_FILE, acknowledged)] if acknowledged and not moved else []
        for name, file in opened.items():
            if file is None:
                self.damaged.append(f"{MODELS}/{name} is missing or can't be read, and is not in the copy")
            else:
                size = os.fstat(file).st_size
                self.parts.append(StateFile(f"{MODELS}/{name}", size, self._blocks(name, file, size)))

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(part.size for part in self.parts)

    def copied(self) -> Copied:
        """What was copied, once all parts are read."""
        return Copied(self.generation, len(self.parts), self.size, self.damaged)

    def _blocks(self, name: str, file: int, size: int) -> Iterator[bytes]:
        """A file as it is; zeros for what the disk does not give back."""
        digest, why = hashlib.sha256(), ""
        for place in range(0, size, tar.CHUNK):
            length = min(size - place, tar.CHUNK)
            try:
                block = os.pread(file, length, place)
            except OSError as error:
                block, why = b"", f"can't be read ({error.strerror})"
            block += bytes(length - len(block))
            digest.update(block)
            yield block
        if why or digest.hexdigest() != name.partition(".")[0]:
            self.damaged.append(f"{MODELS}/{name} {why or 'is damaged: its SHA-256 does not match its name'}")


@contextmanager
def frozen(path: Path) -> Iterator[Frozen]:
    """The state in a folder, at this moment. Raises StateError."""
    with closing(StateReader(path)) as state, ExitStack() as files, translated(path):
        yield Frozen(state, files)


def _opened(path: Path, files: ExitStack) -> int | None:
    try:
        file = open_regular(path)
    except OSError as error:
        if isinstance(error, (FileNotFoundError, NotRegular)) or error.errno == errno.EIO:
            return None
        raise
    files.callback(os.close, file)
    return file


def _content(path: Path) -> bytes:
    try:
        return read_regular(path)
    except (FileNotFoundError, NotRegular):
        return b""


def _of_bytes(name: str, content: bytes) -> StateFile:
    return StateFile(name, len(content), iter([content] if content else []))


def _file_of(database: sqlite3.Connection) -> bytes:
    """A database as the bytes of its file (`serialize` came with Python 3.11)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / DATABASE_FILE
        with closing(sqlite3.connect(path)) as copy:
            copy.execute("PRAGMA synchronous = OFF")
            database.backup(copy)
        return path.read_bytes()
