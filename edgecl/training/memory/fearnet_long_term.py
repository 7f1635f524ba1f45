"""FearNet's long-term memory: an autoencoder whose code is classified, and a Gaussian of each class over the code."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from edgecl.training.memory.generator import initialised
from edgecl.training.networks.network import outputs
from edgecl.training.optimisers import Adam
from edgecl.training.part import Part

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from edgecl.training.part import Arrays

BATCH = 64
HIDDEN_FACTOR = 2       # width of the layers next to the code, in lengths of it
RIDGE = 1e-4            # share of the mean variance that is added to each before a covariance is factored
RATE = 2e-3             # for half of a sleep; then it falls linearly to 0
SMALLEST_WEIGHT = 1e-30 # the largest of a row is not taken as smaller
HIDDEN_WEIGHT = 0.1     # in the loss, of the reconstruction of the hidden layer
STABILITY = 1.0         # in the loss, of how far the codes of pseudo-samples move
CODE_LENGTHS = (64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1)
LARGEST_CODE = 127.49   # see `edgecl.exemplars.codecs`: the largest of a row then always rounds to 127
ROW_BYTES = 4           # of a row of weights beside them: scale and bias


def class_bytes(code: int) -> int:
    """Of a class: its column, int32; its row of the classifier, mean and factor of the full covariance, float16."""
    return 4 + 2 * (code + 1) + 2 * (code + code * (code + 1) // 2)


def network_bytes(numbers: int, code: int) -> int:
    """Of encoder and decoder, and of the residual."""
    width = HIDDEN_FACTOR * code
    return 2 * width * (numbers + code) + ROW_BYTES * (2 * width + code + numbers) + 2 * numbers


def round_weights(layers: nn.Sequential) -> nn.Sequential:
    """As they are stored: weights in 8 bits, -127..127 times a scale per row, biases float16."""
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer, nn.Linear):
                scale = _scale(layer.weight)
                layer.weight.copy_((layer.weight / scale).round() * scale)
                layer.bias.copy_(layer.bias.half().float())
    return layers.requires_grad_(False)


def packed(layers: nn.Sequential) -> Arrays:
    """Rounded weights int8, scales as the upper half of a float32, uint16, biases float16."""
    found: Arrays = {}
    for name, layer in layers.named_children():
        if isinstance(layer, nn.Linear):
            scale = _scale(layer.weight)
            found |= {f"{name}.codes": (layer.weight / scale).round().to(torch.int8).numpy(),
                      f"{name}.scale": (scale[:, 0].numpy().view(np.uint32) >> 16).astype(np.uint16),
                      f"{name}.bias": layer.bias.numpy().astype(np.float16)}
    return found


def unpack(layers: nn.Sequential, state: Mapping[str, np.ndarray]) -> nn.Sequential:
    """The inverse of `packed`, bit for bit."""
    with torch.no_grad():
        for name, layer in layers.named_children():
            if isinstance(layer, nn.Linear):
                scale = (state[f"{name}.scale"].astype(np.uint32) << 16).view(np.float32)[:, None]
                layer.weight.copy_(torch.from_numpy(state[f"{name}.codes"].astype(np.float32) * scale))
                layer.bias.copy_(torch.from_numpy(state[f"{name}.bias"].astype(np.float32)))
    return layers.requires_grad_(False)


def _scale(weight: Tensor) -> Tensor:
    """Of each row, float32 [n, 1] of 8 significant bits, rounded up, so that its products with codes are exact."""
    least = weight.detach().abs().amax(1, keepdim=True).clamp(min=SMALLEST_WEIGHT) / LARGEST_CODE
    return torch.from_numpy(((least.numpy().view(np.uint32) + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)
                             ).view(np.float32))


class Cortex(Part):
    """mPFC of Kemker & Kanan 2018, section 4.2: encoder, classifier and decoder, trained on classification and on the
    reconstruction of input and hidden layer; for each class a mean and a **full** covariance of its codes, from which
    codes are drawn and decoded as pseudo-samples. factors: lower triangles L of covariances L L^T, float32 [n, code,
    code]; residual: standard deviation of the decoder's error, float32 [numbers]. Stored as float16, weights of
    encoder and decoder in 8 bits.

    Not in the paper, but needed once pseudo-samples are learned from pseudo-samples: they get noise of the size of the
    residual, since without it everything off the decoder's surface looks new; their codes are kept in place; and the
    learning rate of a sleep falls to 0."""

    def __init__(self, numbers: int, code: int) -> None:
        self.numbers, self.code, width = numbers, code, HIDDEN_FACTOR * code
        self.encoder = nn.Sequential(nn.Linear(numbers, width), nn.ELU(), nn.Linear(width, code))
        self.decoder = nn.Sequential(nn.Linear(code, width), nn.ELU(), nn.Linear(width, numbers))
        self.classifier = nn.Linear(code, 1)       # grows with the first class
        self.columns: list[int] = []
        self.means = torch.empty(0, code)
        self.factors = torch.empty(0, code, code)
        self.residual = torch.zeros(numbers)

    def start(self, generator: np.random.Generator) -> Cortex:
        """Initialise all weights."""
        initialised(self.encoder, generator)
        initialised(self.decoder, generator)
        return self

    def dream(self, n: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """n pseudo-samples, float32 [n, numbers], and their columns, each class with the same chance."""
        drawn = generator.integers(len(self.columns), size=n)
        noise, beside = (torch.from_numpy(generator.standard_normal((n, m)).astype(np.float32))
                         for m in (self.code, self.numbers))
        codes = torch.empty(n, self.code)
        for i in set(drawn.tolist()):
            rows = torch.from_numpy(drawn == i)
            codes[rows] = self.means[i] + noise[rows] @ self.factors[i].T
        decoded = outputs(self.decoder, codes, max(n, 1))
        return decoded + self.residual * beside, torch.tensor(self.columns)[torch.from_numpy(drawn)]

    def probabilities(self, x: Tensor) -> Tensor:
        """P(class | x) [n, classes], in the order of `columns`."""
        chances: Tensor = F.softmax(self.classifier(self.encoder(x)), 1)
        return chances

    def consolidate(self, x: Tensor, y: Tensor, steps: int, generator: np.random.Generator,
                    dreamer: Cortex | None = None) -> None:
        """Learn recent samples x [n, numbers] of columns y [n] together with pseudo-samples: as many of each old class
        as there are of a new one on average. dreamer: the cortex that this one replaces, if it is another."""
        dreamer = dreamer or self
        arrived, real = sorted(set(y.tolist())), len(x)
        old = [column for column in dreamer.columns if column not in arrived]
        if old:
            dreamt, of = dreamer.dream(len(dreamer.columns) * -(-len(x) // len(arrived)), generator)
            kept = torch.isin(of, torch.tensor(old))
            x, y = torch.cat([x, dreamt[kept]]), torch.cat([y, of[kept]])
        before = outputs(self.encoder, x) if old and dreamer is self else None
        self._grow([*dreamer.columns, *(column for column in arrived if column not in dreamer.columns)])
        target = torch.tensor([self.columns.index(column) for column in y.tolist()])
        parts = [self.encoder, self.decoder, self.classifier]
        weights = [p.requires_grad_(True) for part in parts for p in part.parameters()]
        adam = Adam(weights)
        for step in range(steps):
            rows = torch.from_numpy(generator.integers(len(x), size=BATCH))
            hidden = self.encoder[1](self.encoder[0](x[rows]))
            code = self.encoder[2](hidden)
            mirrored = self.decoder[1](self.decoder[0](code))
            missed = F.mse_loss(self.decoder[2](mirrored), x[rows]) + HIDDEN_WEIGHT * F.mse_loss(mirrored, hidden)
            loss = F.cross_entropy(self.classifier(code), target[rows]) + missed
            if before is not None and (known := rows >= real).any():
                loss = loss + STABILITY * F.mse_loss(code[known], before[rows[known]])
            adam.step(torch.autograd.grad(loss, weights), RATE * min(1.0, 2 * (1 - step / steps)))
        self._finish(x, target)

    def _finish(self, x: Tensor, target: Tensor) -> None:
        """Round all weights as they are stored, then measure residual, means and factors. target: the places of the
        samples' classes in `columns`."""
        round_weights(self.encoder)
        round_weights(self.decoder)
        with torch.no_grad():
            for p in self.classifier.requires_grad_(False).parameters():
                p.copy_(p.half().float())
        codes = outputs(self.encoder, x)
        self.residual = (x - outputs(self.decoder, codes)).std(0, correction=0).half().float()
        own = [codes[target == i] for i in range(len(self.columns))]
        self.means = torch.stack([part.mean(0) for part in own]).half().float()
        self.factors = torch.stack([self._factor(part) for part in own])

    def _factor(self, codes: Tensor) -> Tensor:
        covariance = torch.cov(codes.T, correction=0).view(self.code, self.code)
        ridge = RIDGE * covariance.diagonal().mean().clamp(min=RIDGE) * torch.eye(self.code)
        return torch.linalg.cholesky(covariance + ridge).half().float()     # type: ignore[no-any-return]

    def _grow(self, columns: list[int]) -> None:
        fresh = nn.Linear(self.code, len(columns))
        with torch.no_grad():
            fresh.weight.zero_()
            fresh.bias.zero_()
            fresh.weight[:len(self.columns)] = self.classifier.weight[:len(self.columns)]
            fresh.bias[:len(self.columns)] = self.classifier.bias[:len(self.columns)]
        self.classifier, self.columns = fresh, columns

    def state(self) -> Arrays:
        weights = {f"{name}/{key}": array for name in ("encoder", "decoder")
                   for key, array in packed(getattr(self, name)).items()}
        weights |= {f"classifier/{key}": value.detach().numpy().astype(np.float16)
                    for key, value in self.classifier.state_dict().items()}
        lower = torch.tril_indices(self.code, self.code)
        halves = {"residual": self.residual, "means": self.means, "factors": self.factors[:, lower[0], lower[1]]}
        return {**weights, "columns": np.array(self.columns, np.int32),
                **{name: tensor.numpy().astype(np.float16) for name, tensor in halves.items()}}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self._grow([int(column) for column in state["columns"]])
        for name in ("encoder", "decoder"):
            unpack(getattr(self, name), {key.removeprefix(f"{name}/"): array for key, array in state.items()})
        self.classifier.load_state_dict({key: torch.tensor(state[f"classifier/{key}"]).float()
                                         for key in self.classifier.state_dict()})
        self.classifier.requires_grad_(False)
        lower = torch.tril_indices(self.code, self.code)
        self.residual = torch.tensor(state["residual"]).float()
        self.means = torch.tensor(state["means"]).float()
        self.factors = torch.zeros(len(self.means), self.code, self.code)
        self.factors[:, lower[0], lower[1]] = torch.tensor(state["factors"]).float()
