"""Converts between frames and bytes, without I/O: COBS(header, payload, CRC-32), 0x00. See PROTOCOL.md, "Frames"."""
from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from zlib import crc32

from cobs import cobs

from firmware_bridge.schema import SCHEMA

HEADER = SCHEMA.layouts["HEADER"].struct
CRC_SIZE = 4
OVERHEAD = HEADER.size + CRC_SIZE
RESIDUE = 0x2144DF1C  # the CRC-32 of any data that end with their own CRC-32
REJECTIONS = ("malformed", "oversize", "too_short", "channel", "corrupt", "version")  # in the order they are checked


class Frame(NamedTuple):
    """One intact frame. time: the device's clock, microseconds, 32 bits."""

    channel: int
    flags: int
    sequence: int
    time: int
    payload: bytes


def max_encoded_size(size: int) -> int:
    """The most bytes that `size` bytes can take after COBS, without the delimiter."""
    return size + size // 254 + 1


def encode(frame: Frame, seed: int, version: int = SCHEMA.VERSION_MOST) -> bytes:
    """The frame as sent over the wire, including its delimiter. seed: of the channel's CRC."""
    raw = HEADER.pack(version << 4 | frame.flags, frame.channel, frame.sequence, frame.time) + frame.payload
    return cobs.encode(raw + crc32(raw, seed).to_bytes(CRC_SIZE, "little")) + b"\0"


class Decoder:
    """Turns bytes into frames. Incomplete data are not an error; anything that can't be a frame is dropped and counted.

    seeds: the CRC seed of each channel that may be received, replaced when a device says hello; counts: frames
    accepted, and rejected by reason. Holds at most one encoded frame of `limit` bytes, whatever arrives.
    """

    def __init__(self, seeds: Mapping[int, int], limit: int = SCHEMA.FRAME_LIMIT) -> None:
        self.limit = limit
        self.counts = dict.fromkeys(("accepted", *REJECTIONS), 0)
        self._rest = b""
        self._overlong = False  # the incoming frame has exceeded the limit
        self.seeds = seeds

    @property
    def seeds(self) -> Mapping[int, int]:
        """The CRC seed of each known channel."""
        return self._seeds

    @seeds.setter
    def seeds(self, seeds: Mapping[int, int]) -> None:
        self._seeds = dict(seeds)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that end in `data`, in order."""
        most = max_encoded_size(self.limit)
        pieces = (self._rest + data).split(b"\0")
        self._rest = pieces.pop()
        frames: list[Frame] = []
        if self._overlong and pieces:
            self.counts["oversize"] += 1
            self._overlong = False
            del pieces[0]
        if len(self._rest) > most or self._overlong:
            self._overlong = True
            self._rest = b""
        decode, unpack, seeds, limit = cobs.decode, HEADER.unpack_from, self._seeds, self.limit
        accepted = 0
        for piece in pieces:
            if not piece:
                continue
            if len(piece) > most:
                self.counts["oversize"] += 1
                continue
            try:
                raw = decode(piece)
            except cobs.DecodeError:
                self.counts["malformed"] += 1
                continue
            size = len(raw)
            if not OVERHEAD <= size <= limit:
                self.counts["oversize" if size > limit else "too_short"] += 1
                continue
            seed = seeds.get(raw[1])
            if seed is None:
                self.counts["channel"] += 1
            elif crc32(raw, seed) != RESIDUE:
                self.counts["corrupt"] += 1
            elif not SCHEMA.VERSION_LEAST <= raw[0] >> 4 <= SCHEMA.VERSION_MOST:
                self.counts["version"] += 1
            else:
                first, channel, sequence, time = unpack(raw)
                frames.append(Frame(channel, first & 15, sequence, time, raw[OVERHEAD - CRC_SIZE:-CRC_SIZE]))
                accepted += 1
        self.counts["accepted"] += accepted
        return frames

    def reset(self) -> None:
        """Discard the bytes of an unfinished frame, for another wire. Counts stay."""
        self._rest, self._overlong = b"", False
