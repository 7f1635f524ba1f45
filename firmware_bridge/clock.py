"""Maps the device's clock to the host's: unrolls 32 bits, estimates offset and drift from four stamps. Microseconds
throughout."""
from __future__ import annotations

from collections import deque

import numpy as np

WRAP = 1 << 32
MAX_EXCHANGES = 256   # two minutes at two per second
DRIFT_PRIOR = 100e-6  # typical of crystals; limits the drift estimated from few exchanges
MAX_DRIFT = 2e-3      # a resonator without a crystal; a clock with more is unusable


class Unroller:
    """Turns the 32-bit stamps of one series into stamps that never wrap. The host's clock bridges pauses of any length.
    """

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None

    def __call__(self, stamp: int, now: float) -> int:
        """The full stamp nearest to where the series should be at host time `now`."""
        full = stamp
        if self._last is not None:
            expected = self._last[0] + round(now - self._last[1])
            full = expected + (stamp - expected + WRAP // 2) % WRAP - WRAP // 2
        self._last = full, now
        return full


class Clock:
    """Offset and drift of a device's clock from exchanges as in NTP: asked, received, sent, arrived.

    Each exchange bounds the offset from both sides, by the delays of its two directions; the bounds of all exchanges,
    corrected for drift, leave a narrow band for any distribution of delays. The drift is a regression on the midpoints,
    shrunk towards 0 while there are few.
    """

    def __init__(self) -> None:
        self._unroll = Unroller()
        self._exchanges: deque[tuple[float, float, float]] = deque(maxlen=MAX_EXCHANGES)  # host time, upper, lower
        self._fit: tuple[float, float, float, float] | None = None

    def add(self, asked: float, received: int, sent: int, arrived: float) -> None:
        """Add one exchange: host stamps, and 32-bit stamps of the device. Implausible ones are ignored."""
        if not 0 <= arrived - asked < 2_000_000:
            return
        at = self._unroll(received, (asked + arrived) / 2)
        until = at + (sent - received) % WRAP
        if until - at > arrived - asked + 1000:
            return
        self._exchanges.append(((asked + arrived) / 2, at - asked, until - arrived))
        self._fit = None

    def _fitted(self) -> tuple[float, float, float, float] | None:
        if self._fit is None and len(self._exchanges) >= 2:
            rows = np.array(self._exchanges)
            origin, x = rows[-1, 0], rows[:, 0] - rows[-1, 0]
            middle = (rows[:, 1] + rows[:, 2]) / 2
            away, spread = x - x.mean(), np.var((rows[:, 1] - rows[:, 2]) / 2) + 1
            drift = float(away @ (middle - middle.mean()) / (away @ away + spread / DRIFT_PRIOR ** 2))
            drift = min(max(drift, -MAX_DRIFT), MAX_DRIFT)
            upper, lower = float((rows[:, 1] - drift * x).min()), float((rows[:, 2] - drift * x).max())
            self._fit = float(origin), (upper + lower) / 2, drift, abs(upper - lower) / 2
        return self._fit

    @property
    def synchronised(self) -> bool:
        """Whether there are enough exchanges for `offset` and `to_host`."""
        return self._fitted() is not None

    @property
    def drift(self) -> float:
        """How much faster the device's clock runs, as a fraction: 200e-6 is 200 ppm."""
        fit = self._fitted()
        return fit[2] if fit else 0.0

    def offset(self, now: float) -> float:
        """Device time minus host time at host time `now`."""
        fit = self._fitted()
        assert fit is not None, "not synchronised yet"
        return fit[1] + fit[2] * (now - fit[0])

    def to_host(self, stamp: int, now: float) -> float:
        """The host time of a 32-bit device stamp taken within half an hour of host time `now`."""
        fit = self._fitted()
        assert fit is not None, "not synchronised yet"
        expected = now + self.offset(now)
        full = expected + (stamp - expected + WRAP / 2) % WRAP - WRAP / 2
        return (full - fit[1] + fit[2] * fit[0]) / (1 + fit[2])
