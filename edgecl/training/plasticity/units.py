"""How the units of a small network are connected: which units each layer reads and which it computes."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from edgecl.errors import BadInput
from edgecl.training.networks.network import Causal, Residual
from edgecl.training.plasticity.masks import WEIGHTED

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgecl.training.networks.network import Network

INPUT = "input"     # the group of the input: it neither shrinks nor grows


@dataclass(frozen=True)
class Layer:
    """A layer and its groups of units. name: in the network; reads, makes: groups; fan: inputs per unit read (the
    pixels of a channel, once they are flat)."""

    name: str
    reads: str
    makes: str
    fan: int


def layers(network: Network) -> list[Layer]:
    """All layers below the head in order; the last group is the features. Raises BadInput for a network whose units are
    tied together."""
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
    """How many units each group has, without the input."""
    return {layer.makes: len(network.get_submodule(layer.name).weight) for layer in layers(network)}  # type: ignore[arg-type]


def spread(layer: Layer, units: Tensor) -> Tensor:
    """Values of the units that a layer reads, as values of its inputs."""
    return units.repeat_interleave(layer.fan, -1)


def between(weight: Tensor, layer: Layer, made: Tensor, read: Tensor | None) -> Tensor:
    """bool of the shape of the weights: from units `read` (None: all) to units `made`, each bool."""
    inputs = torch.ones(weight.shape[1], dtype=torch.bool) if read is None else spread(layer, read)
    table = made[:, None] & inputs[None]
    return table.view(*table.shape, *[1] * (weight.dim() - 2)).expand(weight.shape)


def weights_of(network: Network, chain: list[Layer], alive: dict[str, Tensor]) -> dict[str, Tensor]:
    """bool, by name: the weights between units that are alive, and these units' biases."""
    found, state = {}, network.state_dict()
    for layer in chain:
        weight, made = state[f"{layer.name}.weight"], alive[layer.makes]
        found[f"{layer.name}.weight"] = between(weight, layer, made, alive.get(layer.reads))
        if f"{layer.name}.bias" in state:
            found[f"{layer.name}.bias"] = made
    return found


def into(network: Network, chain: list[Layer], made: dict[str, Tensor]) -> dict[str, Tensor]:
    """bool, by name: all weights into units, and their biases."""
    state = network.state_dict()
    return {name: mask for layer in chain for name, mask in _into(state, layer, made[layer.makes])}


def _into(state: dict[str, Tensor], layer: Layer, made: Tensor) -> list[tuple[str, Tensor]]:
    found = [(f"{layer.name}.weight", between(state[f"{layer.name}.weight"], layer, made, None))]
    return found + ([(f"{layer.name}.bias", made)] if f"{layer.name}.bias" in state else [])


class Activity:
    """Watches the mean activity of each unit of a network, after its ReLU, over samples and places."""

    def __init__(self, network: Network, chain: list[Layer]) -> None:
        self.last: dict[str, Tensor] = {}       # group -> float32 [units], of the last pass
        self.handles = []
        for layer in chain:
            parent, _, own = layer.name.rpartition(".")
            if own == "short":
                continue        # of the sum that `second` is part of
            module = network.get_submodule(parent if own == "second" else layer.name)
            self.handles.append(module.register_forward_hook(self._hook(layer.makes)))

    def _hook(self, group: str) -> Callable[..., None]:
        def hook(module: nn.Module, given: object, made: Tensor) -> None:
            self.last[group] = made.relu().transpose(0, 1).flatten(1).mean(1)

        return hook

    def over(self, network: Network, x: Tensor) -> dict[str, Tensor]:
        """Group -> the mean activity over all samples, float32 [units]."""
        total: dict[str, Tensor] = {}
        with torch.inference_mode():
            for start in range(0, len(x), network.block):
                part = x[start:start + network.block]
                network(part)
                for group, mean in self.last.items():
                    total[group] = total.get(group, torch.zeros_like(mean)) + mean * (len(part) / len(x))
        return {group: mean.clone() for group, mean in total.items()}

    def close(self) -> None:
        """Watch no longer."""
        for handle in self.handles:
            handle.remove()
