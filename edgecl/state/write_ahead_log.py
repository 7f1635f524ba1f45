"""The log: one file that only grows, so that learning a few samples costs one append and one sync.

STATE/learned.log begins with a record that names its epoch; every later one is a generation with its samples, or says
under which name the head of one was written. The database holds the current epoch: when the generations of the log have
moved into the database, a new epoch begins.

STATE/acknowledged says how long the log was when its last append was acknowledged. It is written after that append was
synced and not synced itself, so it may say less than the disk holds, but never more. Bytes behind the last whole
record that were acknowledged are damage: they stay where they are, and the log goes on behind them. Those that were not
are what a kill or a power cut leaves of an append: they are dropped. A damaged record loses its own samples only.
"""
from __future__ import annotations

import errno
import hashlib
import os
from typing import TYPE_CHECKING

from edgecl.exemplars.stored import HEADER
from edgecl.files.atomic import write_atomically
from edgecl.files.regular import NotRegular, open_regular, read_regular
from edgecl.state.acknowledged import Acknowledged, read_acknowledged, write_acknowledged
from edgecl.state.epoch import TAG, first_record
from edgecl.state.log_entries import LogEntries

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import FileIO
    from pathlib import Path

    from edgecl.exemplars.codecs import FeatureCodec
    from edgecl.state.log_entries import DamagedPart, LoggedGeneration

LOG_FILE = "learned.log"
BLOCK = 4096    # bytes that a disk reads or fails to read at once


class WriteAheadLog:
    """The log of a state directory. codec: the feature codec of a name; replaced: called if the log does not go on from
    what was read before, although it is of the same epoch."""

    def __init__(self, folder: Path, codec: Callable[[str], FeatureCodec], replaced: Callable[[], None]) -> None:
        self.path, self._replaced, self._failure = folder / LOG_FILE, replaced, ""
        self._known = LogEntries(codec)

    def entries(self, epoch: str) -> list[LoggedGeneration]:
        """The generations of that epoch, the oldest first; none if the log is of another one. Raises OSError."""
        self._read()
        return self._known.entries if self._known.tag == epoch[:TAG] else []

    @property
    def version(self) -> int:
        """A number that changes whenever `entries` does. Raises OSError."""
        self._read()
        return self._known.version

    @property
    def entries_seen(self) -> list[LoggedGeneration]:
        """The generations of the epoch that was read last."""
        return self._known.entries

    @property
    def seen(self) -> int:
        """The version that was read last."""
        return self._known.version

    def stale(self, epoch: str) -> bool:
        """Whether what lies on the disk is of another epoch."""
        self._read()
        return self._known.tag != epoch[:TAG]

    @property
    def damaged(self) -> list[DamagedPart]:
        """The damaged parts before the last whole record, and behind it up to what was acknowledged."""
        self._read()
        return self._known.damaged

    @property
    def tail(self) -> int:
        """Bytes behind the last whole record that were never acknowledged."""
        self._read()
        return len(self._known.tail)

    @property
    def odd_tail(self) -> bool:
        """Whether the tail is something else than the beginning of a record, which another process may be writing."""
        self._read()
        return self._known.odd_tail

    @property
    def length(self) -> int:
        """Bytes of what lies there, 0 if nothing does."""
        try:
            return self.path.lstat().st_size
        except FileNotFoundError:
            return 0

    @property
    def failure(self) -> str:
        """Why the disk does not give all of the log back, "" if it does."""
        self._read()
        return self._failure

    @property
    def unreadable(self) -> bool:
        """Whether no record says which log this is."""
        self._read()
        return not self._known.tag

    @property
    def numbers(self) -> list[int]:
        """The generations that any readable record names, whatever their epoch."""
        self._read()
        return [*self._known.places]

    def digest(self) -> str:
        """SHA-256 of the file, "" if it can't be read."""
        try:
            return hashlib.sha256(read_regular(self.path, os.O_NOFOLLOW)).hexdigest()
        except OSError:
            return ""

    def _read(self) -> None:
        """Read what was appended since the last time; all of it if this is not the log that was read then.

        A log is known by the headers of its first and its last record read, which hold their digests. Inode number,
        length and time of change can all be those of an earlier log: ext4 gives numbers out again.
        """
        tag, entries = self._known.tag, self._known.entries
        try:
            with open(open_regular(self.path, os.O_RDONLY | os.O_NOFOLLOW), "rb", buffering=0) as file:
                size, failed, self._failure = os.fstat(file.fileno()).st_size, self._failure, ""
                replaced = size < self._known.end or any(
                    self._bytes(file, place, HEADER.size) != mark for place, mark in self._known.marks.items())
                if failed or replaced:
                    self._known.forget()
                    self._known.marks = {0: self._bytes(file, 0, HEADER.size)}
                elif size == self._known.end and not self._known.tail:
                    return
                acknowledged = self.acknowledged()  # before the bytes, which may grow
                data = self._bytes(file, self._known.end, os.fstat(file.fileno()).st_size - self._known.end)
        except (FileNotFoundError, NotRegular):
            self._known.forget()
            if entries:
                self._replaced()
            return
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self._failure = str(error.strerror)     # what was read before stays
            return
        self._known.take(data, acknowledged)
        if tag == self._known.tag and (replaced or (failed and _told(entries) != _told(self._known.entries))):
            self._replaced()

    def _bytes(self, file: FileIO, place: int, size: int) -> bytes:
        """Bytes of the file; zeros for a block that the disk does not give back."""
        found = bytearray()
        while len(found) < size:
            at = place + len(found)
            try:
                piece = os.pread(file.fileno(), size - len(found), at)
                if not piece:
                    break
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                self._failure, rest = str(error.strerror), BLOCK - at % BLOCK
                try:
                    piece = os.pread(file.fileno(), min(rest, size - len(found)), at)
                except OSError:
                    piece = bytes(min(rest, size - len(found)))
            found += piece
        return bytes(found)

    def append(self, record: bytes) -> None:
        """Write a record behind the last whole one, and sync. To be called under the state's lock. Raises OSError."""
        self._read()
        with self.path.open("r+b") as file:
            try:
                file.truncate(self._known.end)
                file.seek(self._known.end)
                file.write(record)
                file.flush()
                os.fdatasync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), self._known.end)
                raise
        self._read()
        self._acknowledge(self._known.newest)

    def whole(self) -> bytes:
        """What lies on the disk, up to the end of the last whole record if it is a log; zeros for what the disk does
        not give back. Raises OSError."""
        self._read()
        try:
            with open(open_regular(self.path, os.O_RDONLY | os.O_NOFOLLOW), "rb", buffering=0) as file:
                content = self._bytes(file, 0, os.fstat(file.fileno()).st_size)
        except OSError as error:
            if isinstance(error, (FileNotFoundError, NotRegular)) or error.errno == errno.EIO:
                return b""
            raise
        return content[:self._known.end] if self._known.tag else content

    def trim(self) -> None:
        """Cut off what lies behind the last whole record and was not acknowledged, and sync. Raises OSError."""
        self._read()
        if self._known.tail:
            with self.path.open("r+b") as file:
                file.truncate(self._known.end)
                os.fsync(file.fileno())

    def begin(self, epoch: str, newest: int) -> None:
        """Put an empty log of that epoch in the place of what is there. newest: the newest generation so far. Raises
        OSError."""
        write_atomically(self.path, first_record(epoch), scratch=self.path.parent / "models")  # which is swept
        self._read()
        self._acknowledge(newest)

    def acknowledged(self) -> Acknowledged | None:
        """How far the log was acknowledged; None if that is not known."""
        return read_acknowledged(self.path.parent)

    @property
    def tail_is_lost(self) -> str:
        """What it means, in words, that the tail is left out."""
        now = self.acknowledged()   # none of a state of format 2
        return ("nothing that was acknowledged was lost" if now is not None and now.tag == self._known.tag
                else "it is not known whether that was acknowledged")

    @property
    def is_acknowledged(self) -> bool:
        """Whether it is written down that all of the log is acknowledged."""
        self._read()
        before = self.acknowledged()
        return before is not None and before[:2] == (self._known.tag, self._known.end)

    def acknowledge(self) -> None:
        """Sync the log, and write down that all of it is acknowledged. To be called under the state's lock, without a
        tail. Raises OSError."""
        self._read()
        with self.path.open("rb") as file:
            os.fdatasync(file.fileno())
        self._acknowledge(self._known.newest)

    def _acknowledge(self, newest: int) -> None:
        """Write down how long the log is. newest: the newest generation that is known."""
        before = self.acknowledged()
        shorter = before is not None and before.tag == self._known.tag and before.length > self._known.end
        write_acknowledged(self.path.parent, Acknowledged(
            self._known.tag, self._known.end, max(newest, before.generation if before else 0)), sync=shorter)


def _told(entries: list[LoggedGeneration]) -> list[tuple[int, bool]]:
    """What tells whether the same could be read: each generation, and whether its samples are intact."""
    return [(entry.generation.id, entry.intact) for entry in entries]
