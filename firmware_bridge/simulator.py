"""Simulates a board: the compiled firmware behind a pty, with the speed and the faults of a serial line.

    python -m firmware_bridge.simulator --link /tmp/imu --csv squat.csv --rate 50 [--baud 921600] [--flips 1e-5] ...

Lines on standard input: `unplug SECONDS`, `reset` (memory kept), `power` (memory lost), `flood BYTES`, `stats`, `quit`.
"""
from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import os
import pty
import random
import select
import signal
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from edgecl.errors import LinkError
from firmware_bridge.board import Board
from firmware_bridge.faults import Damage, Faults

SPEEDS = {getattr(termios, name): int(name[1:]) for name in dir(termios) if name[0] == "B" and name[1:].isdigit()}
CHUNK_BYTES = 256
KERNEL_BUFFER = 65536  # bytes that an operating system buffers for a slow reader


class Shim:
    """The wire: a pty under the name `link`, which carries both directions at the baud rate and adds `faults`."""

    def __init__(self, board: Board, link: Path, faults: Faults) -> None:
        self._board, self._link = board, link
        self._damage = {"up": Damage(faults, 0), "down": Damage(faults, 1)}
        self._waiting: list[tuple[float, int, str, bytes]] = []  # due, number, direction, bytes
        self._free = {"up": 0.0, "down": 0.0}                    # when the line is free again
        self._last = {"up": 0.0, "down": 0.0}                    # when the last piece is due, to keep the order
        self._number = 0
        self._master: int | None = None
        self._back = 0.0
        self._garbage = random.Random(faults.seed)
        self.carried = {"up": 0, "down": 0}
        self.plug()

    def plug(self) -> None:
        """Create a new pty under the same name."""
        self._master, slave = pty.openpty()
        tty.setraw(slave)
        os.set_blocking(self._master, False)
        partial = self._link.with_name(self._link.name + ".new")
        partial.unlink(missing_ok=True)
        partial.symlink_to(os.ttyname(slave))
        partial.replace(self._link)
        self._slave = slave  # kept open: without it, the pty reports a hang-up until someone opens it

    def unplug(self, seconds: float, now: float) -> None:
        """Remove the device node for some seconds, as if the cable were pulled; the board keeps its power."""
        assert self._master is not None
        self._link.unlink(missing_ok=True)
        os.close(self._slave)
        os.close(self._master)
        self._master, self._back = None, now + seconds
        self._waiting.clear()

    def flood(self, count: int, now: float) -> None:
        """Send random bytes to the host."""
        for at in range(0, count, CHUNK_BYTES):
            self._queue("up", self._garbage.randbytes(min(CHUNK_BYTES, count - at)), now)

    def step(self, now: float) -> None:
        """Move the bytes that are due, waiting briefly if there are none."""
        if self._master is None and now >= self._back:
            self.plug()
        due = self._waiting[0][0] - now if self._waiting else 0.05
        watched = [self._board.output, *([] if self._master is None else [self._master])]
        ready, _, _ = select.select(watched, [], [], min(max(due, 0), 0.05))
        now = time.monotonic()
        if self._board.output in ready:
            data = _read(self._board.output, 4096)
            if not data:
                raise LinkError("the firmware has ended", "see its messages above")
            self._queue("up", data, now, paced=False)  # the firmware's UART paces itself
        if self._master in ready and self._master is not None and self._free["down"] <= now:
            self._queue("down", _read(self._master, CHUNK_BYTES) or b"", now)
        elif self._master in ready:
            time.sleep(min(max(self._free["down"] - now, 0), 0.005))
        while self._waiting and self._waiting[0][0] <= now:
            due_at, number, direction, data = heapq.heappop(self._waiting)
            left = self._deliver(direction, data)
            if left:  # the reader is slow: keep the rest up to a kernel's buffer, as for a USB port
                if sum(len(piece) for *_, piece in self._waiting) < KERNEL_BUFFER:
                    heapq.heappush(self._waiting, (due_at, number, direction, left))
                time.sleep(0.001)
                break

    def _queue(self, direction: str, data: bytes, now: float, paced: bool = True) -> None:
        damage = self._damage[direction]
        self.carried[direction] += len(data)
        seconds = len(data) * 10 / (self._board.rate() or 115200) if paced else 0.0
        self._free[direction] = max(now, self._free[direction]) + seconds
        if self._master is None:
            return
        if SPEEDS.get(termios.tcgetattr(self._master)[4]) != self._board.rate():
            data = self._garbage.randbytes(len(data))  # the two ends use different rates
        for piece in damage.pieces(damage(data)):
            self._last[direction] = max(self._free[direction] + damage.delay(), self._last[direction])
            self._number += 1
            heapq.heappush(self._waiting, (self._last[direction], self._number, direction, piece))

    def _deliver(self, direction: str, data: bytes) -> bytes:
        """Write the data; returns what could not be written yet."""
        to = self._master if direction == "up" else self._board.input
        try:
            return b"" if to is None else data[os.write(to, data):]
        except BlockingIOError:
            return data
        except OSError:  # no one has the other end open
            return b""

    def stats(self) -> dict[str, dict[str, int]]:
        """Faults and bytes so far, by direction ("up": to the host)."""
        return {name: {**damage.done, "bytes": self.carried[name]} for name, damage in self._damage.items()}


def _read(fd: int, most: int) -> bytes | None:
    """The available bytes; None if there are none or the other end is gone for now."""
    try:
        return os.read(fd, most)
    except (BlockingIOError, OSError):
        return None


class Simulator:
    """The simulator in its own process; a context manager. port: the name of the pty."""

    def __init__(self, folder: Path, csv: Sequence[Path], *options: str) -> None:
        self.port = folder / "port"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "firmware_bridge.simulator", "--link", str(self.port),
             "--folder", str(folder), "--until-eof", *options, "--csv", *map(str, csv)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            raise LinkError("the simulator did not start", "see its messages above")

    def tell(self, line: str) -> None:
        """Send one of the lines listed at the top of this module."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def stats(self) -> dict[str, dict[str, int]]:
        """Faults and bytes so far, by direction ("up": to the host)."""
        self.tell("stats")
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def __enter__(self) -> Simulator:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.tell("quit")
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a board until `quit`, or with --until-eof, until its standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m firmware_bridge.simulator", description=__doc__.splitlines()[0])
    parser.add_argument("--csv", nargs="+", type=Path, required=True, help="recordings, one row per sample")
    parser.add_argument("--link", type=Path, required=True, help="name of the simulated port")
    parser.add_argument("--until-eof", action="store_true", help="stop at the end of standard input")
    parser.add_argument("--folder", type=Path, help="for the board's memory (default: beside the link)")
    for field in fields(Faults):
        if field.name == "split":
            parser.add_argument("--split", action="store_true")
        else:
            parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    options, firmware = parser.parse_known_args(arguments)
    faults = Faults(**{field.name: getattr(options, field.name) for field in fields(Faults)})
    try:
        return run(options, firmware, faults)
    except LinkError as error:
        print(f"simulator: {error}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace, firmware: list[str], faults: Faults) -> int:
    """Run the board and its wire, and obey the lines on standard input."""
    board = Board(options.folder or options.link.parent, firmware, options.csv)
    shim = Shim(board, options.link, faults)
    print(options.link, flush=True)
    os.set_blocking(0, False)
    signal.signal(signal.SIGTTIN, signal.SIG_IGN)  # in the background there are no lines to read
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    next_look, lines = 0.0, b""
    try:
        while True:
            now = time.monotonic()
            shim.step(now)
            if now < next_look:
                continue
            next_look = now + 0.01
            data = _read(0, 4096)
            *complete, lines = (lines + (data or b"")).split(b"\n")
            for line in complete:
                word, _, value = line.decode().partition(" ")
                if word == "quit":
                    return 0
                if word == "stats":
                    print(json.dumps(shim.stats()), flush=True)
                elif word == "unplug":
                    shim.unplug(float(value), now)
                elif word == "flood":
                    shim.flood(int(value), now)
                elif word in ("reset", "power"):
                    board.reset(power=word == "power")
                else:
                    print(f"simulator: {word!r} is not a command", file=sys.stderr)
            lines = lines[-256:]
            if data == b"" and options.until_eof:
                return 0
    finally:
        board.stop()
        options.link.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
