"""Constraints on activations: what the network answers, or how its features lie, is held near what it was."""
from __future__ import annotations

import math
from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from edgecl.training.constraints.base import Constraint

RECORDED = 3    # times the samples with recorded logits are all of a step, see `replay.Recorded`

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor, nn

    from edgecl.training.batch import Batch
    from edgecl.training.memory.exemplars import Nothing
    from edgecl.training.part import Arrays
    from edgecl.training.step import Step


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
        return 0.0 if step.old is None else self.factor * self.divergence(step, slice(0, step.old.shape[1]))

    def divergence(self, step: Step, outputs: slice) -> Tensor:
        """Of some outputs."""
        assert step.old is not None
        now = F.log_softmax(step.logits[:len(step.old), outputs] / self.temperature, 1)
        before = F.log_softmax(step.old[:, outputs] / self.temperature, 1)
        return F.kl_div(now, before, reduction="sum", log_target=True) / step.old_of


class ClassShare(Distillation):
    """(1 - s) x loss + s x distillation, s = n / (n + m), n old and m new outputs (Wu et al. 2019, section 3; Zhao et
    al. 2020, section 3.1)."""

    def __init__(self, temperature: float) -> None:
        super().__init__(temperature, 1.0, False)

    def of_labels(self, step: Step) -> float:
        return 1.0 - self._share(step)

    def penalty(self, step: Step) -> Tensor | float:
        return self._share(step) * super().penalty(step)

    @staticmethod
    def _share(step: Step) -> float:
        return step.known / step.logits.shape[1] if step.old is not None or step.known else 0.0


class ByRound(Distillation):
    """A distillation of its own for the outputs of each earlier round: each is a softmax among themselves (Castro et
    al. 2018, section 3.2, equation 3)."""

    def __init__(self, temperature: float) -> None:
        super().__init__(temperature, 1.0, False)
        self.ends: list[int] = []

    def penalty(self, step: Step) -> Tensor | float:
        if step.old is None:
            return 0.0
        width = step.old.shape[1]
        ends = sorted({end for end in self.ends if end < width} | {step.known, width} - {0})
        return sum(self.divergence(step, slice(begin, end)) for begin, end in zip([0, *ends], ends))

    def end(self, network: nn.Module, new: Batch, generator: np.random.Generator) -> None:
        self.ends = sorted({*self.ends, network.head.classes})

    def state(self) -> Arrays:
        return {"ends": np.array(self.ends, np.int32)} if self.ends else {}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self.ends = [int(end) for end in state.get("ends", ())]


class LogitReplay(Constraint):
    """strength x mean squared difference from the logits that replayed samples were stored with (Buzzega et al. 2020,
    equation 6); see `replay.Recorded`."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def penalty(self, step: Step) -> Tensor | float:
        if step.recorded is None:
            return 0.0
        known = step.recorded.isfinite()
        gap = torch.where(known, step.logits[:, :step.recorded.shape[1]] - step.recorded.nan_to_num(), 0.0)
        losses = gap.square().sum(1) / known.sum(1).clamp(min=1)
        return self.strength * losses.sum() / step.of * RECORDED


class LessForget(Constraint):
    """lambda_base x sqrt(n / m) x (1 - cos(h, h*)), h* the old network's feature, n old and m new outputs (Hou et al.
    2019, section 3.3, equations 6 and 7); sqrt(n / m) is the authors' program, which the text turns round."""

    needs_old_features = True

    def __init__(self, lambda_base: float) -> None:
        self.strength = lambda_base

    def penalty(self, step: Step) -> Tensor | float:
        if step.old_features is None or not step.known:
            return 0.0
        cosine = F.cosine_similarity(step.features[:len(step.old_features)], step.old_features)
        return self.strength * grown(step) * (1 - cosine).sum() / step.old_of


def grown(step: Step) -> float:
    """sqrt(n / m), n old and m new outputs; 1 where none is new."""
    new = step.logits.shape[1] - step.known
    return math.sqrt(step.known / new) if new else 1.0


class MarginRanking(Constraint):
    """max(0, margin - cos(h, w_y) + cos(h, w_k)), summed over the `hardest` new outputs k of each sample of
    an old class (Hou et al. 2019, section 3.4, equation 8); mean over those samples."""

    def __init__(self, margin: float, hardest: int) -> None:
        self.margin, self.hardest = margin, hardest

    def begin(self, network: nn.Module, rates: Sequence[Tensor | float]) -> None:
        self.head = network.head

    def penalty(self, step: Step) -> Tensor | float:
        new, old = step.logits.shape[1] - step.known, step.targets < step.known
        if not step.known or not new or not old.any():
            return 0.0
        cosine = self.head.cosines(step.features[old])
        own = cosine.gather(1, step.targets[old][:, None])
        rivals = cosine[:, step.known:].topk(min(self.hardest, new), 1).values
        return F.relu(self.margin - own + rivals).sum() / step.of


class FixedClasses(Constraint):
    """The weights of outputs that were known before the round stay as they are (Hou et al. 2019, section 4.1, the
    authors' program): against gradient, momentum and decay alike."""

    def begin(self, network: nn.Module, rates: Sequence[Tensor | float]) -> None:
        self.known = 0
        self.rows = [(p.detach(), p.detach().clone()) for p in network.head.parameters() if p.dim()]

    def penalty(self, step: Step) -> Tensor | float:
        self.known = step.known
        return 0.0

    def after_step(self) -> None:
        for now, then in self.rows:
            now[:self.known] = then[:self.known]


class PositiveWeights(Constraint):
    """The head's weights are cut off at 0 after each step, so that, over features that are not negative, their norms
    say how large logits are (Zhao et al. 2020, section 3.3, "restriction to the weights")."""

    def begin(self, network: nn.Module, rates: Sequence[Tensor | float]) -> None:
        self.weight = network.head.weight.detach()
        self.after_step()

    def after_step(self) -> None:
        self.weight.clamp_(min=0)


class PooledOutputs(Constraint):
    """Pooled outputs distillation (Douillard et al. 2020, section 3.1): for each block, |a - a*| over squared
    activations summed along height and, apart, along width, L2-normalised; times spatial x sqrt(n / m). For features,
    |h - h*| of L2-normalised ones, times flat x sqrt(n / m). Blocks are the body's own modules with
    parameters, before what follows them. The old network runs beside the new one while a round lasts."""

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
        return grown(step) * total / step.of

    def end(self, network: nn.Module, new: Batch, generator: np.random.Generator) -> None:
        for hook in self.hooks:
            hook.remove()
        self.hooks = []
        del self.old, self.now, self.then, self.x


def blocks(body: nn.Module) -> list[nn.Module]:
    """The modules whose outputs are compared: those of the body that answer maps, one after another."""
    children = list(body.children())
    if len(children) == 1:
        return blocks(children[0])
    return [child for child in children if list(child.parameters())]


def pooled(a: Tensor, b: Tensor) -> Tensor:
    """|a - b| [n] of squared maps [n, c, ...] summed along each axis apart, L2-normalised; 0 for vectors."""
    if a.dim() < 3:
        return a.new_zeros(len(a))
    a, b = a.square(), b.square()
    axes = range(2, a.dim())
    both = [torch.cat([each.sum(axis).flatten(1) for axis in axes], 1) for each in (a, b)]
    return (F.normalize(both[0]) - F.normalize(both[1])).norm(dim=1)


class GradientNoise(Constraint):
    """Gaussian noise of variance eta / (1 + t)^decay on each gradient, t the step within the round (Neelakantan et al.
    2015; Castro et al. 2018, section 4: eta 0.3, decay 0.55)."""

    def __init__(self, eta: float, fading: float) -> None:
        self.eta, self.fading = eta, fading

    def begin(self, network: nn.Module, rates: Sequence[Tensor | float]) -> None:
        self.done, self.generator = 0, torch.Generator()

    def references(self, memory: Nothing, generator: np.random.Generator) -> Sequence[Batch]:
        self.generator.manual_seed(int(generator.integers(2**62)))
        return ()

    def project(self, gradients: Sequence[Tensor | None],
                references: Iterable[Sequence[Tensor | None]] = ()) -> Sequence[Tensor | None]:
        deviation = math.sqrt(self.eta / (1 + self.done) ** self.fading)
        self.done += 1
        for gradient in gradients:
            if gradient is not None:
                noise = torch.empty(gradient.shape).normal_(0, deviation, generator=self.generator)
                gradient.add_(noise.to(gradient))
        return gradients
