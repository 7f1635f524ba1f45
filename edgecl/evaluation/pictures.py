"""Samples as people see them: pictures, or curves of their channels."""
from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

import numpy as np

MOST_CURVES, CURVE_POINTS = 12, 96  # channels of a sample that are drawn, and points of each
PICTURE_SIDE = 320                  # pixels of the longer side of a picture


def picture(sample: np.ndarray, side: int = PICTURE_SIDE) -> dict[str, Any]:
    """{"image": a data: URI} for an image, {"curves": [[values of a channel]]} for a window or vector. side: the most
    pixels of an image's longer side."""
    if sample.dtype == np.uint8 and sample.ndim == 3:
        from PIL import Image

        image = Image.fromarray(sample if sample.shape[-1] == 3 else sample[..., 0])
        image.thumbnail((side, side))
        packed = BytesIO()
        image.save(packed, "JPEG", quality=80)
        return {"image": "data:image/jpeg;base64," + base64.b64encode(packed.getvalue()).decode()}
    values = np.nan_to_num(np.asarray(sample, np.float32).reshape(len(sample), -1)[:, :MOST_CURVES])
    chosen = np.unique(np.linspace(0, len(values) - 1, min(len(values), CURVE_POINTS)).astype(int))
    return {"curves": [[round(float(v), 4) for v in channel] for channel in values[chosen].T]}
