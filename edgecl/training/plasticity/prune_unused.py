"""A network without the units that have no input or no output, so that a smaller file answers the same."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgecl.errors import BadInput
from edgecl.training.plasticity.units import INPUT, layers, spread

if TYPE_CHECKING:
    from edgecl.training.networks.network import Network
    from edgecl.training.plasticity.units import Layer


def compacted(network: Network) -> tuple[Network, Tensor]:
    """The network, changed in place, and the features that are left, int64 [m]. If its units are tied together, all
    stay."""
    every = torch.arange(network.head.weight.shape[-1])
    try:
        chain = layers(network)
    except BadInput:
        return network, every
    alive = living(network, chain)
    with torch.no_grad():
        for layer in chain:
            _shrink(network.get_submodule(layer.name), layer, alive)
        features = alive[chain[-1].makes]
        head: Any = getattr(network.head, "head", network.head)
        head.weight = nn.Parameter(head.weight[..., features].clone())
    return network, every[features]


def living(network: Network, chain: list[Layer]) -> dict[str, Tensor]:
    """Group -> bool [units]: whether a unit's value can be other than 0, and something reads it. Features are kept if
    their value can be other than 0, whether they are read or not."""
    alive: dict[str, Tensor] = {}
    last = chain[-1].makes
    while True:
        before = {group: units.clone() for group, units in alive.items()}
        for group in dict.fromkeys(layer.makes for layer in chain):
            makers, readers = ([layer for layer in chain if getattr(layer, end) == group] for end in ("makes", "reads"))
            fed = torch.stack([_fed(network, layer, alive) for layer in makers]).any(0)
            read = [_read(network, layer, alive) for layer in readers]
            alive[group] = fed & torch.stack(read).any(0) if read and group != last else fed
            if not alive[group].any():
                alive[group][0] = True      # a layer has at least one unit
        if before and all(torch.equal(before[group], units) for group, units in alive.items()):
            return alive


def _weights(network: Network, layer: Layer) -> Tensor:
    weight: Tensor = network.get_submodule(layer.name).weight      # type: ignore[assignment]
    return (weight != 0).flatten(2).any(2) if weight.dim() > 2 else weight != 0


def _fed(network: Network, layer: Layer, alive: dict[str, Tensor]) -> Tensor:
    used, bias = _weights(network, layer), network.get_submodule(layer.name).bias
    if layer.reads in alive:
        used = used & spread(layer, alive[layer.reads])
    return used.any(1) | (bias != 0) if isinstance(bias, Tensor) else used.any(1)


def _read(network: Network, layer: Layer, alive: dict[str, Tensor]) -> Tensor:
    used = _weights(network, layer)
    if layer.makes in alive:
        used = used & alive[layer.makes][:, None]
    return used.any(0).view(-1, layer.fan).any(1)


def _shrink(module: nn.Module, layer: Layer, alive: dict[str, Tensor]) -> None:
    weight: Tensor = module.weight     # type: ignore[assignment]
    made = weight[alive[layer.makes]]
    if layer.reads != INPUT:
        made = made[:, spread(layer, alive[layer.reads])]
    module.weight = nn.Parameter(made.clone())
    if isinstance(module.bias, Tensor):
        module.bias = nn.Parameter(module.bias[alive[layer.makes]].clone())
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = made.shape[0], made.shape[1]
    else:
        module.out_channels, module.in_channels = made.shape[0], made.shape[1]     # type: ignore[assignment]
