"""How an exemplar is stored: codecs for its feature, and for the sample that the feature was computed from."""
from __future__ import annotations

import io
import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from edgecl.errors import BadInput, StateError

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import DTypeLike, NDArray

JPEG_QUALITY = 85       # as cameras use
INT8_TOP = 127.49       # scales are rounded up by less than 1 in 127, so the largest m / scale always rounds to 127
DELTA16_STEPS = 2 ** 16 - 1
DAMAGED_CURE = "restore the state from a copy, or create a new one"


class FeatureCodec(Protocol):
    """Features float32 [n, d] to an array [n] of `dtype(d)`, packed and little-endian, and back.

    lossy: whether a decoded feature may encode to something else. If it always encodes to the same bits, a learner that
    learns the decoded feature can forget it exactly. shared_bytes: of the data that all exemplars share.
    """

    @property
    def name(self) -> str:
        """The name as the user types it."""

    @property
    def lossy(self) -> bool:
        """Whether a decoded feature may differ from the learned one."""

    @property
    def shared_bytes(self) -> int:
        """Bytes of the codebook."""

    def dtype(self, dimension: int) -> np.dtype[Any]:
        """The dtype of one encoded feature."""

    def encode(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """float32 [n, d] to `dtype(d)` [n]."""

    def decode(self, encoded: NDArray[Any]) -> NDArray[np.float32]:
        """`dtype(d)` [n] to float32 [n, d]."""


@dataclass(frozen=True)
class Float32:
    """The feature itself, bit for bit."""

    name = "raw"
    lossy = False
    shared_bytes = 0

    def dtype(self, dimension: int) -> np.dtype[Any]:
        """d numbers of 4 bytes."""
        return np.dtype([("values", "<f4", (dimension,))])

    def encode(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """float32 [n, d] to `dtype(d)` [n]."""
        encoded = np.empty(len(features), self.dtype(features.shape[1]))
        encoded["values"] = features
        return encoded

    def decode(self, encoded: NDArray[Any]) -> NDArray[np.float32]:
        """`dtype(d)` [n] to float32 [n, d]."""
        return encoded["values"].astype(np.float32)


@dataclass(frozen=True)
class Int8:
    """f = sign(q) |q s|^(1 / power) with q in -127..127 and one scale s per vector; features up to 1e15.

    power: 1 or 0.5, that of the learner's `FeatureTransform`, in whose domain the error is at most s / 2. s is stored
    as the upper half of a float32, which makes q s exact. Since `INT8_TOP` makes the largest q 127, encoding a decoded
    feature gives the same s; s is at least large enough to keep every |q s|^(1 / power) a normal float32.
    """

    power: float = 1.0

    name = "int8-feature"
    lossy = False
    shared_bytes = 0

    def dtype(self, dimension: int) -> np.dtype[Any]:
        """2 bytes of scale, then d codes."""
        return np.dtype([("scale", "<u2"), ("codes", "i1", (dimension,))])

    def encode(self, features: NDArray[np.float32]) -> NDArray[Any]:
        """float32 [n, d] to `dtype(d)` [n]."""
        x = np.sign(features) * np.abs(features) ** self.power
        largest = np.abs(x).max(1, initial=0) / np.float32(INT8_TOP)
        scale = np.maximum(largest, np.float32(2.0 ** (-126 * self.power)))
        encoded = np.empty(len(features), self.dtype(features.shape[1]))
        encoded["scale"] = (scale.view(np.uint32) + np.uint32(0xFFFF)) >> 16
        encoded["codes"] = np.rint(x / self._scale(encoded))
        return encoded

    def decode(self, encoded: NDArray[Any]) -> NDArray[np.float32]:
        """`dtype(d)` [n] to float32 [n, d]."""
        x: NDArray[np.float32] = encoded["codes"] * self._scale(encoded)
        return (np.sign(x) * np.abs(x) ** (1 / self.power)).astype(np.float32, copy=False)

    @staticmethod
    def _scale(encoded: NDArray[Any]) -> NDArray[np.float32]:
        return (encoded["scale"].astype(np.uint32) << 16).view(np.float32)[:, None]


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


class Codec(NamedTuple):
    """How one exemplar is stored: its feature, and the sample itself (None if only the feature is kept)."""

    feature: FeatureCodec
    input: InputCodec | None = None


KINDS_OF_CODEC = {  # codec -> kinds of samples that it stores
    "auto": ("image", "window", "feature"), "raw": ("image", "window", "feature"), "jpeg": ("image",),
    "delta16": ("window",), "int8-feature": ("image", "window", "feature"), "pq": ("image", "window", "feature")}


def codec_of(name: str, kind: str, input_shape: tuple[int, ...], power: float = 1.0,
             quantiser: FeatureCodec | None = None) -> Codec:
    """The codec of that name: raw, jpeg, jpeg:70, delta16, int8-feature, pq or auto.

    kind: image, window or feature, of samples [input_shape]; power: of the learner's `FeatureTransform`; quantiser:
    stores features for "pq" and "auto" once it is trained, int8 does until then. If the sample itself is stored, its
    feature is stored with it as int8. Raises BadInput if the name is unknown or does not fit the kind.
    """
    word, colon, number = name.partition(":")
    if word not in KINDS_OF_CODEC or (colon and word != "jpeg"):
        raise BadInput(f"there is no codec {name!r}", f"give {', '.join(KINDS_OF_CODEC)} or jpeg:70")
    if kind not in KINDS_OF_CODEC[word]:
        suitable = ", ".join(other for other, kinds in KINDS_OF_CODEC.items() if kind in kinds)
        raise BadInput(f"codec {name!r} stores {KINDS_OF_CODEC[word][0]}s, not {kind}s", f"give {suitable}")
    if colon and not (number.isascii() and number.isdigit() and 1 <= int(number) <= 95):
        raise BadInput(f"the JPEG quality of codec {name!r} is not from 1 to 95", f"write it like jpeg:{JPEG_QUALITY}")
    if word == "raw" and kind == "feature":
        return Codec(Float32())
    if word in ("pq", "auto") and quantiser is not None:
        return Codec(quantiser)
    sample: InputCodec | None = None
    if word == "raw":
        sample = Raw(input_shape, np.uint8 if kind == "image" else np.float32)
    elif word == "jpeg":
        sample = Jpeg(input_shape, int(number or JPEG_QUALITY))
    elif word == "delta16":
        sample = Delta16(input_shape)
    return Codec(Int8(power), sample)
