"""From stamped samples to windows: finds gaps, resamples to the state's rate, cuts windows by device time."""
from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgecl.errors import BadInput
from edgecl.sources.windows import samples

GAP_PERIODS = 1.5    # two samples further apart than this many source periods have a gap between them
MAX_UPSAMPLING = 10  # times: of a slower source, nearly all samples would be interpolated
SAME_TIME = 1e-3     # a sample within this many periods of a wanted time is copied, to the last bit
AVERAGE_FROM = 1.5   # a source this many times faster than the rate is averaged over a period, or it would alias


class Window(NamedTuple):
    """data float32 [time, channels]; start: device time of its first sample, seconds; segment: number of the stretch
    without gaps that it is part of."""

    data: np.ndarray
    start: float
    segment: int


class Gap(NamedTuple):
    """Samples are missing between two device times, in seconds; dropped: unfinished windows that were given up."""

    before: float
    after: float
    dropped: int


class Timeline:
    """Blocks of samples in, windows and gaps out. Keeps one window and one block, however long it runs.

    rate: Hz of the windows; window, hop: seconds; source_rate: Hz of the input. taken: seconds of signal so far, not
    counting gaps; dropped: windows given up. The first window of a stretch begins with its first sample. Raises
    BadInput if the source is too slow, or window or hop shorter than a sample.
    """

    def __init__(self, rate: float, window: float, hop: float, source_rate: float) -> None:
        if not source_rate >= rate / MAX_UPSAMPLING:
            raise BadInput(f"samples come at {source_rate:g} Hz, windows are cut at {rate:g} Hz",
                           f"create the state with --rate {source_rate:g} or close to it")
        self._rate, self._source = rate, source_rate
        self._length, self._hop = samples(window, rate, "window"), samples(hop, rate, "hop")
        self._average = source_rate >= AVERAGE_FROM * rate
        self.segment = -1
        self.dropped = 0
        self._taken = 0
        self._restart()

    @property
    def taken(self) -> float:
        """Seconds of signal so far."""
        return self._taken / self._rate

    def _restart(self) -> None:
        self._times = np.empty(0)             # of the source samples that are still needed
        self._values: np.ndarray | None = None
        self._begin = 0.0
        self._made = 0                        # samples at `rate` since the stretch began
        self._kept: np.ndarray | None = None  # those from `_first` on
        self._first = 0                       # sample at which the next window starts

    def push(self, times: np.ndarray, values: np.ndarray) -> list[Window | Gap]:
        """The windows and gaps that these samples complete. times: device seconds, float64 [n]; values float32
        [n, channels]. Samples that are not finite count as missing."""
        out: list[Window | Gap] = []
        finite = np.isfinite(values).all(1)
        if not finite.all():
            times, values = times[finite], values[finite]
        if not len(times):
            return out
        steps = np.diff(times, prepend=self._times[-1] if len(self._times) else times[0] - 0.5 / self._source)
        breaks = set(np.flatnonzero((steps > GAP_PERIODS / self._source) | (steps <= 0)).tolist())
        starts = sorted({0, *breaks})
        for start, end in zip(starts, [*starts[1:], len(times)]):
            if start in breaks:
                out.append(self.cut(float(times[start])))
            out += self._extend(times[start:end], values[start:end])
        return out

    def cut(self, after: float = float("nan")) -> Gap:
        """End the stretch: the next sample does not follow. after: its device time in seconds, if known."""
        begun = max(0, -(-(self._made - self._first) // self._hop))
        self.dropped += begun
        gap = Gap(float(self._times[-1]) if len(self._times) else after, after, begun)
        self._restart()
        return gap

    def _extend(self, times: np.ndarray, values: np.ndarray) -> list[Window | Gap]:
        if self._values is None:
            self.segment += 1
            self._begin, self._values = float(times[0]), values[:0]
        self._times, self._values = np.concatenate([self._times, times]), np.concatenate([self._values, values])
        made = self._resample()
        self._kept = made if self._kept is None else np.concatenate([self._kept, made])
        self._made += len(made)
        self._taken += len(made)
        out: list[Window | Gap] = []
        while self._first + self._length <= self._made:
            offset = len(self._kept) - (self._made - self._first)
            data = np.array(self._kept[offset:offset + self._length], np.float32, order="C")
            out.append(Window(data, self._begin + self._first / self._rate, self.segment))
            self._first += self._hop
        self._kept = self._kept[max(0, len(self._kept) - max(0, self._made - self._first)):]
        return out

    def _resample(self) -> np.ndarray:
        """The samples at `rate` that can be computed now; drops source samples that are no longer needed."""
        assert self._values is not None
        half = 0.5 / self._rate if self._average else 0.0
        span = self._times[-1] - self._begin + 1e-9
        count = max(0, int((span - half) * self._rate) + 1) if span >= half else 0
        at = self._begin + np.arange(self._made, max(count, self._made)) / self._rate
        if self._average:
            made = self._averages(at, half)
        else:
            made = np.stack([np.interp(at, self._times, column) for column in self._values.T], 1)
            nearest = np.clip(np.searchsorted(self._times, at - SAME_TIME / self._rate), 0, len(self._times) - 1)
            same = np.abs(self._times[nearest] - at) < SAME_TIME / self._rate
            made[same] = self._values[nearest[same]]
        following = self._begin + (self._made + len(at)) / self._rate - half
        keep = max(0, int(np.searchsorted(self._times, following)) - 1)
        self._times, self._values = self._times[keep:], self._values[keep:]
        return made.astype(np.float32)

    def _averages(self, at: np.ndarray, half: float) -> np.ndarray:
        """Means of the linear interpolation between the source's samples, over one period around each time."""
        assert self._values is not None
        values = self._values.astype(np.float64)
        areas = (values[1:] + values[:-1]) / 2 * np.diff(self._times)[:, None]
        integral = np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(areas, 0)])

        def area(until: np.ndarray) -> np.ndarray:
            index = np.clip(np.searchsorted(self._times, until, "right") - 1, 0, max(len(self._times) - 2, 0))
            left = until - self._times[index]
            width = np.maximum(np.diff(self._times, append=self._times[-1] + 1)[index], 1e-12)
            slope = (values[np.minimum(index + 1, len(values) - 1)] - values[index]) / width[:, None]
            return integral[index] + left[:, None] * (values[index] + slope * left[:, None] / 2)

        low = np.maximum(at - half, self._begin)
        return (area(at + half) - area(low)) / (at + half - low)[:, None]
