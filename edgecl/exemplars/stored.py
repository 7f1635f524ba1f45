"""What passes between the learner and the store: stored samples, generations, changes, and records of them on disk.

A record is what one append to a file of samples writes: a header that says how long it is, a line of JSON, and the
samples. JSON and samples have a digest each, so that a generation is known even if its samples are damaged.
"""
from __future__ import annotations

import hashlib
import json
import struct
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgecl.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from edgecl.exemplars.codecs import FeatureCodec

MAGIC = b"\xecCL1"
HEADER = struct.Struct("<4sII16s16s")  # magic, bytes of JSON and of samples, digest of each
INDEX = [("id", "<u8"), ("key", "<u8"), ("label", "<u2"), ("flags", "u1"), ("input", "<u4")]
SPARE, TRAINED, JUDGES = 1, 2, 4
JSON_FRAME, CODEC_NAME = 40, 96  # bytes of a record's JSON beside class names and codecs, and of a codec in it


class StoredSample(NamedTuple):
    """One stored sample: its feature float32 [d]; key: see `edgecl.samples.sample_keys`. id and generation are None
    until it is committed; ids rise in the order in which samples came. input: the encoded input itself, if the
    codec keeps it; spare: a near-duplicate, which goes first if room is short; coded: the codebook of a lossy codec
    that `feature` went through, so that it can't be subtracted from statistics any more; "" for none; trained: the
    backbone was tuned on it, so that it can't judge any more; judges: it was held back then, and so it stays."""

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


class Record(NamedTuple):
    """One record as it was read. about: its JSON; None for `rows` if the samples are damaged."""

    about: dict[str, Any]
    rows: list[StoredSample] | None


def pack(parts: Sequence[tuple[list[StoredSample], FeatureCodec]], about: dict[str, Any] | None = None) -> bytes:
    """A record of samples that have ids, in parts that each have a codec, with `about` in its JSON."""
    rows = [row for part, _ in parts for row in part]
    labels = sorted({row.label for row in rows})
    places = {label: place for place, label in enumerate(labels)}
    index = np.zeros(len(rows), INDEX)
    for name, values in (("id", [r.id for r in rows]), ("key", [r.key for r in rows]),
                         ("label", [places[r.label] for r in rows]), ("flags", [_flags(r) for r in rows]),
                         ("input", [len(r.input) for r in rows])):
        index[name] = values
    features = [codec.encode(np.stack([r.feature for r in part])).tobytes() for part, codec in parts if part]
    body = b"".join([index.tobytes(), *features, *(r.input for r in rows)])
    codecs = [[part[0].coded or codec.name, len(part)] for part, codec in parts if part]
    text = _json({**(about or {}), "labels": labels, "d": len(rows[0].feature) if rows else 0, "codecs": codecs})
    return HEADER.pack(MAGIC, len(text), len(body), _digest(text), _digest(body)) + text + body


def _flags(row: StoredSample) -> int:
    return SPARE * row.spare + TRAINED * row.trained + JUDGES * row.judges


def row_bytes(codec: FeatureCodec, dimension: int) -> int:
    """Bytes of one sample in a record, an encoded input apart."""
    return np.dtype(INDEX).itemsize + codec.dtype(dimension).itemsize


def packed_bytes(parts: Sequence[tuple[list[StoredSample], FeatureCodec]], about: int = 0) -> int:
    """Bytes of `pack(parts, about)`, at most; about: bytes of its JSON."""
    size = HEADER.size + about + JSON_FRAME + sum(map(_name_bytes, {row.label for part, _ in parts for row in part}))
    for part, codec in parts:
        if part:
            each = row_bytes(codec, len(part[0].feature))
            size += CODEC_NAME + len(part) * each + sum(len(row.input) for row in part)
    return size


def file_bytes(limit: int, segment: int, labels: list[str]) -> int:
    """What the files of a buffer of `limit` bytes take beside its samples, at most: their headers and class names."""
    files = 2 * (limit // segment) + 1 if limit > segment else 1
    names = [*map(_name_bytes, labels)]
    return files * (HEADER.size + JSON_FRAME + 2 * CODEC_NAME + max(names, default=0)) + sum(names)


def _name_bytes(label: str) -> int:
    return len(_json(label)) + 1


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def unpack(data: bytes, codec: Callable[[str], FeatureCodec]) -> Iterator[tuple[int, int, Record]]:
    """Every record whose JSON is whole, with its start and end; skips damaged bytes. Damaged samples are searched for
    the next record, since some of their bytes may be missing.

    codec: the feature codec of a name.
    """
    place = 0
    while (place := data.find(MAGIC, place)) >= 0 and place + HEADER.size <= len(data):
        _, text_bytes, body_bytes, text_digest, body_digest = HEADER.unpack_from(data, place)
        start = place + HEADER.size
        text, body = data[start:start + text_bytes], data[start + text_bytes:start + text_bytes + body_bytes]
        if len(text) < text_bytes or _digest(text) != text_digest:
            place += 1
            continue
        about, whole = json.loads(text), len(body) == body_bytes and _digest(body) == body_digest
        begin, place = place, start + text_bytes + (body_bytes if whole else 0)
        yield begin, place, Record(about, _rows(body, about, codec) if whole else None)


def described(about: dict[str, Any]) -> str:
    """What a record holds, from its JSON, in words."""
    count = sum(number for _, number in about["codecs"])
    return f"{count} sample{'s' * (count != 1)} of {', '.join(map(repr, about['labels']))}" if count else "no samples"


def codecs_of(data: bytes) -> set[str]:
    """Names of the feature codecs in a file of whole records; samples are not read."""
    found: set[str] = set()
    place = 0
    while place + HEADER.size <= len(data) and data.startswith(MAGIC, place):
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
    index = np.frombuffer(body, INDEX, sum(count for _, count in about["codecs"]))
    place, rows, entries = index.nbytes, [], iter(index.tolist())
    for name, count in about["codecs"]:
        codec = names(name)
        encoded = np.frombuffer(body, codec.dtype(about["d"]), count, place)
        place += encoded.nbytes
        for feature, (number, key, label, flags, _) in zip(codec.decode(encoded), entries):
            rows.append(StoredSample(number, number >> 32, about["labels"][label], key, feature, b"",
                                     bool(flags & SPARE), name if codec.lossy else "", bool(flags & TRAINED),
                                     bool(flags & JUDGES)))
    ends = place + np.cumsum(index["input"], dtype=np.int64)
    return [row._replace(input=body[end - length:end]) if length else row
            for row, end, length in zip(rows, ends.tolist(), index["input"].tolist())]


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
