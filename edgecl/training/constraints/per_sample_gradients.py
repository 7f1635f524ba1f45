"""Powers of the gradients of single samples, summed layer by layer, for importances of weights."""
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F  # noqa: N812
from torch.nn.grad import conv1d_weight, conv2d_weight

from edgecl.training.networks.heads import Softmax

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    Ends = dict[str, tuple[Tensor, Tensor]]
    Goals = Sequence[tuple[Tensor, Tensor]]

CHUNK = 32      # samples that pass at a time: 64 take 8 MB more and a tenth less time
CONVOLUTIONS = {1: conv1d_weight, 2: conv2d_weight}
HELD_NUMBERS = 2**17    # of single samples' gradients at a time: they stay in the cache


def fisher(network: nn.Module, x: Tensor, labels: str | Tensor, generator: np.random.Generator,
           chunk: int = CHUNK) -> dict[str, Tensor]:
    """The diagonal Fisher information of a network in evaluation mode: parameter name -> mean over x [n, ...] of
    E_label (d log p(label | x) / d theta)^2. labels: int64 [n], or "drawn" once from the model, or its "exact"
    expectation; chunk: samples that pass at a time."""

    def goals(logits: Tensor, rows: slice) -> Goals:
        likelihood = F.log_softmax(logits, 1)
        chances, ones = likelihood.detach().exp(), torch.ones_like(logits[:, 0], requires_grad=False)
        if isinstance(labels, Tensor):
            label = labels[rows].to(logits.device)
        elif labels == "exact":
            return [(likelihood[:, column].sum(), chance) for column, chance in enumerate(chances.T)]
        else:
            dice = torch.from_numpy(generator.random((len(chances), 1))).to(chances)
            label = (chances.cumsum(1) < dice).sum(1).clamp(max=chances.shape[1] - 1)
        return [(likelihood.gather(1, label[:, None]).sum(), ones)]

    return summed(network, x, goals, 2, chunk)


def sensitivity(network: nn.Module, x: Tensor, chunk: int = CHUNK) -> dict[str, Tensor]:
    """Of a network in evaluation mode: parameter name -> mean over x [n, ...] of |d |z|^2 / d theta|, z the logits."""
    return summed(network, x, lambda z, _: [(z.square().sum(), torch.ones_like(z[:, 0], requires_grad=False))], 1,
                  chunk)


def summed(network: nn.Module, x: Tensor, goals: Callable[[Tensor, slice], Goals], power: int,
           chunk: int = CHUNK) -> dict[str, Tensor]:
    """Parameter name -> mean over x [n, ...] of the sum over goals of weight times |d goal / d theta|^power, by sample.

    goals: the logits [m, C] of some rows -> goals, each a sum over these samples, and their weights [m]. power: 1 or 2.
    One backward pass gives the gradients at each layer's output, from which those of its parameters follow per sample;
    a layer may be used only once in a pass.
    """
    found = {name: torch.zeros_like(p, requires_grad=False) for name, p in network.named_parameters()}
    layers = {name: part for name, part in network.named_modules() if list(part.parameters(recurse=False))}
    for start in range(0, len(x), chunk):
        logits, ends = _watched(network, layers, x[start:start + chunk])
        wanted = goals(logits, slice(start, start + chunk))
        for place, (total, weights) in enumerate(wanted, 1):
            slopes = torch.autograd.grad(total, [out for _, out in ends.values()], retain_graph=place < len(wanted))
            for (name, (given, _)), slope in zip(ends.items(), slopes):
                powers = _powers(layers[name], given, slope, weights, power)
                for own, _ in layers[name].named_parameters(recurse=False):
                    found[f"{name}.{own}"].add_(powers[own], alpha=1 / len(x))
    return found


def _watched(network: nn.Module, layers: Mapping[str, nn.Module], x: Tensor) -> tuple[Tensor, Ends]:
    """Logits [n, C], and each layer's input and output."""
    ends: Ends = {}
    hooks = [layer.register_forward_hook(lambda _, given, out, name=name: ends.update({name: (given[0].detach(), out)}))
             for name, layer in layers.items()]
    try:
        return network(x)[1], ends
    finally:
        for hook in hooks:
            hook.remove()


def _powers(layer: nn.Module, given: Tensor, goal: Tensor, weights: Tensor, power: int) -> dict[str, Tensor]:
    """Parameter name -> sum over samples of weight [n] times |gradient|^power, of a layer with inputs `given` [n, ...]
    and gradients `goal` [n, ...] at its output; the last case holds for every layer, the others are faster."""
    raised = torch.Tensor.square_ if power == 2 else torch.Tensor.abs_
    if isinstance(layer, nn.Linear | Softmax) and given.dim() == 2:
        scaled = raised(goal.clone()) * weights[:, None]
        return {"weight": scaled.T @ raised(given.clone()), "bias": scaled.sum(0)}
    plain = getattr(layer, "padding_mode", "") == "zeros" and not isinstance(layer.padding, str)
    if plain and isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.dilation == (1, 1):
        outs, total = goal.flatten(2), torch.zeros_like(layer.weight, requires_grad=False).flatten()
        few = max(HELD_NUMBERS // len(total), 1)
        for part, x, out in zip(weights.split(few), given.split(few), outs.split(few)):
            total.addmv_(raised((out @ _patches(layer, x)).flatten(1)).T, part)
        weight = total.view(layer.out_channels, *layer.kernel_size, -1).permute(0, 3, 1, 2)
        return {"weight": weight, "bias": weights @ raised(outs.sum(2))}
    if plain and isinstance(layer, nn.Conv1d | nn.Conv2d):
        n, backward = len(given), CONVOLUTIONS[goal.dim() - 2]      # each sample as a group of its own
        own = backward(given.reshape(1, -1, *given.shape[2:]), (n * len(layer.weight), *layer.weight.shape[1:]),
                       goal.reshape(1, -1, *goal.shape[2:]), layer.stride, layer.padding, layer.dilation,
                       n * layer.groups)
        return {"weight": (weights @ raised(own.view(n, -1))).view_as(layer.weight),
                "bias": weights @ raised(goal.flatten(2).sum(2))}

    def along(values: dict[str, Tensor], sample: Tensor, goal: Tensor) -> Tensor:
        return (functional_call(layer, (values, dict(layer.named_buffers())), (sample[None],))[0] * goal).sum()

    now = {name: p.detach() for name, p in layer.named_parameters(recurse=False)}
    own = vmap(grad(along), (None, 0, 0))(now, given, goal)
    return {name: (weights @ raised(own[name].reshape(len(given), -1))).view_as(p) for name, p in now.items()}


def _patches(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """What a convolution reads, [n, c, h, w] -> [n, places, kernel height x kernel width x c]: with channels last, a
    row of a kernel is contiguous, and this takes a quarter of the time of `unfold`."""
    (down, right), padding = layer.kernel_size, [side for side in layer.padding[::-1] for _ in range(2)]
    planes = F.pad(x, padding).permute(0, 2, 3, 1)
    seen = planes.unfold(1, down, layer.stride[0]).unfold(2, right, layer.stride[1])       # [n, h, w, c, down, right]
    return seen.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(1, 2)
