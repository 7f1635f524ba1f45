"""The log: one file that only grows, so that learning a few samples costs one append and one sync.

STATE/learned.log begins with a record that names its epoch; every later one is a generation with its samples, or says
under which name the head of one was written. The database holds the current epoch: when the generations of the log have
moved into the database, a new epoch begins, and a log of the old one no longer counts. A record that was cut off by a
kill or a power cut was never acknowledged; the next append writes over it.
"""
from __future__ import annotations

import os
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from edgecl.exemplars.stored import HEADER, MAGIC, OLD_MAGIC, Record, StoredSample, pack, unpack
from edgecl.files.atomic import write_atomically
from edgecl.state.generations import Generation

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgecl.exemplars.codecs import FeatureCodec

LOG_FILE = "learned.log"


class LoggedGeneration(NamedTuple):
    """A generation of the log and its samples; None if these, or a record before, are damaged."""

    generation: Generation
    rows: list[StoredSample] | None


class WriteAheadLog:
    """The log of a state directory. codec: the feature codec of a name."""

    def __init__(self, folder: Path, codec: Callable[[str], FeatureCodec]) -> None:
        self.path, self._codec = folder / LOG_FILE, codec
        self._forget()

    def _forget(self) -> None:
        self._epoch, self._end, self._damaged = "", 0, False
        self._marks = {0: b""}  # place -> header of the first and of the last record read
        self._entries: list[LoggedGeneration] = []

    def entries(self, epoch: str) -> list[LoggedGeneration]:
        """The generations of that epoch, the oldest first; none if the log is of another one. Raises OSError."""
        self._read()
        return self._entries if self._epoch == epoch else []

    @property
    def entries_seen(self) -> list[LoggedGeneration]:
        """The generations of the epoch that was read last."""
        return self._entries

    @property
    def version(self) -> object:
        """What changes whenever the entries do. Raises OSError."""
        self._read()
        return self.seen

    @property
    def seen(self) -> object:
        """The version that was read last."""
        return self._epoch, self._end

    def stale(self, epoch: str) -> bool:
        """Whether what lies on the disk is of another epoch."""
        self._read()
        return self._epoch != epoch

    @property
    def damaged(self) -> bool:
        """Whether what lies behind the last whole record is more than one that was cut off, or is being written."""
        self._read()
        return self._damaged

    @property
    def length(self) -> int:
        """Bytes of the file."""
        try:
            return self.path.stat().st_size
        except FileNotFoundError:
            return 0

    def _read(self) -> None:
        """Read what was appended since the last time; all of it if this is not the log that was read then.

        A log is known by the headers of its first and its last record read, which hold their digests. Inode number,
        length and time of change can all be those of an earlier log: ext4 gives numbers out again.
        """
        try:
            with self.path.open("rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size < self._end or any(
                        os.pread(file.fileno(), HEADER.size, place) != mark for place, mark in self._marks.items()):
                    self._forget()
                    self._marks = {0: os.pread(file.fileno(), HEADER.size, 0)}
                file.seek(self._end)
                data = file.readall()
        except FileNotFoundError:
            self._forget()
            return
        begin, end, lost = 0, 0, False
        for start, after, record in unpack(data, self._codec):
            lost = lost or start != end
            begin, end = start, after
            self._take(record, lost)
        if end:
            self._marks = {0: self._marks[0], self._end + begin: data[begin:begin + HEADER.size]}
        self._end, self._damaged = self._end + end, _is_damage(data[end:])

    def _take(self, record: Record, lost: bool) -> None:
        about = record.about
        if "epoch" in about:
            self._epoch = about["epoch"]
        elif "head_of" in about:
            for place, (g, rows) in enumerate(self._entries):
                if g.id == about["head_of"]:
                    detail = {**g.detail, **about.get("summary", {})}
                    self._entries[place] = LoggedGeneration(g._replace(head=about["head"], detail=detail), rows)
        else:
            generation = Generation(about["id"], about["created"], about["action"], about["detail"], None,
                                    about.get("head"), None, True, False, True)
            self._entries.append(LoggedGeneration(generation, None if lost else record.rows))

    def append(self, record: bytes) -> None:
        """Write a record behind the last whole one, and sync. To be called under the state's lock. Raises OSError."""
        self._read()
        with self.path.open("r+b") as file:
            try:
                file.truncate(self._end)
                file.seek(self._end)
                file.write(record)
                file.flush()
                os.fdatasync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), self._end)
                raise

    def whole(self) -> bytes:
        """What lies on the disk up to the end of the last whole record. Raises OSError."""
        self._read()
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            return file.read(self._end)
        return b""

    def trim(self) -> None:
        """Cut off what lies behind the last whole record, and sync. Raises OSError."""
        self._read()
        with self.path.open("r+b") as file:
            file.truncate(self._end)
            os.fsync(file.fileno())

    def begin(self, epoch: str) -> None:
        """Put an empty log of that epoch in the place of what is there. Raises OSError."""
        write_atomically(self.path, first_record(epoch), scratch=self.path.parent / "models")  # which is swept


def _is_damage(tail: bytes) -> bool:
    """Whether the bytes behind the last whole record are not the beginning of one."""
    if len(tail) < HEADER.size or not any(tail):
        return False
    magic, text, body, _, _ = HEADER.unpack_from(tail)
    return bool(magic not in (OLD_MAGIC, MAGIC) or len(tail) >= HEADER.size + text + body)


def new_epoch() -> str:
    """A name that no other epoch has."""
    return uuid.uuid4().hex


def first_record(epoch: str) -> bytes:
    """What a log begins with."""
    return pack([], {"epoch": epoch})
