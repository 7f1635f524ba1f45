"""Codecs for exemplars' samples: raw bytes, JPEG, and 16-bit differences along time."""
from __future__ import annotations

import io
import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from edgecl.errors import StateError

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import DTypeLike, NDArray

JPEG_QUALITY = 85       # as cameras use
DELTA16_STEPS = 2 ** 16 - 1
DAMAGED_CURE = "restore the state from a copy, or create a new one"


class InputCodec(Protocol):
    """Samples of one shape and dtype to bytes and back. `decode` raises StateError for damaged bytes."""

    @property
    def name(self) -> str:
        """The name as the user types it."""

    def encode(self, sample: NDArray[Any]) -> bytes:
        """One sample as bytes."""

    def decode(self, data: bytes) -> NDArray[Any]:
        """The sample in those bytes."""


@dataclass(frozen=True)
class Raw:
    """The bytes of a sample, unchanged, little-endian."""

    shape: tuple[int, ...]
    dtype: DTypeLike

    name = "raw"

    def encode(self, sample: NDArray[Any]) -> bytes:
        """dtype [shape] to bytes."""
        return np.asarray(sample, np.dtype(self.dtype).newbyteorder("<")).tobytes()

    def decode(self, data: bytes) -> NDArray[Any]:
        """bytes to dtype [shape]."""
        dtype = np.dtype(self.dtype)
        if len(data) != math.prod(self.shape) * dtype.itemsize:
            raise _damaged(f"{len(data)} bytes")
        return np.frombuffer(data, dtype.newbyteorder("<")).reshape(self.shape).astype(dtype)


@dataclass(frozen=True)
class Jpeg:
    """A photo, uint8 [height, width, 3] or grey [height, width, 1], as a JPEG with halved colour resolution."""

    shape: tuple[int, ...]
    quality: int = JPEG_QUALITY

    name = "jpeg"

    def encode(self, sample: NDArray[Any]) -> bytes:
        """uint8 [shape] to bytes."""
        from PIL import Image

        out = io.BytesIO()
        pixels = np.asarray(sample, np.uint8)
        Image.fromarray(pixels[..., 0] if self.shape[2] == 1 else pixels).save(
            out, "JPEG", quality=self.quality, subsampling="4:2:0", optimize=True)
        return out.getvalue()

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """bytes to uint8 [shape]."""
        from PIL import Image

        height, width, channels = self.shape
        try:
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                if image.size != (width, height) or image.mode != ("L" if channels == 1 else "RGB"):
                    raise _damaged(f"a photo of {image.width} x {image.height}, {image.mode}")
                return np.array(image, np.uint8).reshape(self.shape)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise _damaged(str(error)) from error


@dataclass(frozen=True)
class Delta16:
    """A window, float32 [time, channels], as 16 bits per value between the minimum and maximum of each channel: the
    differences along time, low and high bytes separated, deflated.

    The error is at most half of range / 65535, plus float32 rounding; constant channels are exact.
    """

    shape: tuple[int, ...]

    name = "delta16"

    def encode(self, sample: NDArray[Any]) -> bytes:
        """float32 [shape] to bytes."""
        x = np.asarray(sample, np.float64)
        least, largest = x.min(0), x.max(0)
        step = ((largest - least) / DELTA16_STEPS).astype(np.float32)
        short = step * np.float64(DELTA16_STEPS) < largest - least
        step = np.where(short, np.nextafter(step, np.float32(np.inf)), step)
        level = np.rint((x - least) / np.where(step > 0, step, 1)).astype("<u2")
        change = np.diff(level, axis=0, prepend=np.zeros((1, self.shape[1]), "<u2"))
        planes = change.view(np.uint8).reshape(*self.shape, 2).transpose(2, 1, 0)
        return zlib.compress(np.stack([least, step]).astype("<f4").tobytes() + planes.tobytes(), 9)

    def decode(self, data: bytes) -> NDArray[np.float32]:
        """bytes to float32 [shape]."""
        time, channels = self.shape
        inflate = zlib.decompressobj()
        try:
            plain = inflate.decompress(data, 8 * channels + 2 * time * channels + 1)
        except zlib.error as error:
            raise _damaged(str(error)) from error
        if len(plain) != 8 * channels + 2 * time * channels or not inflate.eof or inflate.unused_data:
            raise _damaged(f"{len(data)} bytes")
        least, step = np.frombuffer(plain, "<f4", 2 * channels).reshape(2, channels).astype(np.float64)
        planes = np.frombuffer(plain, np.uint8, offset=8 * channels).reshape(2, channels, time)
        change = np.ascontiguousarray(planes.transpose(2, 1, 0)).view("<u2")[..., 0]
        return (least + np.cumsum(change, axis=0, dtype=np.uint16) * step).astype(np.float32)


def _damaged(what: str) -> StateError:
    return StateError(f"a stored sample is damaged ({what})", DAMAGED_CURE)
