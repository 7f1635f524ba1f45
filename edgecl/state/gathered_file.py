"""STATE/edgecl.gathered: frames that a daemon has gathered for review, so that a restart does not lose them.

It holds nothing that was taught, so it gives way: a change that needs its room deletes it, a `forget` deletes it, since
it may show the class, and damage costs no more than what was gathered. It is not part of a backup.
"""
from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from edgecl.errors import StateError
from edgecl.files.atomic import sync_folder
from edgecl.files.regular import NotRegular, read_regular

if TYPE_CHECKING:
    from pathlib import Path

GATHERED_FILE = "edgecl.gathered"
MAGIC = b"\xecCLg1"
DIGEST_BYTES = 16
LOST = "it is left out, and written again with what is gathered from now on"


def read_gathered(folder: Path) -> bytes:
    """What was written there; b"" if there is no file. Raises StateError if it is damaged or can't be read."""
    path = folder / GATHERED_FILE
    try:
        data = read_regular(path, os.O_NOFOLLOW)
    except FileNotFoundError:
        return b""
    except (NotRegular, OSError) as error:
        raise StateError(f"{path} can't be read ({error.strerror})", LOST) from error
    start = len(MAGIC) + DIGEST_BYTES
    if not data.startswith(MAGIC) or data[len(MAGIC):start] != _digest(data[start:]):
        raise StateError(f"{path} is damaged", LOST)
    return data[start:]


def sealed(content: bytes) -> bytes:
    """What the file holds, so that damage is seen."""
    return MAGIC + _digest(content) + content


def discard_gathered(folder: Path) -> None:
    """Delete the file, if it is there, so that a power cut does not bring it back. Raises OSError."""
    path = folder / GATHERED_FILE
    if path.is_dir() and not path.is_symlink():     # not ours
        return
    if os.path.lexists(path):
        path.unlink(missing_ok=True)
        sync_folder(folder)


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()
