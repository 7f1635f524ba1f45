"""What holds old knowledge in place while the network learns: penalties on activations and on weights."""
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F  # noqa: N812
from torch.nn.grad import conv1d_weight, conv2d_weight

from edgecl.training.heads import Softmax, Step
from edgecl.training.part import Part

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from edgecl.training.memory import Batch
    from edgecl.training.part import Arrays

    Ends = dict[str, tuple[Tensor, Tensor]]

CHUNK = 32      # samples that pass at a time: 64 take 8 MB more, and less time by a tenth
CONVOLUTIONS = {1: conv1d_weight, 2: conv2d_weight}
HELD = 2**17    # numbers of samples' own gradients that are held at a time: they stay in the cache


class Constraint(Part):
    """Constrains nothing; the base of all."""

    needs_old = False   # the old network's logits of the round's data set

    def begin(self, network: nn.Module, rates: Sequence[Tensor | float]) -> None:
        """Before the first step of a round, with the network as it was left but for the outputs of new classes. rates:
        the largest step of each parameter, or of each row of it, for a gradient of 1."""

    def penalty(self, step: Step) -> Tensor | float:
        """A scalar that is added to the loss: this piece's share of the whole step's. A part that adds its gradient in
        `project` gives it without one."""
        return 0.0

    def project(self, gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """The gradients to step with, in the order of the network's parameters; they may be changed in place."""
        return gradients

    def after_step(self) -> None:
        """After each step."""

    def end(self, network: nn.Module, new: Batch, generator: np.random.Generator) -> None:
        """After the last step, with the network in evaluation mode."""


class Distillation(Constraint):
    """Cross-entropy between softened old and new responses of the old outputs (Li & Hoiem 2016, equations 2 and 3).

    squared: multiply by T^2, so that the gradient does not shrink with T (Hinton et al. 2015, section 2); Li & Hoiem
    do not. Its least value, the entropy of the old responses, is subtracted: 0 where nothing changed, same gradient.
    """

    needs_old = True

    def __init__(self, temperature: float, strength: float, squared: bool) -> None:
        self.temperature = temperature
        self.factor = strength * (temperature ** 2 if squared else 1.0)

    def penalty(self, step: Step) -> Tensor | float:
        if step.old is None:
            return 0.0
        now = F.log_softmax(step.logits[:len(step.old), :step.known] / self.temperature, 1)
        before = F.log_softmax(step.old / self.temperature, 1)
        return self.factor * F.kl_div(now, before, reduction="sum", log_target=True) / step.old_of


class Spring(NamedTuple):
    """What holds one parameter: its place among all, a view of the values it has now, those it had, 1/2 k d^2."""

    place: int
    now: Tensor
    then: Tensor
    stiffness: Tensor


class Fisher(Constraint):
    """importance / 2 sum F (theta - theta*)^2, F the diagonal Fisher information (Kirkpatrick et al. 2017, equation 3),
    in its online form F = gamma F + F_round about the newest theta* (Schwarz et al. 2018, section 4).

    F is the mean over `samples` of the round (0: all) of squared gradients **per sample**; labels are the model's own:
    "drawn" from its softmax, or the "exact" expectation over it. Outputs that are new have F = 0. In the penalty, but
    not in F, importance x F is at most 1 / rate: a step of SGD then leads back to theta* at most; from 2 (1 + momentum)
    / rate on, it would pass it further and further.
    """

    def __init__(self, importance: float, gamma: float, samples: int, labels: str) -> None:
        self.importance, self.gamma, self.samples, self.labels = importance, gamma, samples, labels
        self.fisher: dict[str, Tensor] = {}
        self.springs: list[Spring] = []

    def begin(self, network: nn.Module, rates: Sequence[Tensor | float]) -> None:
        self.springs = []
        for place, ((name, p), rate) in enumerate(zip(network.named_parameters(), rates)):
            if (f := self.fisher.get(name)) is not None:
                now = _known(p.detach(), f)
                most = 1 / torch.as_tensor(rate).to(f)      # infinite where nothing moves
                stiffness = torch.minimum(self.importance * f, most)
                self.springs.append(Spring(place, now, now.clone(), stiffness))

    def penalty(self, step: Step) -> Tensor | float:
        held = sum(((now - then).square_() * stiffness).sum() for _, now, then, stiffness in self.springs)
        return held / 2 * step.share

    def project(self, gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """Adds the penalty's gradient, which autograd would take four times as long to find."""
        for place, now, then, stiffness in self.springs:
            if (gradient := gradients[place]) is not None:
                _known(gradient, then).addcmul_(stiffness, now - then)
        return gradients

    def end(self, network: nn.Module, new: Batch, generator: np.random.Generator) -> None:
        self.springs = []
        x = new.x
        if 0 < self.samples < len(x):
            x = x[torch.from_numpy(generator.choice(len(x), self.samples, replace=False))]
        block = max(getattr(network, "block", 2 * CHUNK) // 2, 1)     # inputs and gradients of all layers at once
        for name, fresh in fisher(network, x, self.labels, generator, min(block, CHUNK)).items():
            if (old := self.fisher.get(name)) is not None:
                _known(fresh, old).add_(old, alpha=self.gamma)
            self.fisher[name] = fresh

    def state(self) -> Arrays:
        return {name: f.numpy() for name, f in self.fisher.items()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self.fisher = {name: torch.tensor(f) for name, f in state.items()}


def _known(values: Tensor, old: Tensor) -> Tensor:
    """A view of the part of a parameter, its gradient or importance that was there when `old` was."""
    return values[:len(old)] if old.dim() else values


def fisher(network: nn.Module, x: Tensor, labels: str, generator: np.random.Generator,
           chunk: int = CHUNK) -> dict[str, Tensor]:
    """The diagonal Fisher information of a network in evaluation mode: parameter name -> mean over x [n, ...] of
    E_label (d log p(label | x) / d theta)^2, the label "drawn" once from the model or its "exact" expectation. chunk:
    samples that pass at a time.

    One backward pass gives the gradients at every layer's output, from which each layer's own follow by sample; a layer
    may be used once in a pass.
    """
    found = {name: torch.zeros_like(p, requires_grad=False) for name, p in network.named_parameters()}
    layers = {name: part for name, part in network.named_modules() if list(part.parameters(recurse=False))}
    for part in x.split(chunk):
        logits, ends = _watched(network, layers, part)
        likelihood = F.log_softmax(logits, 1)
        for label, chance in _labels(likelihood.detach().exp(), labels, generator):
            total = likelihood.gather(1, label[:, None]).sum()
            goals = torch.autograd.grad(total, [out for _, out in ends.values()], retain_graph=labels == "exact")
            for (name, (given, _)), goal in zip(ends.items(), goals):
                squares = _squares(layers[name], given, goal, chance)
                for own, _ in layers[name].named_parameters(recurse=False):
                    found[f"{name}.{own}"].add_(squares[own], alpha=1 / len(x))
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


def _labels(chances: Tensor, labels: str, generator: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Labels [n] and their weights [n], from the model's probabilities [n, C]."""
    if labels == "drawn":
        dice = torch.from_numpy(generator.random((len(chances), 1))).to(chances)
        yield (chances.cumsum(1) < dice).sum(1).clamp(max=chances.shape[1] - 1), torch.ones_like(chances[:, 0])
    else:
        yield from ((torch.full((len(chances),), column), chance) for column, chance in enumerate(chances.T))


def _squares(layer: nn.Module, given: Tensor, goal: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """Parameter name -> sum over samples of weight [n] times squared gradient, of a layer with inputs `given` [n, ...]
    and gradients `goal` [n, ...] at its output; what is generic is right for every layer, what is not is faster."""
    if isinstance(layer, nn.Linear | Softmax) and given.dim() == 2:
        scaled = goal.square() * weights[:, None]
        return {"weight": scaled.T @ given.square(), "bias": scaled.sum(0)}
    plain = getattr(layer, "padding_mode", "") == "zeros" and not isinstance(layer.padding, str)
    if plain and isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.dilation == (1, 1):
        outs, total = goal.flatten(2), torch.zeros_like(layer.weight, requires_grad=False).flatten()
        few = max(HELD // len(total), 1)
        for part, x, out in zip(weights.split(few), given.split(few), outs.split(few)):
            total.addmv_((out @ _patches(layer, x)).flatten(1).square_().T, part)
        weight = total.view(layer.out_channels, *layer.kernel_size, -1).permute(0, 3, 1, 2)
        return {"weight": weight, "bias": weights @ outs.sum(2).square_()}
    if plain and isinstance(layer, nn.Conv1d | nn.Conv2d):
        n, backward = len(given), CONVOLUTIONS[goal.dim() - 2]      # each sample as a group of its own
        own = backward(given.reshape(1, -1, *given.shape[2:]), (n * len(layer.weight), *layer.weight.shape[1:]),
                       goal.reshape(1, -1, *goal.shape[2:]), layer.stride, layer.padding, layer.dilation,
                       n * layer.groups)
        return {"weight": (weights @ own.view(n, -1).square_()).view_as(layer.weight),
                "bias": weights @ goal.flatten(2).sum(2).square_()}

    def along(values: dict[str, Tensor], sample: Tensor, goal: Tensor) -> Tensor:
        return (functional_call(layer, (values, dict(layer.named_buffers())), (sample[None],))[0] * goal).sum()

    now = {name: p.detach() for name, p in layer.named_parameters(recurse=False)}
    own = vmap(grad(along), (None, 0, 0))(now, given, goal)
    return {name: (weights @ own[name].reshape(len(given), -1).square_()).view_as(p) for name, p in now.items()}


def _patches(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """What a convolution sees, [n, c, h, w] -> [n, places, kernel height x kernel width x c]: with channels last, a row
    of a kernel is one piece of memory, and this takes a quarter of the time of `unfold`."""
    (down, right), padding = layer.kernel_size, [side for side in layer.padding[::-1] for _ in range(2)]
    planes = F.pad(x, padding).permute(0, 2, 3, 1)
    seen = planes.unfold(1, down, layer.stride[0]).unfold(2, right, layer.stride[1])       # [n, h, w, c, down, right]
    return seen.permute(0, 1, 2, 4, 5, 3).flatten(3).flatten(1, 2)
