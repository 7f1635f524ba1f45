"""Deep generative replay: a small variational autoencoder stands for all earlier samples."""
from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from edgecl.errors import BudgetError
from edgecl.training.batch import Batch
from edgecl.training.memory.at_layer import PLACE, Above
from edgecl.training.networks.network import outputs
from edgecl.training.optimisers import Adam

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from edgecl.training.networks.network import Network
    from edgecl.training.part import Arrays

PIXELS = 256        # numbers of a sample up to which it is generated itself, not its activations at the map: a decoder
                    # of that few bytes makes no windows or larger images (docs/pseudo-rehearsal.md)
CODES = 32          # of the code at most
SHARP = 15          # times the reconstruction: of small images the code would else tell little, not even the class
RATE = 2e-3         # of Adam
SPREAD = (-8.0, 8.0)        # log variances of a code
EACH = 64           # samples that tell where the mode of an old class lies after a round
BATCH = 64          # samples of a step of the generator
BESIDE = PLACE + 4 + 8      # bytes beside weights and modes: the place, the rounds, and the scale
MODES = 64          # classes whose modes fit beside the widest decoder, where that is no more than a quarter of all


def mode_bytes(code: int) -> int:
    """Of a class: its column, int32, and the mean and deviation of its codes, float16."""
    return 4 + 4 * code


def shape_for(room: int, numbers: int) -> tuple[int, int]:
    """Hidden width and code length of the widest decoder of float16 weights that `room` bytes hold; width 0: none."""
    weights = (room - BESIDE - min(room // 4, MODES * mode_bytes(CODES))) // 2
    code = CODES
    while (width := (weights - numbers) // (code + 1 + numbers)) < 2 * code and code > 1:
        code //= 2
    return max(width, 0), code


def decoder(code: int, width: int, numbers: int) -> nn.Sequential:
    """code [n, z] -> logits [n, numbers] of samples in the generator's scale, 0..1: unbounded ones would grow from
    round to round, as each generator learns from the last one's."""
    return nn.Sequential(nn.Linear(code, width), nn.ReLU(), nn.Linear(width, numbers))


class GenerativeReplay(Above):
    """Generator and solver of Shin et al. 2017, section 3.1: in round t both are trained on 1 / t new samples and 1 -
    1 / t that the generator of round t - 1 made, which the solver of round t - 1 labels. Codes are drawn from a mode of
    each class, every one with the same chance (van de Ven et al. 2020, conditional replay): between the modes of a
    standard normal lie samples of no class, which become more from round to round.

    The generator is a variational autoencoder (Kingma & Welling 2014), of which only the decoder is kept, float16, as
    wide as `room` bytes allow from the first round on; its encoder is made anew in every round. Samples of up to PIXELS
    numbers are generated themselves; of larger ones the activations at the map, all layers below being frozen after the
    first round. steps: of the generator, each round; recalls: whether its training replays its own samples.
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
        if self.shape.numel() <= PIXELS:
            self.place = 0
            self.check(1)

    def check(self, classes: int) -> None:
        if self.decoder is not None and self.nbytes_for(classes) > self.room:
            raise BudgetError(f"{self.room} bytes can't hold a generator of {classes} classes, wide as it is",
                              f"give --memory {4 * self.room} from the first round on")
        if self.place >= 0 and self.decoder is None and not shape_for(self.room, self.shape.numel())[0]:
            least = 2 * (BESIDE + 2 * (2 * self.shape.numel() + 2))
            raise BudgetError(f"{self.room} bytes can't hold a generator of {self.shape.numel()} numbers",
                              f"give --memory {least} or more")

    def nbytes_for(self, classes: int) -> int:
        """Bytes with that many classes; the decoder must be there."""
        assert self.decoder is not None
        code = self.decoder[0].in_features
        return BESIDE + 2 * sum(p.numel() for p in self.decoder.parameters()) + classes * mode_bytes(int(code))

    def enter(self, new: Batch, network: Network, generator: np.random.Generator) -> tuple[Network, Batch]:
        self.seed = int(generator.integers(2**31))
        found = super().enter(new, network, generator)
        if self.decoder is not None:
            self.solver = deepcopy(network.above(self.place)).eval()
        return found

    def amount(self, n: int) -> int:
        """t - 1 times as many as new ones."""
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
        if self.decoder is not None:    # the modes of old classes are where their samples lie now
            old, columns = self.generated(EACH * len(self.modes), generator)
            kept = ~torch.isin(columns, y)
            x, y = torch.cat([x, old[kept]]), torch.cat([y, columns[kept]])
        mean, spread = outputs(encoder, x).chunk(2, 1)
        self.modes = {column: _half(_mode(mean[y == column], spread[y == column]))
                      for column in sorted(set(y.tolist()))}
        self.decoder = _stored(fresh)
        self.solver, self.before = None, None
        self.rounds, self.columns = self.rounds + 1, list(self.modes)

    def _trained(self, fresh: nn.Sequential, x: Tensor, generator: np.random.Generator) -> nn.Sequential:
        """Raise the evidence lower bound of the mix; the encoder. x: new samples in the generator's scale."""
        width, code = fresh[2].in_features, fresh[0].in_features
        encoder = initialised(nn.Sequential(nn.Linear(x.shape[1], width), nn.ReLU(), nn.Linear(width, 2 * code)),
                               generator)
        adam = Adam([*encoder.parameters(), *fresh.parameters()], RATE)
        recalls = self.recalls and self.decoder is not None
        own = mix(BATCH, self.rounds + 1) if recalls else BATCH
        for _ in range(self.steps):
            batch = x[torch.from_numpy(generator.integers(len(x), size=own))]
            if recalls:
                batch = torch.cat([batch, self.generated(BATCH - own, generator)[0]])
            mean, spread = encoder(batch).chunk(2, 1)
            spread = spread.clamp(*SPREAD)
            noise = torch.from_numpy(generator.standard_normal(mean.shape).astype(np.float32))
            decoded = fresh(mean + noise * (spread / 2).exp())
            divergence = (mean.square() + spread.exp() - 1 - spread).sum() / 2
            missed = F.binary_cross_entropy_with_logits(decoded, batch, reduction="sum")
            adam.step(torch.autograd.grad((SHARP * missed + divergence) / len(batch), adam.weights))
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
        """Generated samples as the network takes them."""
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
    """Mean and deviation [2, z] of codes whose posteriors have these means and log variances [n, z]."""
    variance = mean.var(0, unbiased=False) + spread.clamp(*SPREAD).exp().mean(0)
    return torch.stack([mean.mean(0), variance.sqrt()])


def _half(values: Tensor) -> Tensor:
    return values.half().float()


def _stored(layers: nn.Sequential) -> nn.Sequential:
    """As it is at rest: float16."""
    with torch.no_grad():
        for p in layers.parameters():
            p.copy_(p.half().float())
    return layers.requires_grad_(False)
