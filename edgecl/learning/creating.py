"""A new state: its settings, and its backbone if that does not wait for the first samples."""
from __future__ import annotations

import uuid
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgecl.errors import BadInput
from edgecl.heads.solvers import KINDS
from edgecl.learning.foundation import check_codec, create_foundation, waits_for_samples
from edgecl.state.generations import Rewrite
from edgecl.state.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from edgecl.settings import Settings


def created(state: Path, settings: Settings, calibration: np.ndarray | None, weights: Path | None) -> Store:
    """See `Learner.create`."""
    if settings.head not in ("auto", *KINDS):
        raise BadInput(f"no head is called {settings.head!r}", f"choose auto, {', '.join(KINDS)}")
    check_codec(settings)
    meta: dict[str, Any] = {"settings": asdict(settings), "id": uuid.uuid4().hex}
    model: bytes | None = None
    if waits_for_samples(settings, calibration):
        if weights is not None:
            raise BadInput(f"--weights for the backbone {settings.backbone}", "name an image backbone as well")
    else:
        foundation, model = create_foundation(settings, None, calibration, weights)
        meta["foundation"] = foundation.to_meta()
    first = Rewrite("init", {"backbone": settings.backbone}, backbone=model)
    return Store.create(state, meta, first)
