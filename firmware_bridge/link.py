"""A session over a wire: opening, waiting, reconnecting."""
from __future__ import annotations

import random
import select
import time
from collections.abc import Callable
from contextlib import suppress

from edgecl.errors import LinkError
from firmware_bridge.commands import Pending
from firmware_bridge.schema import SCHEMA
from firmware_bridge.session import Event, Session
from firmware_bridge.wires import SerialWire, Wire

REOPEN_PAUSE = 0.1      # seconds between attempts while the port is gone
BAUD_TIMEOUT = 1.5      # seconds of silence at a changed baud rate before the first rate is tried again
GATHER_SECONDS = 0.015  # bytes within this time are read at once, for fewer wake-ups; not while an answer is awaited


class Link:
    """A device on a wire. `pump` does all the work and must be called often; methods that wait call it. Not
    thread-safe.

    opens: opens the wire, or raises LinkError or OSError; wanted: channels to stream, None for all. If the first
    opening fails, its error is raised; later ones are retried until the port is back. counts: reconnects, besides the
    counts of `session`.
    """

    def __init__(self, opens: Callable[[], Wire], wanted: set[str] | None = None) -> None:
        self._opens = opens
        self._wire: Wire | None = opens()
        self._tried = 0.0
        self.session = Session(random.SystemRandom().getrandbits(32), wanted)
        self.counts = {"reconnects": 0}
        self.session.connect(time.monotonic())

    @property
    def connected(self) -> bool:
        """Whether the wire is open and the device has answered."""
        return self._wire is not None and self.session.greeted

    def pump(self, timeout: float = 0.1) -> list[Event]:
        """Send what is due, then read what is available, waiting up to `timeout` seconds. Raises LinkError if the
        device speaks another protocol."""
        wire = self._wire or self._reopen(timeout)
        if wire is None:
            return []
        try:
            now = time.monotonic()
            self._check_baud(wire, now)
            self.session.poll(now)
            self._flush(wire)
            ready, _, _ = select.select([wire], [], [], min(timeout, self.session.wait(now)))
            if not ready:
                return []
            if not self.session.awaited:
                time.sleep(GATHER_SECONDS)
            events = self.session.receive(wire.read(), time.monotonic())
            self._flush(wire)
            return events
        except OSError:
            self._drop()
            return []

    def _flush(self, wire: Wire) -> None:
        data = self.session.output()
        if data:
            wire.write(data)

    def _check_baud(self, wire: Wire, now: float) -> None:
        """Return to the first rate after a silence: a board that was reset uses it again."""
        if isinstance(wire, SerialWire) and wire.baud != wire.first and self.session.silent(now) > BAUD_TIMEOUT:
            wire.set_baud(wire.first)
            self.session.connect(now)

    def _drop(self) -> None:
        if self._wire is not None:
            self._wire.close()
        self._wire, self.session.greeted = None, False
        self._tried = time.monotonic()

    def _reopen(self, timeout: float) -> Wire | None:
        time.sleep(min(timeout, max(0.0, self._tried + REOPEN_PAUSE - time.monotonic())))
        if time.monotonic() - self._tried < REOPEN_PAUSE:
            return None
        self._tried = time.monotonic()
        with suppress(LinkError, OSError):
            self._wire = self._opens()
            self.counts["reconnects"] += 1
            self.session.connect(time.monotonic())
        return self._wire

    def wait(self, done: Callable[[], object], timeout: float) -> list[Event]:
        """Pump until `done()` is true; returns the events until then. Raises LinkError after `timeout` seconds."""
        events: list[Event] = []
        until = time.monotonic() + timeout
        while not done():
            if time.monotonic() > until:
                raise LinkError(f"the device did not respond for {timeout:g} s",
                                "check the cable, the baud rate and that the firmware includes the bridge")
            events += self.pump(0.05)
        return events

    def command(self, command: int, arguments: bytes = b"", timeout: float = 5.0) -> Pending:
        """Have the device execute a command once, and wait for its result. Events until then are dropped: use `pump`
        for streams. Raises LinkError if no result arrives in time; the command may still be executed."""
        pending = self.session.submit(command, arguments)
        self.wait(lambda: pending.status, timeout)
        return pending

    def set_baud(self, baud: int, timeout: float = 5.0) -> bool:
        """Switch both sides to another rate. False if that fails and both are back at the old rate. Raises LinkError if
        the device stays silent."""
        wire = self._wire
        if not isinstance(wire, SerialWire):
            return False
        before = wire.baud
        if self.command(SCHEMA.COMMAND_BAUD, baud.to_bytes(4, "little"), timeout).status != "ok":
            return False
        time.sleep(0.02)
        for rate, seconds in ((baud, SCHEMA.BAUD_TRIAL_MS / 2000), (before, SCHEMA.BAUD_TRIAL_MS / 500 + 1)):
            wire.set_baud(rate)
            self.session.connect(time.monotonic())
            with suppress(LinkError):
                self.wait(lambda: self.session.greeted, seconds)
                return rate == baud
        raise LinkError(f"the device is silent after trying {baud} baud", "unplug it and plug it in again")

    def close(self) -> None:
        """Close the wire."""
        self._drop()
