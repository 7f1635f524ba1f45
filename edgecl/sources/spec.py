"""What sources yield, and how files become samples."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgecl.errors import in_utf8
from edgecl.samples import Refusal, Sample

Item = Sample | Refusal

PHOTOS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
          ".pnm", ".heic", ".heif", ".avif")


@dataclass(frozen=True)
class Spec:
    """How files become samples.

    height, width: size that photos are fitted to; rate (Hz), window and hop (seconds): how recordings are cut; vectors:
    each row of a .csv file is a feature vector; seconds: how much of each recording to use, None for all.
    """

    height: int = 224
    width: int = 224
    rate: float | None = None
    window: float | None = None
    hop: float | None = None
    vectors: bool = False
    seconds: float | None = None


def shown(path: Path) -> str:
    """A path for people, and as the name of a sample."""
    return in_utf8(str(path))
