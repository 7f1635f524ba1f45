"""Samples, networks and covariances for the tests of pseudo-rehearsal."""
from __future__ import annotations

import numpy as np
import torch
from torch import nn

from edgecl.training.batch import Batch
from edgecl.training.networks.heads import Softmax
from edgecl.training.networks.network import Network


def rng(seed=0):
    return np.random.default_rng(seed)


def nothing(d):
    return Batch(torch.empty(0, d), torch.empty(0, dtype=torch.int64))


def covariance(d, seed=0):
    a = rng(seed).standard_normal((d, d))
    return a @ a.T / d + np.diag(rng(seed + 1).uniform(0.5, 2, d))


def network_of(d, classes=0):
    network = Network(nn.Flatten(), nn.Identity(), Softmax(d), d)
    network.head.extend(classes, rng())
    return network.eval()


def classes_of(columns, n=40, d=6, seed=0):
    """Samples about a mean of each column's own."""
    x = [rng(seed + c).standard_normal((n, d)) + 6 * rng(100 + c).standard_normal(d) for c in columns]
    return Batch(torch.tensor(np.concatenate(x), dtype=torch.float32), torch.tensor(columns).repeat_interleave(n))
