"""Gathered frames: what fits no known class, kept in bounded bytes until a person names it or throws it away.

A frame that is nearly the same as a kept one is counted, not kept again. If room is short, the two most alike become
one, so that what is new finds room and nothing rare is lost to what comes all the time. Distances are those of the
class statistics, in units of the mean squared distance between two samples of a known class.
"""
from __future__ import annotations

import json
import struct
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgecl.errors import StateError
from edgecl.exemplars.input_codecs import Jpeg
from edgecl.files.forms import have_forms
from edgecl.learning.clusters import centroid_linkage
from edgecl.statistics.transform import FeatureTransform

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

MOST_FRAMES, MOST_BYTES = 256, 4 * 10**6    # of all frames with their features
QUOTA_SHARE = 16        # ... and at most this part of the quota
LARGEST = 8             # ... of which one frame may take this part
FRAME_BYTES = 200       # of what is known of a frame beside its data and feature
NEAR_COPY = 0.05        # squared distance, in units of the spread: a closer frame is counted, not kept
PLAIN_BYTES = 2 ** 14   # a smaller sample is kept as it is, a larger photo as a JPEG
FORMS = {"backbone": str, "dimension": range(2 ** 24), "next": range(2 ** 53), "stands_for": [(range(2 ** 53),) * 2],
         "frames": [(range(2 ** 53), str, range(2 ** 40), range(2 ** 40), range(2 ** 53), str, [range(2 ** 24)], bool,
                     range(2 ** 31))]}


class GatheredFrame(NamedTuple):
    """A gathered frame. number: unique, never used again; source: where it came from; first, last: when it and its near
    copies were seen, UTC, seconds since 1970; seen: how often; dtype, shape: of the sample; jpeg: how `data` encodes
    it."""

    number: int
    source: str
    first: int
    last: int
    seen: int
    dtype: str
    shape: tuple[int, ...]
    jpeg: bool
    data: bytes

    @classmethod
    def of(cls, number: int, source: str, now: int, sample: np.ndarray) -> GatheredFrame:
        """A frame that was seen now."""
        dtype = "uint8" if sample.dtype == np.uint8 else "float32"
        sample = np.ascontiguousarray(sample, dtype)
        shape = sample.shape
        jpeg = dtype == "uint8" and sample.nbytes > PLAIN_BYTES and len(shape) == 3 and shape[2] in (1, 3)
        data = Jpeg(shape).encode(sample) if jpeg else zlib.compress(sample.tobytes(), 6)
        return cls(number, source, now, now, 1, dtype, shape, jpeg, data)

    def sample(self) -> np.ndarray:
        """The sample, uint8 or float32 [shape]. Raises StateError if it is damaged."""
        if self.jpeg:
            return Jpeg(self.shape).decode(self.data)
        try:
            return np.frombuffer(zlib.decompress(self.data), self.dtype).reshape(self.shape)
        except (zlib.error, ValueError, TypeError) as error:
            raise StateError(f"gathered frame {self.number} is damaged ({error})", "throw it away") from error


class Gathered:
    """Gathered frames, with their features by one backbone. Not safe for use by several threads at once.

    backbone: name of its file, "" while there are no features; spread: mean squared distance of two samples of a known
    class, 0 if that is not known; absorbed: frames that became one with a kept one because room was short.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes, self._power = most_bytes, 1.0
        self.backbone, self.spread, self.absorbed = "", 0.0, 0
        self.frames: list[GatheredFrame] = []
        self._next, self._stands_for = 1, dict[int, int]()
        self.features = self._points = np.empty((0, 0), np.float32)     # as they are, as the statistics see them
        self.squared = np.empty((0, 0), np.float32)

    @property
    def newest(self) -> int:
        """The number of the frame that was kept last, even if it is gone; 0 before the first."""
        return self._next - 1

    @property
    def size(self) -> int:
        """Bytes of all frames with their features."""
        return sum(map(self._bytes, self.frames))

    def _bytes(self, frame: GatheredFrame) -> int:
        return len(frame.data) + 4 * self.features.shape[1] + FRAME_BYTES

    @property
    def unit(self) -> float:
        """The spread; that of the frames themselves if no class tells it."""
        return self.spread or (2 * float(self._points.var(0, dtype=np.float64).sum()) if self.frames else 0.0)

    def _seen(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Features as the class statistics see them."""
        width = features.shape[1]
        return FeatureTransform(width, width, self._power)(features)

    def measure(self, backbone: str, power: float, features: NDArray[np.float32]) -> None:
        """Have these features count, float32 [n, d], one of each frame in order. power: of the statistics' transform;
        backbone: that computed them."""
        self.backbone, self._power, self.features = backbone, power, features
        self._points = self._seen(features)
        apart = [_to(self._points, point) for point in self._points]
        self.squared = np.stack(apart) if apart else np.empty((0, 0), np.float32)

    def see(self, source: str, now: int, sample: np.ndarray, feature: NDArray[np.float32], room: bool = True) -> bool:
        """Take a frame, feature float32 [d]: count it with a near copy, or keep it. room: whether another one may be
        kept. False if it was neither counted nor kept."""
        if not self.frames:
            self.measure(self.backbone, self._power, np.empty((0, len(feature)), np.float32))
        point = self._seen(feature[None])
        gaps = _to(self._points, point[0])
        if len(gaps) and gaps.min() <= NEAR_COPY * self.unit:
            place = int(gaps.argmin())
            kept = self.frames[place]
            self.frames[place] = kept._replace(last=max(kept.last, now), seen=kept.seen + 1)
            return True
        frame = GatheredFrame.of(self._next, source, now, sample) if room else None
        if frame is None or self._bytes(frame) * LARGEST > self._most_bytes:
            return False
        self._next += 1
        self.frames.append(frame)
        self.features, self._points = (np.concatenate(each) for each in ([self.features, feature[None]],
                                                                         [self._points, point]))
        self.squared = np.block([[self.squared, gaps[:, None]], [gaps[None], np.zeros((1, 1), np.float32)]])
        while len(self.frames) > MOST_FRAMES or self.size > self._most_bytes:
            self._absorb()
        return True

    def _absorb(self) -> None:
        """Make the two frames that are the most alike one: that which was seen more often, or first."""
        apart = self.squared + np.diag(np.full(len(self.frames), np.inf, np.float32))
        pair = sorted(divmod(int(apart.argmin()), len(self.frames)), key=lambda i: (-self.frames[i].seen, i))
        kept, gone = (self.frames[place] for place in pair)
        self.frames[pair[0]] = kept._replace(first=min(kept.first, gone.first), last=max(kept.last, gone.last),
                                             seen=kept.seen + gone.seen)
        self.absorbed += 1
        self.remove([gone.number], kept.number)

    def remove(self, numbers: Iterable[int], instead: int | None = None) -> None:
        """Let go of frames, those that are there. instead: the frame that their numbers stand for from now on."""
        gone = set(numbers)
        left = [place for place, frame in enumerate(self.frames) if frame.number not in gone]
        self.frames = [self.frames[place] for place in left]
        self.features, self._points = self.features[left], self._points[left]
        self.squared = self.squared[np.ix_(left, left)]
        if instead is not None:
            self._stands_for |= dict.fromkeys(gone, instead)
            self._stands_for = dict([*self._stands_for.items()][-MOST_FRAMES:])

    def standing(self, number: int) -> int:
        """The number of the frame that a number stands for: itself while that frame is there."""
        there, seen = {frame.number for frame in self.frames}, set[int]()
        while number not in there and number in self._stands_for and number not in seen:
            seen.add(number)
            number = self._stands_for[number]
        return number

    def to_bytes(self, about: dict[str, Any]) -> bytes:
        """All of it, with what else is to be known, for `from_bytes`."""
        head = {**about, "backbone": self.backbone, "dimension": self.features.shape[1], "next": self._next,
                "stands_for": [*self._stands_for.items()],
                "frames": [[*frame[:-1], len(frame.data)] for frame in self.frames]}
        text = json.dumps(head).encode()
        return b"".join([struct.pack("<I", len(text)), text, self.features.astype("<f4").tobytes(),
                         *(frame.data for frame in self.frames)])

    def load(self, data: bytes) -> dict[str, Any]:
        """Take what `to_bytes` has written in place of what is there; what else is to be known. Raises StateError."""
        try:
            length, = struct.unpack_from("<I", data)
            head, place = json.loads(data[4:4 + length]), 4 + length
            if not have_forms(head, FORMS) or not {*FORMS} <= {*head}:
                raise ValueError("its head is of another form")
            shape = len(head["frames"]), head["dimension"]
            features = np.frombuffer(data, "<f4", shape[0] * shape[1], place).reshape(shape).astype(np.float32)
            frames, place = list[GatheredFrame](), place + features.nbytes
            for number, source, first, last, seen, dtype, form, jpeg, size in head["frames"]:
                frames.append(GatheredFrame(number, source, first, last, seen, dtype, tuple(form), jpeg,
                                    data[place:place + size]))
                place += size
            if place != len(data) or any(frame.dtype not in ("uint8", "float32") for frame in frames):
                raise ValueError("its length is another")
        except (ValueError, TypeError, struct.error, RecursionError) as error:
            raise StateError(f"what was gathered can't be read ({error})", "what is gathered from now on replaces it"
                             ) from error
        self.frames, self._next = frames, head["next"]
        self._stands_for = dict(head["stands_for"])
        self.measure(head["backbone"], self._power, features)
        return dict(head)


def clusters(squared: NDArray[np.float32], unit: float, chosen: Sequence[int]) -> list[list[int]]:
    """The clusters of some frames, see `centroid_linkage`: indices, ascending. squared, unit: of `Gathered`."""
    return [[chosen[place] for place in each]
            for each in centroid_linkage(squared[np.ix_(chosen, chosen)], unit)] if chosen else []


def _to(points: NDArray[np.float32], point: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared distances of points [n, d] to a point [d], float32 [n]."""
    return np.asarray(((points - point) ** 2).sum(1), np.float32)
