"""Answering: the sessions of one generation, and the way back to an intact one where a file is damaged."""
from __future__ import annotations

from typing import TYPE_CHECKING

from edgecl.errors import StateError
from edgecl.head_graph import HeadSession

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from edgecl.backbone import Backbone
    from edgecl.records import Generation
    from edgecl.store import Store


class Serving:
    """The newest generation whose files are intact.

    current: the newest generation, which should serve; generation: the one that does; warnings: what is damaged, one
    line each.
    """

    def __init__(self, store: Store, open_backbone: Callable[[str], Backbone]) -> None:
        """open_backbone: the session of a backbone file, by its name in the store. Raises StateError where nothing was
        taught yet, or no generation is intact."""
        self.warnings: list[str] = []
        with store.reading():
            alive = store.alive()
            self.current, self.generation, self.backbone_name, self.head_name = self._choose(store, alive)
            self.backbone = open_backbone(self.backbone_name)
            self.head = HeadSession(store.blob_path(self.head_name))

    def _choose(self, store: Store, alive: list[Generation]) -> tuple[int, int, str, str]:
        """The newest generation, the newest with an intact head, and that one's backbone and head."""
        problem = StateError(f"{store.path} has learned nothing yet", "teach it with `edgecl learn --class NAME ...`")
        for generation in reversed(alive if store.newest.head else []):
            if generation.head is None or generation.backbone is None:
                continue
            try:
                store.blob_path(generation.head)
            except StateError as error:
                problem = error
                self.warnings.append(error.what)
                continue
            return alive[-1].id, generation.id, generation.backbone, generation.head
        raise problem

    def answer(self, fitted: np.ndarray) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Probabilities float32 [n, C] in the order of `head.labels` and unknown bool [n] of prepared samples."""
        return self.head(self.backbone.features(fitted))
