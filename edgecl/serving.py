"""Answering: the sessions of one generation, and the way back to an intact one where a file is damaged."""
from __future__ import annotations

from typing import TYPE_CHECKING

from edgecl.backbone import Backbone
from edgecl.errors import StateError
from edgecl.head_graph import HeadSession

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgecl.store import Store


class Serving:
    """The newest generation whose files are intact. The backbone's session is kept while only heads change.

    current: the newest generation, which should serve; generation: the one that does; warnings: what is damaged, one
    line each.
    """

    def __init__(self, store: Store, threads: int, before: Serving | None = None) -> None:
        """Raises StateError where nothing was taught yet, or no generation is intact."""
        self.warnings: list[str] = []
        self.current = store.current
        problem = StateError(f"{store.path} has learned nothing yet", "teach it with `edgecl learn --class NAME ...`")
        alive = [g for g in store.generations() if not g.undone]
        for generation in reversed(alive):
            if generation.head is None or generation.backbone is None:
                if generation is alive[-1]:
                    break
                continue
            try:
                if before is not None and before.backbone_name == generation.backbone:
                    self.backbone = before.backbone
                else:
                    self.backbone = Backbone(store.blob_path(generation.backbone), threads)
                self.head = HeadSession(store.blob_path(generation.head))
            except StateError as error:
                problem = error
                self.warnings.append(error.what)
                continue
            self.generation = generation.id
            self.backbone_name, self.head_name = generation.backbone, generation.head
            return
        raise problem

    def answer(self, fitted: np.ndarray) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Probabilities float32 [n, C] in the order of `head.labels` and unknown bool [n] of prepared samples."""
        return self.head(self.backbone.features(fitted))

