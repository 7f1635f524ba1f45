"""The control socket: who may ask, how long a line may be, how long one may take; one thread, and a few that wait."""
from __future__ import annotations

import logging
import os
import pwd
import selectors
import socket
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from edgecl.errors import BadInput, EdgeclError, StateError
from edgecl.runtime import control_clients
from edgecl.runtime.commands import ORDERS
from edgecl.runtime.control_clients import CLIENTS, Peer, bound, closed
from edgecl.runtime.protocol import ANSWER, LINE, Refused, encode, parse, refusal

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from edgecl.runtime.service import Service

IDLE = 60.0          # seconds of a client that asks nothing,
SLOW = 10.0          # ... that has begun a line and does not end it, or does not read its answer
WAITERS = 4          # threads for commands that take long
FILES = 4            # descriptors beside one read; all but the first are closed

log = logging.getLogger("edgecl")


class Control:
    """Listens for a service. allowed: user ids that may change something."""

    def __init__(self, path: Path, service: Service, users: Iterable[str] = (), idle: float = IDLE,
                 slow: float = SLOW) -> None:
        """Raises StateError where another daemon listens there, BadInput for a user that there is not."""
        self._path, self._service, self._idle, self._slow = path, service, idle, slow
        self.allow(users)
        self._peers: dict[int, Peer] = {}
        self._done: deque[tuple[Peer, bytes]] = deque()
        self._stopping = False
        self._socket = bound(path)
        self._waker, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for listener in (self._socket, self._woken):
            listener.setblocking(False)
            self._selector.register(listener, selectors.EVENT_READ)
        self._waker.setblocking(False)
        self._pool = ThreadPoolExecutor(WAITERS, "control")
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)

    def allow(self, users: Iterable[str]) -> None:
        """Who may change something from now on, beside root and the daemon's own user. Raises BadInput."""
        try:
            self._allowed = {0, os.geteuid(), *(pwd.getpwnam(name).pw_uid for name in users)}
        except KeyError as error:
            raise BadInput(f"control_users: {error.args[0]}", "name users of this machine") from None

    def start(self) -> None:
        """Answer from now on."""
        started = threading.Barrier(WAITERS + 1)
        for _ in range(WAITERS):  # all of them now: their number does not change later
            self._pool.submit(started.wait)
        started.wait()
        self._thread.start()

    def stop(self, timeout: float = 1.0) -> None:
        """Answer no more; what is worked on gets a moment to be answered."""
        self._stopping = True
        self._wake()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        self._pool.shutdown(wait=False, cancel_futures=True)
        with suppress(OSError):
            self._path.unlink()

    def _wake(self) -> None:
        with suppress(OSError):
            self._waker.send(b".")

    def _run(self) -> None:
        try:
            while not self._stopping:
                for key, _ in self._selector.select(1.0):
                    if key.fileobj is self._socket:
                        self._welcome()
                    elif key.fileobj is self._woken:
                        with suppress(BlockingIOError):
                            self._woken.recv(4096)
                    elif (peer := self._peers.get(key.fd)) is not None:
                        try:
                            self._serve(peer, key.events)
                        except OSError:
                            self._part(peer)
                while self._done:
                    peer, answer = self._done.popleft()
                    peer.busy = False
                    if peer.socket.fileno() in self._peers:
                        self._say(peer, answer)
                        self._go_on(peer)
                self._give_up()
        except Exception:  # the outermost loop of this thread
            log.exception("the control socket has failed")
        finally:
            deadline = time.monotonic() + 0.3
            while any(peer.busy for peer in self._peers.values()) and time.monotonic() < deadline:
                while self._done:
                    peer, answer = self._done.popleft()
                    peer.busy = False
                    with suppress(OSError):
                        peer.socket.send(answer)
                time.sleep(0.01)
            for peer in [*self._peers.values()]:
                self._part(peer)
            self._selector.close()
            for each in (self._socket, self._waker, self._woken):
                each.close()

    def _welcome(self) -> None:
        try:
            made, _ = self._socket.accept()
        except OSError:
            return
        made.setblocking(False)
        uid = control_clients.user_of(made)
        if len(self._peers) >= CLIENTS:
            with suppress(OSError):
                made.send(refusal(Refused("busy", f"{CLIENTS} clients are connected", "try again in a moment")))
            made.close()
            return
        self._peers[made.fileno()] = Peer(made, uid, time.monotonic() + self._idle)
        self._selector.register(made, selectors.EVENT_READ)

    def _serve(self, peer: Peer, events: int) -> None:
        """Read or write what can be."""
        if peer.answer:
            sent = peer.socket.send(peer.answer)
            del peer.answer[:sent]
            self._go_on(peer)
            return
        data, files, _, _ = socket.recv_fds(peer.socket, LINE, FILES)
        for number, file in enumerate(files):
            if number or peer.file is not None:
                os.close(file)
            else:
                peer.file = file
        if not data:
            self._part(peer)
            return
        if not peer.heard:
            peer.until = time.monotonic() + self._slow
        peer.heard += data
        self._go_on(peer)

    def _go_on(self, peer: Peer) -> None:
        """Take up the requests that have come, then wait for the right thing of a client: that it reads its answer,
        that its command is done, or the next one."""
        while not (peer.busy or peer.answer or peer.last) and self._next_line(peer):
            pass
        if peer.last and not peer.answer:
            self._part(peer)
        elif peer.socket.fileno() in self._peers:
            self._listen(peer, selectors.EVENT_WRITE if peer.answer else 0 if peer.busy else selectors.EVENT_READ)

    def _next_line(self, peer: Peer) -> bool:
        """Take up one request; whether there was a whole one."""
        end = peer.heard.find(b"\n")
        if max(end, len(peer.heard) if end < 0 else 0) >= LINE:
            peer.last = True
            self._say(peer, refusal(Refused("too-long", f"a request is longer than {LINE} bytes",
                                            "send samples as a descriptor beside the line")))
            return True
        if end < 0:
            return False
        line = bytes(peer.heard[:end])
        del peer.heard[:end + 1]
        file, peer.file = peer.file, None
        try:
            request = parse(line)
            name = request.pop("command")
            order = ORDERS.get(name)
            if order is None:
                raise Refused("unknown-command", f"no command is called {name[:40]!r}",
                              f"known are {', '.join(ORDERS)}")
            if order.writes and peer.uid not in self._allowed:
                raise Refused("forbidden", f"user {peer.uid} may not change this state",
                              "run it as the daemon's user, or name this user in control_users")
            order.check(request, file)
        except Refused as error:
            closed(file)
            self._say(peer, refusal(error))
            return True
        if not order.waits:
            self._say(peer, _answer(lambda: order.call(self._service, request, file)))
            closed(file)
            return True
        peer.busy = True

        def work() -> None:
            try:
                answer = _answer(lambda: order.call(self._service, request, file))
            finally:
                closed(file)
            self._done.append((peer, answer))
            self._wake()

        self._pool.submit(work)
        return True

    def _say(self, peer: Peer, answer: bytes) -> None:
        """Answer: now as far as the client reads, the rest when it does."""
        peer.answer += answer
        try:
            sent = peer.socket.send(peer.answer)
            del peer.answer[:sent]
        except BlockingIOError:
            pass
        except OSError:
            peer.answer.clear()
            peer.last = True
        peer.until = time.monotonic() + (self._slow if peer.answer or peer.heard else self._idle)

    def _listen(self, peer: Peer, events: int) -> None:
        known = peer.socket in self._selector.get_map()
        if events and known:
            self._selector.modify(peer.socket, events)
        elif events:
            self._selector.register(peer.socket, events)
        elif known:
            self._selector.unregister(peer.socket)

    def _give_up(self) -> None:
        now = time.monotonic()
        for peer in [*self._peers.values()]:
            if not peer.busy and now > peer.until:
                if not peer.answer:
                    with suppress(OSError):
                        peer.socket.send(refusal(Refused("timeout", "no whole request came in time", "ask again")))
                self._part(peer)

    def _part(self, peer: Peer) -> None:
        self._listen(peer, 0)
        self._peers.pop(peer.socket.fileno(), None)
        closed(peer.file)
        peer.file = None
        peer.socket.close()


def _answer(call: Any) -> bytes:
    try:
        line = encode({"ok": True, "result": call()})
        if len(line) > ANSWER:
            raise StateError(f"the answer has {len(line)} bytes", "ask for less")
        return line
    except EdgeclError as error:
        return refusal(error)
    except Exception as error:  # of one request: the daemon goes on
        log.exception("a request has failed")
        return refusal(Refused("internal", f"the daemon has failed at this ({type(error).__name__})", "see its log"))
