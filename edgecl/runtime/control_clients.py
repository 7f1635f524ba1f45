"""The clients of the control socket, and the socket itself: who they are, what was heard of them."""
from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgecl.errors import StateError
from edgecl.runtime.client import Client, NoDaemon, short

if TYPE_CHECKING:
    from pathlib import Path

CLIENTS = 64         # at once
CREDENTIALS = struct.Struct("3i")


@dataclass
class Peer:
    """One client. busy: its command is being worked on, so that it is read no further; until: monotonic seconds at
    which it is given up."""

    socket: socket.socket
    uid: int
    until: float
    heard: bytearray = field(default_factory=bytearray)
    answer: bytearray = field(default_factory=bytearray)
    file: int | None = None
    busy: bool = False
    last: bool = False


def user_of(client: socket.socket) -> int:
    """The user id of the process at the other end, as the kernel has it."""
    _, uid, _ = CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    return int(uid)


def closed(file: int | None) -> None:
    """Close a descriptor, where there is one."""
    if file is not None:
        os.close(file)


def bound(path: Path) -> socket.socket:
    """A listening socket of mode 0660. Raises StateError where somebody listens there already."""
    try:
        Client(path, 1.0).close()
    except NoDaemon:
        pass
    else:
        raise StateError(f"another daemon listens at {path}", "stop it first, or give this one another state")
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with suppress(FileNotFoundError):
            path.unlink()
        before = os.umask(0o117)
        try:
            with short(path) as name:
                made.bind(name)
        finally:
            os.umask(before)
        made.listen(4 * CLIENTS)
    except OSError as error:
        made.close()
        raise StateError(f"the control socket {path} can't be made ({error.strerror})",
                         "give the rights to its folder, or set control to another path") from error
    return made
