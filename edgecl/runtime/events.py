"""Events from the threads of a daemon to its listeners: bounded queues; nobody waits for a slow listener."""
from __future__ import annotations

import threading
from collections import deque
from typing import Any

QUEUED_EVENTS = 64    # of one listener; the oldest are dropped
MOST_LISTENERS = 64

Event = dict[str, Any]


class Subscription:
    """The events of a hub from now on."""

    def __init__(self, hub: Hub) -> None:
        self._hub, self._waiting = hub, deque[Event](maxlen=QUEUED_EVENTS)
        self._there = threading.Condition()
        self._closed = False

    def put(self, event: Event) -> None:
        """Queue an event; drop the oldest if QUEUED_EVENTS wait already."""
        with self._there:
            self._waiting.append(event)
            self._there.notify()

    def get(self, timeout: float | None = None) -> Event | None:
        """The next event; None after `timeout` seconds or once the subscription is closed."""
        with self._there:
            self._there.wait_for(lambda: self._waiting or self._closed, timeout)
            return self._waiting.popleft() if self._waiting and not self._closed else None

    @property
    def closed(self) -> bool:
        """True once no more events come."""
        return self._closed

    def close(self) -> None:
        """Unsubscribe; a waiting `get` returns."""
        self._hub.remove(self)
        with self._there:
            self._closed = True
            self._there.notify_all()


class Hub:
    """Fans events out to subscribers."""

    def __init__(self) -> None:
        self._lock, self._listeners = threading.Lock(), tuple[Subscription, ...]()

    def subscribe(self) -> Subscription | None:
        """Events from now on; None if there are MOST_LISTENERS already."""
        with self._lock:
            if len(self._listeners) >= MOST_LISTENERS:
                return None
            made = Subscription(self)
            self._listeners = (*self._listeners, made)
        return made

    def remove(self, gone: Subscription) -> None:
        """Undo `subscribe`."""
        with self._lock:
            self._listeners = tuple(each for each in self._listeners if each is not gone)

    def say(self, event: Event) -> None:
        """Give an event to all listeners."""
        for listener in self._listeners:
            listener.put(event)

    @property
    def heard(self) -> bool:
        """True if there is a listener."""
        return bool(self._listeners)

    def close(self) -> None:
        """Close all subscriptions."""
        for listener in self._listeners:
            listener.close()
