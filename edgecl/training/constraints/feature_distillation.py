"""Constraints on activations: features and maps are kept close to those of the old network."""
from __future__ import annotations

import math
from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F  # noqa: N812

from edgecl.training.constraints.base import Constraint

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from torch import Tensor, nn

    from edgecl.training.batch import Batch
    from edgecl.training.step import Step


class LessForget(Constraint):
    """lambda_base x sqrt(n / m) x (1 - cos(h, h*)), h* the old network's feature, n old and m new outputs (Hou et al.
    2019, section 3.3, equations 6 and 7); sqrt(n / m) is the authors' program, the text has its inverse."""

    needs_old_features = True

    def __init__(self, lambda_base: float) -> None:
        self.strength = lambda_base

    def penalty(self, step: Step) -> Tensor | float:
        if step.old_features is None or not step.known:
            return 0.0
        cosine = F.cosine_similarity(step.features[:len(step.old_features)], step.old_features)
        return self.strength * root_of_old_to_new(step) * (1 - cosine).sum() / step.old_of


class PooledOutputs(Constraint):
    """Pooled outputs distillation (Douillard et al. 2020, section 3.1): for each block, |a - a*| of squared activations
    summed along height and, separately, along width, L2-normalised; times spatial x sqrt(n / m). For features, |h - h*|
    of L2-normalised ones, times flat x sqrt(n / m). Blocks are the body's own modules with parameters, without the
    activation that follows. The old network runs beside the new one during a round."""

    def __init__(self, spatial: float, flat: float) -> None:
        self.spatial, self.flat = spatial, flat
        self.hooks: list[torch.utils.hooks.RemovableHandle] = []

    def begin(self, network: nn.Module, rates: Sequence[Tensor | float]) -> None:
        self.old = deepcopy(network).eval()
        self.now: list[Tensor] = []
        self.then: list[Tensor] = []
        self.x: Tensor | None = None
        for each, maps in ((network, self.now), (self.old, self.then)):
            for block in blocks(each.body):
                self.hooks.append(block.register_forward_hook(lambda _, given, out, maps=maps: maps.append(out)))
        self.hooks.append(network.body.register_forward_pre_hook(self._look))

    def _look(self, body: nn.Module, given: tuple[Tensor, ...]) -> None:
        self.now.clear()
        self.x = given[0]

    def penalty(self, step: Step) -> Tensor | float:
        if not step.known or self.x is None:
            return 0.0
        self.then.clear()
        with torch.no_grad():
            before = self.old.features(self.x)
        spatial = [pooled(a, b).sum() for a, b in zip(self.now, self.then)]
        flat = (F.normalize(step.features) - F.normalize(before)).norm(dim=1).sum()
        total = self.flat * flat + (self.spatial * sum(spatial) / len(spatial) if spatial else 0.0)
        return root_of_old_to_new(step) * total / step.of

    def end(self, network: nn.Module, new: Batch, generator: np.random.Generator) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks = []
        del self.old, self.now, self.then, self.x


def blocks(body: nn.Module) -> list[nn.Module]:
    """The modules whose outputs are compared: those of the body that have parameters, in order."""
    children = list(body.children())
    if len(children) == 1:
        return blocks(children[0])
    return [child for child in children if list(child.parameters())]


def pooled(a: Tensor, b: Tensor) -> Tensor:
    """|a - b| [n] of squared maps [n, c, ...] summed along each axis separately, L2-normalised; 0 for vectors."""
    if a.dim() < 3:
        return a.new_zeros(len(a))
    a, b = a.square(), b.square()
    axes = range(2, a.dim())
    both = [torch.cat([each.sum(axis).flatten(1) for axis in axes], 1) for each in (a, b)]
    return (F.normalize(both[0]) - F.normalize(both[1])).norm(dim=1)


def root_of_old_to_new(step: Step) -> float:
    """sqrt(n / m), n old and m new outputs; 1 if none is new."""
    new = step.logits.shape[1] - step.known
    return math.sqrt(step.known / new) if new else 1.0
