"""FearNet's long-term memory: an autoencoder whose code is classified, and a Gaussian of each class over the code."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from edgecl.training.adam import Adam
from edgecl.training.generator import initialised
from edgecl.training.network import outputs
from edgecl.training.part import Part

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from edgecl.training.part import Arrays

BATCH = 64
HIDDEN = 2          # times the code: the width of the layer on each side of it
RIDGE = 1e-4        # of the mean variance, added to each before a covariance is factored
RATE = 2e-3
HIDDEN_SHARE = 0.1  # of the loss, the reconstruction of the hidden layer
CODES = (64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1)


def class_bytes(code: int) -> int:
    """Of a class: its column, int32, its row of the classifier, float16, mean and full covariance, float32."""
    return 4 + 2 * (code + 1) + 4 * (code + code * (code + 1) // 2)


def network_bytes(numbers: int, code: int) -> int:
    """Of encoder and decoder, float16."""
    width = HIDDEN * code
    return 2 * (2 * width * (numbers + code) + 2 * width + code + numbers)


class Cortex(Part):
    """mPFC of Kemker & Kanan 2018, section 4.2: encoder, classifier and decoder, trained on classification and on the
    reconstruction of input and hidden layer; for each class a mean and a **full** covariance of its codes, from which
    codes are drawn and decoded as pseudo-samples. At rest float16, covariances float32."""

    def __init__(self, numbers: int, code: int) -> None:
        self.numbers, self.code, width = numbers, code, HIDDEN * code
        self.encoder = nn.Sequential(nn.Linear(numbers, width), nn.ELU(), nn.Linear(width, code))
        self.decoder = nn.Sequential(nn.Linear(code, width), nn.ELU(), nn.Linear(width, numbers))
        self.classifier = nn.Linear(code, 1)       # grows with the first class
        self.columns: list[int] = []
        self.means = torch.empty(0, code)
        self.covariances = torch.empty(0, code, code)

    def start(self, generator: np.random.Generator) -> Cortex:
        """With random weights."""
        initialised(self.encoder, generator)
        initialised(self.decoder, generator)
        return self

    def dream(self, n: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """n pseudo-samples, float32 [n, numbers], and their columns; each class has the same chance."""
        drawn = generator.integers(len(self.columns), size=n)
        noise = torch.from_numpy(generator.standard_normal((n, self.code)).astype(np.float32))
        codes = torch.empty(n, self.code)
        for i in set(drawn.tolist()):
            ridge = RIDGE * self.covariances[i].diagonal().mean().clamp(min=RIDGE) * torch.eye(self.code)
            factor = torch.linalg.cholesky(self.covariances[i] + ridge)
            rows = torch.from_numpy(drawn == i)
            codes[rows] = self.means[i] + noise[rows] @ factor.T
        return outputs(self.decoder, codes, max(n, 1)), torch.tensor(self.columns)[torch.from_numpy(drawn)]

    def probabilities(self, x: Tensor) -> Tensor:
        """P(class | x) [n, classes], in the order of `columns`."""
        chances: Tensor = F.softmax(self.classifier(self.encoder(x)), 1)
        return chances

    def consolidate(self, x: Tensor, y: Tensor, steps: int, generator: np.random.Generator) -> None:
        """Learn recent samples x [n, numbers] of columns y [n] among pseudo-samples of what is known: as many of each
        old class as the mean of the new ones."""
        arrived = sorted(set(y.tolist()))
        old = [column for column in self.columns if column not in arrived]
        if self.columns and old:
            dreamt, of = self.dream(len(self.columns) * -(-len(x) // len(arrived)), generator)
            kept = torch.isin(of, torch.tensor(old))
            x, y = torch.cat([x, dreamt[kept]]), torch.cat([y, of[kept]])
        self._grow([*self.columns, *(column for column in arrived if column not in self.columns)])
        target = torch.tensor([self.columns.index(column) for column in y.tolist()])
        parts = [self.encoder, self.decoder, self.classifier]
        weights = [p.requires_grad_(True) for part in parts for p in part.parameters()]
        adam = Adam(weights, RATE)
        for _ in range(steps):
            rows = torch.from_numpy(generator.integers(len(x), size=BATCH))
            hidden = self.encoder[1](self.encoder[0](x[rows]))
            code = self.encoder[2](hidden)
            mirrored = self.decoder[1](self.decoder[0](code))
            missed = F.mse_loss(self.decoder[2](mirrored), x[rows]) + HIDDEN_SHARE * F.mse_loss(mirrored, hidden)
            loss = F.cross_entropy(self.classifier(code), target[rows]) + missed
            adam.step(torch.autograd.grad(loss, weights))
        with torch.no_grad():
            for p in weights:
                p.requires_grad_(False).copy_(p.half().float())
        codes = outputs(self.encoder, x)
        own = [codes[target == i] for i in range(len(self.columns))]
        self.means = torch.stack([part.mean(0) for part in own])
        self.covariances = torch.stack([torch.cov(part.T, correction=0).view(self.code, self.code) for part in own])

    def _grow(self, columns: list[int]) -> None:
        fresh = nn.Linear(self.code, len(columns))
        with torch.no_grad():
            fresh.weight.zero_()
            fresh.bias.zero_()
            fresh.weight[:len(self.columns)] = self.classifier.weight[:len(self.columns)]
            fresh.bias[:len(self.columns)] = self.classifier.bias[:len(self.columns)]
        self.classifier, self.columns = fresh, columns

    def state(self) -> Arrays:
        weights = {f"{name}/{key}": value.detach().numpy().astype(np.float16)
                   for name in ("encoder", "decoder", "classifier")
                   for key, value in getattr(self, name).state_dict().items()}
        upper = torch.triu_indices(self.code, self.code)
        return {**weights, "columns": np.array(self.columns, np.int32), "means": self.means.numpy(),
                "covariances": self.covariances[:, upper[0], upper[1]].numpy()}

    def load(self, state: Mapping[str, np.ndarray]) -> None:
        self._grow([int(column) for column in state["columns"]])
        for name in ("encoder", "decoder", "classifier"):
            part = getattr(self, name)
            part.load_state_dict({key: torch.tensor(state[f"{name}/{key}"]).float() for key in part.state_dict()})
            part.requires_grad_(False)
        upper = torch.triu_indices(self.code, self.code)
        packed = torch.tensor(state["covariances"])
        self.means, self.covariances = torch.tensor(state["means"]), torch.zeros(len(packed), self.code, self.code)
        self.covariances[:, upper[0], upper[1]] = packed
        self.covariances[:, upper[1], upper[0]] = packed
