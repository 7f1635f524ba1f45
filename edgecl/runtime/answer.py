"""What a source was answered last."""
from __future__ import annotations

from typing import NamedTuple


class Answer(NamedTuple):
    """The last answer about a source. stable: the label that came several times in a row; at: monotonic seconds."""

    label: str
    confidence: float
    unknown: bool
    milliseconds: float
    stable: str | None
    at: float
