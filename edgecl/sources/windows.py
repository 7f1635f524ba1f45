"""From a recording to windows: the only place that converts seconds to samples."""
from __future__ import annotations

import math

import numpy as np

from edgecl.errors import BadInput


def samples(seconds: float, rate: float, what: str) -> int:
    """`seconds` as a whole number of samples at `rate` Hz; `what` names it in errors.

    Raises BadInput if either is not above 0, or if less than one sample would remain.
    """
    if not (math.isfinite(rate) and rate > 0):
        raise BadInput(f"the rate is {rate} Hz", "give samples per second, above 0, as --rate")
    if not (math.isfinite(seconds) and seconds > 0):
        raise BadInput(f"the {what} is {seconds} s", f"give seconds above 0 as --{what}")
    count = round(seconds * rate)
    if count < 1:
        raise BadInput(f"a {what} of {seconds} s is shorter than one sample at {rate} Hz",
                       f"give --{what} at least {1 / rate:g} s")
    return count


def cut(recording: np.ndarray, rate: float, window: float, hop: float) -> np.ndarray:
    """Windows float32 [n, time, channels] of a recording [time, channels], without its tail.

    `rate` in Hz, `window` and `hop` (from one start to the next) in seconds, rounded to samples. n is 0 if the
    recording is shorter than one window. The result is a copy. Raises BadInput if one of the three is invalid or the
    recording is not [time, channels].
    """
    length, step = samples(window, rate, "window"), samples(hop, rate, "hop")
    if recording.ndim != 2 or recording.shape[1] == 0:
        raise BadInput(f"the recording has shape {recording.shape}",
                       "give a row per sample and a column per channel")
    if len(recording) < length:
        return np.empty((0, length, recording.shape[1]), np.float32)
    views = np.lib.stride_tricks.sliding_window_view(recording, length, axis=0)[::step]
    return np.array(views.transpose(0, 2, 1), np.float32, order="C")
