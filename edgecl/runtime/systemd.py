"""Notifications to systemd (sd_notify(3)): ready, alive, reloading, stopping. Silent without NOTIFY_SOCKET."""
from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress


class Notifier:
    """The socket to the service manager. beat: seconds between two signs of life, a quarter of the watchdog's limit."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address, limit = environment.get("NOTIFY_SOCKET", ""), environment.get("WATCHDOG_USEC", "")
        mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) if address else None
        self.beat = int(limit) / 4e6 if limit.isdecimal() and mine and self._socket else None
        self._beaten = float("-inf")

    def ready(self, status: str = "") -> None:
        """Tell systemd that the daemon is ready, after its start or a reload."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Tell systemd that the daemon reads its settings again."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Tell systemd that the daemon is stopping."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Feed the watchdog; may be called for each sample, since it sends only as often as needed."""
        if self.beat is not None and time.monotonic() - self._beaten >= self.beat:
            self._beaten = time.monotonic()
            self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if self._socket is not None:
            with suppress(OSError):  # the manager has gone
                self._socket.sendto("\n".join(lines).encode(), self._address)

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
