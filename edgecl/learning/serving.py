"""Answering: the sessions of one generation, and the fallback to an older one if a file is damaged."""
from __future__ import annotations

import time
from typing import TYPE_CHECKING

from edgecl.errors import StateError
from edgecl.heads.onnx_head import HeadSession
from edgecl.results import LIKE_NOTHING, Prediction, untold
from edgecl.samples import NOTHING, blank, prepare

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgecl.backbones.session import Backbone
    from edgecl.learning.why import Explainer
    from edgecl.results import Why
    from edgecl.state.generations import Generation
    from edgecl.state.store import Store


class Serving:
    """The newest generation whose files are intact. Any thread may call `predict`.

    current: the newest generation; generation: the one that answers; head_model: its head as ONNX; warnings: see
    `StateReader.damage`, and one line if an older generation answers.
    """

    def __init__(self, store: Store, open_backbone: Callable[[str], Backbone], solve: Callable[[], bytes]) -> None:
        """open_backbone: opens a backbone file by its name in the store; solve: computes the head of the newest
        generation, if it was not written or is damaged. Raises StateError if nothing was taught yet or no generation is
        intact."""
        with store.reading():
            alive, self.warnings = store.alive(), store.damage()
            self.current = alive[-1].id
            self.generation, self.backbone_name, self.head_model = self._choose(store, alive, open_backbone, solve)
            self.backbone = open_backbone(self.backbone_name)
            self.head = HeadSession(self.head_model)
            self._blank_taught = bool(store.meta.get("blank"))  # then the head tells what such a sample is

    def _choose(self, store: Store, alive: list[Generation], open_backbone: Callable[[str], Backbone],
                solve: Callable[[], bytes]) -> tuple[int, str, bytes]:
        """The newest generation whose backbone and head are intact, its backbone's name and its head."""
        newest = alive[-1]
        problem = StateError(f"{store.path} has learned nothing yet", "teach it with `edgecl learn --class NAME ...`")
        for generation in reversed(alive if newest.detail.get("classes") else []):
            if generation.backbone is None or (generation.head is None and generation != newest):
                continue
            try:
                open_backbone(generation.backbone)
                head = self._head_of(store, generation, solve if generation == newest else None)
            except StateError as error:
                problem = error
                if error.what not in self.warnings:
                    self.warnings.append(error.what)
                continue
            if generation != newest:
                self.warnings.append(f"generation {generation.id} answers instead of {newest.id}; `edgecl rollback` "
                                     "repairs the state")
            return generation.id, generation.backbone, head
        raise problem

    def _head_of(self, store: Store, generation: Generation, solve: Callable[[], bytes] | None) -> bytes:
        """The head of a generation; solved again if that is possible and it is damaged, or an earlier edgecl judged it.
        Raises StateError."""
        if solve is not None and "judged" not in generation.detail:
            try:
                return solve()
            except StateError:
                if generation.head is None:
                    raise
        try:
            assert generation.head is not None
            return store.blob_path(generation.head).read_bytes()
        except StateError as error:
            self.warnings.append(error.what)
            if solve is None:
                raise
        return solve()

    def predict(self, batch: np.ndarray, sources: Sequence[str] = (),
                explain: Explainer | None = None) -> tuple[list[Prediction], NDArray[np.float32]]:
        """One prediction for each sample of a batch [n, ...], and the backbone's features float32 [n, d].

        sources: where each sample comes from ("" by default); explain: of this generation, to add why. Raises BadInput
        if the samples do not fit the backbone.
        """
        started = time.perf_counter()
        info = self.backbone.info
        fitted = prepare(batch, info.kind, info.input_shape)
        features = self.backbone.features(fitted)
        probabilities, novelty = self.head.scores(features)
        unknown = self.head.unknown(novelty)
        shows = [""] * len(batch) if self._blank_taught else blank(fitted, info.kind)
        each = 1000 * (time.perf_counter() - started) / len(batch)
        strange = [None] * len(batch) if unknown is None else unknown.tolist()
        told = explain(self.head, features, probabilities, novelty) if explain else [None] * len(batch)
        return [self._answer(source, row, new, each, nothing, why) for source, row, new, nothing, why in
                zip(sources or [""] * len(batch), probabilities, strange, shows, told)], features

    def _answer(self, source: str, row: NDArray[np.float32], unknown: bool | None, each: float, shows: str,
                why: Why | None) -> Prediction:
        """The answer for one sample. row: its probabilities [C]; each: milliseconds; shows: why it shows nothing, or
        ""."""
        place = int(row.argmax())
        label, confidence = self.head.labels[place], float(row[place])
        if shows:
            return Prediction(source, None, 1.0, True, each, shows, why and why._replace(outside=None))
        if label == NOTHING:
            return Prediction(source, None, confidence, True, each, LIKE_NOTHING, why)
        reason = untold(self.head.unknown_needs) if unknown is None else None
        return Prediction(source, label, confidence, unknown, each, reason, why)
