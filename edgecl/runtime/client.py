"""Client of the daemon that owns a state; without numpy, so that `edgecl status` is quick."""
from __future__ import annotations

import json
import os
import socket
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecl.errors import StateError
from edgecl.runtime.protocol import MOST_ANSWER, encode, result_of

if TYPE_CHECKING:
    from collections.abc import Iterator

ANSWER_SECONDS = 600.0   # for an answer: a long `learn`
SHORT_PATH = 100         # bytes of a socket's path that every system takes


class NoDaemon(Exception):
    """No daemon listens: the command works on the state itself."""


@contextmanager
def short(path: Path) -> Iterator[str]:
    """A name for a socket that the system takes, however long its path is."""
    text = os.fspath(path)
    if len(os.fsencode(text)) <= SHORT_PATH:
        yield text
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


class Client:
    """A connection to a daemon. Raises NoDaemon if none listens, StateError if it may not be used or is busy."""

    def __init__(self, path: Path, timeout: float = ANSWER_SECONDS) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(timeout)
        try:
            with short(path) as name:
                self._socket.connect(name)
        except PermissionError as error:
            self._socket.close()
            if not os.access(path.parent, os.X_OK):     # whether a daemon listens there can't be told
                raise StateError(f"this user may not look into {path.parent}",
                                 "run it as the user that owns it, or give the rights to it") from error
            raise StateError(f"this user may not use {path}", "run it as the daemon's user, or as a member of "
                             "the socket's group") from error
        except (BlockingIOError, TimeoutError) as error:
            self._socket.close()
            raise StateError(f"the daemon at {path} has too many clients", "try again in a moment") from error
        except OSError as error:
            self._socket.close()
            raise NoDaemon from error

    def ask(self, command: str, file: int | None = None, **values: Any) -> Any:
        """The result of a command. file: a descriptor of samples. Raises the error that the daemon answers with,
        StateError if it does not answer."""
        given = {name: value for name, value in values.items() if value is not None}
        line = encode({"command": command, **given})
        try:
            with suppress(BrokenPipeError):  # the daemon has closed: its refusal can still be read
                sent = socket.send_fds(self._socket, [line], [file]) if file is not None else 0
                self._socket.sendall(line[sent:])
            answer = bytearray()
            while not answer.endswith(b"\n"):
                block = self._socket.recv(1 << 16)
                if not block or len(answer) > MOST_ANSWER:
                    raise ConnectionError("the answer was cut off")
                answer += block
            return result_of(json.loads(answer))
        except (OSError, ValueError) as error:
            raise StateError(f"the daemon did not answer ({error})", "look at its log, and try again") from error

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
