"""The input: samples of three kinds, batches of them, their keys, and class names."""
from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from edgecl.errors import BadInput
from edgecl.settings import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    import numpy as np

    Samples = np.ndarray | Iterable["Sample"]

CHUNK_SAMPLES = 64    # samples decoded and held at a time
MAX_NAME_BYTES = 255  # of a class in UTF-8, as of a folder
JOINERS = "\u200c\u200d"   # of Persian, of scripts of India, and of emoji; nobody sees them
UNKNOWN = "unknown"   # what is none of the classes
NOTHING = "nothing"   # the class of rest, background and other things: a sample of it is answered as unknown
FLAT = 4.0            # standard deviation of the pixels of a picture, of 255; below it there is only a sensor's noise
DARK, LIGHT = 48, 208 # mean of a flat picture that is black, or white


class Unit(NamedTuple):
    """How a position in a source is written behind its name, and in how fine steps per 1 it is stored."""

    form: str
    steps: int


UNITS = {"index": Unit("[{}]", 1), "row": Unit(":{}", 1), "s": Unit("@{:.2f}s", 100), "ms": Unit("@{:.3f}s", 1000)}


class Place(NamedTuple):
    """Where a sample came from. name: of the file, stream or camera; at: the position in it, None for none; unit: of
    the position, one of UNITS, where "s" and "ms" are both seconds; "" for none."""

    name: str
    at: int | float | None = None
    unit: str = ""

    def __str__(self) -> str:
        return self.name if self.at is None or not self.unit else self.name + UNITS[self.unit].form.format(self.at)


@dataclass(frozen=True)
class Sample:
    """One raw sample: uint8 image [height, width, 3], float32 window [time, channels] or feature vector [d].

    name, at, unit: where it came from, see `Place`; group: the recording it is part of; label: its class, if the
    source names one; session: the name of the session it is part of, which may have several recordings and classes.
    """

    data: np.ndarray
    name: str = ""
    group: str = ""
    label: str | None = None
    at: int | float | None = None
    unit: str = ""
    session: str = ""

    @property
    def place(self) -> Place:
        """Where it came from."""
        return Place(self.name, self.at, self.unit)

    @property
    def source(self) -> str:
        """Where it came from, for people."""
        return str(self.place)


@dataclass(frozen=True)
class Refusal:
    """A sample that could not be read, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class SampleBatch:
    """data [n, ...], with the recording, place, class and session of each sample. A sample whose group is "" is a
    recording of its own; one whose session is "" is of the session that its recording is."""

    data: np.ndarray
    groups: Sequence[str]
    places: Sequence[Place]
    labels: Sequence[str | None]
    sessions: Sequence[str]

    @property
    def sources(self) -> list[str]:
        """Where each sample came from, for people."""
        return [str(place) for place in self.places]


def batches_of(samples: Samples, groups: Sequence[str] | None = None) -> Iterator[SampleBatch]:
    """Batches of at most CHUNK_SAMPLES samples of one shape, in order. groups: the session of each sample of an array.

    Raises BadInput if an array lacks the batch axis, or if `groups` has another length or comes without an array.
    """
    import numpy as np

    if isinstance(samples, np.ndarray):
        if samples.ndim < 2:
            raise BadInput(f"the samples have shape {list(samples.shape)}",
                           "give a batch [n, ...], even for a single sample")
        if groups is not None and len(groups) != len(samples):
            raise BadInput(f"{counted(len(groups), 'group')} for {counted(len(samples), 'sample')}",
                           "give one group per sample")
        for start in range(0, len(samples), CHUNK_SAMPLES):
            data = samples[start:start + CHUNK_SAMPLES]
            none = [""] * len(data)
            yield SampleBatch(data, none, [Place("")] * len(data), [None] * len(data),
                              none if groups is None else [*map(str, groups[start:start + CHUNK_SAMPLES])])
        return
    if groups is not None:
        raise BadInput("groups were given for samples that name their own", "give groups only with an array")
    waiting: list[Sample] = []
    for sample in samples:
        if waiting and (len(waiting) == CHUNK_SAMPLES or waiting[0].data.shape != sample.data.shape
                        or waiting[0].data.dtype != sample.data.dtype):
            yield _batch(waiting)
            waiting = []
        waiting.append(sample)
    if waiting:
        yield _batch(waiting)


def _batch(samples: list[Sample]) -> SampleBatch:
    import numpy as np

    return SampleBatch(np.stack([sample.data for sample in samples]), [sample.group for sample in samples],
                       [sample.place for sample in samples], [sample.label for sample in samples],
                       [sample.session for sample in samples])


def check_class_name(name: str) -> str:
    """The name in Unicode's NFC form.

    Raises BadInput unless it is 1 to MAX_NAME_BYTES bytes of printable UTF-8 without "/", has no space at its ends,
    does not start with a dot, and is not UNKNOWN in any case.
    """
    clean = unicodedata.normalize("NFC", name)
    shown = repr(clean if len(clean) <= 40 else clean[:37] + "...")
    cure = f"use 1 to {MAX_NAME_BYTES} bytes of printable text without /"
    if not clean.strip() or clean != clean.strip():
        raise BadInput(f"class name {shown} is empty or starts or ends with a space", cure)
    size = len(clean.encode("utf-8", "surrogatepass"))
    if size > MAX_NAME_BYTES:
        raise BadInput(f"class name {shown} has {len(clean)} characters, {size} bytes", cure)
    if any(unicodedata.category(c) == "Cs" for c in clean):     # bytes of a file name, as `os.fsdecode` keeps them
        raise BadInput(f"class name {shown} is not UTF-8", "rename the folder, or name the class with --class")
    bad = sorted({c for c in clean if c == "/" or not (
        c.isprintable() or c in JOINERS or unicodedata.category(c) == "Zs")})
    if bad:
        raise BadInput(f"class name {shown} contains {', '.join(map(repr, bad))}", cure)
    if clean.startswith("."):
        raise BadInput(f"class name {shown} starts with a dot, as hidden folders do", cure)
    if folded(clean) == UNKNOWN:
        raise BadInput(f"class name {shown} is what samples of none of the classes are called",
                       f"choose another; rest, background and other things are the class `{NOTHING}`")
    return clean


def check_new_name(name: str, known: Iterable[str]) -> None:
    """Raises BadInput if a name that is not known differs from a known one in case, width, spaces and signs between
    words alone. name: of `check_class_name`."""
    known = [*known]
    alike = [] if name in known else sorted(each for each in known if folded(each) == folded(name))
    if alike:
        raise BadInput(f"{name!r} is nearly the name of the class {', '.join(map(repr, alike))}", (
            "did you mean that? If both are meant, add --distinct (HTTP: ?distinct=1, Python: distinct=True)"))


@lru_cache(maxsize=4096)
def folded(name: str) -> str:
    """A class name without case, width, joiners, and the difference between spaces, _ and -."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return re.sub(r"[\s_-]+", " ", plain.translate(dict.fromkeys(map(ord, JOINERS))))


def kind_of(data: np.ndarray) -> str:
    """The kind of a batch [n, ...]: "image", "window" or "feature". Raises BadInput if its form is none of theirs."""
    if (data.dtype.kind in "iub" and data.ndim == 4) or (data.dtype.name == "uint8" and data.ndim == 3):
        return "image"
    if data.dtype.kind in "fiu" and data.ndim in (2, 3):
        return "feature" if data.ndim == 2 else "window"
    raise BadInput(f"samples of dtype {data.dtype} and shape {list(data.shape)} are not of a known kind",
                   "give uint8 images [n, height, width, 3], float32 windows [n, time, channels] or vectors [n, d]")


def prepare(data: np.ndarray, kind: str, input_shape: tuple[int, ...]) -> np.ndarray:
    """The batch [n, ...] in the backbone's dtype and shape; grey images and images of other sizes are fitted.

    Raises BadInput if the shape can't be right or a value is not finite.
    """
    import numpy as np

    if kind == "image":
        if data.ndim == 3:
            data = data[..., None]
        if data.dtype != np.uint8 or data.ndim != 4 or data.shape[-1] not in (1, 3):
            raise BadInput(f"the images have dtype {data.dtype} and shape {list(data.shape)}",
                           "give uint8 images [n, height, width, 3] or [n, height, width, 1]")
        if data.shape[1:] == input_shape:
            return np.ascontiguousarray(data)
        from edgecl.images import fit_array

        return np.stack([fit_array(image, input_shape[0], input_shape[1]) for image in data])
    if data.shape[1:] != tuple(input_shape):
        shape = " x ".join(map(str, input_shape))
        raise BadInput(f"a {kind} has shape {' x '.join(map(str, data.shape[1:]))}, this state takes {shape}",
                       "use the same --rate, --window and channels as for `edgecl init`" if kind == "window"
                       else "give vectors of the same length")
    if data.dtype.kind not in "fiub":
        raise BadInput(f"a {kind} has dtype {data.dtype}", "give real numbers, such as float32")
    data = np.ascontiguousarray(data, np.float32)
    if not np.isfinite(data).all():
        first = int(np.flatnonzero(~np.isfinite(data.reshape(len(data), -1)).all(1))[0])
        raise BadInput(f"sample {first} contains NaN or infinity", "clean the recording, or leave that part out")
    return data


def blank(data: np.ndarray, kind: str) -> list[str]:
    """Why each sample of a batch [n, ...] of `prepare` shows nothing: a picture of one colour, or a window in which no
    channel changes; "" if it shows something, as a vector always does."""
    if kind == "window":
        low, high = data.min(1), data.max(1)
        still = (high - low <= 1e-6 * abs(data).max(1)).all(1) & (data.shape[1] > 1)
        return ["the window is constant" if each else "" for each in still.tolist()]
    return [_one_colour(image) for image in data] if kind == "image" else [""] * len(data)


def _one_colour(image: np.ndarray) -> str:
    """The same of one picture, uint8 [height, width, channels]."""
    rows, columns = (max(side // 32, 1) for side in image.shape[:2])
    for pixels in (image[::rows, ::columns], image):    # a few pixels tell for nearly every picture
        if float(pixels.var((0, 1)).mean()) > FLAT ** 2:
            return ""
    mean = image.mean((0, 1))
    if mean.max() < DARK or mean.min() > LIGHT:
        return f"the picture is {'black' if mean.max() < DARK else 'white'}"
    return f"the picture is {'grey' if mean.max() - mean.min() < FLAT else 'of one colour'}"


def sample_keys(data: np.ndarray, groups: Sequence[str] | None = None, known: dict[str, int] | None = None,
                sessions: Sequence[str] | None = None) -> list[int]:
    """A key for each sample, the same on every board and in every order: 31 bits name its session, 32 bits itself.

    sessions: the name of the session that each sample is part of, which holds in all classes and commands; "", or none
    at all: its recording is a session. groups: the recording that each is part of; "", or none at all: it is a
    recording of its own. A recording is identified by its first sample, not by its name; `known` carries the names
    from batch to batch.
    """
    own = [int.from_bytes(hashlib.blake2b(memoryview(x).cast("B"), digest_size=8).digest(), "big") for x in data]
    known = {} if known is None else known
    none = [""] * len(own)
    heads = [_named(session) if session else known.setdefault(group, key) if group else key
             for session, group, key in zip(none if sessions is None else sessions, none if groups is None else groups,
                                            own)]
    return [(head >> 33) << 32 | (key & 0xFFFFFFFF) for head, key in zip(heads, own)]


@lru_cache(maxsize=CHUNK_SAMPLES)
def _named(session: str) -> int:
    """64 bits for a session of this name."""
    name = unicodedata.normalize("NFC", session).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8, person=b"session").digest(), "big")
