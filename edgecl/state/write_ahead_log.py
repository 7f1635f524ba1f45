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
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

from edgecl.exemplars.stored import HEADER, MAGIC, OLD_MAGIC, Record, StoredSample, described, unpack
from edgecl.files.atomic import write_atomically
from edgecl.files.forms import COUNT, have_forms
from edgecl.files.regular import NotRegular, open_regular, read_regular
from edgecl.state.acknowledged import TAG, Acknowledged, first_record, read_acknowledged, write_acknowledged
from edgecl.state.generations import DETAIL, Generation

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import FileIO
    from pathlib import Path

    from edgecl.exemplars.codecs import FeatureCodec

LOG_FILE = "learned.log"
BLOCK = 4096    # bytes that a disk reads or fails to read at once
ABOUT = {"epoch": str, "log": str, "id": COUNT, "created": str, "action": str, "head_of": COUNT,
         "head": str | None, "summary": dict, "detail": dict}      # forms in the JSON of records
KINDS = {"epoch"}, {"head_of", "head"}, {"id", "created", "action", "detail"}   # what a record of each kind has


class LoggedGeneration:
    """A generation of the log. Its samples are decoded when they are asked for."""

    def __init__(self, generation: Generation, record: Record | None) -> None:
        """record: None if the samples are damaged."""
        self.generation, self._record = generation, record

    @property
    def intact(self) -> bool:
        """Whether its samples are."""
        return self._record is not None

    @property
    def rows(self) -> list[StoredSample] | None:
        """Its samples; None if they are damaged."""
        return None if self._record is None else self._record.rows or []


class DamagedPart(NamedTuple):
    """Bytes `begin` to `end` of the log that are no record of it. first, last: the generations of which samples are or
    may be lost, none if first > last; held: what the bytes held, in words."""

    begin: int
    end: int
    first: int
    last: int
    held: str


class WriteAheadLog:
    """The log of a state directory. codec: the feature codec of a name; replaced: called if the log does not go on from
    what was read before, although it is of the same epoch."""

    def __init__(self, folder: Path, codec: Callable[[str], FeatureCodec], replaced: Callable[[], None]) -> None:
        self.path, self._codec, self._replaced = folder / LOG_FILE, codec, replaced
        self._version, self._failure = 0, ""
        self._forget()

    def _forget(self) -> None:
        self._tag, self._end, self._tail = "", 0, b""
        self._marks = {0: b""}  # place -> header of the first and of the last record read
        self._entries: list[LoggedGeneration] = []
        self._places: dict[int, int] = {}  # generation -> place in `_entries`
        self._damaged: list[DamagedPart] = []
        self._version += 1

    def entries(self, epoch: str) -> list[LoggedGeneration]:
        """The generations of that epoch, the oldest first; none if the log is of another one. Raises OSError."""
        self._read()
        return self._entries if self._tag == epoch[:TAG] else []

    @property
    def version(self) -> int:
        """A number that changes whenever `entries` does. Raises OSError."""
        self._read()
        return self._version

    @property
    def entries_seen(self) -> list[LoggedGeneration]:
        """The generations of the epoch that was read last."""
        return self._entries

    @property
    def seen(self) -> int:
        """The version that was read last."""
        return self._version

    def stale(self, epoch: str) -> bool:
        """Whether what lies on the disk is of another epoch."""
        self._read()
        return self._tag != epoch[:TAG]

    @property
    def damaged(self) -> list[DamagedPart]:
        """The damaged parts before the last whole record, and behind it up to what was acknowledged."""
        self._read()
        return self._damaged

    @property
    def tail(self) -> int:
        """Bytes behind the last whole record that were never acknowledged."""
        self._read()
        return len(self._tail)

    @property
    def odd_tail(self) -> bool:
        """Whether the tail is something else than the beginning of a record, which another process may be writing."""
        self._read()
        if len(self._tail) < HEADER.size or not any(self._tail):
            return False
        magic, text, body, _, _ = HEADER.unpack_from(self._tail)
        return bool(magic not in (OLD_MAGIC, MAGIC) or len(self._tail) >= HEADER.size + text + body)

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
        return not self._tag

    @property
    def numbers(self) -> list[int]:
        """The generations that any readable record names, whatever their epoch."""
        self._read()
        return [*self._places]

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
        tag, entries = self._tag, self._entries
        try:
            with open(open_regular(self.path, os.O_RDONLY | os.O_NOFOLLOW), "rb", buffering=0) as file:
                size, failed, self._failure = os.fstat(file.fileno()).st_size, self._failure, ""
                replaced = size < self._end or any(
                    self._bytes(file, place, HEADER.size) != mark for place, mark in self._marks.items())
                if failed or replaced:
                    self._forget()
                    self._marks = {0: self._bytes(file, 0, HEADER.size)}
                elif size == self._end and not self._tail:
                    return
                acknowledged = self.acknowledged()  # before the bytes, which may grow
                data = self._bytes(file, self._end, os.fstat(file.fileno()).st_size - self._end)
        except (FileNotFoundError, NotRegular):
            self._forget()
            if entries:
                self._replaced()
            return
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self._failure = str(error.strerror)     # what was read before stays
            return
        self._take_all(data, acknowledged)
        if tag == self._tag and (replaced or (failed and _told(entries) != _told(self._entries))):
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

    def _take_all(self, data: bytes, acknowledged: Acknowledged | None) -> None:
        """Take in what stands behind the last whole record. acknowledged: as it was before that was read."""
        offset, begin, end = self._end, 0, 0
        hurt: list[tuple[int, dict[str, Any]]] = []  # those since then whose samples are damaged: start and JSON
        for start, after, record in unpack(data, self._codec):
            if not record.intact and record.about["codecs"]:
                hurt.append((start, record.about))
            elif self._belongs(record.about):
                if start != end:
                    self._lose(offset + end, offset + start, [about for _, about in hurt], _following(record.about))
                begin, end, hurt = start, after, []
                self._take(record)
        if end:
            self._marks = {0: self._marks[0], offset + begin: data[begin:begin + HEADER.size]}
        if len(data) > end and acknowledged and acknowledged.tag == self._tag and acknowledged.length > offset + end:
            known = min(len(data), acknowledged.length - offset)
            lost = [about for start, about in hurt if start < known]
            self._lose(offset + end, offset + known, lost, acknowledged.generation + 1)
            end = known
        self._end, self._tail = offset + end, data[end:]

    def _belongs(self, about: dict[str, Any]) -> bool:
        """Whether a record is of this log, and new."""
        if not (have_forms(about, ABOUT) and have_forms(about.get("detail", {}), DETAIL)) or not any(
                keys <= set(about) for keys in KINDS):
            return False
        if "epoch" in about:
            return not self._tag
        if not (about.keys() >= {"head_of", "head"} or about.keys() >= {"id", "created", "action", "detail"}):
            return False    # of a file of samples
        return about.get("log", self._tag) == (self._tag or about.get("log", "")) and about.get(
            "id", self._newest + 1) > self._newest

    @property
    def _newest(self) -> int:
        return self._entries[-1].generation.id if self._entries else 0

    def _take(self, record: Record) -> None:
        about = record.about
        if "epoch" in about:
            self._tag = about["epoch"][:TAG]
        elif "head_of" in about:
            place = self._places.get(about["head_of"])
            if place is not None:
                entry = self._entries[place]
                detail = {**entry.generation.detail, **about.get("summary", {})}
                entry.generation = entry.generation._replace(head=about["head"], detail=detail)
        else:
            self._tag = self._tag or about.get("log", "")
            self._add(about, record)
        self._version += 1

    def _add(self, about: dict[str, Any], record: Record | None) -> None:
        generation = Generation(about["id"], about["created"], about["action"], about["detail"], None,
                                about.get("head"), None, True, False, True)
        self._places[generation.id] = len(self._entries)
        self._entries.append(LoggedGeneration(generation, record))

    def _lose(self, begin: int, end: int, hurt: list[dict[str, Any]], following: int) -> None:
        """Count bytes as damaged. hurt: the JSON of records in them; following: the first generation behind them."""
        numbers, known = [self._newest + 1, following - 1], [about for about in hurt if self._belongs(about)]
        for about in known:
            self._add(about, None)
        numbers = [about["id"] for about in known] or numbers
        held = ", ".join(f"{described(about)} (generation {about['id']})" for about in known)
        self._damaged.append(DamagedPart(begin, end, numbers[0], numbers[-1], held))
        self._version += 1

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
        self._read()
        self._acknowledge(self._newest)

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
        return content[:self._end] if self._tag else content

    def trim(self) -> None:
        """Cut off what lies behind the last whole record and was not acknowledged, and sync. Raises OSError."""
        self._read()
        if self._tail:
            with self.path.open("r+b") as file:
                file.truncate(self._end)
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
        return ("nothing that was acknowledged was lost" if now is not None and now.tag == self._tag
                else "it is not known whether that was acknowledged")

    @property
    def is_acknowledged(self) -> bool:
        """Whether it is written down that all of the log is acknowledged."""
        self._read()
        before = self.acknowledged()
        return before is not None and before[:2] == (self._tag, self._end)

    def acknowledge(self) -> None:
        """Sync the log, and write down that all of it is acknowledged. To be called under the state's lock, without a
        tail. Raises OSError."""
        self._read()
        with self.path.open("rb") as file:
            os.fdatasync(file.fileno())
        self._acknowledge(self._newest)

    def _acknowledge(self, newest: int) -> None:
        """Write down how long the log is. newest: the newest generation that is known."""
        before = self.acknowledged()
        shorter = before is not None and before.tag == self._tag and before.length > self._end
        write_acknowledged(self.path.parent, Acknowledged(
            self._tag, self._end, max(newest, before.generation if before else 0)), sync=shorter)


def _told(entries: list[LoggedGeneration]) -> list[tuple[int, bool]]:
    """What tells whether the same could be read: each generation, and whether its samples are intact."""
    return [(entry.generation.id, entry.intact) for entry in entries]


def _following(about: dict[str, Any]) -> int:
    """The first generation that a record is of, or that may come behind it."""
    return int(about["id"]) if "id" in about else int(about.get("head_of", 0)) + 1


def new_epoch() -> str:
    """A name that no other epoch has."""
    return uuid.uuid4().hex


def tagged(epoch: str, about: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a record in the log of that epoch."""
    return {**about, "log": epoch[:TAG]}
