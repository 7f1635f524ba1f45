"""Networks with more units: the old ones come first, so that what they compute keeps its place."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from edgecl.training.plasticity.units import INPUT, layers, sizes

if TYPE_CHECKING:
    from edgecl.training.networks.network import Network


def grow(network: Network, width: dict[str, int]) -> None:
    """Give each group so many units, with weights of 0 for new ones. The head reads all features."""
    chain, before = layers(network), sizes(network)
    for layer in chain:
        module = network.get_submodule(layer.name)
        weight: Tensor = module.weight      # type: ignore[assignment]
        made = width[layer.makes]
        read = weight.shape[1] if layer.reads == INPUT else layer.fan * width[layer.reads]
        wide = weight.new_zeros((made, read, *weight.shape[2:]))
        wide[:weight.shape[0], :weight.shape[1]] = weight.detach()
        module.weight = nn.Parameter(wide)
        if isinstance(module.bias, Tensor):
            module.bias = nn.Parameter(torch.cat([module.bias.detach(), wide.new_zeros(made - before[layer.makes])]))
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = made, read
        else:
            module.out_channels, module.in_channels = made, read    # type: ignore[assignment]
    head: Any = getattr(network.head, "head", network.head)
    *rows, before_it = head.weight.shape
    more = head.weight.new_zeros(*rows, width[chain[-1].makes] - before_it)
    head.weight = nn.Parameter(torch.cat([head.weight.detach(), more], -1))


def widths(network: Network, factor: float) -> dict[str, int]:
    """Group -> units if all but the features are wider by a factor, so that the head fits."""
    found = sizes(network)
    last = layers(network)[-1].makes
    return {group: size if group == last else int(size * factor) for group, size in found.items()}


def first_units(width: dict[str, int], most: dict[str, int]) -> dict[str, Tensor]:
    """Group -> bool: the first `width` of its `most` units."""
    return {group: torch.arange(units) < width[group] for group, units in most.items()}
