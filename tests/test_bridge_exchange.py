"""One exchange with the compiled firmware: on this machine behind a pty, and on a Cortex-M3 in QEMU."""
from __future__ import annotations

import contextlib
import subprocess
import time
from itertools import pairwise

import numpy as np
import pytest
from helpers_bridge import APP_COUNT, APP_OBJECT, APP_RESET, link_to, pattern, ramp, u32
from helpers_needs import need

from firmware_bridge.build import build_qemu
from firmware_bridge.link import Link
from firmware_bridge.schema import SCHEMA
from firmware_bridge.session import Bytes, Samples
from firmware_bridge.simulator import Simulator
from firmware_bridge.wires import SocketWire


@contextlib.contextmanager
def on_this_machine(folder):
    need("gcc", "gcc")
    ramp(folder / "ramp.csv")
    with Simulator(folder, [folder / "ramp.csv"], "--rate", "100", "--batch", "5", "--repeat", "--gap", "0",
                   "--clock", str(2**32 - 800_000)) as board:
        yield link_to(board)


@contextlib.contextmanager
def on_a_cortex_m3(folder):
    need("arm-none-eabi-gcc", "gcc-arm-none-eabi")
    need("qemu-system-arm", "qemu-system-arm")
    wire = folder / "uart"
    qemu = subprocess.Popen(["qemu-system-arm", "-M", "mps2-an385", "-nographic", "-monitor", "none", "-kernel",
                             build_qemu(), "-serial", f"unix:{wire},server=on,wait=off"], stdin=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 240
        while not wire.exists() and time.monotonic() < until:
            time.sleep(0.02)
        yield Link(lambda: SocketWire(str(wire)))
    finally:
        qemu.kill()
        qemu.wait()


def gather(link, seconds, kind):
    """What comes within that time."""
    events, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        events += [event for event in link.pump() if isinstance(event, kind)]
    return events


@pytest.mark.slow
@pytest.mark.parametrize("board", [on_this_machine, on_a_cortex_m3])
def test_the_whole_exchange(board, tmp_path):
    with board(tmp_path) as link, contextlib.closing(link):
        session = link.session
        link.wait(lambda: session.greeted, 240)
        assert session.hello.schema == SCHEMA.hash
        assert [(c.name, c.dtype, c.elements, c.rate) for c in session.hello.channels] == [
            ("imu", "<i2", 6, 100.0), ("log", None, 1, 0.0)]

        frames, until = [], time.monotonic() + 240  # a stream: numbered samples, 10 ms apart, none lost
        while sum(len(frame.values) for frame in frames) < 100 and time.monotonic() < until:
            frames += gather(link, 0.5, Samples)
        values = np.concatenate([frame.values for frame in frames])
        assert len(values) >= 100
        number = np.round(values[:, 0] * 1000).astype(int)
        assert ((number[0] + np.arange(len(number))) % 1000 == number).all()
        np.testing.assert_allclose(values, number[:, None] * np.arange(1, 7) / 1000, rtol=1e-6)
        assert {b.time - a.time for a, b in pairwise(frames)} <= set(range(49_998, 50_003))
        assert session.counts["lost"] == 0

        assert session.clock.synchronised
        assert abs(session.clock.drift) < 2e-3

        assert link.command(SCHEMA.COMMAND_ECHO, b"hello", timeout=240).data == b"hello"
        assert link.command(200, b"", timeout=240).status == "refused"
        assert link.command(SCHEMA.COMMAND_FIRST + 100, u32(0), timeout=240).status == "unknown"
        counts = [session.submit(APP_COUNT, u32(i)) for i in range(20)]
        link.wait(lambda: all(p.status for p in counts), 240)
        assert [int.from_bytes(p.data, "little") for p in counts] == list(range(1, 21))

        asked = session.submit(APP_OBJECT, u32(3000))
        objects = link.wait(lambda: asked.status, 240)
        objects = [e for e in objects if isinstance(e, Bytes)] + gather(link, 1, Bytes)
        assert [event.data for event in objects] == [pattern(3000)]

        session.ask_stats()
        link.wait(lambda: session.stats, 240)
        assert session.stats["executed"] >= 23
        assert session.stats["corrupt"] == session.stats["malformed"] == 0

        boot = session.hello.boot
        assert link.command(APP_RESET, u32(0), timeout=240).status == "ok"
        link.wait(lambda: session.counts["restarts"] and session.greeted, 240)
        assert session.hello.boot != boot
        assert session.commands.next == session.hello.next  # its memory of the session outlived the reset
        assert link.command(SCHEMA.COMMAND_ECHO, b"again", timeout=240).data == b"again"

        session.stats = None
        session.ask_stats()
        link.wait(lambda: session.stats, 240)
        assert session.stats["executed"] >= 1
        assert session.stats["corrupt"] == 0
        assert session.stats["malformed"] <= 1  # the second half of what was on the wire as it was reset
