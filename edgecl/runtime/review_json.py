"""The review list as JSON: clusters, frames, and the sample of a frame."""
from __future__ import annotations

import base64
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from edgecl.learning.gathered import GatheredFrame


class FrameAnswer(NamedTuple):
    """What the present head says of a frame."""

    label: str | None
    confidence: float
    unknown: bool


def cluster_json(part: list[GatheredFrame], answers: dict[int, FrameAnswer]) -> dict[str, Any]:
    """A cluster, the most typical frame first, ready for JSON."""
    first, known = part[0], answers.get(part[0].number)
    return {"id": min(frame.number for frame in part), "frames": len(part), "seen": sum(frame.seen for frame in part),
            "first": _when(min(frame.first for frame in part)), "last": _when(max(frame.last for frame in part)),
            "sources": sorted({frame.source for frame in part}), "typical": first.number,
            "label": known.label if known else None, "confidence": known.confidence if known else None,
            "unknown": known.unknown if known else None}


def frame_json(frame: GatheredFrame, answers: dict[int, FrameAnswer]) -> dict[str, Any]:
    """A frame, ready for JSON."""
    known = answers.get(frame.number)
    return {"id": frame.number, "seen": frame.seen, "first": _when(frame.first), "last": _when(frame.last),
            "source": frame.source, "label": known.label if known else None,
            "confidence": known.confidence if known else None, "unknown": known.unknown if known else None}


def packed(sample: np.ndarray) -> dict[str, Any]:
    """A frame as the control socket gives it: {dtype, shape, data: base64 of the values, little-endian}."""
    plain = np.ascontiguousarray(sample, sample.dtype.newbyteorder("<"))
    return {"dtype": sample.dtype.name, "shape": list(sample.shape), "data": base64.b64encode(plain.tobytes()).decode()}


def _when(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="seconds")
