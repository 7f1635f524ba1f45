"""Networks small enough for boards; each carries its own scaling, so that what is exported takes what was learned."""
from __future__ import annotations

import math
from collections import OrderedDict
from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from edgecl.errors import BadInput
from edgecl.rounds.parts import WHERE
from edgecl.training.own_code import imported

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from edgecl.training.networks.heads import AffineMap, Head

EVALUATION_BLOCK = 64    # samples per forward pass outside training: 256 take 16 MB more and 6 % less time


class Served(nn.Module):
    """Serves: an input -> (features, logits)."""

    def affine(self) -> AffineMap | None:
        """See `heads.Softmax.affine`."""
        return None


class Network(Served):
    """uint8 images [n, h, w, c], float32 windows [n, time, channels] or vectors [n, d], or float16 activations of a
    frozen trunk [n, c, h, w] -> features and logits.

    body: scaling and all layers up to one flat vector, the map [n, D]; neck: map -> features [n, d]; mirror: the axis
    of samples that turns left into right, or None; block: samples per forward pass outside training.
    """

    block = EVALUATION_BLOCK
    start = 0       # layers below it, see `above`

    def __init__(self, body: nn.Module, neck: nn.Module, head: Head, map_size: int, mirror: int | None = None) -> None:
        super().__init__()
        self.body, self.neck, self.head, self.map_size, self.mirror = body, neck, head, map_size, mirror

    @property
    def device(self) -> torch.device:
        """Where it computes; samples come from the processor's memory."""
        return self.head.weight.device

    def layers(self) -> list[tuple[str, nn.Module]]:
        """Names and modules from the input to the features: where activations can be taken out, and put in again."""
        body = list(self.body.named_children()) if isinstance(self.body, nn.Sequential) else [("", self.body)]
        return [*((f"body.{name}" if name else "body", layer) for name, layer in body), ("neck", self.neck)]

    @property
    def map_place(self) -> int:
        """How many layers lie below the map."""
        return self.start + len(self.layers()) - 1

    def below(self, x: Tensor, place: int) -> Tensor:
        """The activations above the first `place` layers of samples, or of activations above `start` layers."""
        x = x.to(self.device)
        for _, layer in self.layers()[:place - self.start]:
            x = layer(x)
        return x

    def train_above(self, place: int) -> None:
        """Training mode, but for the first `place` layers: their batch normalisation goes by what it has seen."""
        self.train()
        for _, layer in self.layers()[:max(place - self.start, 0)]:
            layer.eval()

    def above(self, place: int) -> Network:
        """What lies above the first `place` layers as a network of its own: the same parameters, by the same names."""
        if place == self.start:
            return self
        layers = self.layers()[place - self.start:-1]
        body = nn.Sequential(OrderedDict((name.removeprefix("body."), layer) for name, layer in layers))
        top = Network(body, self.neck if place <= self.map_place else nn.Identity(), self.head, self.map_size)
        top.block, top.start = self.block, place
        return top

    def features(self, x: Tensor, place: int | None = None) -> Tensor:
        """float32 [n, d]; place: of activations, the layers below them."""
        if place is None or place == self.start:
            features: Tensor = self.neck(self.body(x.to(self.device)))
            return features
        return self.above(place).features(x)

    def paces(self, head: float = 1.0, place: int = 0, lower: float = 1.0) -> list[Tensor | float]:
        """The factor of each parameter's gradient before a step. head: that of the head; lower: that of the
        first `place` layers."""
        known: dict[str, Tensor] = getattr(self.body, "paces", dict)()      # of a `from_onnx.OnnxModule`
        slow = tuple(f"{name}." for name, _ in self.layers()[:max(place - self.start, 0)])
        return [head if name.startswith("head.") else
                known.get(name.removeprefix("body."), 1.0) * (lower if name.startswith(slow) else 1.0)
                for name, _ in self.named_parameters()]

    def restart(self, generator: np.random.Generator) -> None:
        """Draw all weights again, in place; those of a graph stay, since they were pretrained."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(generator.integers(2**62)))
            if not hasattr(self.body, "paces"):
                self.body.apply(_initialise)
            self.neck.apply(_initialise)
        fresh = deepcopy(self.head)
        fresh.weight = nn.Parameter(fresh.weight.detach()[:0])
        if hasattr(fresh, "bias"):
            fresh.bias = nn.Parameter(fresh.bias.detach()[:0])
        fresh.extend(self.head.classes, generator)
        self.head.load_state_dict(fresh.state_dict())

    def affine(self) -> AffineMap | None:
        return self.head.affine()

    def forward(self, x: Tensor, place: int | None = None) -> tuple[Tensor, Tensor]:
        features = self.features(x, place)
        return features, self.head(features)


def outputs(module: Callable[[Tensor], Tensor], x: Tensor, block: int = EVALUATION_BLOCK) -> Tensor:
    """What a module or one of its methods answers for x [n, ...], without gradients, a block at a time."""
    with torch.inference_mode():
        found = torch.cat([module(x[start:start + block]).cpu() for start in range(0, max(len(x), 1), block)])
    return found.clone()   # made outside: an ordinary tensor, which may take part in training


def centred(x: Tensor) -> Tensor:
    """uint8 -> float32 in -1..1: about 0, or half of the first layer's gradient goes into the mean (LeCun et al. 1998,
    section 4.3); measured with cnn on Fashion-MNIST, joint training gains 0.012 over 0..1."""
    return (x.float() - 127.5) / 127.5


class Planes(nn.Module):
    """uint8 [n, h, w, c] -> float32 [n, c, h, w] in -1..1; in memory the channels stay last."""

    def forward(self, x: Tensor) -> Tensor:
        return centred(x.permute(0, 3, 1, 2))


class Channels(nn.Module):
    """Windows [n, time, channels] -> [n, channels, time]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Flat(nn.Module):
    """Any input as a vector; uint8 in -1..1."""

    def forward(self, x: Tensor) -> Tensor:
        return centred(x.flatten(1)) if x.dtype == torch.uint8 else x.flatten(1)


def mlp(shape: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
    """Two hidden layers of 256 and 128."""
    body = nn.Sequential(Flat(), nn.Linear(math.prod(shape), 256), nn.ReLU())
    return body, nn.Sequential(nn.Linear(256, 128), nn.ReLU())


def cnn(shape: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
    """Three convolutions 3 x 3 of stride 2 and one linear layer: 93,322 parameters at 28 x 28 x 1 with 10 outputs."""
    body = nn.Sequential(
        Planes(), nn.Conv2d(shape[2], 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, 2), nn.ReLU(), nn.Flatten())
    height, width = (((((side + 1) // 2 + 1) // 2) - 3) // 2 + 1 for side in shape[:2])
    if min(height, width) < 1:
        raise BadInput(f"images of {shape[0]} x {shape[1]} are too small for cnn", "give 9 x 9 or more, or use mlp")
    return body, nn.Sequential(nn.Linear(64 * height * width, 64), nn.ReLU())


class Residual(nn.Module):
    """Two convolutions with batch normalisation about a parameter-free shortcut (He et al. 2016, section 4.2, A)."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.stride, self.more = (1, 0) if inside == outside else (2, outside - inside)
        self.first = nn.Sequential(nn.Conv2d(inside, outside, 3, self.stride, 1, bias=False), nn.BatchNorm2d(outside))
        self.second = nn.Sequential(nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside))
        self.out: nn.Module = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more // 2, self.more - self.more // 2)) if self.more else x
        return self.out(self.second(F.relu(self.first(x))) + short)


def resnet32(shape: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
    """The CIFAR form (He et al. 2016, section 4.2; n = 5): 464,154 parameters at 32 x 32 x 3 with 10 outputs."""
    widths = [16] * 5 + [32] * 5 + [64] * 5
    blocks = [Residual(inside, outside) for inside, outside in zip([16, *widths], widths)]
    return nn.Sequential(Planes(), nn.Conv2d(shape[2], 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), *blocks,
                         nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Identity()


class Causal(nn.Module):
    """Two dilated convolutions that see the past only, about a shortcut (Bai et al. 2018, section 3.3)."""

    def __init__(self, inside: int, outside: int, dilation: int) -> None:
        super().__init__()
        self.before = 2 * dilation
        self.first = nn.Conv1d(inside, outside, 3, dilation=dilation)
        self.second = nn.Conv1d(outside, outside, 3, dilation=dilation)
        self.short = nn.Identity() if inside == outside else nn.Conv1d(inside, outside, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(F.pad(x, (self.before, 0))))
        return F.relu(F.relu(self.second(F.pad(h, (self.before, 0)))) + self.short(x))


class MeanOverTime(nn.Module):
    """[n, channels, time] -> mean over time [n, channels]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(2)


def tcn(shape: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
    """Four levels of 32 channels that see 61 samples back, after batch normalisation of the channels."""
    levels = [Causal(inside, 32, 2 ** i) for i, inside in enumerate((shape[1], 32, 32, 32))]
    body = nn.Sequential(Channels(), nn.BatchNorm1d(shape[1]), *levels, MeanOverTime())
    return body, nn.Sequential(nn.Linear(32, 64), nn.ReLU())


NETWORKS: dict[str, tuple[int, Callable[[tuple[int, ...]], tuple[nn.Module, nn.Module]]]] = {   # axes; 0: any
    "mlp": (0, mlp), "cnn": (3, cnn), "resnet32": (3, resnet32), "tcn": (2, tcn)}


def _initialise(layer: nn.Module) -> None:
    """He et al. 2015: torch's own start halves the signal at every layer, and cnn takes 50 steps to wake up."""
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    elif isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        layer.reset_parameters()


def _unbind(network: Network) -> None:
    """Leave out the last ReLU, so that features may be negative; one inside a user's own layers stays."""
    if isinstance(network.neck, nn.Sequential) and isinstance(network.neck[-1], nn.ReLU):
        network.neck = network.neck[:-1]
    elif last := [part for part in network.body.modules() if isinstance(part, Residual)]:
        last[-1].out = nn.Identity()


def build(name: str, shape: tuple[int, ...], dtype: str, head: Callable[[int], Head], seed: int) -> Network:
    """A network for inputs of that shape, without outputs yet; the seed gives its weights.

    name: of `NETWORKS`, or `package.module:function` of the user's own: shape of a sample -> (body, neck), see
    `Network`. Raises BadInput for an unknown name or an input that it can't take.
    """
    axes, make = NETWORKS[name] if name in NETWORKS else (0, own_network(name))
    if axes and (len(shape), dtype) != (axes, "uint8" if axes == 3 else "float32"):
        kinds = {3: "uint8 images [height, width, channels]", 2: "float32 windows [time, channels]"}
        raise BadInput(f"{name} can't take samples of {dtype} {list(shape)}", f"give {kinds[axes]}, or use mlp")
    image = axes == 3 or (name not in NETWORKS and (len(shape), dtype) == (3, "uint8"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body, neck = (part.apply(_initialise) for part in make(shape))
        sample = torch.zeros(2, *shape, dtype=getattr(torch, dtype))
        flat = outputs(body.eval(), sample)
        features = outputs(neck.eval(), flat)
        if flat.dim() != 2 or features.dim() != 2 or features.dtype != torch.float32:
            raise BadInput(f"{name} makes {list(flat.shape)}, then {list(features.shape)} of 2 samples",
                           "make a body that gives vectors [n, D], and a neck that gives float32 features [n, d]")
        network = Network(body, neck, head(features.shape[1]), flat.shape[1], 2 if image else None).eval()
        if network.head.signed:
            _unbind(network)
    return network.to(memory_format=torch.channels_last) if image else network


def own_network(where: str) -> Callable[[tuple[int, ...]], tuple[nn.Module, nn.Module]]:
    """The user's own function that makes a body and a neck. Raises BadInput if there is none."""
    if not WHERE.fullmatch(where):
        raise BadInput(f"there is no network {where!r}",
                       f"give one of {', '.join(NETWORKS)}, or package.module:function of your own")
    make = imported(where)

    def made(shape: tuple[int, ...]) -> tuple[nn.Module, nn.Module]:
        found = make(shape) if callable(make) else None
        if not isinstance(found, tuple) or len(found) != 2 or not all(isinstance(part, nn.Module) for part in found):
            raise BadInput(f"{where} gives {type(found).__name__}, not two modules",
                           "give a function: shape of a sample -> (body, neck)")
        return found

    return made
