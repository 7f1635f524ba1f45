"""The top of a backbone file as a torch module: the same operators in the same order, its weights to be learned."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from edgecl.errors import BackboneError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from edgecl.backbones.cut import LayersAbove

    Attributes = dict[str, Any]
    Layer = tuple[nn.Module, dict[str, tuple[str, bool]]]    # parameter -> name of the weight, whether it is transposed


WEIGHT = 1 / 16     # root of the mean square of a layer's weights, see `OnnxModule.paces`


class OnnxModule(nn.Module):
    """float [n, ...] at the cut -> features float32 [n, d].

    Raises BackboneError for an operator that is not known.
    """

    def __init__(self, top: LayersAbove) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        self.origin: dict[str, tuple[str, bool]] = {}       # parameter of this module -> weight, transposed
        self.steps: list[tuple[Callable[..., Tensor], list[str], str, list[str]]] = []   # ..., what is done with then
        self.input, self.output = top.input, top.output
        self.constants: dict[str, Tensor] = {}      # what is used and not learned
        uses = [name for node in top.nodes for name in node.given] + [top.output]
        for place, (kind, names, made, attributes) in enumerate(top.nodes):
            given = [name for name in names if name]
            del uses[:len(names)]
            done = [name for name in dict.fromkeys(given) if name not in uses and name not in top.weights]
            weights = {name: top.weights[name] for name in given if name in top.weights}
            if kind in LAYERS and len(weights) == len(given) - 1:
                layer, origin = LAYERS[kind](given, weights, attributes)
                key = f"{place:03d}"
                self.layers[key] = layer
                self.origin |= {f"layers.{key}.{name}": where for name, where in origin.items()}
                self.steps.append((layer, given[:1], made, done))
            elif kind in OPERATORS:
                self.constants |= {name: torch.tensor(values) for name, values in weights.items()}
                self.steps.append((OPERATORS[kind](attributes), given, made, done))
            else:
                raise BackboneError(f"a backbone with the operator {kind} can't be tuned",
                                    "tune fewer blocks, or export it with plain operators")

    def forward(self, x: Tensor) -> Tensor:
        known = {**self.constants, self.input: x.float()}
        for run, given, made, done in self.steps:
            known[made] = run(*(known[name] for name in given))
            for name in done:
                del known[name]
        return known[self.output]

    def _apply(self, change: Any, recurse: bool = True) -> OnnxModule:
        """Constants move with the parameters."""
        super()._apply(change, recurse)
        self.constants = {name: value.to(next(self.parameters()).device) for name, value in self.constants.items()}
        return self

    def paces(self) -> dict[str, Tensor]:
        """What each layer's gradient is to be multiplied with, a row at a time: its mean square, in units of WEIGHT^2.

        Batch normalisation was folded into these weights. A row w = g v, g its gain, takes steps that are g^2 times
        those of v; as v is not known, but weights under batch normalisation and decay come to a size of WEIGHT
        (0.053 to 0.070 in all layers of EfficientNet-Lite0), g follows from the size of w.
        """
        sizes = {name: p.detach().flatten(1).square().mean(1) / WEIGHT ** 2 for name, p in self.named_parameters()
                 if p.dim() > 1}
        return {name: torch.where(size > 0, size, 1.0).view(-1, *[1] * len(self.get_parameter(name).shape[1:]))
                for name, size in sizes.items()}

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """The learned weights by their names in the file."""
        parameters = dict(self.named_parameters())
        found = {}
        for name, (weight, transposed) in self.origin.items():
            values = parameters[name].detach().cpu().float()
            found[weight] = np.array((values.T if transposed else values).contiguous().numpy())
        return found

    def load(self, weights: dict[str, NDArray[np.float32]]) -> None:
        """The inverse of `weights`."""
        parameters = dict(self.named_parameters())
        with torch.no_grad():
            for name, (weight, transposed) in self.origin.items():
                values = torch.tensor(weights[weight])
                parameters[name].copy_(values.T if transposed else values)


def _tensor(values: NDArray[Any]) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float32))


def _convolution(given: list[str], weights: dict[str, NDArray[Any]], about: Attributes) -> Layer:
    values = weights[given[1]]
    axes = values.ndim - 2
    pads = about.get("pads", [0] * 2 * axes)
    if about.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise BackboneError("a convolution that pads by itself can't be tuned", "export it with explicit pads")
    even = pads[:axes] == pads[axes:]
    group = about.get("group", 1)
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](
        values.shape[1] * group, values.shape[0], values.shape[2:], tuple(about.get("strides", [1] * axes)),
        tuple(pads[:axes]) if even else 0, tuple(about.get("dilations", [1] * axes)), group, len(given) > 2)
    convolution.weight = _tensor(values)
    origin = {"weight": (given[1], False)}
    if len(given) > 2:
        convolution.bias, origin["bias"] = _tensor(weights[given[2]]), (given[2], False)
    if even:
        return convolution, origin
    padding = [side for axis in reversed(range(axes)) for side in (pads[axis], pads[axes + axis])]
    return nn.Sequential(_Padded(padding), convolution), {f"1.{name}": where for name, where in origin.items()}


class _Padded(nn.Module):
    def __init__(self, padding: list[int]) -> None:
        super().__init__()
        self.padding = padding

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, self.padding)


def _dense(given: list[str], weights: dict[str, NDArray[Any]], about: Attributes) -> Layer:
    values, transposed = weights[given[1]], not about.get("transB", 0)
    if values.ndim != 2 or about.get("transA", 0) or {about.get("alpha", 1.0), about.get("beta", 1.0)} != {1.0}:
        raise BackboneError("a scaled or stacked matrix product can't be tuned", "export it with plain operators")
    layer = nn.Linear(1, 1, len(given) > 2)
    layer.weight = _tensor(values.T if transposed else values)
    origin = {"weight": (given[1], transposed)}
    if len(given) > 2:
        layer.bias, origin["bias"] = _tensor(weights[given[2]]), (given[2], False)
    return layer, origin


LAYERS: dict[str, Callable[..., Layer]] = {"Conv": _convolution, "Gemm": _dense, "MatMul": _dense}


def _clip(about: Attributes) -> Callable[..., Tensor]:
    return lambda x, low=None, high=None: torch.clamp(x, low, high)


def _reduced(about: Attributes) -> Callable[..., Tensor]:
    keep = bool(about.get("keepdims", 1))
    return lambda x, axes=None: x.mean(tuple(about.get("axes") or axes.tolist()), keep)


def _pool(kind: str) -> Callable[[Attributes], Callable[..., Tensor]]:
    def make(about: Attributes) -> Callable[..., Tensor]:
        size, strides = about["kernel_shape"], about.get("strides")
        pads = about.get("pads", [0] * 2 * len(size))
        if pads[:len(size)] != pads[len(size):] or about.get("ceil_mode", 0):
            raise BackboneError("a pooling with uneven pads can't be tuned", "tune fewer blocks")
        pooled = getattr(F, f"{kind}_pool{len(size)}d")
        extra = {"count_include_pad": bool(about.get("count_include_pad", 0))} if kind == "avg" else {}
        return lambda x: pooled(x, tuple(size), tuple(strides or [1] * len(size)), tuple(pads[:len(size)]), **extra)
    return make


def _plain(run: Callable[..., Tensor]) -> Callable[[Attributes], Callable[..., Tensor]]:
    return lambda about: run


OPERATORS: dict[str, Callable[[Attributes], Callable[..., Tensor]]] = {
    "Clip": _clip, "ReduceMean": _reduced, "MaxPool": _pool("max"), "AveragePool": _pool("avg"),
    "Relu": _plain(F.relu), "HardSwish": _plain(F.hardswish), "Sigmoid": _plain(torch.sigmoid),
    "Add": _plain(torch.add), "Sub": _plain(torch.sub), "Mul": _plain(torch.mul), "Div": _plain(torch.div),
    "Identity": _plain(lambda x: x),
    "GlobalAveragePool": _plain(lambda x: x.mean(tuple(range(2, x.dim())), True)),
    "HardSigmoid": lambda about: lambda x: (about.get("alpha", 0.2) * x + about.get("beta", 0.5)).clamp(0, 1),
    "Flatten": lambda about: lambda x: x.flatten(about.get("axis", 1)),
    "Concat": lambda about: lambda *xs: torch.cat(xs, about["axis"]),
    "Transpose": lambda about: lambda x: x.permute(*about["perm"]),
}
