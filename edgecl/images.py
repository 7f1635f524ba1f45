"""Photos as arrays: a short list of formats, a limit on pixels, and one way to fit a photo to a backbone."""
from __future__ import annotations

import warnings
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from edgecl.errors import BadInput

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # the only decoders that may run on untrusted files
CENTRE_CROP = 7 / 8
MAX_PIXELS = 50_000_000  # a 50-megapixel photo decodes to 150 MB; phones take 12 to 50


def read_image(path: Path, height: int, width: int) -> NDArray[np.uint8]:
    """The photo as uint8 [height, width, 3] RGB, rotated according to its EXIF orientation and fitted by `fit`.

    Raises BadInput if the file is not a photo in one of FORMATS, is broken, or has more than MAX_PIXELS pixels.
    """
    return _read(path, str(path), height, width)


def decode_image(data: bytes, name: str, height: int, width: int) -> NDArray[np.uint8]:
    """`read_image` for the bytes of a file. name: names them in errors."""
    return _read(BytesIO(data), name, height, width)


def _read(file: Path | BytesIO, name: str, height: int, width: int) -> NDArray[np.uint8]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise BadInput(f"{name} has {image.width} x {image.height} pixels",
                                   f"give photos of at most {MAX_PIXELS // 10**6} megapixels")
                image.draft("RGB", (2 * width, 2 * height))
                upright = ImageOps.exif_transpose(image)
                return fit(upright.convert("RGB"), height, width)
    except BadInput:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Warning) as error:
        reason = "it is empty" if _empty(file) else str(error).replace(str(file), "it")
        raise BadInput(f"{name} can't be read as a photo ({reason})",
                       "give a complete JPEG, PNG, WebP, BMP, GIF or TIFF") from error


def _empty(file: Path | BytesIO) -> bool:
    if isinstance(file, BytesIO):
        return not file.getbuffer().nbytes
    return file.is_file() and file.stat().st_size == 0


def fit_array(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """uint8 [h, w, 3] or [h, w, 1] fitted to uint8 [height, width, 3]."""
    return fit(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB"), height, width)


def fit(image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """The centre crop, uint8 [height, width, 3]: 7/8 of the shorter side, as ImageNet networks are evaluated."""
    scale = CENTRE_CROP * min(image.width / width, image.height / height)
    left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
    box = (left, top, left + scale * width, top + scale * height)
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box))
