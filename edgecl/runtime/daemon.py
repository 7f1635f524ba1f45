"""The daemon as a whole: its services, sources and doors, from the first sample to a clean end."""
from __future__ import annotations

import fcntl
import gc
import logging
import os
import queue
import signal
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgecl.errors import EdgeclError, StateError
from edgecl.runtime.control import Control
from edgecl.runtime.loop import Loop
from edgecl.runtime.protocol import SOCKET
from edgecl.runtime.service import Service
from edgecl.runtime.source_threads import SourceThread
from edgecl.runtime.systemd import Notifier

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgecl.learner import Learner
    from edgecl.runtime.settings import DaemonSettings, SourceSettings

ENDS = 1.5       # seconds in which everything has ended after SIGTERM; what has not is cut off, as by a kill
DOORS = {"http": "http_listen", "mqtt": "mqtt_host"}   # module -> the setting that asks for it

log = logging.getLogger("edgecl")


class Endpoint(Protocol):
    """What `http.start` and `mqtt.start` give back."""

    def close(self) -> None:
        """Serve no more."""


class Daemon:
    """Everything that runs. `start`, then `reload` and `stop` as signals say. opened: the learner on a state."""

    def __init__(self, settings: DaemonSettings, opened: Callable[[Path], Learner],
                 notifier: Notifier | None = None) -> None:
        """Raises StateError where another daemon has a state already, or a state can't be opened."""
        self.settings, self._notifier = settings, notifier or Notifier({})
        self._opened, self._locks = opened, list[int]()
        self.loop = Loop(self._notifier.alive)
        self.services: dict[Path, Service] = {}
        self.controls: dict[Path, Control] = {}
        self._doors: dict[str, Endpoint] = {}
        self._feeds: list[SourceThread] = []
        self._thread = threading.Thread(target=self.loop.run, name="loop", daemon=True)

    @property
    def main(self) -> Service:
        """The service of the state that the settings name first."""
        return self.services[self.settings.state]

    def start(self) -> None:
        """Open everything. Raises EdgeclError; then nothing of it runs on."""
        try:
            for state in dict.fromkeys([self.settings.state, *map(self._state_of, self.settings.sources)]):
                self._serve(state)
            self._connect(self.settings)
            self._thread.start()
            self._doors = {name: self._door(name) for name in DOORS if self._wanted(name, self.settings)}
            for state in self.services:
                self._open_socket(state)
        except BaseException:
            self.stop()
            raise
        gc.collect()
        gc.freeze()  # what is here stays: the collector need not walk it again
        self._notifier.ready(self._summary())

    def reload(self, settings: DaemonSettings) -> None:
        """Go by other settings. Raises StateError where they name another state or socket; then nothing has changed."""
        old = self.settings
        if (settings.state, settings.control) != (old.state, old.control):
            raise StateError("another state or control socket can't be taken up while it runs", "restart the daemon")
        self._notifier.reloading()
        try:
            self.controls[settings.state].allow(settings.control_users)
            for state in dict.fromkeys(map(self._state_of, settings.sources)):
                if state not in self.services:
                    self._serve(state)
                    self._open_socket(state)
            self.settings = settings
            for service in self.services.values():
                service.reload(settings)
            for name in DOORS:
                keys = [key for key in vars(settings) if key.startswith(name)]
                if any(getattr(settings, key) != getattr(old, key) for key in keys):
                    if (door := self._doors.pop(name, None)) is not None:
                        door.close()
                    if self._wanted(name, settings):
                        self._doors[name] = self._door(name)
            self._connect(settings)
        finally:
            self._notifier.ready(self._summary())

    def stop(self) -> bool:
        """End everything in ENDS seconds; whether all threads have ended."""
        until = time.monotonic() + ENDS
        self._notifier.stopping()
        for feed in self._feeds:
            feed.stop()
        self.loop.stop()
        closing = [threading.Thread(target=door.close, daemon=True) for door in self._doors.values()]
        for each in closing:  # a broker or a browser must not hold it up
            each.start()
        ended = [service.stop(max(until - time.monotonic(), 0.1)) for service in self.services.values()]
        for control in self.controls.values():
            control.stop(max(until - time.monotonic(), 0.1))
        if self._thread.ident is not None:
            self._thread.join(max(until - time.monotonic(), 0.1))
        for each in closing:
            each.join(max(until - time.monotonic(), 0.1))
        ended += [not each.is_alive() for each in closing]
        ended += [feed.join(max(until - time.monotonic(), 0.0)) for feed in self._feeds]
        for lock in self._locks:
            os.close(lock)
        self._notifier.close()
        return all(ended) and not self._thread.is_alive()

    def _serve(self, state: Path) -> None:
        """Open a state. Raises StateError where another daemon has it."""
        learner = self._opened(state)
        lock = os.open(state, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            learner.close()
            raise StateError(f"another daemon serves {state}",
                             "stop it first, or give this one another state") from None
        self._locks.append(lock)
        service = Service(learner, self.settings)
        self.services[state] = service
        service.start()

    def _open_socket(self, state: Path) -> None:
        """Take commands for a state from now on."""
        main = state == self.settings.state
        control = Control(self.settings.socket if main else state / SOCKET, self.services[state],
                          self.settings.control_users)
        self.controls[state] = control
        control.start()

    def _wanted(self, name: str, settings: DaemonSettings) -> bool:
        return getattr(settings, DOORS[name]) is not None

    def _door(self, name: str) -> Endpoint:
        door: Endpoint = import_module(f"edgecl.runtime.{name}").start(self.services, self.settings)
        return door

    def _state_of(self, source: SourceSettings) -> Path:
        return Path(source.state) if source.state else self.settings.state

    def _connect(self, settings: DaemonSettings) -> None:
        """Read the sources of the settings: those that are as before go on, the others end or begin."""
        before = {feed.settings: feed for feed in self._feeds}
        kept = [feed for feed in self._feeds if feed.settings in settings.sources]
        for feed in self._feeds:
            if feed not in kept:
                feed.stop()
                feed.join(0.5)
        fresh = [SourceThread(source, self.services[self._state_of(source)], self.loop.offer)
                 for source in settings.sources if source not in before]
        self._feeds = [*kept, *fresh]
        self.loop.follow(self._feeds)
        for service in self.services.values():
            service.feeds = tuple(feed for feed in self._feeds if feed.service is service)
        for feed in fresh:
            feed.start()

    def _summary(self) -> str:
        view = self.main.view.status
        return f"{view['classes']} classes, generation {view['generation']}, {len(self._feeds)} sources"


def run(settings: DaemonSettings, opened: Callable[[Path], Learner], again: Callable[[], DaemonSettings]) -> int:
    """Run until SIGTERM or SIGINT; SIGHUP: read the settings `again`. The exit code."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="edgecl: %(message)s")
    heard: queue.SimpleQueue[int] = queue.SimpleQueue()  # its put may be called from a signal handler
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, lambda number, _: heard.put(number))
    daemon = Daemon(settings, opened, Notifier())
    daemon.start()
    log.info("serves %s: %s", settings.state, daemon._summary())
    while heard.get() == signal.SIGHUP:
        try:
            daemon.reload(again())
            log.info("has read its settings again: %s", daemon._summary())
        except EdgeclError as error:
            log.error("the settings were not taken: %s", error)
    clean = daemon.stop()
    log.info("stopped")
    if not clean:
        sys.stderr.flush()
        os._exit(0)  # a thread hangs in a driver: everything that counts is on the disk
    return 0
