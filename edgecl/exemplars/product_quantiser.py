"""Product quantisation of features: a few bits for each short piece of the vector."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgecl.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from numpy.typing import NDArray

EXEMPLARS_PER_CLASS = 32        # up to here, one more exemplar is worth more than the precision of each, measured
AMPLE_PER_CLASS = 100           # exemplars per class; from here on, more of them gain nothing
ROW_BYTES = 18                  # key, label and flags of one exemplar
MIN_CODE_BYTES = 8              # shorter codes save little beside ROW_BYTES
MAX_TRAINING_VECTORS = 1024     # that a codebook is trained on
MAX_TRAINING_PIECES = 20_000    # that a shared book is trained on
LLOYD_ITERATIONS = 10
DISTANCES_AT_ONCE = 2 ** 20     # held in memory
MIN_DEVIATION = 2.0 ** -90      # smaller ones count as 0
MAX_DEVIATIONS = 8              # from the mean: an outlier must not dominate its whole piece
MAX_COARSE_SHARE = 1 / 8        # of the dimensions whose mean is too coarse as float16
STEPS_PER_OCTAVE = 8            # scales are stored to an eighth of a factor of two
LAYOUTS = ((16, True), (256, False), (16, False))  # (centroids, whether each place has its own book), best first
FINE_PIECE = 4                  # numbers per piece: up to here, 256 shared centroids beat 16 for each place


def plan(limit: int, dimension: int, classes: int) -> tuple[int, int] | None:
    """(code_bytes, codebook_bytes) for `ProductQuantiser.train` in a buffer of `limit` bytes; None if int8 is better.

    int8 is better if it leaves room for AMPLE_PER_CLASS exemplars per class, if a codebook would take most of the
    buffer, or if features have fewer than 32 numbers. Otherwise codes are as long as EXEMPLARS_PER_CLASS of them allow,
    from 1/4 to 2 bits per number.
    """
    codebook = max(limit // 5, 3 * dimension + 600 + limit // 16)
    shortest, longest = max(-(-dimension // 32), MIN_CODE_BYTES), -(-dimension // 4)
    ample = limit >= AMPLE_PER_CLASS * classes * (dimension + 2 + ROW_BYTES)
    if ample or 3 * codebook > 2 * limit or shortest > longest:
        return None
    return min(longest, max(shortest, (limit - codebook) // (EXEMPLARS_PER_CLASS * classes) - ROW_BYTES)), codebook


@dataclass(frozen=True, eq=False)
class ProductQuantiser:
    """Product quantisation (Jegou et al. 2011): a vector is cut into M pieces of L numbers, and each piece is stored as
    the index of the nearest of K centroids, in log2 K bits.

    The pieces are of x = sign(f) |f|^power, standardised per dimension. mean: [d], float16, or float32 if that is too
    coarse; scale: uint8 [d], 2^(-scale / STEPS_PER_OCTAVE) of the largest; books: int8 [M, K, L], or [1, K, L] if all
    places share one; units: float32 [2], the largest scale and the step of the books.
    """

    mean: NDArray[np.floating[Any]]
    scale: NDArray[np.uint8]
    books: NDArray[np.int8]
    units: NDArray[np.float32]
    power: float = 1.0

    name = "pq"
    lossy = True

    @classmethod
    def train(cls, features: NDArray[np.float32], code_bytes: int, codebook_bytes: int, seed: int = 0,
              power: float = 1.0) -> ProductQuantiser:
        """A quantiser trained on features [n, d], n >= 1, with codes of at most `code_bytes` and a codebook of at most
        `codebook_bytes`. Raises BadInput if no codebook is that small."""
        rng = np.random.default_rng(seed)
        x = _raised(features[rng.permutation(len(features))[:MAX_TRAINING_VECTORS]], power)
        mean, deviation = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
        with np.errstate(over="ignore"):
            short = mean.astype(np.float16)
            error = np.abs(short - mean)
        coarse = error > deviation / 8
        if coarse.mean() < MAX_COARSE_SHARE and np.isfinite(error).all():  # nearly constant: not worth 2 bytes each
            deviation, coarse = np.maximum(deviation, 8 * error), np.zeros_like(coarse)
        largest = max(float(deviation.max()), MIN_DEVIATION)
        octaves = -np.log2(np.maximum(deviation / largest, 2.0 ** -31))
        layout = cls(mean.astype(np.float32) if coarse.any() else short,
                     np.rint(octaves * STEPS_PER_OCTAVE).astype(np.uint8), np.zeros((1, 1, 1), np.int8),
                     np.array([largest, 1], np.float32), power)
        centroids, length, own = _layout(x.shape[1], code_bytes, codebook_bytes - layout.shared_bytes)
        pieces = layout._pieces(x, length)
        if not own:
            pieces = rng.permutation(pieces.reshape(1, -1, length), axis=1)[:, :MAX_TRAINING_PIECES]
        books = _lloyd(pieces, centroids, rng)
        unit = float(np.abs(books).max()) / 127 or 1.0
        return cls(layout.mean, layout.scale, np.rint(books / unit).astype(np.int8),
                   np.array([largest, unit], np.float32), power)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Everything but the power, in its stored form."""
        return {"mean": self.mean, "scale": self.scale, "books": self.books, "units": self.units}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], power: float = 1.0) -> ProductQuantiser:
        """The inverse of `to_arrays`."""
        return cls(arrays["mean"], arrays["scale"], arrays["books"], arrays["units"], power)

    @property
    def shared_bytes(self) -> int:
        """Bytes of the codebook, that is, of the arrays of `to_arrays`."""
        return sum(array.nbytes for array in self.to_arrays().values())

    @property
    def bits(self) -> int:
        """Bits in the code of one piece."""
        return int(self.books.shape[1] - 1).bit_length()

    def dtype(self, dimension: int) -> np.dtype[Any]:
        """The packed codes of ceil(d / L) pieces."""
        pieces = -(-dimension // self.books.shape[2])
        return np.dtype([("codes", "u1", (-(-pieces * self.bits // 8),))])

    def encode(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """float32 [n, d] to `dtype(d)` [n]."""
        encoded = np.empty(len(features), self.dtype(features.shape[1]))
        pieces = self._pieces(_raised(features, self.power), self.books.shape[2])
        codes = _nearest(pieces, self._centroids()).T.astype(np.uint8)
        bits = np.unpackbits(codes[:, :, None], axis=2, count=self.bits, bitorder="little")
        encoded["codes"] = np.packbits(bits.reshape(len(codes), bits.shape[1] * self.bits), axis=1)
        return encoded

    def decode(self, encoded: NDArray[Any]) -> NDArray[np.float32]:
        """`dtype(d)` [n] to float32 [n, d]."""
        count, (_, _, length) = -(-len(self.mean) // self.books.shape[2]), self.books.shape
        bits = np.unpackbits(encoded["codes"], axis=1, count=count * self.bits)
        codes = np.packbits(bits.reshape(len(encoded), count, self.bits), axis=2, bitorder="little")[..., 0]
        book = self._centroids()
        z = book[np.arange(count) % len(book), codes].reshape(len(encoded), count * length)[:, :len(self.mean)]
        x = z * self._deviation() + self.mean.astype(np.float32)
        return _raised(x, 1 / self.power)

    def _deviation(self) -> NDArray[np.float32]:
        return self.units[0] * np.exp2(self.scale / np.float32(-STEPS_PER_OCTAVE))

    def _centroids(self) -> NDArray[np.float32]:
        return self.books * self.units[1]

    def _pieces(self, x: NDArray[np.float32], length: int) -> NDArray[np.float32]:
        """Standardised pieces float32 [M, n, L] of x [n, d], the last one padded with zeros."""
        with np.errstate(over="ignore"):
            z = np.clip((x - self.mean.astype(np.float32)) / self._deviation(), -MAX_DEVIATIONS, MAX_DEVIATIONS)
        z = np.pad(z, ((0, 0), (0, -z.shape[1] % length)))
        return np.ascontiguousarray(z.reshape(len(x), z.shape[1] // length, length).transpose(1, 0, 2))


def _raised(x: NDArray[np.float32], power: float) -> NDArray[np.float32]:
    return (np.sign(x) * np.abs(x) ** power).astype(np.float32, copy=False)


def _layout(dimension: int, code_bytes: int, book_bytes: int) -> tuple[int, int, bool]:
    """(K, L, whether each place has its own book): the first of LAYOUTS that fits. Raises BadInput if none does."""
    for centroids, own in LAYOUTS:
        count = min(dimension, 8 * code_bytes // (centroids.bit_length() - 1))
        if count:
            length = -(-dimension // count)
            book = centroids * length * (-(-dimension // length) if own else 1)
            if book <= book_bytes and not (own and length <= FINE_PIECE):
                return centroids, length, own
    raise BadInput(f"a codebook for features of {dimension} numbers does not fit",
                   "give more --exemplars, or use int8-feature")


def _nearest(points: NDArray[np.float32], books: NDArray[np.float32]) -> NDArray[np.int64]:
    """The index of the nearest centroid, int64 [M, n], for points [M, n, L], in books [M, K, L] or [1, K, L]."""
    places, count = points.shape[:2]
    nearest = np.empty((places, count), np.int64)
    norms = (books ** 2).sum(2)[:, None] / 2
    step = max(1, DISTANCES_AT_ONCE // (places * books.shape[1]))
    turned = books.transpose(0, 2, 1)
    for start in range(0, count, step):
        block = slice(start, start + step)
        nearest[:, block] = (norms - points[:, block] @ turned).argmin(2)
    return nearest


def _lloyd(points: NDArray[np.float32], centroids: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Books float32 [M, K, L] for points [M, n, L], by Lloyd's algorithm from random points, repeated if n < K."""
    places, count, length = points.shape
    start = np.resize(rng.permutation(count), centroids)
    books = points[:, start].copy()
    flat = books.reshape(-1, length)
    for _ in range(LLOYD_ITERATIONS):
        code = (_nearest(points, books) + np.arange(places)[:, None] * centroids).ravel()
        sizes = np.bincount(code, minlength=len(flat))
        for axis in range(length):
            sums = np.bincount(code, points[..., axis].ravel(), len(flat))
            flat[:, axis] = np.where(sizes, sums / np.maximum(sizes, 1), flat[:, axis])
    return books
