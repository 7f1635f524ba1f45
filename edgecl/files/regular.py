"""Regular files only: a FIFO in the place of a file would block who opens it, a device would never end, and a link
would lead a write astray."""
from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

OTHERS = (errno.EISDIR, errno.ELOOP, errno.ENXIO, errno.ENODEV)  # folder, link, socket, no such device


class NotRegular(OSError):
    """Something else than a regular file lies where one should."""


def open_regular(path: Path, flags: int = os.O_RDONLY, mode: int = 0o666) -> int:
    """The descriptor of a regular file, without waiting. flags: links are followed unless O_NOFOLLOW is among them.
    Raises NotRegular, OSError."""
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno in OTHERS:
            raise NotRegular(error.errno, "not a regular file", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotRegular(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def is_something_else(path: Path) -> bool:
    """Whether a link, a folder, a FIFO, a socket or a device lies at a path."""
    try:
        return not stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def read_regular(path: Path, flags: int = os.O_RDONLY) -> bytes:
    """The content of a regular file. Raises NotRegular, OSError."""
    with open(open_regular(path, flags), "rb") as file:
        return file.read()
