"""The wires that a link can use: a serial port or pty, a UDP socket, a Unix socket. Each implements `Wire`."""
from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edgecl.errors import LinkError

if TYPE_CHECKING:
    import serial

READ_BYTES = 65536


class Wire(Protocol):
    """Bytes in both directions, without waiting. `read` and `write` raise OSError if the wire is gone."""

    def fileno(self) -> int:
        """The descriptor, for select."""

    def read(self) -> bytes:
        """The bytes that are available; b"" if there are none."""

    def write(self, data: bytes) -> None:
        """Write all of the data."""

    def close(self) -> None:
        """Close the wire."""


class SerialWire:
    """A serial port or pty, locked while it is open. Raises LinkError if it can't be opened."""

    def __init__(self, port: str, baud: int) -> None:
        import serial

        self._port: serial.Serial
        try:
            self._port = serial.Serial(port, baud, timeout=0, write_timeout=1, exclusive=True)
        except ValueError as error:
            raise LinkError(f"{port} can't run at {baud} baud ({error})", "give another ?baud=") from error
        except OSError as error:  # SerialException is one
            raise port_error(port, error) from error
        self._fd, self.first = self._port.fileno(), baud

    def fileno(self) -> int:
        """The descriptor, for select."""
        return self._fd

    def read(self) -> bytes:
        """The bytes that are available; b"" if there are none."""
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return b""
        if not data:
            raise OSError(errno.EIO, "the port has gone")
        return data

    def write(self, data: bytes) -> None:
        """Write all of the data."""
        self._port.write(data)

    @property
    def baud(self) -> int:
        """The current rate."""
        return int(self._port.baudrate)

    def set_baud(self, baud: int) -> None:
        """Switch to another rate once all written bytes are sent."""
        self._port.flush()
        self._port.baudrate = baud

    def close(self) -> None:
        """Unlock and close."""
        with contextlib.suppress(OSError):
            self._port.close()


class SocketWire:
    """A connected stream socket, as QEMU offers for a board's UART. Raises LinkError if it can't be connected."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise LinkError(f"{path} can't be connected to ({error.strerror})", "start the board first") from error
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """The descriptor, for select."""
        return self._socket.fileno()

    def read(self) -> bytes:
        """The bytes that are available; b"" if there are none."""
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return b""
        if not data:
            raise OSError(errno.EPIPE, "the other side has closed")
        return data

    def write(self, data: bytes) -> None:
        """Write all of the data, waiting up to a second."""
        self._socket.settimeout(1)
        self._socket.sendall(data)
        self._socket.setblocking(False)

    def close(self) -> None:
        """Close the wire."""
        self._socket.close()


class UdpWire:
    """Datagrams to and from one device: `host`, or else the first one that sends to `listen`. Raises LinkError if the
    address can't be used."""

    def __init__(self, port: int, host: str | None = None, listen: str = "127.0.0.1") -> None:
        self._peer = (host, port) if host else None
        try:
            family = socket.getaddrinfo(host or listen, port, type=socket.SOCK_DGRAM)[0][0]
            self._socket = socket.socket(family, socket.SOCK_DGRAM)
            if host:
                self._socket.connect((host, port))
            else:
                self._socket.bind((listen, port))
        except OSError as error:
            raise LinkError(f"udp {host or listen}:{port} can't be used ({error.strerror})",
                            "give udp:HOST:PORT of the device, or udp:PORT with a free port of this machine") from error
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """The descriptor, for select."""
        return self._socket.fileno()

    def read(self) -> bytes:
        """The datagrams that are available; those of other senders than the device are dropped."""
        out = []
        with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
            for _ in range(64):
                data, sender = self._socket.recvfrom(READ_BYTES)
                if self._peer is None:
                    self._socket.connect(sender)
                    self._peer = sender[:2]
                out.append(data)
        return b"".join(out)

    def write(self, data: bytes) -> None:
        """Send one datagram; nothing while the device is unknown."""
        if self._peer is not None:
            with contextlib.suppress(ConnectionRefusedError, BlockingIOError):
                self._socket.send(data)

    def close(self) -> None:
        """Close the wire."""
        self._socket.close()


def port_error(port: str, error: OSError) -> LinkError:
    """The error for a port that can't be opened, with its reason and cure."""
    number = error.errno if error.errno is not None else getattr(error.__context__, "errno", None)
    if number in (errno.ENOENT, errno.ENODEV, errno.ENXIO) or not Path(port).exists():
        present = ", ".join(ports()) or "none"
        return LinkError(f"{port} does not exist", f"plug the board in; ports on this machine: {present}")
    if number in (errno.EACCES, errno.EPERM):
        group = group_of(port)
        return LinkError(f"no permission to open {port}", f"sudo usermod -aG {group} $USER, then log in again")
    if number in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EBUSY):
        return LinkError(f"{port} is in use{holder(port)}", "stop that program: only one can use a port")
    return LinkError(f"{port} can't be opened ({error.strerror or error})", "check that it is a serial port")


def ports() -> list[str]:
    """The serial ports, under the names that do not depend on where they are plugged in, if they have one."""
    stable = sorted(str(path) for path in Path("/dev/serial/by-id").glob("*"))
    known = {os.path.realpath(path) for path in stable}
    return stable + sorted(str(path) for pattern in ("ttyACM*", "ttyUSB*") for path in Path("/dev").glob(pattern)
                           if str(path) not in known)


def group_of(port: str) -> str:
    """The group that has access to a port."""
    try:
        return grp.getgrgid(os.stat(port).st_gid).gr_name
    except (OSError, KeyError):
        return "dialout"


def holder(port: str) -> str:
    """" by NAME (PID)" of another process that has the port open, or "" if none is visible."""
    target = os.path.realpath(port)
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        with contextlib.suppress(OSError):
            if any(os.readlink(fd) == target for fd in (process / "fd").iterdir()):
                return f" by {(process / 'comm').read_text().strip()} ({process.name})"
    return ""
