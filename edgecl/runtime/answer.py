"""The last answer about a source."""
from __future__ import annotations

from typing import NamedTuple

from edgecl.results import Prediction


class Answer(NamedTuple):
    """A prediction, the stable label when it was made (None: none yet, or unknown), and monotonic seconds."""

    prediction: Prediction
    stable: str | None
    at: float
