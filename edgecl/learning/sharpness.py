"""Whether a photo looks blurred, out of focus, shaken or enlarged from a much smaller one."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEAR, FAR = 2, 8        # pixels between the values that are compared
LEAST_DETAIL = 0.115    # of a sharp photo, measured, see docs/suspicious.md
SMALLEST = 96           # pixels of a side: a smaller input has no such detail
LEAST = 1e-3            # mean squared difference of a picture that shows anything


def detail(picture: NDArray[np.uint8]) -> float:
    """How much fine detail a picture [h, w, channels] has beside coarse detail: the mean squared difference of pixels
    NEAR each other over that of pixels FAR from each other, in the direction of the four in which it is the smallest.
    """
    grey = picture[..., picture.shape[-1] // 2].astype(np.float32)
    ways = (grey, 0), (grey.T, 0), (grey, 1), (grey[::-1], 1)   # along rows, columns and both diagonals
    return min(_apart(view, down * NEAR, NEAR) / max(_apart(view, down * FAR, FAR), LEAST) for view, down in ways)


def _apart(grey: NDArray[np.float32], down: int, right: int) -> float:
    """The mean squared difference of pixels that are so far apart."""
    h, w = grey.shape
    apart = grey[down:, right:] - grey[:h - down, :w - right]
    return float(np.vdot(apart, apart)) / apart.size


def blurred(pictures: NDArray[np.uint8]) -> list[bool]:
    """Which pictures [n, h, w, channels] look blurred."""
    if min(pictures.shape[1:3]) < SMALLEST:
        return [False] * len(pictures)
    return [detail(picture) < LEAST_DETAIL for picture in pictures]
