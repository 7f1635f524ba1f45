"""Photos of every kind of pixel: more than 8 bits, transparent, HEIC, AVIF, broken."""
from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
from helpers_needs import lacking, need_module
from PIL import Image

from edgecl import images
from edgecl.errors import BadInput
from edgecl.images import BACKGROUND, decode_image, eight_bits, read_image

GREY = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
COLOURS = np.stack([GREY, GREY.T, 255 - GREY], -1)
HEIC = b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf"


def png16(values, colour_type):
    """A .png of 16 bits per channel, which Pillow can't write. values: [h, w] or [h, w, channels]."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def tiff16(values):
    """A .tif of 16 bits per channel, [h, w, 3], which Pillow can't write."""
    height, width, channels = values.shape
    data = values.astype("<u2").tobytes()
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 8 + 10 * 12 + 6), (259, 3, 1, 1), (262, 3, 1, 2),
            (273, 4, 1, 8 + 10 * 12 + 12), (277, 3, 1, channels), (278, 3, 1, height), (279, 4, 1, len(data)),
            (284, 3, 1, 1)]
    return (b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
            + b"\0\0\0\0" + struct.pack("<HHH", 16, 16, 16) + data)


def saved(pixels, form, **more):
    """The bytes of a picture in a format."""
    file = BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(file, form, **more)
    return file.getvalue()


def seen(data):
    """What a network is shown of it."""
    return decode_image(data, "p", 32, 32).astype(int)


WIDE = GREY.astype(np.uint16) * 257
DEEP = {
    "png": saved(WIDE, "PNG"), "tif": saved(WIDE, "TIFF"), "tif of floats": saved(GREY.astype(np.float32), "TIFF"),
    "tif of fractions": saved(GREY / np.float32(255), "TIFF"), "tif of 32 bits": saved(WIDE.astype(np.int32), "TIFF"),
    "pgm": b"P5 64 64 65535\n" + WIDE.astype(">u2").tobytes(),
    "pgm of 12 bits": b"P5 64 64 4095\n" + (GREY.astype(int) * 4095 // 255).astype(">u2").tobytes(),
    "12 bits in 16": saved((GREY.astype(int) * 4095 // 255).astype(np.uint16), "PNG"),
    "temperatures": saved(27315 + GREY.astype(np.uint16) * 16, "PNG"),
    "temperatures below zero": saved(GREY.astype(np.float32) / 8 - 20, "TIFF"),
    "big numbers": saved(GREY.astype(np.int32) * 10**6, "TIFF")}


@pytest.mark.parametrize("kind", DEEP)
def test_more_than_8_bits_show_what_8_bits_show(kind):
    assert abs(seen(DEEP[kind]) - seen(saved(GREY, "PNG"))).max() <= 2


@pytest.mark.parametrize("data", [png16(COLOURS.astype(int) * 257, 2), tiff16(COLOURS.astype(int) * 257)],
                         ids=["png", "tif"])
def test_colours_of_16_bits_show_what_8_bits_show(data):
    assert abs(seen(data) - seen(saved(COLOURS, "PNG"))).max() <= 1


@pytest.mark.parametrize("data", [png16(COLOURS.astype(int) * 16, 2), tiff16(COLOURS.astype(int) * 16)],
                         ids=["png", "tif"])
def test_colours_of_12_bits_in_16_are_not_black(data):
    assert abs(seen(data) - seen(saved(COLOURS, "PNG"))).max() <= 20    # Pillow keeps 16 levels of them


def test_a_black_frame_of_16_bits_stays_black_and_a_dead_pixel_does_not_darken_a_picture():
    rng = np.random.default_rng(0)
    assert seen(saved(rng.integers(0, 60, (64, 64)).astype(np.uint16), "PNG")).max() < 20
    assert seen(saved(np.full((64, 64), 65535, np.uint16), "PNG")).min() == 255
    dead = (GREY.astype(int) * 16).astype(np.uint16)
    dead[20, 20] = 65535
    assert abs(seen(saved(dead, "PNG")) - seen(saved(GREY, "PNG"))).mean() < 2


def test_what_is_not_a_number_is_left_out():
    holes = GREY.astype(np.float32)
    holes[:, 40] = np.nan
    holes[0, 0] = np.inf
    assert abs(eight_bits(holes).astype(int) - GREY)[1:, :40].max() <= 1
    with pytest.raises(BadInput, match="thermal has no finite value"):
        decode_image(saved(np.full((8, 8), np.nan, np.float32), "TIFF"), "thermal", 8, 8)


def test_what_is_transparent_shows_a_neutral_background():
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :32] = 255
    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 255       # also below what is transparent
    whole = np.dstack([red, mask])
    palette = Image.new("P", (64, 64), 1)
    palette.putpalette([0, 255, 0, 255, 0, 0])
    palette.paste(0, (32, 0, 64, 64))
    keyed = Image.fromarray(np.where(mask[..., None], red, [[[0, 255, 0]]]).astype(np.uint8))
    found = {"rgba": saved(whole, "PNG"), "webp": saved(whole, "WEBP", lossless=True, exact=True),
             "palette": saved(palette, "PNG", transparency=0), "gif": saved(palette, "GIF", transparency=0),
             "key": saved(keyed, "PNG", transparency=(0, 255, 0)),
             "16 bits": png16(whole.astype(int) * 257, 6),
             "grey": saved(np.dstack([GREY * 0 + 255, mask]), "PNG")}
    for name, data in found.items():
        picture = seen(data)
        assert (picture[:, 20:] == BACKGROUND).all(), name
        assert picture[:, :12].max(-1).min() == 255, name
    half = np.dstack([red, np.full((64, 64), 128, np.uint8)])
    assert abs(seen(saved(half, "PNG"))[16, 16] - [192, 64, 64]).max() <= 1
    opaque = np.dstack([COLOURS, np.full((64, 64), 255, np.uint8)])
    assert (seen(saved(opaque, "PNG")) == seen(saved(COLOURS, "PNG"))).all()


def test_heic_and_avif_without_a_decoder_say_the_cure(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "readable", lambda kind: False)
    (tmp_path / "a.heic").write_bytes(HEIC)
    (tmp_path / "b.jpg").write_bytes(HEIC)      # as some phones send it
    for name in ("a.heic", "b.jpg"):
        with pytest.raises(BadInput, match=rf"{name} is a HEIC photo.*edgecl\[heic\]"):
            read_image(tmp_path / name, 8, 8)
    with pytest.raises(BadInput, match=r"the photo is an AVIF photo.*pillow"):
        decode_image(b"\0\0\0\x20ftypavif\0\0\0\0avifmif1", "the photo", 8, 8)


def test_heic_is_read_if_pillow_heif_is_installed(tmp_path):
    need_module("pillow_heif", "heic")
    assert images.readable("HEIF")
    Image.fromarray(COLOURS).save(tmp_path / "a.heic", quality=95)
    with pytest.raises(BadInput, match=r"broken\.heic can't be read as a photo"):
        decode_image(HEIC, "broken.heic", 8, 8)
    assert abs(read_image(tmp_path / "a.heic", 32, 32).astype(int) - seen(saved(COLOURS, "PNG"))).mean() < 6


def test_avif_is_read_if_pillow_can():
    if not images.readable("AVIF"):
        lacking("this Pillow has no AVIF: `pip install --upgrade pillow`")
    assert abs(seen(saved(COLOURS, "AVIF", quality=95)) - seen(saved(COLOURS, "PNG"))).mean() < 6


def exif_with_a_wrong_offset():
    """A .jpg whose EXIF data name a place past their end, of which Pillow warns."""
    tiff = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x010f, 2, 4000, 4000) + b"\0\0\0\0"
    return saved(COLOURS, "JPEG", exif=b"Exif\0\0" + tiff)


BROKEN = {"text": (b"<html>", "not in a known format"), "empty": (b"", "it is empty"),
          "truncated": (saved(COLOURS, "JPEG")[:200], "can't be read"),
          "a png that ends": (saved(COLOURS, "PNG")[:60], "can't be read")}


@pytest.mark.parametrize("kind", BROKEN)
def test_errors_name_the_file(tmp_path, kind):
    data, word = BROKEN[kind]
    (tmp_path / "its photo.jpg").write_bytes(data)
    with pytest.raises(BadInput, match=r"its photo\.jpg can't be read as a photo") as caught:
        read_image(tmp_path / "its photo.jpg", 8, 8)
    assert word in str(caught.value)
    assert "'it'" not in str(caught.value)
    with pytest.raises(BadInput, match=r"gone.jpg can't be read as a photo \(No such file or directory\)"):
        read_image(tmp_path / "gone.jpg", 8, 8)


def test_warnings_of_pillow_do_not_reach_stderr(tmp_path, recwarn):
    (tmp_path / "a.jpg").write_bytes(exif_with_a_wrong_offset())
    with Image.open(tmp_path / "a.jpg") as image:
        image.getexif().get(0x010f)
    assert [*recwarn], "Pillow does not warn of this any more"
    recwarn.clear()
    read_image(tmp_path / "a.jpg", 8, 8)
    assert not [*recwarn]
