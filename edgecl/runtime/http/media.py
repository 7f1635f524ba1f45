"""Bodies in, as batches of samples."""
from __future__ import annotations

import json
import math
import zipfile
from io import BytesIO

import numpy as np
from numpy.lib import format as npy

from edgecl.errors import BadInput
from edgecl.runtime.http.replies import HttpRefusal
from edgecl.settings import counted

MOST_BODY = 8 * 2 ** 20        # bytes of an upload
MOST_JSON = 2 ** 20            # ... of JSON, which takes 20 times as much memory while it is parsed
MOST_UNPACKED = 64 * 2 ** 20   # ... of the array in an .npz file
MOST_SAMPLES = 4096            # of one upload
DEFAULT_SIZE = (224, 224)      # of photos, if the state has no backbone yet
IMAGE_TYPES = tuple(f"image/{kind}" for kind in ("jpeg", "png", "webp", "bmp", "gif", "tiff", "avif", "heic", "heif"))
ARRAY_TYPES = ("application/x-npz", "application/zip", "application/octet-stream")
WHAT_TO_SEND = f"send one photo (image/jpeg, image/png, ...), an .npz file ({ARRAY_TYPES[0]}), JSON or text/csv"


def most_bytes(content_type: str) -> int:
    """Most bytes of a body of a media type."""
    return MOST_JSON if content_type == "application/json" else MOST_BODY


def batch_of(body: bytes, content_type: str, kind: str | None, shape: list[int] | None) -> np.ndarray:
    """The samples [n, ...] in a body, not checked against the state yet. kind, shape: of the state's samples, as in
    `Service.info`.

    Raises BadInput if the body can't be read, HttpRefusal (415) for an unknown media type.
    """
    if not body:
        raise BadInput("the body is empty", WHAT_TO_SEND)
    if content_type in IMAGE_TYPES:
        if kind not in (None, "image"):
            raise BadInput(f"a photo, and this state takes {kind}s", "send JSON, text/csv or .npz")
        from edgecl.images import decode_image

        return decode_image(body, "the photo", *(shape[:2] if shape else DEFAULT_SIZE))[None]
    if content_type in ARRAY_TYPES:
        batch = _unpack(body)
    elif content_type == "application/json":
        batch = _numbers(body, len(shape) if shape else None)
    elif content_type == "text/csv":
        batch = _recording(body, kind, shape)
    else:
        raise HttpRefusal(415, f"the media type {content_type[:80]!r} can't be read", WHAT_TO_SEND)
    if not 1 <= len(batch) <= MOST_SAMPLES:
        raise BadInput(f"the body holds {len(batch)} samples", f"send 1 to {MOST_SAMPLES} at a time")
    return batch


def _unpack(body: bytes) -> np.ndarray:
    """The array `x`, `x_train` or the only one in an .npz file, after its size was checked."""
    cure = "send np.savez_compressed(file, x=samples)"
    try:
        with zipfile.ZipFile(BytesIO(body)) as packed:
            names = {name.removesuffix(".npy"): name for name in packed.namelist()}
            chosen = next((names[name] for name in ("x", "x_train") if name in names), None)
            if chosen is None:
                if len(names) != 1:
                    raise BadInput(f"the .npz file holds {', '.join(sorted(names))[:80] or 'nothing'}", cure)
                chosen = packed.namelist()[0]
            about = packed.getinfo(chosen)
            if about.file_size > MOST_UNPACKED:
                raise BadInput(f"the array unpacks to {about.file_size} bytes", f"send at most {MOST_UNPACKED}")
            with packed.open(about) as file:  # the header first: its shape decides how much is allocated
                if npy.read_magic(file) != (1, 0):
                    raise BadInput("the array is not an .npy of version 1.0", cure)
                shape, _, dtype = npy.read_array_header_1_0(file)
            if dtype.hasobject or math.prod(shape) * dtype.itemsize > about.file_size or min(shape, default=1) < 1:
                raise BadInput(f"an array of dtype {dtype} and shape {list(shape)} in {about.file_size} bytes", cure)
            with packed.open(about) as file:
                found: np.ndarray = npy.read_array(file, allow_pickle=False)
    except BadInput:
        raise
    except (ValueError, KeyError, EOFError, OSError, NotImplementedError, RuntimeError, zipfile.BadZipFile,
            zipfile.zlib.error, MemoryError, SyntaxError, TypeError) as error:  # type: ignore[attr-defined]
        raise BadInput(f"the body can't be read as .npz ({str(error)[:120]})", cure) from error
    if found.ndim < 2:
        raise BadInput(f"the array has the shape {list(found.shape)}", cure)
    return found


def _numbers(body: bytes, dimensions: int | None) -> np.ndarray:
    """The samples in {"samples": nested lists} or in nested lists; a single sample becomes a batch of one."""
    cure = 'send {"samples": [[[1.0, 2.0], ...], ...]}: a list of windows [time, channels] or vectors'
    try:
        value = json.loads(body)
        value = value.get("samples") if isinstance(value, dict) else value
        found = np.asarray(value, np.float32)
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        raise BadInput(f"the body can't be read as numbers ({str(error)[:120]})", cure) from error
    if dimensions is not None and found.ndim == dimensions:
        found = found[None]
    if found.ndim not in (2, 3) or 0 in found.shape:
        raise BadInput(f"the numbers have the shape {list(found.shape)}", cure)
    return found


def _recording(body: bytes, kind: str | None, shape: list[int] | None) -> np.ndarray:
    """The windows of a recording, each overlapping half of the last, or its rows as vectors."""
    from edgecl.sources.recordings import CSV_CURE, parse_csv
    from edgecl.sources.windows import cut

    if kind == "image" or shape is None:
        raise BadInput("a recording, and this state takes photos" if kind == "image" else
                       "a recording, and this state has no window length yet",
                       "send a photo" if kind == "image" else "teach it an .npz file or JSON first")
    try:
        values = parse_csv(body.decode("utf-8-sig"), "the recording")
    except UnicodeDecodeError as error:
        raise BadInput(f"the recording is not UTF-8 ({error.reason})", CSV_CURE) from error
    if kind == "feature":
        return values
    windows = cut(values, 1.0, shape[0], max(shape[0] // 2, 1))
    if not len(windows):
        raise BadInput(f"the recording has {counted(len(values), 'row')}, and a window has {shape[0]}",
                       "send a longer recording")
    return windows
