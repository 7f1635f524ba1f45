"""FearNet: a recent memory that answers by nearest neighbours, a long-term one trained in sleeps, and a gate."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from edgecl.errors import BudgetError, StateError
from edgecl.training.balance.base import Balance
from edgecl.training.memory.at_layer import PLACE_BYTES, Above
from edgecl.training.memory.fearnet_long_term import (
    BATCH,
    CODE_LENGTHS,
    ROW_BYTES,
    Cortex,
    class_bytes,
    network_bytes,
    packed,
    round_weights,
    unpack,
)
from edgecl.training.memory.generator import initialised
from edgecl.training.networks.network import Served
from edgecl.training.optimisers import Adam

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgecl.training.balance.base import Done
    from edgecl.training.batch import Batch
    from edgecl.training.memory.base import Memory
    from edgecl.training.networks.network import Network
    from edgecl.training.part import Arrays

FIXED_BYTES = PLACE_BYTES + 4 + 8   # the place, the sessions awake, and the scale
PLANNED_SESSIONS = 10   # the first code is for the classes of so many sessions like the first; ...
PLANNED_GROWTH = 1.25   # ... a later one, once there are too many, for so many times the classes known then
NETWORK_SHARE = 0.85    # of the room that networks and class statistics may take; the rest is for recent samples
GATE_STEPS = 400
DISTANCE_OFFSET = 1e-3  # added to a distance before it is inverted, section 4.1
EPSILON = 1e-8          # the least deviation, and added to a probability before its logarithm


def gate(numbers: int, code: int) -> nn.Sequential:
    """Features [n, numbers] -> the logit that the recent memory knows them [n, 1]."""
    return nn.Sequential(nn.Linear(numbers, code), nn.ELU(), nn.Linear(code, 1))


def gate_bytes(numbers: int, code: int) -> int:
    """Weights of 8 bits."""
    return code * (numbers + 1) + ROW_BYTES * (code + 1)


class FearNet(Above):
    """Kemker & Kanan 2018, section 4: HC, the features of recent samples; mPFC, `Cortex`; BLA, a gate that is trained
    to distinguish samples in HC from pseudo-samples of mPFC, which are all there is of earlier sessions.

    mPFC learns the first session at once (base knowledge, section 5). sleep: sessions after which HC is consolidated
    into mPFC, together with pseudo-samples, and emptied; earlier if the recent samples don't fit into the room; 0:
    never, and random samples are dropped if there is no room. dreams: training steps of mPFC in a sleep. The code is
    the longest whose networks leave room for samples; if there are too many classes for it, the next sleep trains an
    mPFC with a shorter code on pseudo-samples of the old one.
    """

    def __init__(self, room: int, nothing: Batch, sleep: int, dreams: int) -> None:
        super().__init__(room, nothing)
        self.sleep, self.dreams, self.awake, self.seed = sleep, dreams, 0, 0
        self.mean, self.scale = 0.0, 1.0
        self.recent, self.of = torch.empty(0, 0), torch.empty(0, dtype=torch.int64)     # HC
        self.cortex: Cortex | None = None                                               # mPFC
        self.gate: nn.Sequential | None = None                                          # BLA
        self.shape = nothing.x.shape[1:]
        if nothing.x.dim() == 2:
            self.place = 0
            self.check(1)

    def code(self, classes: int) -> int:
        """The length of a code for so many classes and some more to come, if the room allows; the shortest at least."""
        planned = int((PLANNED_SESSIONS if self.cortex is None else PLANNED_GROWTH) * classes)
        return next((code for code in CODE_LENGTHS if self.least(planned, code) <= NETWORK_SHARE * self.room),
                    next((code for code in CODE_LENGTHS if self.least(classes, code) <= self.room), CODE_LENGTHS[-1]))

    def least(self, classes: int, code: int) -> int:
        """Bytes without recent samples."""
        d = self.shape.numel()
        return FIXED_BYTES + network_bytes(d, code) + gate_bytes(d, code) + classes * class_bytes(code)

    def check(self, classes: int) -> None:
        if self.place >= 0 and (least := self.least(classes, CODE_LENGTHS[-1])) > self.room:
            raise BudgetError(f"{self.room} bytes can't hold FearNet on {self.shape.numel()} features and {classes} "
                              f"class{'es' * (classes > 1)}", f"give --memory {least} or more")

    def enter(self, new: Batch, network: Network, generator: np.random.Generator) -> tuple[Network, Batch]:
        self.seed = int(generator.integers(2**31))
        return super().enter(new, network, generator)

    def update(self, new: Batch, network: Network) -> None:
        self.choose(network, new.x)
        generator, x = np.random.default_rng(self.seed), self.activations(new.x, network).flatten(1).float()
        first = self.cortex is None
        if self.cortex is None:
            self.mean, self.scale = float(x.mean()), max(float(x.std()), EPSILON)
            self.recent = torch.empty(0, x.shape[1])
            self.cortex = Cortex(x.shape[1], self.code(len(new.y.unique()))).start(generator)
        self.recent = torch.cat([self.recent, ((x - self.mean) / self.scale).half().float()])
        self.of = torch.cat([self.of, new.y])
        self.awake += 1
        known = len({*self.cortex.columns, *self.of.tolist()})
        fits = (self.room - self.least(known, self.cortex.code)) // (2 * x.shape[1] + 4)
        if not self.sleep and not first:
            kept = torch.from_numpy(generator.permutation(len(self.of))[:max(fits, 0)])
            self.recent, self.of = self.recent[kept], self.of[kept]
        elif first or len(self.of) > fits or self.awake >= self.sleep:
            dreamer = self.cortex
            if self.least(known, dreamer.code) > self.room:
                self.cortex = Cortex(dreamer.numbers, self.code(known)).start(generator)
            self.cortex.consolidate(self.recent, self.of, self.dreams, generator, dreamer)
            self.recent, self.of, self.awake = self.recent[:0], self.of[:0], 0
        self.gate = self._gate(generator) if len(self.of) else None
        self.columns, self.before = sorted({*self.cortex.columns, *self.of.tolist()}), None

    def _gate(self, generator: np.random.Generator) -> nn.Sequential:
        """A gate trained on equal numbers of recent and pseudo-samples."""
        assert self.cortex is not None
        layers = initialised(gate(self.cortex.numbers, self.cortex.code), generator)
        weights = list(layers.parameters())
        adam = Adam(weights)
        half = BATCH // 2
        truth = torch.cat([torch.ones(half), torch.zeros(half)])
        dreamt, _ = self.cortex.dream(max(len(self.of), 4 * BATCH), generator)
        for _ in range(GATE_STEPS):
            rows, others = (torch.from_numpy(generator.integers(len(part), size=half)) for part in (self.of, dreamt))
            answer = layers(torch.cat([self.recent[rows], dreamt[others]]))[:, 0]
            adam.step(torch.autograd.grad(F.binary_cross_entropy_with_logits(answer, truth), weights))
        return round_weights(layers)

    def state(self) -> Arrays:
        found: Arrays = {"place": np.array(self.place, np.int32), "awake": np.array(self.awake, np.int32),
                         "scale": np.array([self.mean, self.scale], np.float32),
                         "recent": self.recent.numpy().astype(np.float16), "of": self.of.numpy().astype(np.int32)}
        if self.cortex is not None:
            found |= {f"cortex/{name}": array for name, array in self.cortex.state().items()}
        if self.gate is not None:
            found |= {f"gate/{name}": array for name, array in packed(self.gate).items()}
        return found

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self.place, self.awake = int(state["place"]), int(state["awake"])
        self.mean, self.scale = map(float, state["scale"])
        self.recent, self.of = torch.tensor(state["recent"]).float(), torch.tensor(state["of"]).long()
        self.cortex = self.gate = None
        if "cortex/columns" in state:
            code, numbers = len(state["cortex/encoder/2.codes"]), state["cortex/encoder/0.codes"].shape[1]
            self.cortex = Cortex(numbers, code)
            self.cortex.load({name.removeprefix("cortex/"): array for name, array in state.items()
                              if name.startswith("cortex/")})
            self.columns = sorted({*self.cortex.columns, *self.of.tolist()})
            self.shape = self.shape if self.place == 0 else torch.Size([numbers])
            if "gate/0.codes" in state:
                self.gate = unpack(gate(numbers, code), {name.removeprefix("gate/"): array
                                                         for name, array in state.items()})


class Gated(Balance):
    """Answers by the recent or the long-term memory, as the gate decides."""

    def restore(self, network: Network, memory: Memory) -> None:
        if not isinstance(memory, FearNet):
            raise StateError(f"{type(memory).__name__} has no gate", 'give memory = "fearnet"')
        self.memory, self.classes = memory, network.head.classes

    def finish(self, network: Network, memory: Memory, done: Done) -> None:
        self.restore(network, memory)

    def fold(self, network: Network, served: Served | None = None) -> Served:
        return Answers(network, self.memory, self.classes)


class Answers(Served):
    """Input -> features, logits: log P(class | x) of the memory that the gate trusts (section 4.3, equations 4 and 5):
    HC if max P_HC A / (1 - A) > max P_mPFC, where A is the gate's output."""

    recent: Tensor

    def __init__(self, network: Network, memory: FearNet, classes: int) -> None:
        super().__init__()
        assert memory.cortex is not None
        self.below = nn.ModuleList(layer for _, layer in network.layers()[:memory.place - network.start])
        self.mean, self.scale, self.classes = memory.mean, memory.scale, classes
        self.encoder, self.classifier, self.gate = memory.cortex.encoder, memory.cortex.classifier, memory.gate
        self.columns, self.groups = memory.cortex.columns, {
            int(column): torch.nonzero(memory.of == column)[:, 0] for column in memory.of.unique()}
        self.register_buffer("recent", memory.recent)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for layer in self.below:
            x = layer(x)
        features = x.flatten(1).float()
        h = (features - self.mean) / self.scale
        chances = F.softmax(self.classifier(self.encoder(h)), 1)
        old = self._spread({column: chances[:, i:i + 1] for i, column in enumerate(self.columns)}, h)
        if self.gate is not None:
            new = self.neighbours(h)
            trust = self.gate(h).clamp(-15, 15).exp()       # A / (1 - A)
            recent = new.amax(1, keepdim=True) * trust > old.amax(1, keepdim=True)
            old = torch.where(recent, new, old)
        return features, (old + EPSILON).log()

    def neighbours(self, h: Tensor) -> Tensor:
        """P_HC [n, classes]: by the inverse distance of the nearest recent sample of each class, equation 1."""
        squares = (h.square().sum(1, keepdim=True) - 2 * h @ self.recent.T + self.recent.square().sum(1)).clamp(min=0)
        near = {column: 1 / (DISTANCE_OFFSET + squares[:, rows].amin(1, keepdim=True).sqrt())
                for column, rows in self.groups.items()}
        found = self._spread(near, h)
        return found / found.sum(1, keepdim=True)

    def _spread(self, found: dict[int, Tensor], h: Tensor) -> Tensor:
        """Columns side by side, 0 for those that are missing."""
        none = torch.zeros_like(h[:, :1])
        return torch.cat([found.get(column, none) for column in range(self.classes)], 1)
