"""The daemon as a whole: services, sources and endpoints, from the first sample to a clean end."""
from __future__ import annotations

import fcntl
import gc
import logging
import os
import signal
import socket
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
from edgecl.settings import counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgecl.learner import Learner
    from edgecl.runtime.settings import DaemonSettings, SourceSettings

STOP_SECONDS = 1.5   # for everything to end after SIGTERM; what has not is cut off, as by a kill
ENDPOINTS = {"http": "http_listen", "mqtt": "mqtt_host"}   # module -> the setting that asks for it

log = logging.getLogger("edgecl")


class Endpoint(Protocol):
    """What `http.start` and `mqtt.start` return."""

    def close(self) -> None:
        """Stop serving."""


class Daemon:
    """Everything that runs: `start` it, then `reload` and `stop` it at signals. opened: opens the learner on a state.
    """

    def __init__(self, settings: DaemonSettings, opened: Callable[[Path], Learner],
                 notifier: Notifier | None = None) -> None:
        self.settings, self._notifier = settings, notifier or Notifier({})
        self._opened, self._locks = opened, list[int]()
        self.loop = Loop(lambda source, sample: self._service_of(source).classifier.classify(source, sample),
                         self._notifier.alive)
        self.services: dict[Path, Service] = {}
        self.controls: dict[Path, Control] = {}
        self._endpoints: dict[str, Endpoint] = {}
        self._sources: list[SourceThread] = []
        self._thread = threading.Thread(target=self.loop.run, name="loop", daemon=True)

    @property
    def main(self) -> Service:
        """The service of the daemon's own state."""
        return self.services[self.settings.state]

    def start(self) -> None:
        """Open everything. Raises EdgeclError, such as StateError if another daemon has a state already; then nothing
        is left running."""
        try:
            for state in dict.fromkeys([self.settings.state, *map(self._state_of, self.settings.sources)]):
                self._serve(state)
            self._connect(self.settings)
            self._thread.start()
            self._endpoints = {name: self._endpoint(name) for name in ENDPOINTS if self._wanted(name, self.settings)}
            for state in self.services:
                self._open_socket(state)
        except BaseException:
            self.stop()
            raise
        gc.collect()
        gc.freeze()  # all of this stays: the collector need not walk it again
        self._notifier.ready(self.summary())

    def reload(self, settings: DaemonSettings) -> None:
        """Apply other settings. Raises StateError if they name another state or socket; then nothing has changed."""
        old = self.settings
        if (settings.state, settings.control) != (old.state, old.control):
            raise StateError("the state and the control socket can't change while the daemon runs",
                             "restart the daemon")
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
            for name in ENDPOINTS:
                keys = [key for key in vars(settings) if key.startswith(name)]
                if any(getattr(settings, key) != getattr(old, key) for key in keys):
                    if (endpoint := self._endpoints.pop(name, None)) is not None:
                        endpoint.close()
                    if self._wanted(name, settings):
                        self._endpoints[name] = self._endpoint(name)
            self._connect(settings)
        finally:
            self._notifier.ready(self.summary())

    def stop(self) -> bool:
        """Stop everything within STOP_SECONDS. True if all threads have ended."""
        until = time.monotonic() + STOP_SECONDS
        self._notifier.stopping()
        for source in self._sources:
            source.stop()
        self.loop.stop()
        closing = [threading.Thread(target=each.close, daemon=True) for each in self._endpoints.values()]
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
        ended += [source.join(max(until - time.monotonic(), 0.0)) for source in self._sources]
        for lock in self._locks:
            os.close(lock)
        self._notifier.close()
        return all(ended) and not self._thread.is_alive()

    def _serve(self, state: Path) -> None:
        """Open a state and start its service. Raises StateError if another daemon has it."""
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
        return getattr(settings, ENDPOINTS[name]) is not None

    def _endpoint(self, name: str) -> Endpoint:
        endpoint: Endpoint = import_module(f"edgecl.runtime.{name}").start(self.services, self.settings)
        return endpoint

    def _state_of(self, source: SourceSettings) -> Path:
        return Path(source.state) if source.state else self.settings.state

    def _service_of(self, source: SourceThread) -> Service:
        return self.services[self._state_of(source.settings)]

    def _opened_source(self, settings: SourceSettings) -> SourceThread:
        service = self.services[self._state_of(settings)]
        return SourceThread(settings, service.spec, service.hub.say, self.loop.offer)

    def _connect(self, settings: DaemonSettings) -> None:
        """Read the sources in the settings: unchanged ones go on, the others stop or start."""
        before = {source.settings for source in self._sources}
        kept = [source for source in self._sources if source.settings in settings.sources]
        for source in self._sources:
            if source not in kept:
                source.stop()
                source.join(0.5)
        fresh = [self._opened_source(each) for each in settings.sources if each not in before]
        self._sources = [*kept, *fresh]
        self.loop.follow(self._sources)
        for service in self.services.values():
            service.sources.follow(source for source in self._sources if self._service_of(source) is service)
        for source in fresh:
            source.start()

    def summary(self) -> str:
        """One line for the log and systemd."""
        view = self.main.view.status
        return (f"{counted(view['classes'], 'class')}, generation {view['generation']}, "
                f"{counted(len(self._sources), 'source')}")


def run(settings: DaemonSettings, opened: Callable[[Path], Learner], again: Callable[[], DaemonSettings]) -> int:
    """Run until SIGTERM or SIGINT, and return the exit code; at SIGHUP, read the settings `again`."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="edgecl: %(message)s")
    signals, wakeup = socket.socketpair()  # a handler alone does not wake a thread that waits for a lock
    wakeup.setblocking(False)
    signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
    for each in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(each, lambda *_: None)
    daemon = Daemon(settings, opened, Notifier())
    daemon.start()
    log.info("serving %s: %s", settings.state, daemon.summary())
    while signals.recv(1)[0] == signal.SIGHUP:
        try:
            daemon.reload(again())
            log.info("the settings were read again: %s", daemon.summary())
        except EdgeclError as error:
            log.error("the settings were not taken: %s", error)
    clean = daemon.stop()
    log.info("stopped")
    if not clean:
        sys.stderr.flush()
        os._exit(0)  # a thread hangs in a driver: everything that was acknowledged is on the disk
    return 0
