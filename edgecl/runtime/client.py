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
        self._received = bytearray()    # and not used yet
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
        except OSError as error:
            raise _silent(error) from error
        return self.result()

    def result(self) -> Any:
        """The result in the next line of the daemon. Raises as `ask`."""
        try:
            while (end := self._received.find(b"\n")) < 0:
                if len(self._received) > MOST_ANSWER:
                    raise ConnectionError("the answer was cut off")
                self._received += self._block()
            line = bytes(self._received[:end])
            del self._received[:end + 1]
            return result_of(json.loads(line))
        except (OSError, ValueError) as error:
            raise _silent(error) from error

    def blocks(self, count: int) -> Iterator[bytes]:
        """The next `count` bytes of the daemon, in blocks. Raises StateError if it breaks off."""
        while count:
            try:
                block = bytes(self._received[:count]) or self._block()
            except OSError as error:
                raise _silent(error) from error
            self._received = self._received[len(block):] if self._received else bytearray(block[count:])
            block = block[:count]
            count -= len(block)
            yield block

    def _block(self) -> bytes:
        if not (block := self._socket.recv(1 << 16)):
            raise ConnectionError("the answer was cut off")
        return block

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _silent(error: Exception) -> StateError:
    return StateError(f"the daemon did not answer ({error})", "look at its log, and try again")
