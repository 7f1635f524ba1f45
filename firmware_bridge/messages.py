"""The content of messages: HELLO with its channel table, and every limit on what a device may claim."""
from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np

from firmware_bridge.schema import SCHEMA

DTYPES = {SCHEMA.TYPE_I16: "<i2", SCHEMA.TYPE_I32: "<i4", SCHEMA.TYPE_F32: "<f4", SCHEMA.TYPE_U8: "u1"}
MESSAGES = {number: name.removeprefix("MESSAGE_") for name, number in SCHEMA.numbers.items()
            if name.startswith("MESSAGE_")}
STATUS = {number: name.removeprefix("STATUS_").lower() for name, number in SCHEMA.numbers.items()
          if name.startswith("STATUS_")}


class Malformed(ValueError):
    """An intact frame with invalid content. Counted by the session, never shown to a user."""


@dataclass(frozen=True)
class Channel:
    """One row of a device's channel table. number: in frame headers; dtype: None for objects; rate: Hz, 0 if samples
    are irregular; scale: factor from values to `unit`; seed: of its frames' CRC."""

    number: int
    name: str
    unit: str
    dtype: str | None
    elements: int
    rate: float
    scale: float
    seed: int

    def values(self, payload: bytes) -> np.ndarray:
        """Samples float32 [n, elements] in `unit`. Raises Malformed if the payload is not a whole number of samples."""
        assert self.dtype is not None
        raw = np.frombuffer(payload, self.dtype) if len(payload) % np.dtype(self.dtype).itemsize == 0 else None
        if raw is None or raw.size % self.elements:
            raise Malformed(f"{len(payload)} bytes on {self.name}")
        with np.errstate(over="ignore", invalid="ignore"):  # a device may send any float32
            return np.multiply(raw.reshape(-1, self.elements), np.float32(self.scale), dtype=np.float32)


@dataclass(frozen=True)
class Hello:
    """The identity of a device. firmware: such as "1.2.3"; next: the command number it expects; channels: empty if the
    schema differs."""

    version_least: int
    version_most: int
    schema: int
    device: int
    boot: int
    firmware: str
    frame_most: int
    receive_window: int
    nonce: int
    session: int
    session_boot: int
    next: int
    channels: tuple[Channel, ...]

    @property
    def compatible(self) -> bool:
        """Whether both sides use the same schema and a common version."""
        return (self.schema == SCHEMA.hash and self.version_least <= SCHEMA.VERSION_MOST
                and self.version_most >= SCHEMA.VERSION_LEAST)


def unpack(name: str, payload: bytes) -> Any:
    """The fields of a message of fixed size. Raises Malformed if the size differs."""
    layout = SCHEMA.layouts[name]
    if len(payload) != layout.size:
        raise Malformed(f"{name} of {len(payload)} bytes")
    return layout.unpack(payload)


def pack(name: str, **fields: int) -> bytes:
    """The bytes of a message of fixed size."""
    return SCHEMA.layouts[name].pack(message=SCHEMA.numbers[f"MESSAGE_{name}"], **fields)


def read_hello(payload: bytes) -> Hello:
    """HELLO and its channel table. Raises Malformed if a limit of the schema is exceeded."""
    layout = SCHEMA.layouts["HELLO"]
    try:
        m = layout.unpack(payload)
    except struct.error:
        raise Malformed(f"HELLO of {len(payload)} bytes") from None
    firmware = f"{m.firmware >> 16}.{m.firmware >> 8 & 255}.{m.firmware & 255}"
    identity = (m.version_least, m.version_most, m.schema, m.device, m.boot, firmware, m.frame_most, m.receive_window,
                m.nonce, m.session, m.session_boot, m.next)
    hello = Hello(*identity, ())
    if not hello.compatible:
        return hello
    if not SCHEMA.FRAME_LEAST <= m.frame_most <= SCHEMA.FRAME_LIMIT or m.receive_window < SCHEMA.FRAME_LEAST:
        raise Malformed(f"frames of {m.frame_most} bytes, a window of {m.receive_window}")
    return Hello(*identity, _table(payload, layout.size, m.channels))


def _table(payload: bytes, at: int, count: int) -> tuple[Channel, ...]:
    layout = SCHEMA.layouts["CHANNEL"]
    rows: list[Channel] = []
    if count > SCHEMA.TABLE_LIMIT:
        raise Malformed(f"{count} channels")
    for number in range(SCHEMA.CHANNEL_FIRST, SCHEMA.CHANNEL_FIRST + count):
        if len(payload) < at + layout.size:
            raise Malformed("the channel table is cut off")
        row, start = layout.unpack(payload, at), at
        at += layout.size + row.name_size + row.unit_size
        texts = payload[start + layout.size:at]
        if (len(payload) < at or not 1 <= row.name_size <= SCHEMA.NAME_LIMIT or row.unit_size > SCHEMA.UNIT_LIMIT
                or not 1 <= row.elements <= SCHEMA.ELEMENT_LIMIT or row.millihertz > SCHEMA.RATE_LIMIT
                or not (math.isfinite(row.scale) and row.scale)
                or row.type not in (*DTYPES, SCHEMA.TYPE_OBJECT)):
            raise Malformed(f"row {number} of the channel table: {row}")
        try:
            name, unit = texts[:row.name_size].decode(), texts[row.name_size:].decode()
        except UnicodeDecodeError:
            raise Malformed(f"row {number} of the channel table is not UTF-8") from None
        if not (name + unit).isprintable() or name in [other.name for other in rows]:
            raise Malformed(f"a channel named {name!r} in {unit!r}")
        rows.append(Channel(number, name, unit, DTYPES.get(row.type), row.elements, row.millihertz / 1000, row.scale,
                            crc32(payload[start:at], SCHEMA.hash)))
    if at != len(payload):
        raise Malformed(f"{len(payload) - at} bytes after the channel table")
    return tuple(rows)
