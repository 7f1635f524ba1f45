"""From a backbone's feature f to the vector h whose statistics are kept: power transform and random projection."""
from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIN_SKEWNESS = 0.25  # squared: by chance, that of symmetric features is not 0 either


@dataclass(frozen=True)
class FeatureTransform:
    """h = sign(f) |f|^power, or relu(R of that), the random projection of RanPAC (McDonnell et al. 2023, section 4).

    source: length of f; dimension: length of h; power: 1 or 0.5, from Tukey's ladder; projected: whether R is used.
    R is a matrix of signs generated from the seed, so it is never stored.
    """

    source: int
    dimension: int
    power: float = 1.0
    projected: bool = False
    seed: int = 0

    def __call__(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """h float32 [n, dimension] of features float32 [n, source]."""
        h = features
        if self.power != 1.0:
            h = np.sign(h) * np.abs(h) ** np.float32(self.power)
        if self.projected:
            h = np.maximum(h @ (self.signs * np.float32(self.scale)), np.float32(0))
        return h

    @property
    def plain(self) -> FeatureTransform:
        """The same without the projection."""
        return replace(self, dimension=self.source, projected=False) if self.projected else self

    def back(self, h: NDArray[np.float64]) -> NDArray[np.float32]:
        """Features f float32 [n, source] of h [n, source]. Only without a projection."""
        return (np.sign(h) * np.abs(h) ** (1 / self.power)).astype(np.float32)

    @property
    def scale(self) -> float:
        """R = scale * signs, which keeps the variance of f."""
        return float(self.source ** -0.5)

    @cached_property
    def signs(self) -> NDArray[np.int8]:
        """int8 [source, dimension] of -1 and 1, the same on every board: the raw bits of PCG64."""
        words = np.random.PCG64(self.seed).random_raw((self.source * self.dimension + 63) // 64)
        bits = np.unpackbits(words.astype("<u8").view(np.uint8), count=self.source * self.dimension)
        return bits.reshape(self.source, self.dimension).astype(np.int8) * 2 - 1


def choose_power(features: NDArray[np.float32]) -> float:
    """The power for features [n, d]: 0.5 if they are skewed and become less so, else 1 (ladder of powers, Tukey 1977).
    """
    def skewness(x: NDArray[np.float64]) -> float:
        centred = x - x.mean(0)
        spread = centred.std(0)
        alive = spread > 1e-6 * (np.abs(x).max() + 1e-30)
        return float(np.mean(np.mean((centred[:, alive] / spread[alive]) ** 3, 0) ** 2)) if alive.any() else 0.0

    exact = features.astype(np.float64)
    before, after = skewness(exact), skewness(np.sign(exact) * np.sqrt(np.abs(exact)))
    return 0.5 if before > MIN_SKEWNESS and after < before else 1.0
