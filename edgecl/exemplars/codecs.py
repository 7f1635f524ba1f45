"""How an exemplar is stored: codecs for its feature, and for the sample that the feature was computed from."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from edgecl.errors import BadInput
from edgecl.exemplars.input_codecs import JPEG_QUALITY, Delta16, InputCodec, Jpeg, Raw

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

INT8_TOP = 127.49       # scales are rounded up by less than 1 in 127, so the largest m / scale always rounds to 127


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
