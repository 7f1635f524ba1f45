"""Simulates a bad wire from a seed: flipped bits, dropped and doubled bytes, delays, split reads."""
from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Faults:
    """flips: probability that a bit is flipped; drops, doubles: that a byte is dropped or doubled; delay: upper limit
    for each chunk, seconds; split: pass bytes on in pieces of random size."""

    flips: float = 0.0
    drops: float = 0.0
    doubles: float = 0.0
    delay: float = 0.0
    split: bool = False
    seed: int = 0


class Damage:
    """Applies faults to one direction of a wire. done: number of faults of each kind."""

    def __init__(self, faults: Faults, direction: int) -> None:
        self.faults = faults
        self._rng = np.random.default_rng([faults.seed, direction])
        self._choose = random.Random(faults.seed * 2 + direction)
        self.done = dict.fromkeys(("flips", "drops", "doubles"), 0)

    def __call__(self, data: bytes) -> bytes:
        """The bytes after damage."""
        f, rng = self.faults, self._rng
        if not data or not (f.flips or f.drops or f.doubles):
            return data
        out = np.frombuffer(data, np.uint8).copy()
        bits = rng.random((len(out), 8)) < f.flips
        if bits.any():
            out ^= np.packbits(bits, axis=1)[:, 0]
        repeats = np.where(rng.random(len(out)) < f.drops, 0, np.where(rng.random(len(out)) < f.doubles, 2, 1))
        for kind, count in (("flips", bits.sum()), ("drops", (repeats == 0).sum()), ("doubles", (repeats == 2).sum())):
            self.done[kind] += int(count)
        return np.repeat(out, repeats).tobytes()

    def pieces(self, data: bytes) -> list[bytes]:
        """The bytes, split into the pieces in which they are passed on."""
        if not self.faults.split:
            return [data] if data else []
        out = []
        while data:
            size = self._choose.randint(1, 24)
            out.append(data[:size])
            data = data[size:]
        return out

    def delay(self) -> float:
        """The delay of a chunk, seconds."""
        return self._choose.uniform(0, self.faults.delay)
