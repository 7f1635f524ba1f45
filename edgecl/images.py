"""Photos as arrays: a short list of formats, a limit on pixels, and one way to fit a photo to a backbone."""
from __future__ import annotations

import warnings
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from edgecl.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

T = TypeVar("T")
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # and BRANDS: the only decoders for untrusted files
BRANDS = {"AVIF": (b"avif", b"avis"), "HEIF": (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")}
CENTRE_CROP = 7 / 8
MAX_PIXELS = 50_000_000  # a 50-megapixel photo decodes to 150 MB; phones take 12 to 50
BACKGROUND = 128         # grey, behind what is transparent
HEIC_CURE = "pip install 'edgecl[heic]', or convert them to JPEG"
AVIF_CURE = "pip install -U pillow, or convert them to JPEG"


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of a photo, by its first bytes. Raises BadInput if it can't be read so far, or is too large."""
    return _opened(path, str(path), lambda image: image.size)


def read_image(path: Path, height: int, width: int) -> NDArray[np.uint8]:
    """The photo as uint8 [height, width, 3] RGB, rotated according to its EXIF orientation and fitted by `fit`.

    Raises BadInput if the file is not a photo in one of FORMATS, is broken, or has more than MAX_PIXELS pixels.
    """
    return _read(path, str(path), height, width)


def decode_image(data: bytes, name: str, height: int, width: int) -> NDArray[np.uint8]:
    """`read_image` for the bytes of a file. name: names them in errors."""
    return _read(BytesIO(data), name, height, width)


def pixels_of(data: bytes) -> NDArray[np.uint8]:
    """The pixels of a small photo as they are in its file, uint8 [height, width, 3 or 1]. Raises BadInput."""
    try:
        with Image.open(BytesIO(data), formats=["JPEG", "PNG"]) as image:
            pixels = np.array(image if image.mode == "L" else image.convert("RGB"), np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadInput(f"a stored photo can't be read ({error})", "export it again") from error
    return pixels if pixels.ndim == 3 else pixels[..., None]


def _read(file: Path | BytesIO, name: str, height: int, width: int) -> NDArray[np.uint8]:
    def pixels(image: Image.Image) -> NDArray[np.uint8]:
        deep = ";16" in str(getattr(image, "tile", ""))     # 16 bits per channel, of which Pillow keeps 8
        image.draft("RGB", (2 * width, 2 * height))
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith(("I", "F")):
            upright = Image.fromarray(eight_bits(np.asarray(upright)))
        elif deep and upright.mode in ("L", "RGB"):
            upright = Image.fromarray(eight_bits(np.asarray(upright), 255))
        return fit(upright.convert("RGBA" if upright.has_transparency_data else "RGB"), height, width)

    return _opened(file, name, pixels)


def _opened(file: Path | BytesIO, name: str, use: Callable[[Image.Image], T]) -> T:
    """What is made of the open photo. Raises BadInput."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # of broken EXIF data and of sizes, which are checked here
            with Image.open(file, formats=formats(file)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise BadInput(f"has {image.width} x {image.height} pixels, more than "
                                   f"{MAX_PIXELS // 10**6} megapixels", "make it smaller")
                return use(image)
    except BadInput as error:
        raise BadInput(f"{name} {error.what}", error.cure) from error
    except UnidentifiedImageError as error:
        raise _unreadable(name, "it is empty" if _empty(file) else "it is not in a known format") from error
    except MemoryError as error:
        raise _unreadable(name, "there is not enough memory for it") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise _unreadable(name, getattr(error, "strerror", None) or str(error)) from error


def formats(file: Path | BytesIO) -> tuple[str, ...]:
    """The formats that may be tried on a file. Raises BadInput if it is HEIC or AVIF and there is no decoder for that,
    OSError."""
    kind = _iso_kind(file)
    if not kind:
        return FORMATS
    if not readable(kind):
        raise BadInput(*{"HEIF": ("is a HEIC photo, which needs pillow-heif", HEIC_CURE),
                         "AVIF": ("is an AVIF photo, which this Pillow can't read", AVIF_CURE)}[kind])
    return (kind,)


@cache
def readable(kind: str) -> bool:
    """Whether there is a decoder for "HEIF" or "AVIF", which is made ready."""
    if kind == "AVIF":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")     # of a Pillow that does not know of it
            return bool(features.check("avif"))
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener()
    return True


def _iso_kind(file: Path | BytesIO) -> str:
    """"HEIF" or "AVIF" if a file is that by its first bytes, else ""."""
    if isinstance(file, BytesIO):
        head = bytes(file.getbuffer()[:64])
    else:
        with file.open("rb") as opened:
            head = opened.read(64)
    end = min(int.from_bytes(head[:4], "big"), 64) if head[4:8] == b"ftyp" else 0
    brands = {head[8:12], *(head[i:i + 4] for i in range(16, end, 4))} if end else set()
    return next((kind for kind, known in BRANDS.items() if brands.intersection(known)), "")


def eight_bits(values: NDArray[Any], limit: float | None = None) -> NDArray[np.uint8]:
    """A picture with more than 8 bits as uint8 of the same shape: scaled by the range of its kind of numbers, or, if it
    uses less than a quarter of that (12 bits in 16, temperatures, depths), by its own, from which the outermost 0.1 %
    are left out. limit: of the numbers; default: the first of 1 (fractions), 255 and 65,535 that is enough, and from 16
    bits only the last.

    Raises BadInput if no value is finite.
    """
    rows, columns = (max(side // 512, 1) for side in values.shape[:2])
    some = values[::rows, ::columns].astype(np.float64)
    some = some[np.isfinite(some)]
    if not some.size:
        raise BadInput("has no finite value", "give a photo with numbers")
    low, high = (float(each) for each in np.quantile(some, (0.001, 0.999)))
    limits = [limit] if limit else [65535.0] if values.dtype.itemsize == 2 else [255.0, 65535.0]
    if values.dtype.kind == "f":
        limits = [1.0, *limits]
    enough = next((each for each in limits if float(some.max()) <= each), high)
    if float(some.min()) >= 0 and (high - low >= enough / 4 or high == low):
        low, high = 0.0, enough
    else:
        high = max(high, low + abs(enough) / 64)    # so that the noise of a black frame does not become a picture
    out = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), 256):    # so that few of them are held as float32
        block = (values[start:start + 256].astype(np.float32) - low) * (255 / (high - low))
        out[start:start + 256] = np.nan_to_num(block, nan=0.0).clip(0, 255) + 0.5
    return out


def _unreadable(name: str, reason: str) -> BadInput:
    return BadInput(f"{name} can't be read as a photo ({reason})", "give a complete JPEG, PNG, WebP, BMP, GIF or TIFF")


def _empty(file: Path | BytesIO) -> bool:
    if isinstance(file, BytesIO):
        return not file.getbuffer().nbytes
    return file.is_file() and file.stat().st_size == 0


def fit_array(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """uint8 [h, w, 3] or [h, w, 1] fitted to uint8 [height, width, 3]."""
    return fit(Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert("RGB"), height, width)


def fit(image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """The centre crop of an RGB or RGBA picture, uint8 [height, width, 3]: 7/8 of the shorter side, as ImageNet
    networks are evaluated. What is transparent shows BACKGROUND."""
    scale = CENTRE_CROP * min(image.width / width, image.height / height)
    left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
    box = (left, top, left + scale * width, top + scale * height)
    fitted = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    if fitted.mode == "RGBA":
        behind = Image.new("RGBA", fitted.size, (BACKGROUND, BACKGROUND, BACKGROUND, 255))
        fitted = Image.alpha_composite(behind, fitted).convert("RGB")
    return np.asarray(fitted)
