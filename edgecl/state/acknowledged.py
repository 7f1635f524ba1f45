"""STATE/acknowledged: how long the log was when its last append was acknowledged.

It is written in place after that append was synced, and not synced itself, so it may say less than the disk holds, but
never more. Its loss is harmless: it is written again. Only if damage has made the log shorter is it synced: an older
one would call what a power cut leaves of the next append acknowledged.
"""
from __future__ import annotations

import hashlib
import os
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from edgecl.files.atomic import give_owner, write_atomically
from edgecl.files.forms import COUNT
from edgecl.files.regular import open_regular, read_regular
from edgecl.state.epoch import TAG, first_record

if TYPE_CHECKING:
    from pathlib import Path

ACKNOWLEDGED_FILE = "acknowledged"
ACKNOWLEDGED = struct.Struct("<12sQQ16s")  # tag of the epoch, length of the log, newest generation, digest of these


class Acknowledged(NamedTuple):
    """How far a log was acknowledged. tag: of its epoch; generation: the newest."""

    tag: str
    length: int
    generation: int

    def goes_on(self, epoch: str) -> bool:
        """Whether a log of that epoch was acknowledged with more than its first record."""
        return self.tag == epoch[:TAG] and self.length > len(first_record(epoch))


def read_acknowledged(folder: Path) -> Acknowledged | None:
    """How far the log of a state was acknowledged; None if that is not known."""
    try:
        data = read_regular(folder / ACKNOWLEDGED_FILE, os.O_NOFOLLOW)[:ACKNOWLEDGED.size]
        tag, length, generation, digest = ACKNOWLEDGED.unpack(data)
    except (OSError, struct.error):
        return None
    known = digest == _digest(data[:-len(digest)]) and tag.isascii() and generation in COUNT
    return Acknowledged(tag.decode(), length, generation) if known else None


def write_acknowledged(folder: Path, now: Acknowledged, sync: bool = False) -> None:
    """Write down how far the log of a state is acknowledged, if the disk lets it: else less is known, and nothing is
    lost."""
    data, path = struct.pack("<12sQQ", now.tag.encode(), now.length, now.generation), folder / ACKNOWLEDGED_FILE
    data += _digest(data)
    with suppress(OSError):
        if sync:
            write_atomically(path, data, scratch=folder / "models")     # which is swept
            return
        descriptor = open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW)   # nothing in place of a link
        try:
            give_owner(descriptor, folder)
            os.pwrite(descriptor, data, 0)
        finally:
            os.close(descriptor)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
