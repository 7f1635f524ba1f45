"""uvicorn in a thread, with the limits that it lacks: idle, slow and too many connections."""
from __future__ import annotations

import json
import logging
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from edgecl.errors import BadInput, LinkError
from edgecl.runtime.http.access import Access, is_loopback, parse_address, read_token
from edgecl.runtime.http.app import Application
from edgecl.runtime.http.replies import HEADERS

if TYPE_CHECKING:
    import asyncio

    from edgecl.runtime.http.states import States

MOST_CONNECTIONS = 160     # past these, new ones are closed
HEAD_SECONDS = 10.0        # from the start of a connection, or the first byte of a request, to the end of its headers
WRITE_SECONDS = 15.0       # that a client may leave a reply unread
HEAD_BYTES = 16 * 1024
START_SECONDS = 10.0
CLOSE_SECONDS = 1.0


class Connection(H11Protocol):
    """One client: answers bad requests in JSON, and notes how long it has waited for the client."""

    _asked: float | None = None
    _unread: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Close a connection past MOST_CONNECTIONS at once."""
        super().connection_made(transport)
        self._asked = time.monotonic()
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()

    def data_received(self, data: bytes) -> None:
        """Run the clock of a request: until its headers are complete, and for a body that goes on after the reply."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        waits = self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE
        self._asked = (self._asked or time.monotonic()) if waits else None

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, in JSON like every other refusal."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # in the middle of another reply
            self.transport.close()
            return
        large = len(self.conn.trailing_data[0]) > HEAD_BYTES
        code = 431 if large else 400
        text = json.dumps({"error": "the headers are too large" if large else "this is not an HTTP request",
                           "cure": f"send at most {HEAD_BYTES} bytes of headers" if large else
                                   "send HTTP/1.1, for example with curl"}).encode()
        headers = [*HEADERS.items(), ("Content-Type", "application/json"), ("Content-Length", str(len(text))),
                   ("Connection", "close")]
        for event in (h11.Response(status_code=code, headers=headers), h11.Data(data=text), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))
        self.transport.close()

    def drop_if_stalled(self, now: float) -> None:
        """Disconnect a client that is too slow."""
        if self.transport.get_write_buffer_size() == 0:
            self._unread = None
        elif self._unread is None:
            self._unread = now
        if (self._asked is not None and now - self._asked > HEAD_SECONDS) or (
                self._unread is not None and now - self._unread > WRITE_SECONDS):
            self.transport.abort()


class Server(uvicorn.Server):
    """A server that checks all connections once a second."""

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn every 0.1 s."""
        if counter % 10 == 0:
            now = time.monotonic()
            for connection in list(self.server_state.connections):
                connection.drop_if_stalled(now)  # type: ignore[union-attr]
        return await super().on_tick(counter)


class ServerHandle:
    """A running server. url: of the page; thread: its own."""

    def __init__(self, server: Server, thread: threading.Thread, application: Application, url: str) -> None:
        self._server, self.thread, self._application, self.url = server, thread, application, url

    def close(self) -> None:
        """End all replies and the thread, in about a second."""
        self._application.close()
        self._server.should_exit = True
        self.thread.join(CLOSE_SECONDS)  # a `learn` that still runs ends with the service


def serve(states: States, listen: str | None, token_file: str | None) -> ServerHandle:
    """Listen and serve; see `edgecl.runtime.http.start`."""
    host, port = parse_address(listen or "127.0.0.1:8470")
    access = Access(host, read_token(Path(token_file)) if token_file else None)
    listener = _listen(host, port)
    application = Application(states, access)
    config = uvicorn.Config(application, http=Connection, ws="none", loop="asyncio", lifespan="off", log_config=None,
                            access_log=False, server_header=False, proxy_headers=False, timeout_keep_alive=20,
                            timeout_graceful_shutdown=1, h11_max_incomplete_event_size=HEAD_BYTES, backlog=128)
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # one line per bad request would fill the journal
    server = Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), name="http", daemon=True)
    thread.start()
    until = time.monotonic() + START_SECONDS
    while not server.started and thread.is_alive() and time.monotonic() < until:
        time.sleep(0.005)
    if not server.started:
        application.close()
        listener.close()
        raise LinkError(f"the HTTP server at {host}:{port} did not start", "see the log")
    name = f"[{host}]" if ":" in host else host
    return ServerHandle(server, thread, application, f"http://{name}:{listener.getsockname()[1]}/")


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise BadInput(f"http_listen names the host {host!r}, which has no address",
                       "give an address of this machine") from error
    family, _, _, _, address = found[0]
    if is_loopback(host) and not is_loopback(str(address[0])):  # a "localhost" that points elsewhere
        raise BadInput(f"http_listen is {host}, which is {address[0]} here and not loopback", "listen at 127.0.0.1")
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise LinkError(f"can't listen at {host}:{port} ({error.strerror})",
                        "choose another http_listen, or stop what listens there") from error
    return listener
