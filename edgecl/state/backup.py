"""Copies of a state: a consistent one of a live state, as a folder or a tar, and back.

Under a read transaction every file that the state names is opened, and the rows of the database and the whole records
of the log are taken; what is read from then on can't change. Files in models/ are never altered, and a deleted one
stays readable while it is open, so that processes that write the state wait for milliseconds only.
"""
from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import sqlite3
import tempfile
import time
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edgecl.errors import BadInput, BudgetError, StateError
from edgecl.files import tar
from edgecl.files.atomic import appearing, make_parents, sync_folder
from edgecl.files.regular import NotRegular, open_regular, read_regular
from edgecl.settings import format_size
from edgecl.state.acknowledged import ACKNOWLEDGED_FILE
from edgecl.state.blobs import OURS
from edgecl.state.database import DATABASE_FILE, MODELS, translated
from edgecl.state.epoch import first_record
from edgecl.state.integrity import named_files
from edgecl.state.reader import StateReader
from edgecl.state.rows import COPY_FILE, FORMAT, copy_of
from edgecl.state.store import Store
from edgecl.state.write_ahead_log import LOG_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import BinaryIO

    Progress = Callable[[int], None]

TOP = "edgecl-state"    # the folder that a tar unpacks to
TOP_FILES = (DATABASE_FILE, LOG_FILE, COPY_FILE, ACKNOWLEDGED_FILE)
FILES = re.compile(rf"(?:[^/]+/)*?({'|'.join(map(re.escape, TOP_FILES))}|{MODELS}/{OURS.pattern})")
MOST_FILES = 4096       # of a state: it has some dozens
COMPRESSED = {".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip"}
CURE = ("give another backup, or unpack this one with `tar`, and restore what `edgecl check --repair --state FOLDER` "
        "makes of it")
NOT_OURS = "name a folder or a .tar that `edgecl backup` wrote"


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


def backup(path: Path, out: Path, progress: Progress) -> Copied:
    """Copy the state in the folder `path`, see `save`. Raises StateError as well."""
    check_new(out, path)
    with frozen(path) as state:
        save(tar_of(state), state.size, out, progress)
        return state.copied()


def save(blocks: Iterator[bytes], size: int, out: Path, progress: Progress) -> None:
    """Write a tar of `size` bytes of files to a new file if its name ends with .tar, else unpack it to a new folder:
    whole, or not at all. progress: called with the number of bytes written. Raises BadInput, BudgetError, StateError.
    """
    with into(out):
        _check_room(out, size)
        with appearing(out) as making:
            if out.suffix == ".tar":
                with open(os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                    for block in blocks:
                        file.write(block)
                        progress(len(block))
                    file.flush()
                    os.fsync(file.fileno())
            else:
                write_folder(_from_tar(_reader(blocks), str(out)), making, progress)


def tar_of(state: Frozen) -> Iterator[bytes]:
    """The tar of a state, in blocks."""
    when = int(time.time())
    for name, size, blocks in state.parts:
        yield tar.header(f"{TOP}/{name}", size, when)
        yield from blocks
        yield tar.padding(size)
    yield tar.END


def tar_bytes(state: Frozen) -> int:
    """Length of that tar."""
    return tar.length([part.size for part in state.parts])


def write_folder(parts: Iterable[StateFile], making: Path, progress: Progress) -> None:
    """Write files into a new folder, and sync them. Raises BudgetError if the disk has no room for one, OSError."""
    making.mkdir(mode=0o700)
    (making / MODELS).mkdir()
    for name, size, blocks in parts:
        _check_room(making.parent, size)
        with open(os.open(making / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            for block in blocks:
                file.write(block)
                progress(len(block))
            file.flush()
            os.fsync(file.fileno())
    for folder in (making / MODELS, making):
        sync_folder(folder)


class Restored(NamedTuple):
    """A state that was made from a backup. unreserved: bytes of its quota that the disk could not reserve."""

    generation: int
    files: int
    bytes: int
    unreserved: int


def restore(parts: Iterable[StateFile], source: str, path: Path, progress: Progress) -> Restored:
    """A new state in the folder `path` from the files of a backup; it appears whole and checked, or not at all.

    source: the backup's name, for errors; progress: called with the number of bytes written. Raises BadInput if the
    backup is not whole and intact, BudgetError, StateError.
    """
    check_new(path)
    for outer in path.resolve().parents:
        if (outer / DATABASE_FILE).is_file() and (outer / MODELS).is_dir():
            raise BadInput(f"{path} is inside the state {outer}", "choose a place outside")
    with into(path):
        make_parents(path)
        with appearing(path) as making:
            write_folder(parts, making, progress)
            files, size = _checked(making, source)
            with closing(Store(making)) as state:
                generation = state.current
                unreserved = state.ledger.unreserved()
    return Restored(generation, files, size, unreserved)


def _checked(making: Path, source: str) -> tuple[int, int]:
    """Delete what the state does not name; number and bytes of the files left. Raises BadInput unless all it names is
    there and intact."""
    try:
        with closing(StateReader(making)) as state, state.reading():
            named = named_files(state)
            wrong = [f"{MODELS}/{name} ({about.what})" for name, about in named.items() if not state.blobs.intact(name)]
            wrong += [LOG_FILE] if state.log_problems() else []
            wrong += [DATABASE_FILE] if state.database.damage else []
            wrong += [COPY_FILE] if (making / COPY_FILE).exists() and state.database.stale else []
            if state.used_bytes() > state.ledger.quota:
                raise BadInput(f"{source} takes {state.used_bytes()} bytes, more than its quota of "
                               f"{format_size(state.ledger.quota)}", "give what `edgecl backup` wrote")
    except StateError as error:
        what = error.what.replace(f"{making}/", "").replace(str(making), "it")
        raise BadInput(f"{source} can't be restored: {what}", CURE) from error
    if wrong:
        raise BadInput(f"{source} can't be restored: {', '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''} "
                       f"{'is' if len(wrong) == 1 else 'are'} missing or damaged in it", CURE)
    for path in (making / MODELS).iterdir():
        if path.name not in named:
            path.unlink()
    sizes = [path.stat().st_size for path in making.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


@contextmanager
def parts_of(source: Path, stream: BinaryIO | None = None) -> Iterator[Iterable[StateFile]]:
    """The files of a backup: a folder, a tar, or a stream of a tar. Raises BadInput, StateError."""
    if stream is not None:
        yield _from_tar(stream.read, "the backup on stdin")
    elif source.is_dir():
        if not any((source / name).exists() for name in (DATABASE_FILE, COPY_FILE)):
            raise BadInput(f"{source} is not a backup: there is no {DATABASE_FILE} in it", NOT_OURS)
        with frozen(source) as state:
            yield state.parts
    else:
        try:
            file = source.open("rb")
        except OSError as error:
            raise BadInput(f"{source} can't be read ({error.strerror})", NOT_OURS) from error
        with file:
            yield _from_tar(file.read, str(source))


def _from_tar(read: Callable[[int], bytes], source: str) -> Iterator[StateFile]:
    def checked(size: int) -> bytes:
        try:
            return read(size)
        except OSError as error:
            raise BadInput(f"{source} can't be read ({error.strerror})",
                           "copy it again, or give another backup") from error

    seen: set[str] = set()
    for name, size, blocks in tar.members(checked, source):
        match = FILES.fullmatch(name)
        if match is None:       # a state that somebody packed also holds its reserve, what was set aside ...
            continue
        if match[1] in seen:
            raise BadInput(f"{source} holds {match[1]} twice", "give what `edgecl backup` wrote")
        seen.add(match[1])
        if len(seen) > MOST_FILES:
            raise BadInput(f"{source} holds more than {MOST_FILES} files", "give what `edgecl backup` wrote")
        yield StateFile(match[1], size, blocks)
    if DATABASE_FILE not in seen:
        raise BadInput(f"{source} holds no {DATABASE_FILE}: it is not a backup of a state, or was cut off",
                       "give what `edgecl backup` wrote")


def _reader(blocks: Iterator[bytes]) -> Callable[[int], bytes]:
    """What reads up to so many bytes of a stream of blocks."""
    left = memoryview(b"")

    def read(size: int) -> bytes:
        nonlocal left
        while not left and (block := next(blocks, None)) is not None:
            left = memoryview(block)
        found, left = left[:size], left[size:]
        return bytes(found)

    return read


def check_new(path: Path, state: Path | None = None) -> None:
    """Raise StateError if there is something at a path already, BadInput if it is inside the state or its name promises
    a compressed file."""
    free = not path.exists() or (path.is_dir() and path.suffix != ".tar" and not any(path.iterdir()))
    if path.is_symlink() or not free:
        raise StateError(f"{path} exists already", "choose another name, or delete it first")
    if state is not None and state.resolve() in path.resolve().parents:
        raise BadInput(f"{path} is inside the state {state}", "choose a place outside, on another disk if there is one")
    if state is not None and path.suffix in COMPRESSED:
        raise BadInput(f"{path} would be compressed, which edgecl does not do",
                       f"`edgecl backup - | gzip > {path.name}`, or name a folder or a .tar")


def _check_room(path: Path, size: int) -> None:
    free = shutil.disk_usage(path if path.exists() else path.parent).free
    if free < size:
        raise BudgetError(f"the disk that holds {path} has {format_size(free)} free, and the copy takes "
                          f"{format_size(size)}", "free some space, or choose another disk")


@contextmanager
def into(out: Path | str) -> Iterator[None]:
    """Turn errors of the disk that a copy is written to into words."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BudgetError(f"the disk that holds {out} is full", "free some space, then try again") from error
        raise StateError(f"{out} can't be written ({error.strerror})",
                         "check the path, the rights and the disk, then try again") from error


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
