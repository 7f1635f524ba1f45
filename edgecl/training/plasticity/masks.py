"""Masks packed in bits, and the names of the weights that they are of."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Mapping

WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def weight_names(network: nn.Module) -> list[str]:
    """The weights of all layers below the head."""
    return [f"{name}.weight" for name, layer in network.named_modules()
            if isinstance(layer, WEIGHTED) and not name.startswith("head")]


def bias_names(network: nn.Module) -> list[str]:
    """Their biases."""
    return [f"{name}.bias" for name, layer in network.named_modules()
            if isinstance(layer, WEIGHTED) and layer.bias is not None and not name.startswith("head")]


def norm_names(network: nn.Module) -> list[str]:
    """Scales, shifts and running statistics of batch normalisation."""
    return [f"{name}.{part}" for name, layer in network.named_modules() if isinstance(layer, NORMS)
            for part in ("weight", "bias", "running_mean", "running_var")]


def fresh(weight: Tensor, generator: np.random.Generator) -> Tensor:
    """New initial weights (He et al. 2015), biases of 0."""
    if weight.dim() < 2:
        return torch.zeros_like(weight)
    drawn = generator.standard_normal(weight.shape, np.float32) * (2 / weight[0].numel()) ** 0.5
    return torch.from_numpy(drawn.astype(np.float32))


def packed_bytes(values: int, bits: int) -> int:
    """Bytes that `pack` returns for so many numbers of so many bits."""
    return -(-values * bits // 8)


def bits_for(most: int) -> int:
    """How many bits the numbers 0 to `most` take."""
    return most.bit_length()


def pack(numbers: Mapping[str, Tensor], bits: int) -> np.ndarray:
    """All numbers of all tensors in order, `bits` bits each, as uint8."""
    flat = np.concatenate([values.reshape(-1).numpy().astype(np.uint8) for values in numbers.values()])
    planes = (flat[:, None] >> np.arange(bits, dtype=np.uint8)) & 1
    return np.packbits(planes.astype(bool).reshape(-1))


def unpack(packed: np.ndarray, bits: int, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `pack`: uint8 tensors of the shapes of `like`."""
    count = sum(values.numel() for values in like.values())
    planes = np.unpackbits(packed, count=count * bits).reshape(count, bits)
    flat = torch.from_numpy((planes << np.arange(bits, dtype=np.uint8)).sum(1).astype(np.uint8))
    parts = flat.split([values.numel() for values in like.values()])
    return {name: part.view(values.shape).clone() for (name, values), part in zip(like.items(), parts)}
