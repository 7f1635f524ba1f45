"""The sessions of a state, kept open from one answer to the next: its backbone, and what answers now."""
from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from edgecl.backbones.session import Backbone
from edgecl.errors import StateError
from edgecl.learning.backbone_file import backbone_file
from edgecl.learning.serving import Serving
from edgecl.learning.why import Explainer, explainer_of
from edgecl.samples import batches_of, prepare

if TYPE_CHECKING:
    from edgecl.learning.repository import Repository
    from edgecl.samples import Samples


class Sessions:
    """The sessions of a state that are open."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self.store, self.settings = repository.store, repository.settings
        self._backbone: tuple[str, Backbone] | None = None
        self._serving: Serving | None = None
        self._explainer: tuple[Serving, Explainer] | None = None

    def forget_generations(self) -> None:
        """Close what is open for a generation's number."""
        self._serving = self._explainer = None

    @property
    def opened(self) -> str | None:
        """The backbone file that is open; None if none is."""
        return self._backbone[0] if self._backbone else None

    def backbone(self, name: str | None = None) -> Backbone:
        """The session of a backbone file (default: the current one), kept while only heads change."""
        name = name or self.store.newest.backbone
        assert name is not None
        if self._backbone is None or self._backbone[0] != name:
            foundation = self.repository.foundation
            assert foundation is not None
            self._backbone = name, Backbone(backbone_file(self.store, foundation, name), self.settings.threads)
        return self._backbone[1]

    def serving(self) -> Serving:
        """The sessions that answer now, which other threads may use too. Raises StateError where nothing was taught."""
        current = self.store.current    # first: if another database lies there now, what was kept is dropped
        if self._serving is None or self._serving.current != current:
            self._serving = self._explainer = None  # so that they take no memory while the next head is solved
            with suppress(StateError):  # `Serving` says so; a backbone is written back outside of its transaction only
                if self.store.newest.backbone:
                    self.backbone()
            with suppress(StateError):  # a head is written outside of it as well
                self.repository.heads.solve()
            self._serving = Serving(self.store, self.backbone, self.repository.heads.model)
        return self._serving

    def explaining(self) -> tuple[Serving, Explainer]:
        """The sessions that answer now, and what explains their answers, which is made when it is first asked for and
        kept as long as they serve. Other threads may use both. Raises StateError where nothing was taught."""
        serving = self.serving()
        if self._explainer is None or self._explainer[0] is not serving:
            self._explainer = None      # so that it does not take memory while the next one is made
            self._explainer = serving, explainer_of(self.repository, serving.generation)
        return self._explainer

    def features(self, samples: Samples) -> np.ndarray:
        """The backbone's features float32 [n, d]. Raises StateError without a backbone."""
        foundation = self.repository.foundation
        if foundation is None:
            raise StateError(f"{self.store.path} has no backbone yet", "teach it something first")
        backbone = self.backbone()
        return np.concatenate([backbone.features(prepare(batch.data, foundation.kind, foundation.input_shape))
                               for batch in batches_of(samples)])
