"""Server-sent events: one subscription of the service for all clients, so that their number costs no threads."""
from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from starlette.responses import StreamingResponse

from edgecl.runtime.http.replies import HttpRefusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Scope, Send

    from edgecl.runtime.events import Subscription
    from edgecl.runtime.service import Service

MOST_STREAMS = 32       # clients at once; past these 429
WAITING = 32            # events of one client; the oldest go first
HEARTBEAT = 10.0        # seconds without an event after which a comment shows that the line is alive


class EventStream:
    """One client's events that wait to be sent."""

    def __init__(self) -> None:
        self.waiting = deque[dict[str, Any]](maxlen=WAITING)
        self.there = asyncio.Event()


class EventReply(StreamingResponse):
    """The reply that a client's events go into; the stream ends with it, however it ends."""

    def __init__(self, broadcaster: Broadcaster) -> None:
        self._broadcaster, self._stream = broadcaster, broadcaster.subscribe()
        super().__init__(broadcaster.send(self._stream), media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until one side ends."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._broadcaster.leave(self._stream)


class Broadcaster:
    """Takes events in a thread, which runs while there is a client, and gives them to all."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._streams: set[EventStream] = set()
        self._closed = False
        self._pump: threading.Thread | None = None
        self._subscription: Subscription | None = None
        self._lock = threading.Lock()

    def subscribe(self) -> EventStream:
        """A new client's stream. Raises Refusal past MOST_STREAMS. In the loop's thread."""
        if self._closed:
            raise HttpRefusal(503, "the daemon ends", "try again when it runs")
        if len(self._streams) >= MOST_STREAMS:
            raise HttpRefusal(429, f"{MOST_STREAMS} clients listen to events already", "close one", Retry_After="10")
        made = EventStream()
        self._streams.add(made)
        with self._lock:
            if self._pump is None:
                self._pump = threading.Thread(target=self._run, args=(asyncio.get_running_loop(),),
                                              name="http events", daemon=True)
                self._pump.start()
        return made

    async def send(self, stream: EventStream) -> AsyncIterator[bytes]:
        """The bytes of a client's reply."""
        yield b"retry: 2000\n\n"
        while not self._closed:
            try:
                await asyncio.wait_for(stream.there.wait(), HEARTBEAT)
            except asyncio.TimeoutError:
                yield b":\n\n"
                continue
            stream.there.clear()
            while stream.waiting and not self._closed:
                event = stream.waiting.popleft()
                yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()

    def leave(self, stream: EventStream) -> None:
        """A client has gone."""
        self._streams.discard(stream)

    def close(self) -> None:
        """End all streams; from any thread."""
        self._closed = True
        if (subscription := self._subscription) is not None:
            subscription.close()

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        self._subscription = subscription = self._service.subscribe()
        try:
            while True:
                event = subscription.get(timeout=1.0)
                if event is not None:
                    loop.call_soon_threadsafe(self._deliver, event)
                with self._lock:
                    if self._closed or subscription.closed or not self._streams:
                        self._pump = None
                        break
            loop.call_soon_threadsafe(self._wake)
        except RuntimeError:  # the loop has ended
            self._pump = None
        finally:
            subscription.close()

    def _deliver(self, event: dict[str, Any]) -> None:
        for stream in self._streams:
            stream.waiting.append(event)
            stream.there.set()

    def _wake(self) -> None:
        for stream in self._streams:
            stream.there.set()
