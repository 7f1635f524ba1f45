"""What the records of a log say, taken in as its bytes come: its epoch, its generations and its damaged parts."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from edgecl.exemplars.stored import HEADER, MAGIC, OLD_MAGIC, described, unpack
from edgecl.files.forms import COUNT, have_forms
from edgecl.state.epoch import TAG
from edgecl.state.generations import DETAIL, Generation

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgecl.exemplars.codecs import FeatureCodec
    from edgecl.exemplars.stored import Record, StoredSample
    from edgecl.state.acknowledged import Acknowledged

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


class LogEntries:
    """What is known of a log by the bytes that were taken in. codec: the feature codec of a name.

    tag: of its epoch, "" if no record names it; entries: its generations, the oldest first; places: of these in
    `entries`, by their numbers; damaged: the parts that are no record of it; end: where its last whole record ends;
    tail: what lies behind that; marks: place -> header of the first and of the last record; version: changes whenever
    any of this does.
    """

    def __init__(self, codec: Callable[[str], FeatureCodec]) -> None:
        self._codec, self.version = codec, 0
        self.forget()

    def forget(self) -> None:
        """Begin again, with another log."""
        self.tag, self.end, self.tail = "", 0, b""
        self.marks = {0: b""}
        self.entries: list[LoggedGeneration] = []
        self.places: dict[int, int] = {}
        self.damaged: list[DamagedPart] = []
        self.version += 1

    def take(self, data: bytes, acknowledged: Acknowledged | None) -> None:
        """Take in what stands behind the last whole record. acknowledged: as it was before that was read."""
        offset, begin, end = self.end, 0, 0
        hurt: list[tuple[int, dict[str, Any]]] = []  # those since then whose samples are damaged: start and JSON
        for start, after, record in unpack(data, self._codec):
            if not record.intact and record.about["codecs"]:
                hurt.append((start, record.about))
            elif self._belongs(record.about):
                if start != end:
                    self._lose(offset + end, offset + start, [about for _, about in hurt], _following(record.about))
                begin, end, hurt = start, after, []
                self._add_record(record)
        if end:
            self.marks = {0: self.marks[0], offset + begin: data[begin:begin + HEADER.size]}
        if len(data) > end and acknowledged and acknowledged.tag == self.tag and acknowledged.length > offset + end:
            known = min(len(data), acknowledged.length - offset)
            lost = [about for start, about in hurt if start < known]
            self._lose(offset + end, offset + known, lost, acknowledged.generation + 1)
            end = known
        self.end, self.tail = offset + end, data[end:]

    @property
    def odd_tail(self) -> bool:
        """Whether the tail is something else than the beginning of a record, which another process may be writing."""
        if len(self.tail) < HEADER.size or not any(self.tail):
            return False
        magic, text, body, _, _ = HEADER.unpack_from(self.tail)
        return bool(magic not in (OLD_MAGIC, MAGIC) or len(self.tail) >= HEADER.size + text + body)

    def _belongs(self, about: dict[str, Any]) -> bool:
        """Whether a record is of this log, and new."""
        if not (have_forms(about, ABOUT) and have_forms(about.get("detail", {}), DETAIL)) or not any(
                keys <= set(about) for keys in KINDS):
            return False
        if "epoch" in about:
            return not self.tag
        if not (about.keys() >= {"head_of", "head"} or about.keys() >= {"id", "created", "action", "detail"}):
            return False    # of a file of samples
        return about.get("log", self.tag) == (self.tag or about.get("log", "")) and about.get(
            "id", self.newest + 1) > self.newest

    @property
    def newest(self) -> int:
        """The newest generation of the log, 0 if it has none."""
        return self.entries[-1].generation.id if self.entries else 0

    def _add_record(self, record: Record) -> None:
        about = record.about
        if "epoch" in about:
            self.tag = about["epoch"][:TAG]
        elif "head_of" in about:
            place = self.places.get(about["head_of"])
            if place is not None:
                entry = self.entries[place]
                detail = {**entry.generation.detail, **about.get("summary", {})}
                entry.generation = entry.generation._replace(head=about["head"], detail=detail)
        else:
            self.tag = self.tag or about.get("log", "")
            self._add(about, record)
        self.version += 1

    def _add(self, about: dict[str, Any], record: Record | None) -> None:
        generation = Generation(about["id"], about["created"], about["action"], about["detail"], None,
                                about.get("head"), None, True, False, True)
        self.places[generation.id] = len(self.entries)
        self.entries.append(LoggedGeneration(generation, record))

    def _lose(self, begin: int, end: int, hurt: list[dict[str, Any]], following: int) -> None:
        """Count bytes as damaged. hurt: the JSON of records in them; following: the first generation behind them."""
        numbers, known = [self.newest + 1, following - 1], [about for about in hurt if self._belongs(about)]
        for about in known:
            self._add(about, None)
        numbers = [about["id"] for about in known] or numbers
        held = ", ".join(f"{described(about)} (generation {about['id']})" for about in known)
        self.damaged.append(DamagedPart(begin, end, numbers[0], numbers[-1], held))
        self.version += 1


def _following(about: dict[str, Any]) -> int:
    """The first generation that a record is of, or that may come behind it."""
    return int(about["id"]) if "id" in about else int(about.get("head_of", 0)) + 1
