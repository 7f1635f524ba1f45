"""Server-sent events: one subscription and one thread for all clients."""
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

MOST_STREAMS = 32           # clients at once; past these 429
QUEUED_EVENTS = 32          # of one client; the oldest are dropped
HEARTBEAT_SECONDS = 10.0    # without an event; then a comment keeps the connection alive


class EventStream:
    """The queued events of one client."""

    def __init__(self) -> None:
        self.waiting = deque[dict[str, Any]](maxlen=QUEUED_EVENTS)
        self.there = asyncio.Event()


class EventReply(StreamingResponse):
    """The reply that carries a client's events; the stream is dropped when the reply ends, however it ends."""

    def __init__(self, broadcaster: Broadcaster) -> None:
        self._broadcaster, self._stream = broadcaster, broadcaster.subscribe()
        super().__init__(broadcaster.send(self._stream), media_type="text/event-stream")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until one side closes."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._broadcaster.leave(self._stream)


class Broadcaster:
    """Takes events in a thread, which runs while there are clients, and gives them to all."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._streams: set[EventStream] = set()
        self._closed = False
        self._pump: threading.Thread | None = None
        self._subscription: Subscription | None = None
        self._lock = threading.Lock()

    def subscribe(self) -> EventStream:
        """The stream of a new client. Raises HttpRefusal past MOST_STREAMS. In the thread of the event loop."""
        if self._closed:
            raise HttpRefusal(503, "the daemon is stopping", "try again when it runs")
        if len(self._streams) >= MOST_STREAMS:
            raise HttpRefusal(429, f"{MOST_STREAMS} clients listen to events already", "close another page first",
                              Retry_After="10")
        made = EventStream()
        self._streams.add(made)
        with self._lock:
            if self._pump is None:
                self._pump = threading.Thread(target=self._run, args=(asyncio.get_running_loop(),),
                                              name="http events", daemon=True)
                self._pump.start()
        return made

    async def send(self, stream: EventStream) -> AsyncIterator[bytes]:
        """The chunks of a client's reply."""
        yield b"retry: 2000\n\n"
        while not self._closed:
            try:
                await asyncio.wait_for(stream.there.wait(), HEARTBEAT_SECONDS)
            except asyncio.TimeoutError:
                yield b":\n\n"
                continue
            stream.there.clear()
            while stream.waiting and not self._closed:
                event = stream.waiting.popleft()
                yield f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()

    def leave(self, stream: EventStream) -> None:
        """Drop the stream of a client that has gone."""
        self._streams.discard(stream)

    def close(self) -> None:
        """End all streams. From any thread."""
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
        except RuntimeError:  # the event loop has ended
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
