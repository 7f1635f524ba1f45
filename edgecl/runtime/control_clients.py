"""The clients of the control socket, and the socket itself: who they are, and their requests one by one."""
from __future__ import annotations

import os
import socket
import struct
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from edgecl.errors import StateError
from edgecl.runtime.client import Client, NoDaemon, short
from edgecl.runtime.protocol import MOST_LINE, Refused

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

MOST_CLIENTS = 64      # at once
MOST_FILES = 4         # descriptors that come with one read; all but the first are closed
CREDENTIALS = struct.Struct("3i")   # of SO_PEERCRED: process, user and group id


def user_of(client: socket.socket) -> int:
    """The user id of the process at the other end, as the kernel reports it."""
    _, uid, _ = CREDENTIALS.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    return int(uid)


def closed(file: int | None) -> None:
    """Close a descriptor, if there is one."""
    if file is not None:
        os.close(file)


def requests(client: socket.socket, idle: float, slow: float) -> Generator[tuple[bytes, int | None], None, None]:
    """Each line of a client, and the descriptor that came with it, which the caller closes; ends when the client
    leaves. Raises Refused for a line that is too long or does not end within `slow` seconds, and after `idle` seconds
    without a request; OSError if the connection breaks."""
    received, file = bytearray(), None
    until = time.monotonic() + idle
    try:
        while True:
            end = received.find(b"\n")
            if max(end, len(received) if end < 0 else 0) >= MOST_LINE:
                raise Refused("too-long", f"a request is longer than {MOST_LINE} bytes",
                              "send samples as a descriptor beside the line")
            if end >= 0:
                line, passed = bytes(received[:end]), file
                del received[:end + 1]
                file = None
                yield line, passed
                until = time.monotonic() + (slow if received else idle)
                continue
            client.settimeout(max(until - time.monotonic(), 0.001))
            try:
                data, files, _, _ = socket.recv_fds(client, MOST_LINE, MOST_FILES)
            except TimeoutError:
                raise Refused("timeout", "no whole request came in time", "ask again") from None
            for number, each in enumerate(files):
                if number or file is not None:
                    os.close(each)
                else:
                    file = each
            if not data:
                return
            if not received:
                until = time.monotonic() + slow
            received += data
    finally:
        closed(file)


def bound(path: Path) -> socket.socket:
    """A listening socket of mode 0660. Raises StateError if a daemon listens there already."""
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
        made.listen(4 * MOST_CLIENTS)
    except OSError as error:
        made.close()
        raise StateError(f"the control socket {path} can't be made ({error.strerror})",
                         "give the rights to its folder, or set control to another path") from error
    return made
