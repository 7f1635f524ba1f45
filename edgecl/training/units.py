"""How the units of a small network hang together: which layer reads which units and which it makes."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgecl.errors import BadInput
from edgecl.training.masks import WEIGHTED
from edgecl.training.network import Causal, Residual

if TYPE_CHECKING:
    from edgecl.training.network import Network

INPUT = "input"     # the group of what comes in: it neither shrinks nor grows


@dataclass(frozen=True)
class Layer:
    """A layer and its groups of units. name: in the network; reads, makes: groups; fan: inputs that come of one unit
    (a convolution's pixels, once they are flat)."""

    name: str
    reads: str
    makes: str
    fan: int


def layers(network: Network) -> list[Layer]:
    """All layers below the head in order; the last group is the features. Raises BadInput for a network whose units
    can't be told apart."""
    found: list[Layer] = []
    group, size = INPUT, 0
    chain = [(f"body.{name}", layer) for name, layer in network.body.named_children()]
    chain += [(f"neck.{name}", layer) for name, layer in network.neck.named_children()]
    for name, layer in chain:
        if isinstance(layer, Residual):
            raise BadInput("the units of resnet32 are tied by shortcuts that change their number",
                           "give --backbone cnn, mlp or tcn, or a method that masks weights: packnet or lottery")
        if isinstance(layer, Causal):   # all levels add to the same channels
            stream = "stream"
            inside = group if isinstance(layer.short, nn.Conv1d) else stream
            found += [Layer(f"{name}.first", inside, name, 1), Layer(f"{name}.second", name, stream, 1)]
            if isinstance(layer.short, nn.Conv1d):
                found.append(Layer(f"{name}.short", inside, stream, 1))
            group, size = stream, layer.second.out_channels
        elif isinstance(layer, WEIGHTED):
            inputs = layer.weight.shape[1]
            found.append(Layer(name, group, name, inputs // size if size else 1))
            group, size = name, len(layer.weight)
    return found


def sizes(network: Network) -> dict[str, int]:
    """How many units each group has, what comes in left out."""
    return {layer.makes: len(network.get_submodule(layer.name).weight) for layer in layers(network)}  # type: ignore[arg-type]


def spread(layer: Layer, units: Tensor) -> Tensor:
    """What is said of the units that a layer reads, said of its inputs."""
    return units.repeat_interleave(layer.fan, -1)


def grid(weight: Tensor, layer: Layer, between: Tensor) -> Tensor:
    """A table [units made, units read] as one of the shape of the layer's weights."""
    table = spread(layer, between)
    return table.view(*table.shape, *[1] * (weight.dim() - 2)).expand(weight.shape)


def between(weight: Tensor, layer: Layer, made: Tensor, read: Tensor | None) -> Tensor:
    """bool of the shape of the weights: from units `read` (None: all) to units `made`, each bool."""
    inputs = torch.ones(weight.shape[1], dtype=torch.bool) if read is None else spread(layer, read)
    table = made[:, None] & inputs[None]
    return table.view(*table.shape, *[1] * (weight.dim() - 2)).expand(weight.shape)
