"""Answering: the sessions of one generation, and the way back to an intact one where a file is damaged."""
from __future__ import annotations

from typing import TYPE_CHECKING

from edgecl.errors import StateError
from edgecl.heads.onnx_head import HeadSession

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from edgecl.backbones.session import Backbone
    from edgecl.state.generations import Generation
    from edgecl.state.store import Store


class Serving:
    """The newest generation whose files are intact.

    current: the newest generation, which should serve; generation: the one that does; head_model: its head as ONNX;
    warnings: what is damaged, one line each.
    """

    def __init__(self, store: Store, open_backbone: Callable[[str], Backbone], solve: Callable[[], bytes]) -> None:
        """open_backbone: the session of a backbone file, by its name in the store; solve: the head of the newest
        generation where it was not written. Raises StateError where nothing was taught yet, or no generation is
        intact."""
        self.warnings: list[str] = []
        with store.reading():
            alive = store.alive()
            if store.writable and store.log.damaged:
                self.warnings.append(f"{store.log.path} is damaged at its end: what was learned last may be lost")
            self.current = alive[-1].id
            self.generation, self.backbone_name, self.head_model = self._choose(store, alive, open_backbone, solve)
            self.backbone = open_backbone(self.backbone_name)
            self.head = HeadSession(self.head_model)

    def _choose(self, store: Store, alive: list[Generation], open_backbone: Callable[[str], Backbone],
                solve: Callable[[], bytes]) -> tuple[int, str, bytes]:
        """The newest generation whose backbone and head are intact, and these."""
        newest = alive[-1]
        problem = StateError(f"{store.path} has learned nothing yet", "teach it with `edgecl learn --class NAME ...`")
        for generation in reversed(alive if newest.detail.get("classes") else []):
            if generation.backbone is None or (generation.head is None and generation != newest):
                continue
            try:
                open_backbone(generation.backbone)
                head = solve() if generation.head is None else store.blob_path(generation.head).read_bytes()
            except StateError as error:
                problem = error
                if error.what not in self.warnings:
                    self.warnings.append(error.what)
                continue
            return generation.id, generation.backbone, head
        raise problem

    def answer(self, fitted: np.ndarray) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Probabilities float32 [n, C] in the order of `head.labels` and unknown bool [n] of prepared samples."""
        return self.head(self.backbone.features(fitted))
