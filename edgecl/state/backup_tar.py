"""The tar of a backup: which files of a state are in it, written and read as a stream."""
from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

from edgecl.errors import BadInput
from edgecl.files import tar
from edgecl.state.acknowledged import ACKNOWLEDGED_FILE
from edgecl.state.blobs import OURS
from edgecl.state.database import DATABASE_FILE, MODELS
from edgecl.state.frozen import StateFile
from edgecl.state.rows import COPY_FILE
from edgecl.state.write_ahead_log import LOG_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edgecl.state.frozen import Frozen

TOP = "edgecl-state"    # the folder that a tar unpacks to
TOP_FILES = (DATABASE_FILE, LOG_FILE, COPY_FILE, ACKNOWLEDGED_FILE)
FILES = re.compile(rf"(?:[^/]+/)*?({'|'.join(map(re.escape, TOP_FILES))}|{MODELS}/{OURS.pattern})")
MOST_FILES = 4096       # of a state: it has some dozens


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


def files_of(read: Callable[[int], bytes], source: str) -> Iterator[StateFile]:
    """The files of a state in a tar; others are skipped. read: gives at most so many bytes of it; source: its name, for
    errors. Raises BadInput."""
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


def reader_of(blocks: Iterator[bytes]) -> Callable[[int], bytes]:
    """What reads up to so many bytes of a stream of blocks."""
    left = memoryview(b"")

    def read(size: int) -> bytes:
        nonlocal left
        while not left and (block := next(blocks, None)) is not None:
            left = memoryview(block)
        found, left = left[:size], left[size:]
        return bytes(found)

    return read
