"""The cost of the bridge on this machine: frames and megabytes per second decoded, CPU share of a live 1 kHz IMU.

    python tools/bridge.py [--seconds 20]
"""
from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from firmware_bridge.framing import Decoder, Frame, encode
from firmware_bridge.link import Link
from firmware_bridge.session import Samples
from firmware_bridge.simulator import Simulator
from firmware_bridge.wires import SerialWire


def decoder(payload: int, frames: int = 50_000, runs: int = 7) -> tuple[float, float]:
    """Frames and megabytes on the wire per second, the median of some runs, fed in the pieces that a port delivers."""
    rng = np.random.default_rng(0)
    wire = b"".join(encode(Frame(2, 0, i % 65536, i, rng.bytes(payload)), 7) for i in range(frames))
    chunks = [wire[at:at + 4096] for at in range(0, len(wire), 4096)]
    seconds = []
    for _ in range(runs):
        fresh, started = Decoder({2: 7}), time.process_time()
        count = sum(len(fresh.feed(chunk)) for chunk in chunks)
        seconds.append(time.process_time() - started)
        assert count == frames
    median = float(np.median(seconds))
    return frames / median, len(wire) / median / 1e6


def live(seconds: float, batch: int) -> tuple[float, float, int]:
    """CPU share of one core, kB/s of samples, and frames lost, for 6-axis int16 at 1 kHz through firmware and pty."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savetxt(folder / "imu.csv", np.random.default_rng(0).normal(0, 2, (5000, 6)), delimiter=",", fmt="%.4f")
        options = ("--rate", "1000", "--repeat", "--gap", "0", "--batch", str(batch))
        with Simulator(folder, [folder / "imu.csv"], *options) as board:
            link = Link(lambda: SerialWire(str(board.port), 921600))
            link.wait(lambda: link.session.clock.synchronised, 5)
            samples, cpu, started = 0, time.process_time(), time.monotonic()
            while time.monotonic() - started < seconds:
                samples += sum(len(event.values) for event in link.pump() if isinstance(event, Samples))
            took = time.monotonic() - started
            share = (time.process_time() - cpu) / took
            lost = link.session.counts["lost"]
            link.close()
    return share, 12 * samples / took / 1000, lost


def main() -> None:
    """Print the figures of firmware_bridge/PROTOCOL.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20)
    seconds = parser.parse_args().seconds
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    for payload in (12, 96, 192, 1000):
        frames, megabytes = decoder(payload)
        print(f"decoder, {payload:4} B per payload: {frames:9,.0f} frames/s, {megabytes:6.1f} MB/s of wire")
    for batch in (8, 1):
        share, rate, lost = live(seconds, batch)
        print(f"live 1 kHz, {batch} samples per frame: {100 * share:.2f} % of one core at {rate:.1f} kB/s, "
              f"{lost} frames lost")


if __name__ == "__main__":
    main()
