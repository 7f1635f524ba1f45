"""Corrections of a trained head: a few numbers, fitted or measured at the end of a round, balance old and new."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edgecl.training.balance.base import Balance, Done
from edgecl.training.batch import Batch, held_back
from edgecl.training.networks.network import Served, outputs
from edgecl.training.plan import Phase

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgecl.training.memory.base import Memory
    from edgecl.training.networks.heads import AffineMap
    from edgecl.training.networks.network import Network
    from edgecl.training.part import Arrays
    from edgecl.training.plan import Plan

RIDGE = 1e-3        # on fitted numbers, around those that change nothing
NEWTON_STEPS = 50          # of Newton's method
HALVINGS = 30       # of a step, at most


class Imprinting(Balance):
    """New outputs start from the features of their classes, see the heads' `imprint`; in the first round they are
    random, since features mean nothing yet."""

    def start(self, network: Network, new: Batch, known: int) -> None:
        if known:
            for column in range(known, network.head.classes):
                if len(mine := new.x[new.y == column]):
                    network.head.imprint(column, outputs(network.features, mine, network.block), known)


class FineTuning(Balance):
    """More training on an equal number of exemplars per class (Castro et al. 2018, section 3.2).

    passes: epochs, in multiples of the round's own; slower: divides the rate; afresh: instead of the round's own
    training, from new initial weights (Prabhu et al. 2020, section 3.2).
    """

    def __init__(self, passes: float, slower: float, afresh: bool) -> None:
        self.passes, self.slower, self.afresh = passes, slower, afresh

    def phases(self, plan: Plan) -> list[Phase]:
        epochs = int(np.ceil(self.passes * plan.epochs))
        return [Phase(plan.slower(self.slower, epochs), True, self.afresh)]


class Alignment(Balance):
    """The weights of the round's new outputs are scaled so that their norms have the mean of the old ones' (Zhao et al.
    2020, section 3.3, equations 7 and 8; biases stay); the network goes on from there."""

    def finish(self, network: Network, memory: Memory, done: Done) -> None:
        weight = network.head.weight.data
        norms = weight.norm(dim=1)
        if 0 < done.known < len(weight):
            weight[done.known:] *= norms[:done.known].mean() / norms[done.known:].mean()


class BiasCorrection(Balance):
    """z -> a z + b for the round's new outputs, a and b fitted by cross-entropy on held-back samples, with equal weight
    for all classes (Wu et al. 2019, section 4). They go into the head's weights, so that those of earlier rounds stay
    applied; if no old or no new samples are held back, nothing is changed."""

    holds_back = True

    def finish(self, network: Network, memory: Memory, done: Done) -> None:
        held, known = judges(memory, done), done.known
        new = held.y >= known
        if not known or known == network.head.classes or new.all() or not new.any():
            return
        logits = outputs(lambda x: network(x)[1], held.x, network.block).double().numpy()
        mine = np.arange(logits.shape[1]) >= known
        base, designs = np.where(mine, 0, logits), np.stack([np.where(mine, logits, 0), mine + np.zeros_like(logits)])
        a, b = fit(base, designs, held.y.numpy(), np.array([1.0, 0.0]))
        with torch.no_grad():
            network.head.weight[known:] *= a
            network.head.bias[known:] = a * network.head.bias[known:] + b


class Temperature(Balance):
    """Logits are divided by the T that gives held-back samples the least log loss, with equal weight for all classes
    (Guo et al. 2017, section 4.2): no answer changes."""

    holds_back = True

    def __init__(self) -> None:
        self.inverse = 1.0

    def finish(self, network: Network, memory: Memory, done: Done) -> None:
        held = judges(memory, done)
        if len(held):
            logits = outputs(lambda x: done.served(x)[1], held.x, network.block).double().numpy()
            (found,) = fit(np.zeros_like(logits), logits[None], held.y.numpy(), np.ones(1))
            self.inverse = float(np.float32(max(found, LEAST_INVERSE)))

    def fold(self, network: Network, served: Served | None = None) -> Served:
        return Scaled(served or network, self.inverse)

    def state(self) -> Arrays:
        return {"inverse": np.array([self.inverse], np.float32)}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self.inverse = float(state["inverse"][0])


LEAST_INVERSE = 1e-3    # of a temperature


class Rectified(Balance):
    """If a new class of the round would be the answer, the score of each old class is multiplied by
    (mu_init / mu_now) x (conf_now / conf_init): mu the mean score of the class over its own samples when it was learned
    and over its exemplars now; conf the mean of the answer's score over a round's new samples, then and now (Belouadah
    & Popescu 2019, equation 1). Scores are softmax probabilities; what serves answers their logarithms."""

    def __init__(self) -> None:
        self.first = np.empty(0, np.float32)            # mu_init of each class
        self.confidence = np.empty(0, np.float32)       # conf_init of each class
        self.factors = np.ones(0, np.float32)

    def finish(self, network: Network, memory: Memory, done: Done) -> None:
        def scored(x: Tensor) -> Tensor:
            return outputs(lambda part: done.served(part)[1].softmax(1), x, network.block)

        mine = scored(done.learned.x)
        conf, found = float(mine.max(1).values.mean()), np.arange(network.head.classes)
        now = {column: float(scored(samples)[:, column].mean()) for column, samples in memory.exemplars().items()}
        fresh = [now.get(column, 1.0) if column < done.known else       # learned by another method: as it scores now
                 float(mine[done.learned.y == column, column].mean()) for column in found[len(self.first):]]
        self.first = np.append(self.first, np.array(fresh, np.float32)).astype(np.float32)
        self.confidence = np.append(self.confidence, np.full(len(fresh), conf)).astype(np.float32)
        self.factors = np.array([self.first[column] / max(now.get(column, self.first[column]), 1e-6)
                                 * conf / self.confidence[column] for column in found[:done.known]], np.float32)
        if done.known == len(found):
            self.factors = self.factors[:0]     # none is new

    def fold(self, network: Network, served: Served | None = None) -> Served:
        return Rescored(served or network, torch.from_numpy(self.factors)) if len(self.factors) else served or network

    def state(self) -> Arrays:
        return {"first": self.first, "confidence": self.confidence, "factors": self.factors}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self.first, self.confidence, self.factors = (np.array(state[name]) for name in self.state())


class Scaled(Served):
    """What serves, with its logits multiplied."""

    def __init__(self, served: Served, factor: float) -> None:
        super().__init__()
        self.served, self.factor = served, factor

    def affine(self) -> AffineMap | None:
        if (found := self.served.affine()) is None:
            return None
        weight, bias, normalised = found
        return np.float32(self.factor) * weight, np.float32(self.factor) * bias, normalised

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.served(x)
        return features, self.factor * logits


class Rescored(Served):
    """See `Rectified`. factors [n]: of the old classes, the first ones."""

    gains: Tensor

    def __init__(self, served: Served, factors: Tensor) -> None:
        super().__init__()
        self.served = served
        self.register_buffer("gains", factors.clamp(min=1e-30).log())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = self.served(x)
        scores, known = logits.log_softmax(1), len(self.gains)
        old, new = scores[:, :known], scores[:, known:]
        ahead = new.max(1, keepdim=True).values > old.max(1, keepdim=True).values
        return features, torch.cat([torch.where(ahead, old + self.gains, old), new], 1)


def judges(memory: Memory, done: Done) -> Batch:
    """Samples that were not trained on: of old classes from the memory, of new ones from the round."""
    new = done.held.take(torch.nonzero(done.held.y >= done.known).flatten())
    for column, samples in memory.exemplars().items():
        if column < done.known:
            own = Batch(samples, torch.full((len(samples),), column))
            new = new.join(own.take(torch.from_numpy(np.flatnonzero(held_back(own)))))
    return new


def fit(base: np.ndarray, designs: np.ndarray, columns: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The numbers t [k] for which logits base + sum t_j designs_j have the least log loss, with equal weight for all
    classes.

    base [n, C], designs [k, n, C] in float64, columns int64 [n]; a ridge holds t near `start`. The loss is convex in t:
    Newton's method, with its step halved until the loss falls.
    """
    rows, counts = np.arange(len(columns)), np.bincount(columns, minlength=base.shape[1])
    weights = 1 / counts[columns] / (counts > 0).sum()

    def at(t: np.ndarray) -> tuple[float, np.ndarray]:
        logits = base + np.tensordot(t, designs, 1)
        logits -= logits.max(1, keepdims=True)
        scores = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        loss = -(weights * scores[rows, columns]).sum() + RIDGE * ((t - start) ** 2).sum() / 2
        return float(loss), np.exp(scores)

    t = start.astype(np.float64)
    loss, chances = at(t)
    for _ in range(NEWTON_STEPS):
        means = (designs * chances).sum(2)
        slope = ((means - designs[:, rows, columns]) * weights).sum(1) + RIDGE * (t - start)
        centred = designs - means[:, :, None]
        curve = np.einsum("jnc,knc,nc,n->jk", centred, centred, chances, weights) + RIDGE * np.eye(len(t))
        step = np.linalg.solve(curve, slope)
        for _ in range(HALVINGS):
            if (found := at(t - step))[0] <= loss:
                break
            step = step / 2
        else:
            break
        t, (loss, chances) = t - step, found
        if np.abs(step).max() < 1e-9:
            break
    return t
