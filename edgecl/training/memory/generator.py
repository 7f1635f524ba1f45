"""Deep generative replay: a small variational autoencoder stands in for all earlier samples."""
from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from edgecl.errors import BudgetError
from edgecl.training.batch import Batch
from edgecl.training.memory.at_layer import PLACE_BYTES, Above
from edgecl.training.networks.network import outputs
from edgecl.training.optimisers import Adam

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from edgecl.training.networks.network import Network
    from edgecl.training.part import Arrays

LARGEST_SAMPLE = 256    # numbers; of larger samples the activations at the map are generated: a decoder of so few bytes
                        # can't generate windows or larger images (docs/pseudo-rehearsal.md)
LONGEST_CODE = 32
RECONSTRUCTION_WEIGHT = 15  # in the loss: with 1, codes of small images would say little, not even the class
RATE = 2e-3             # of Adam
LOG_VARIANCES = (-8.0, 8.0)     # of a code
SAMPLES_PER_CLASS = 64  # to find the mode of an old class after a round
BATCH = 64              # samples per step of the generator
FIXED_BYTES = PLACE_BYTES + 4 + 8   # beside weights and modes: the place, the rounds, and the scale
PLANNED_CLASSES = 64    # their modes fit beside the widest decoder, if they take at most a quarter of the room


def mode_bytes(code: int) -> int:
    """Of a class: its column, int32, and the mean and deviation of its codes, float16."""
    return 4 + 4 * code


def shape_for(room: int, numbers: int) -> tuple[int, int]:
    """Hidden width and code length of the widest decoder with float16 weights that fits into `room` bytes; width 0 if
    none does."""
    weights = (room - FIXED_BYTES - min(room // 4, PLANNED_CLASSES * mode_bytes(LONGEST_CODE))) // 2
    code = LONGEST_CODE
    while (width := (weights - numbers) // (code + 1 + numbers)) < 2 * code and code > 1:
        code //= 2
    return max(width, 0), code


def decoder(code: int, width: int, numbers: int) -> nn.Sequential:
    """code [n, z] -> logits [n, numbers] of samples in the generator's scale, 0..1: unbounded ones would grow from
    round to round, as each generator learns from the samples of the last one."""
    return nn.Sequential(nn.Linear(code, width), nn.ReLU(), nn.Linear(width, numbers))


class GenerativeReplay(Above):
    """Generator and solver of Shin et al. 2017, section 3.1: in round t, 1 / t of the samples that both are trained on
    are new; the others are generated as the generator of round t - 1 does, and labelled by the solver of round t - 1.
    Codes are drawn from one mode per class, each with the same chance (van de Ven et al. 2020, conditional replay): a
    single standard normal also gives samples of no class, more from round to round.

    The generator is a variational autoencoder (Kingma & Welling 2014), of which only the decoder is kept: in float16,
    as wide as `room` allows from the first round on; each round trains a new encoder. Samples of up to `LARGEST_SAMPLE`
    numbers are generated themselves; of larger ones the activations at the map, with all layers below frozen after the
    first round. steps: of the generator, per round; recalls: whether its training replays its own samples.
    """

    def __init__(self, room: int, nothing: Batch, steps: int, recalls: bool) -> None:
        super().__init__(room, nothing)
        self.steps, self.recalls = steps, recalls
        self.rounds, self.seed = 0, 0
        self.least, self.range = 0.0, 1.0
        self.decoder: nn.Sequential | None = None
        self.modes: dict[int, Tensor] = {}      # column -> mean and deviation of its codes, float32 [2, z]
        self.solver: Network | None = None      # of the round before, while a round lasts
        self.shape = nothing.x.shape[1:]
        if self.shape.numel() <= LARGEST_SAMPLE:
            self.place = 0
            self.check(1)

    def check(self, classes: int) -> None:
        if self.decoder is not None and self.nbytes_for(classes) > self.room:
            raise BudgetError(f"{self.room} bytes can't hold a generator of this width and {classes} classes",
                              f"give --memory {4 * self.room} from the first round on")
        if self.place >= 0 and self.decoder is None and not shape_for(self.room, self.shape.numel())[0]:
            least = 2 * (FIXED_BYTES + 2 * (2 * self.shape.numel() + 2))
            raise BudgetError(f"{self.room} bytes can't hold a generator of {self.shape.numel()} numbers",
                              f"give --memory {least} or more")

    def nbytes_for(self, classes: int) -> int:
        """Bytes with that many classes; there must be a decoder."""
        assert self.decoder is not None
        code = self.decoder[0].in_features
        return FIXED_BYTES + 2 * sum(p.numel() for p in self.decoder.parameters()) + classes * mode_bytes(int(code))

    def enter(self, new: Batch, network: Network, generator: np.random.Generator) -> tuple[Network, Batch]:
        self.seed = int(generator.integers(2**31))
        found = super().enter(new, network, generator)
        if self.decoder is not None:
            self.solver = deepcopy(network.above(self.place)).eval()
        return found

    def amount(self, n: int) -> int:
        """t - 1 times as many as there are new ones."""
        return n * self.rounds

    def replay(self, n: int, generator: np.random.Generator) -> Batch | None:
        if self.decoder is None or self.solver is None or not n:
            return None
        solver, x = self.solver, self.as_input(self.generated(n, generator)[0])
        return self.arrive(x, outputs(lambda part: solver(part)[1], x, solver.block).argmax(1))

    def update(self, new: Batch, network: Network) -> None:
        self.choose(network, new.x)
        x = self.activations(new.x, network).flatten(1).float()
        generator = np.random.default_rng(self.seed)
        if self.decoder is None:
            width, code = shape_for(self.room, x.shape[1])
            self.least, self.range = float(x.min()), max(float(x.max() - x.min()), 1e-6)
            fresh = initialised(decoder(code, width, x.shape[1]), generator)
        else:
            fresh = deepcopy(self.decoder).requires_grad_(True)
        x = ((x - self.least) / self.range).clamp(0, 1)
        encoder = self._trained(fresh, x, generator)
        y = new.y
        if self.decoder is not None:    # find the modes of old classes by the new encoder
            old, columns = self.generated(SAMPLES_PER_CLASS * len(self.modes), generator)
            kept = ~torch.isin(columns, y)
            x, y = torch.cat([x, old[kept]]), torch.cat([y, columns[kept]])
        mean, spread = outputs(encoder, x).chunk(2, 1)
        self.modes = {column: _half(_mode(mean[y == column], spread[y == column]))
                      for column in sorted(set(y.tolist()))}
        self.decoder = _stored(fresh)
        self.solver, self.before = None, None
        self.rounds, self.columns = self.rounds + 1, list(self.modes)

    def _trained(self, fresh: nn.Sequential, x: Tensor, generator: np.random.Generator) -> nn.Sequential:
        """Maximise the evidence lower bound of new and recalled samples; returns the encoder. x: new samples in the
        generator's scale."""
        width, code = fresh[2].in_features, fresh[0].in_features
        encoder = initialised(nn.Sequential(nn.Linear(x.shape[1], width), nn.ReLU(), nn.Linear(width, 2 * code)),
                               generator)
        adam = Adam([*encoder.parameters(), *fresh.parameters()])
        recalls = self.recalls and self.decoder is not None
        own = mix(BATCH, self.rounds + 1) if recalls else BATCH
        for _ in range(self.steps):
            batch = x[torch.from_numpy(generator.integers(len(x), size=own))]
            if recalls:
                batch = torch.cat([batch, self.generated(BATCH - own, generator)[0]])
            mean, spread = encoder(batch).chunk(2, 1)
            spread = spread.clamp(*LOG_VARIANCES)
            noise = torch.from_numpy(generator.standard_normal(mean.shape).astype(np.float32))
            decoded = fresh(mean + noise * (spread / 2).exp())
            divergence = (mean.square() + spread.exp() - 1 - spread).sum() / 2
            missed = F.binary_cross_entropy_with_logits(decoded, batch, reduction="sum")
            loss = (RECONSTRUCTION_WEIGHT * missed + divergence) / len(batch)
            adam.step(torch.autograd.grad(loss, adam.weights), RATE)
        return encoder

    def generated(self, n: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """n samples in the generator's scale, float32 [n, numbers], and the classes of their modes, int64 [n]."""
        assert self.decoder is not None
        columns, drawn = np.array(list(self.modes)), generator.integers(len(self.modes), size=n)
        modes = torch.stack(list(self.modes.values()))[torch.from_numpy(drawn)]
        noise = torch.from_numpy(generator.standard_normal((n, modes.shape[2])).astype(np.float32))
        source, code = self.decoder, modes[:, 0] + noise * modes[:, 1]
        return outputs(lambda part: torch.sigmoid(source(part)), code, max(n, 1)), torch.from_numpy(columns[drawn])

    def as_input(self, x: Tensor) -> Tensor:
        """Generated samples as inputs of the network."""
        x = (x * self.range + self.least).view(-1, *self.shape)
        if self.place == 0 and self.nothing.x.dtype == torch.uint8:
            return x.round().clamp(0, 255).to(torch.uint8)
        return x.to(self.nothing.x.dtype) if self.place == 0 else x

    def state(self) -> Arrays:
        kept = {} if self.decoder is None else {
            "modes": torch.stack(list(self.modes.values())).numpy().astype(np.float16),
            **{name: p.detach().numpy().astype(np.float16) for name, p in self.decoder.state_dict().items()}}
        return {**super().state(), "trained": np.array(self.rounds, np.int32),
                "scale": np.array([self.least, self.range], np.float32), **kept}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self.place = int(state["place"])
        self.rounds, (self.least, self.range) = int(state["trained"]), map(float, state["scale"])
        if "2.weight" in state:
            self.columns = [int(column) for column in state["columns"]]
            self.modes = dict(zip(self.columns, torch.tensor(state["modes"]).float()))
            numbers, width = state["2.weight"].shape
            self.decoder = decoder(state["0.weight"].shape[1], width, numbers)
            self.decoder.load_state_dict({name: torch.tensor(state[name]).float()
                                          for name in self.decoder.state_dict()})
            self.shape = self.shape if self.place == 0 else torch.Size([numbers])


def mix(batch: int, rounds: int) -> int:
    """How many samples of a batch are new in that round: 1 / t of them."""
    return max(round(batch / rounds), 1)


def initialised(layers: nn.Sequential, generator: np.random.Generator) -> nn.Sequential:
    """Weights after He et al. 2015, biases 0."""
    for layer in layers:
        if isinstance(layer, nn.Linear):
            values = generator.standard_normal(layer.weight.shape) * (2 / layer.in_features) ** 0.5
            layer.weight = nn.Parameter(torch.from_numpy(values.astype(np.float32)))
            layer.bias = nn.Parameter(torch.zeros(layer.out_features))
    return layers


def _mode(mean: Tensor, spread: Tensor) -> Tensor:
    """Mean and deviation [2, z] of codes with posteriors of these means and log variances [n, z]."""
    variance = mean.var(0, unbiased=False) + spread.clamp(*LOG_VARIANCES).exp().mean(0)
    return torch.stack([mean.mean(0), variance.sqrt()])


def _half(values: Tensor) -> Tensor:
    return values.half().float()


def _stored(layers: nn.Sequential) -> nn.Sequential:
    """As it is stored: rounded to float16."""
    with torch.no_grad():
        for p in layers.parameters():
            p.copy_(p.half().float())
    return layers.requires_grad_(False)
