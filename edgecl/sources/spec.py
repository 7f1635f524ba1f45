"""What sources give, and how files become samples."""
from __future__ import annotations

from dataclasses import dataclass

from edgecl.samples import Refusal, Sample

Item = Sample | Refusal


PHOTOS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True)
class Spec:
    """How files become samples.

    height, width: what photos are fitted to; rate Hz, window and hop seconds: how recordings are cut; vectors: a row of
    a .csv is a feature vector by itself; seconds: take no more than that of each recording.
    """

    height: int = 224
    width: int = 224
    rate: float | None = None
    window: float | None = None
    hop: float | None = None
    vectors: bool = False
    seconds: float | None = None
