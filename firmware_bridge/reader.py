"""Reads a link in its own thread, so that nothing is lost while a learner computes."""
from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator

from edgecl.errors import LinkError
from firmware_bridge.link import Link
from firmware_bridge.session import Event

MAX_WAITING_EVENTS = 4096  # for a slow consumer; beyond it, the link is not read and the device runs out of credit


class Reader:
    """A context manager. The thread owns the link from then on, and closes it at the end."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._events: queue.Queue[Event | LinkError] = queue.Queue(MAX_WAITING_EVENTS)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="edgecl-link", daemon=True)

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                for event in self._link.pump(0.1):
                    self._put(event)
        except LinkError as error:
            self._put(error)
        finally:
            self._link.close()

    def _put(self, item: Event | LinkError) -> None:
        while not self._stopped.is_set():
            try:
                return self._events.put(item, timeout=0.1)
            except queue.Full:
                continue

    def wait_hello(self, seconds: float) -> None:
        """Wait until the device has said hello. Raises LinkError if it has not after `seconds`, or the link fails."""
        until = time.monotonic() + seconds
        while self._link.session.hello is None:
            if time.monotonic() > until:
                broken = sum(self._link.session.decoder.counts.values())
                raise LinkError(f"no device said hello within {seconds:g} s" + (
                    f", but {broken} pieces of data arrived that are not frames of this protocol" if broken else ""),
                    "check ?baud= and that the firmware includes the bridge" if broken else
                    "check the port and that the firmware includes the bridge; `edgecl doctor` lists ports")
            if not self._thread.is_alive():
                self._raise()
            time.sleep(0.01)

    def _raise(self) -> None:
        for item in list(self._events.queue):
            if isinstance(item, LinkError):
                raise item

    def events(self, silence: float | None = None) -> Iterator[Event | None]:
        """Events as they arrive, and None after each moment without one; ends after `silence` seconds without any.
        Raises LinkError if the link fails."""
        heard = time.monotonic()
        while True:
            try:
                item = self._events.get(timeout=0.2)
            except queue.Empty:
                if silence is not None and time.monotonic() - heard > silence:
                    return
                yield None
                continue
            if isinstance(item, LinkError):
                raise item
            heard = time.monotonic()
            yield item

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(2)
