"""Class statistics as all that is kept of the data."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from edgecl.statistics.class_statistics import ClassStatistics
from edgecl.statistics.transform import FeatureTransform
from edgecl.training.batch import held_back
from edgecl.training.memory.base import Memory
from edgecl.training.networks.network import outputs

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgecl.training.batch import Batch
    from edgecl.training.networks.network import Network
    from edgecl.training.part import Arrays


class Statistics(Memory):
    """Class statistics of a frozen network, see `edgecl.statistics.class_statistics`; stored as arrays between rounds.

    layer: "map" (before the neck) or "features"; power: Tukey's; projection: length of a random projection, 0 for none.
    """

    bounded = False

    def __init__(self, room: int, nothing: Batch, layer: str, power: float, projection: int) -> None:
        super().__init__(room, nothing)
        self.layer, self.power, self.projection = layer, power, projection
        self.arrays: Arrays = {}

    def transform(self, source: int) -> FeatureTransform:
        """The transform of features of that length; its matrix comes from a fixed seed."""
        return FeatureTransform(source, self.projection or source, self.power, self.projection > 0)

    def update(self, new: Batch, network: Network) -> None:
        if self.withholds:
            new = new.take(torch.from_numpy(np.flatnonzero(~held_back(new))))
        f = outputs(network.body if self.layer == "map" else network.features, new.x, network.block).numpy()
        h = self.transform(f.shape[1])(f)
        statistics = self.statistics() if self.arrays else ClassStatistics(h.mean(0))
        for column in new.y.unique().tolist():
            statistics.add(f"{column:06d}", h[new.y.numpy() == column])
        self.arrays = statistics.to_arrays()

    def statistics(self) -> ClassStatistics:
        """Labels are columns written with six digits, so that they sort as the columns do."""
        return ClassStatistics.from_arrays(self.arrays)

    def state(self) -> Arrays:
        return dict(self.arrays)

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self.arrays = {name: array.copy() for name, array in state.items()}
