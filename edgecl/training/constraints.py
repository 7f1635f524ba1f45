"""What holds old knowledge in place while the network learns: penalties on activations and on weights."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F  # noqa: N812

from edgecl.training.heads import Softmax, Step
from edgecl.training.part import Part

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from edgecl.training.memory import Batch
    from edgecl.training.part import Arrays

    Ends = dict[str, tuple[Tensor, Tensor]]

CHUNK = 64      # samples whose own gradients are held at a time


class Constraint(Part):
    """Constrains nothing; the base of all."""

    needs_old = False   # the old network's logits of the round's data set

    def begin(self, network: nn.Module, rate: float) -> None:
        """Before the first step of a round, with the network as it was left but for the outputs of new classes."""

    def penalty(self, step: Step) -> Tensor | float:
        """A scalar that is added to the loss: this piece's share of the whole step's."""
        return 0.0

    def project(self, gradients: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """The gradients to step with."""
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
        self.pairs: list[tuple[Tensor, Tensor]] = []        # parameters and what they were, where F is known
        self.stiffness = torch.empty(0)

    def begin(self, network: nn.Module, rate: float) -> None:
        known = [(p, self.fisher[name]) for name, p in network.named_parameters() if name in self.fisher]
        self.pairs = [(p, p.detach()[:len(f)].clone() if f.dim() else p.detach().clone()) for p, f in known]
        stiffness = [(self.importance * f).clamp(max=1 / rate if rate else None).flatten() for _, f in known]
        self.stiffness = torch.cat([torch.empty(0), *stiffness])

    def penalty(self, step: Step) -> Tensor | float:
        if not self.pairs:
            return 0.0
        moved = torch.cat([((p[:len(old)] if old.dim() else p) - old).flatten() for p, old in self.pairs])
        return (self.stiffness * moved).dot(moved) / 2 * step.share

    def end(self, network: nn.Module, new: Batch, generator: np.random.Generator) -> None:
        self.pairs = []
        x = new.x
        if 0 < self.samples < len(x):
            x = x[torch.from_numpy(generator.choice(len(x), self.samples, replace=False))]
        for name, fresh in fisher(network, x, self.labels, generator).items():
            if (old := self.fisher.get(name)) is not None:
                grown = fresh[:len(old)] if old.dim() else fresh
                grown += self.gamma * old
            self.fisher[name] = fresh

    def state(self) -> Arrays:
        return {name: f.numpy() for name, f in self.fisher.items()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self.fisher = {name: torch.tensor(f) for name, f in state.items()}


def fisher(network: nn.Module, x: Tensor, labels: str, generator: np.random.Generator) -> dict[str, Tensor]:
    """The diagonal Fisher information of a network in evaluation mode: parameter name -> mean over x [n, ...] of
    E_label (d log p(label | x) / d theta)^2, the label "drawn" once from the model or its "exact" expectation.

    One backward pass gives the gradients at every layer's output, from which each layer's own follow by sample; a layer
    may be used once in a pass.
    """
    found = {name: torch.zeros_like(p, requires_grad=False) for name, p in network.named_parameters()}
    layers = {name: part for name, part in network.named_modules() if list(part.parameters(recurse=False))}
    for part in x.split(CHUNK):
        logits, ends = _watched(network, layers, part)
        likelihood = F.log_softmax(logits, 1)
        for label, chance in _labels(likelihood.detach().exp(), labels, generator):
            total = likelihood.gather(1, label[:, None]).sum()
            goals = torch.autograd.grad(total, [out for _, out in ends.values()], retain_graph=labels == "exact")
            for (name, (given, _)), goal in zip(ends.items(), goals):
                for own, squares in _squares(layers[name], given, goal, chance).items():
                    found[f"{name}.{own}"] += squares / len(x)
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
    if isinstance(layer, nn.Conv2d) and layer.groups == 1 and not isinstance(layer.padding, str):
        rows = F.unfold(given, layer.kernel_size, layer.dilation, layer.padding, layer.stride)     # [n, k, places]
        own = {"weight": goal.flatten(2) @ rows.transpose(1, 2), "bias": goal.flatten(2).sum(2)}
    else:
        def along(values: dict[str, Tensor], sample: Tensor, goal: Tensor) -> Tensor:
            return (functional_call(layer, (values, dict(layer.named_buffers())), (sample[None],))[0] * goal).sum()

        values = {name: p.detach() for name, p in layer.named_parameters(recurse=False)}
        own = vmap(grad(along), (None, 0, 0))(values, given, goal)
    return {name: (weights @ own[name].reshape(len(given), -1).square_()).view_as(p)
            for name, p in layer.named_parameters(recurse=False)}
