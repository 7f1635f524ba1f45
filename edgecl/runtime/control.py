"""The control socket: a thread per client, who may change something, and how much runs at once."""
from __future__ import annotations

import logging
import os
import pwd
import socket
import threading
import time
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Any

from edgecl.errors import BadInput, EdgeclError, StateError
from edgecl.runtime import control_clients
from edgecl.runtime.commands import COMMANDS
from edgecl.runtime.control_clients import MOST_CLIENTS, bound, closed, requests
from edgecl.runtime.protocol import MOST_ANSWER, Refused, encode, parse, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from pathlib import Path

    from edgecl.runtime.service import Service

IDLE_SECONDS = 60.0          # of a client between two requests
SLOW_SECONDS = 10.0          # from the first to the last byte of a request, and of an answer
MOST_LONG_COMMANDS = 4       # at once; of the others one at a time, so that clients can't slow the loop down
PACE_SECONDS = 0.0005        # of quiet before each request while there are several clients: the loop needs the GIL
LAST_ANSWERS_SECONDS = 0.2   # at the end, for commands at work; as long again until their threads have ended
RETRY_SECONDS = 0.1          # after a client that could not be accepted, for want of descriptors or threads

log = logging.getLogger("edgecl")


class Control:
    """Listens for a service. users: names of those who may change something, beside root and the daemon's own user;
    idle, slow: seconds, see IDLE_SECONDS, SLOW_SECONDS."""

    def __init__(self, path: Path, service: Service, users: Iterable[str] = (), idle: float = IDLE_SECONDS,
                 slow: float = SLOW_SECONDS) -> None:
        """Raises StateError if another daemon listens there, BadInput for an unknown user."""
        self._path, self._service, self._idle, self._slow = path, service, idle, slow
        self.allow(users)
        self._clients: dict[socket.socket, threading.Thread] = {}
        self._lock, self._stopping = threading.Lock(), False
        self._short, self._long = threading.Lock(), threading.Semaphore(MOST_LONG_COMMANDS)
        self._stream = threading.Lock()     # one backup at a time
        self._listener = bound(path)
        self._thread = threading.Thread(target=self._accept, name="control", daemon=True)

    def allow(self, users: Iterable[str]) -> None:
        """Who may change something from now on. Raises BadInput for an unknown user."""
        try:
            self._allowed = {0, os.geteuid(), *(pwd.getpwnam(name).pw_uid for name in users)}
        except KeyError as error:
            raise BadInput(f"control_users: {error.args[0]}", "name users of this machine") from None

    def start(self) -> None:
        """Accept clients from now on."""
        self._thread.start()

    def stop(self, timeout: float = 1.0) -> None:
        """Accept no more; commands at work get a moment to be answered, then all clients are disconnected."""
        self._stopping = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        if self._thread.ident is not None:
            self._thread.join(timeout)
        self._listener.close()
        for how in (socket.SHUT_RD, socket.SHUT_RDWR):
            until = time.monotonic() + LAST_ANSWERS_SECONDS
            with self._lock:
                left = dict(self._clients)
            for client in left:
                with suppress(OSError):
                    client.shutdown(how)
            for thread in left.values():
                thread.join(max(until - time.monotonic(), 0.0))
        with suppress(OSError):
            self._path.unlink()

    def _accept(self) -> None:
        while not self._stopping:
            try:
                client, _ = self._listener.accept()
            except OSError:
                if not self._stopping:
                    time.sleep(RETRY_SECONDS)
                continue
            thread = threading.Thread(target=self._serve, args=(client,), name="control client", daemon=True)
            with self._lock:
                full = len(self._clients) >= MOST_CLIENTS
                if not full:
                    self._clients[client] = thread
                    with suppress(RuntimeError):  # no thread is left: see below
                        thread.start()
            if full:
                with client, suppress(OSError):
                    client.setblocking(False)
                    client.send(refusal(Refused("busy", f"{MOST_CLIENTS} clients are connected",
                                                "try again in a moment")))
            elif thread.ident is None:
                self._disconnect(client)
                time.sleep(RETRY_SECONDS)

    def _disconnect(self, client: socket.socket) -> None:
        with self._lock:
            self._clients.pop(client, None)
        client.close()

    def _serve(self, client: socket.socket) -> None:
        """Answer a client until it leaves, is too slow, or sends too much."""
        try:
            uid = control_clients.user_of(client)
            try:
                with closing(requests(client, self._idle, self._slow)) as received:
                    for line, file in received:
                        try:
                            with closing(self._answers(line, file, uid)) as blocks:
                                for block in blocks:
                                    client.settimeout(self._slow)
                                    client.sendall(block)
                        finally:
                            closed(file)
                        if self._stopping:
                            break
            except Refused as error:   # the last word to this client
                client.settimeout(self._slow)
                client.sendall(refusal(error))
        except OSError:   # it has left, or does not read
            pass
        except Exception:  # the outermost place of a client
            log.exception("a client of the control socket could not be served")
        finally:
            self._disconnect(client)

    def _answers(self, line: bytes, file: int | None, uid: int) -> Generator[bytes, None, None]:
        """The answer to one request, in blocks. file: the descriptor that came with it."""
        begun = False
        try:
            with self._short:
                if len(self._clients) > 1:
                    time.sleep(PACE_SECONDS)
                values = parse(line)
                name = values.pop("command")
                command = COMMANDS.get(name)
                if command is None:
                    raise Refused("unknown-command", f"no command is called {name[:40]!r}",
                                  f"known are {', '.join(COMMANDS)}")
                if (command.writes or command.streams or command.private) and uid not in self._allowed:
                    what = "copy" if command.streams else "see the frames of" if command.private else "change"
                    raise Refused("forbidden", f"user {uid} may not {what} this state",
                                  "run it as the daemon's user, or name this user in control_users")
                command.check(values, file)
                if command.vouched:
                    values[command.vouched] = uid in (0, os.geteuid())
                if not (command.waits or command.streams):
                    answer = _result(lambda: command.call(self._service, values, file))
            if command.streams:
                with self._alone():
                    for block in command.call(self._service, values, file):
                        begun = True
                        yield block
                return
            if command.waits:
                with self._long:
                    answer = _result(lambda: command.call(self._service, values, file))
        except EdgeclError as error:
            if begun:
                raise
            answer = refusal(error)
        except Exception as error:  # of one request: the daemon goes on
            if begun:
                raise
            log.exception("a request has failed")
            answer = refusal(Refused("internal", f"the daemon has failed at this ({type(error).__name__})",
                                     "see its log"))
        yield answer

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._stream.acquire(blocking=False):
            raise Refused("busy", "another client reads a backup", "try again when it has ended")
        try:
            yield
        finally:
            self._stream.release()


def _result(call: Callable[[], Any]) -> bytes:
    line = encode({"ok": True, "result": call()})
    if len(line) > MOST_ANSWER:
        raise StateError(f"the answer has {len(line)} bytes", "ask for less")
    return line
