"""Rounding of float64 sums to float32 at rest: unbiased, so that its errors do not add up over many writes."""
from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ERROR_AT_REST = 2.0 ** -24      # standard deviation of a number written as float32, relative to it, at most
DROPPED_BITS = 29               # that a float64 has and a float32 has not
SNAP_BITS = 19                  # closer than 2^-10 of a step to a float32, a number is that float32


def dither(x: NDArray[np.float64], seed: int) -> NDArray[np.float32]:
    """Round x to float32, up or down at random so that the mean error is 0; the same x and seed give the same bits.

    Rounding to nearest repeats itself: a sum that is written again and again after small changes errs in the same
    direction each time, or loses them. What was read from float32 is written back unchanged.
    """
    low, high = 1 << SNAP_BITS, (1 << DROPPED_BITS) - (1 << SNAP_BITS)
    words = np.random.PCG64(seed).random_raw((x.size + 1) // 2).astype("<u8").view("<u4")[:x.size].astype(np.uint64)
    words *= np.uint64(high - low)
    words >>= np.uint64(32)
    words += np.uint64(low)
    words += np.ascontiguousarray(x, np.float64).reshape(-1).view(np.uint64)  # a carry goes to the next float32
    words &= ~np.uint64((1 << DROPPED_BITS) - 1)
    return words.view(np.float64).astype(np.float32).reshape(x.shape)


def seed_of(*arrays: NDArray[Any]) -> int:
    """A seed that is a function of the content of some arrays."""
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return int.from_bytes(digest.digest(), "little")
