"""What passes between the learner and the store: stored samples, and records of them on disk.

A record is what one append to a file of samples writes: a header that says how long it is, a line of JSON, and the
samples. JSON and samples have a digest each, so that a generation is known even if its samples are damaged. The JSON
names the classes, the origins and the codecs of the samples; an index says which of them each sample has.
"""
from __future__ import annotations

import hashlib
import json
import struct
from itertools import repeat
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgecl.errors import StateError
from edgecl.exemplars.origin import NOWHERE, Origin
from edgecl.files.forms import COUNT, have_forms
from edgecl.settings import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from edgecl.exemplars.codecs import FeatureCodec

OLD_MAGIC, MAGIC = b"\xecCL1", b"\xecCL2"   # of records of format 2, without origins, and of format 3
HEADER = struct.Struct("<4sII16s16s")  # magic, bytes of JSON and of samples, digest of each
INDEX = [("id", "<u8"), ("key", "<u8"), ("label", "<u2"), ("flags", "u1")]
SPARE, TRAINED, JUDGES = 1, 2, 4
JSON_FRAME, CODEC_NAME = 40, 96  # bytes of a record's JSON beside class names and codecs, and of a codec in it
ORIGINS_FRAME = 48               # ... of its origins beside these themselves


ABOUT = {"labels": [str], "d": COUNT, "codecs": [(str, COUNT)], "widths": (COUNT, COUNT, COUNT),
         "origins": [(str, str, int, int)]}     # forms in a record's JSON


class StoredSample(NamedTuple):
    """One stored sample: its feature float32 [d]; key: see `edgecl.samples.sample_keys`. id and generation are None
    until it is committed; ids rise in the order in which samples came. input: the encoded input itself, if the
    codec keeps it; spare: a near-duplicate, which goes first if room is short; coded: the codebook of a lossy codec
    that `feature` went through, so that it can't be subtracted from statistics any more; "" for none; trained: the
    backbone was tuned on it, so that it can't judge any more; judges: it was held back then, and so it stays; origin,
    tick: where it came from, and the lower bits of the position there."""

    id: int | None
    generation: int | None
    label: str
    key: int
    feature: NDArray[np.float32]
    input: bytes = b""
    spare: bool = False
    coded: str = ""
    trained: bool = False
    judges: bool = False
    origin: Origin = NOWHERE
    tick: int = 0

    @property
    def source(self) -> str:
        """The file, stream or camera that it came from; "" if that is not known."""
        return self.origin.name

    @property
    def at(self) -> int | float | None:
        """The position in the source, in `origin.unit`; None if it has none."""
        return self.origin.position(self.tick)

    @property
    def taught(self) -> int:
        """When it was taught: UTC, whole seconds since 1970; 0 if that is not known."""
        return self.origin.taught


class Widths(NamedTuple):
    """Bytes of the numbers in an index that not every record needs: of the length of an encoded input, of the place
    among the origins, and of the tick. Without origins they are those of format 2."""

    input: int = 4
    origin: int = 0
    tick: int = 0

    @classmethod
    def of(cls, rows: Sequence[StoredSample], origins: int) -> Widths:
        """For some samples. origins: how many they have, 0 if none is known."""
        if not origins:
            return PLAIN
        return cls.most(max(len(row.input) for row in rows), origins, max(row.tick for row in rows))

    @classmethod
    def most(cls, input: int, origins: int, tick: int) -> Widths:
        """For samples whose longest input has so many bytes, with so many origins, and ticks up to `tick`."""
        return cls(_width(input), _width(origins - 1), _width(tick)) if origins else PLAIN

    def dtype(self) -> np.dtype[Any]:
        """One sample in the index."""
        return np.dtype([*INDEX, *((name, f"<u{width}") for name, width in zip(self._fields, self) if width)])


PLAIN = Widths()


def _width(most: int) -> int:
    """Bytes of a number up to `most`."""
    return 0 if not most else 1 if most < 2 ** 8 else 2 if most < 2 ** 16 else 4


class Record:
    """One record as it was read. about: its JSON; intact: whether its samples are. They are decoded when they are asked
    for. codec: the feature codec of a name."""

    def __init__(self, about: dict[str, Any], body: bytes | None, codec: Callable[[str], FeatureCodec]) -> None:
        self.about, self.intact = about, body is not None
        self._body, self._codec = body, codec
        self._rows: list[StoredSample] | None = None

    @property
    def rows(self) -> list[StoredSample] | None:
        """Its samples; None if they are damaged. Raises StateError if they are not what the JSON says."""
        if self._body is not None:
            try:
                self._rows, self._body = _rows(self._body, self.about, self._codec), None
            except (ValueError, TypeError, IndexError) as error:    # though the digests are right
                raise StateError(f"a record of samples does not hold what its JSON says ({error})",
                                 "go back with `edgecl rollback N`, see `edgecl history`") from error
        return self._rows


def pack(parts: Sequence[tuple[list[StoredSample], FeatureCodec]], about: dict[str, Any] | None = None) -> bytes:
    """A record of samples that have ids, in parts that each have a codec, with `about` in its JSON."""
    rows = [row for part, _ in parts for row in part]
    columns = zip(*rows) if rows else repeat((), len(StoredSample._fields))
    ids, _, labels, keys, features, inputs, spare, _, trained, judges, origins, ticks = columns
    known = {name: place for place, name in enumerate(sorted({*labels}))}
    table = {origin: place for place, origin in enumerate(dict.fromkeys(origins))}
    widths, named = PLAIN, {}
    if not {*table} <= {NOWHERE}:
        widths = Widths.of(rows, len(table))
        named = {"widths": widths, "origins": [*table]}
    index = np.zeros(len(rows), widths.dtype())
    index["id"], index["key"], index["label"] = ids, keys, [known[label] for label in labels]
    for flag, column in ((SPARE, spare), (TRAINED, trained), (JUDGES, judges)):
        index["flags"] |= np.array(column, np.uint8) * np.uint8(flag)
    if widths.input:
        index["input"] = [*map(len, inputs)]
    if widths.origin:
        index["origin"] = [table[origin] for origin in origins]
    if widths.tick:
        index["tick"] = ticks
    codecs, encoded, begin = [], [], 0
    for part, codec in parts:
        if part:
            encoded.append(codec.encode(np.stack(features[begin:begin + len(part)])).tobytes())
            codecs.append([part[0].coded or codec.name, len(part)])
            begin += len(part)
    body = b"".join([index.tobytes(), *encoded, *inputs])
    text = _json({**(about or {}), "labels": [*known], "d": len(features[0]) if rows else 0, "codecs": codecs,
                  **named})
    return HEADER.pack(MAGIC, len(text), len(body), _digest(text), _digest(body)) + text + body


def row_bytes(codec: FeatureCodec, dimension: int, widths: Widths = PLAIN) -> int:
    """Bytes of one sample in a record, an encoded input and its origin apart."""
    return widths.dtype().itemsize + codec.dtype(dimension).itemsize


def packed_bytes(parts: Sequence[tuple[list[StoredSample], FeatureCodec]], about: int = 0) -> int:
    """Bytes of `pack(parts, about)`, at most; about: bytes of its JSON."""
    rows = [row for part, _ in parts for row in part]
    origins, size = {row.origin for row in rows}, HEADER.size + about + JSON_FRAME
    shared = sum(origin.bytes for origin in origins)
    size += sum(map(_name_bytes, {row.label for row in rows})) + shared + (ORIGINS_FRAME if shared else 0)
    widths = Widths.of(rows, len(origins) if shared else 0)
    for part, codec in parts:
        if part:
            size += CODEC_NAME + len(part) * row_bytes(codec, len(part[0].feature), widths)
            size += sum(len(row.input) for row in part)
    return size


def file_bytes(limit: int, segment: int, labels: list[str], longest: int = 0) -> int:
    """What the files of a buffer of `limit` bytes take beside its samples and their origins, at most: their headers and
    class names. longest: of the origins, in bytes: samples lie sorted by class and origin, so a file may begin with the
    class and the origin that the one before ends with."""
    files = 2 * (limit // segment) + 1 if limit > segment else 1
    names, origins = [*map(_name_bytes, labels)], files * ORIGINS_FRAME + (files - 1) * longest if longest else 0
    return files * (HEADER.size + JSON_FRAME + 2 * CODEC_NAME + max(names, default=0)) + sum(names) + origins


def _name_bytes(label: str) -> int:
    return len(encode_basestring(label).encode()) + 1   # for 1,000 classes, `_json` takes 10 ms


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def unpack(data: bytes, codec: Callable[[str], FeatureCodec]) -> Iterator[tuple[int, int, Record]]:
    """Every record whose JSON is whole, with its start and end; skips damaged bytes. Damaged samples are searched for
    the next record, since some of their bytes may be missing.

    codec: the feature codec of a name.
    """
    place = 0
    while (place := data.find(MAGIC[:3], place)) >= 0 and place + HEADER.size <= len(data):
        magic, text_bytes, body_bytes, text_digest, body_digest = HEADER.unpack_from(data, place)
        start = place + HEADER.size
        text = data[start:start + text_bytes] if start + text_bytes <= len(data) else b""
        about = _parsed(text) if magic in (OLD_MAGIC, MAGIC) and _digest(text) == text_digest else None
        if about is None:
            place += 1
            continue
        body = data[start + text_bytes:start + text_bytes + body_bytes]
        whole = len(body) == body_bytes and _digest(body) == body_digest
        begin, place = place, start + text_bytes + (body_bytes if whole else 0)
        yield begin, place, Record(about, body if whole else None, codec)


def _parsed(text: bytes) -> dict[str, Any] | None:
    """The JSON of a record; None if it does not say what its samples are."""
    try:
        about = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return about if have_forms(about, ABOUT) and {"labels", "d", "codecs"} <= set(about) else None


def described(about: dict[str, Any]) -> str:
    """What a record holds, from its JSON, in words."""
    count = sum(number for _, number in about["codecs"])
    return f"{counted(count, 'sample')} of {', '.join(map(repr, about['labels']))}" if count else "no samples"


def codecs_of(data: bytes) -> set[str]:
    """Names of the feature codecs in a file of whole records; samples are not read."""
    found: set[str] = set()
    place = 0
    while place + HEADER.size <= len(data) and data.startswith((OLD_MAGIC, MAGIC), place):
        _, text_bytes, body_bytes, _, _ = HEADER.unpack_from(data, place)
        start = place + HEADER.size
        found |= {name for name, _ in json.loads(data[start:start + text_bytes])["codecs"]}
        place = start + text_bytes + body_bytes
    return found


def rows_of(data: bytes, codec: Callable[[str], FeatureCodec], name: str) -> list[StoredSample]:
    """All samples of a file of records. Raises StateError if one is damaged."""
    found: list[StoredSample] = []
    end = 0
    for start, after, record in unpack(data, codec):
        if record.rows is None or start != end:
            break
        found += record.rows
        end = after
    if end == len(data):
        return found
    raise StateError(f"{name} is damaged", "go back with `edgecl rollback N`, see `edgecl history`")


def _rows(body: bytes, about: dict[str, Any], names: Callable[[str], FeatureCodec]) -> list[StoredSample]:
    widths = Widths(*about.get("widths", ()))
    index = np.frombuffer(body, widths.dtype(), sum(count for _, count in about["codecs"]))
    place, ids, flags = index.nbytes, index["id"], index["flags"]
    features: list[NDArray[np.float32]] = []
    inputs: Iterable[bytes] = repeat(b"")
    coded: list[str] = []
    for name, count in about["codecs"]:
        codec = names(name)
        encoded = np.frombuffer(body, codec.dtype(about["d"]), count, place)
        place += encoded.nbytes
        features.extend(codec.decode(encoded))
        coded += [name if codec.lossy else ""] * count
    labels, origins = about["labels"], [Origin(*each) for each in about.get("origins") or [()]]
    if widths.input:
        ends = place + np.cumsum(index["input"], dtype=np.int64)
        inputs = (body[end - length:end] for end, length in zip(ends.tolist(), index["input"].tolist()))
    return [*map(StoredSample._make, zip(
        ids.tolist(), (ids >> 32).tolist(), [labels[i] for i in index["label"].tolist()], index["key"].tolist(),
        features, inputs, ((flags & SPARE) > 0).tolist(), coded, ((flags & TRAINED) > 0).tolist(),
        ((flags & JUDGES) > 0).tolist(),
        [origins[i] for i in index["origin"].tolist()] if widths.origin else repeat(origins[0]),
        index["tick"].tolist() if widths.tick else repeat(0)))]


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
