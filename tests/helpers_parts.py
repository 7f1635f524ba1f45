"""Small batches, networks and steps, for tests of parts by hand."""
from __future__ import annotations

import numpy as np
import torch
from torch import nn

from edgecl.rounds.method import method_names, read_method
from edgecl.rounds.parts import PARTS
from edgecl.training.batch import Batch
from edgecl.training.networks.heads import Softmax
from edgecl.training.networks.network import Network
from edgecl.training.step import Step

NOTHING = Batch(torch.empty(0, 6), torch.empty(0, dtype=torch.int64))
SIZE = 6 * 4


BY_TYPE = {int: 3, float: 0.5, bool: True}     # for parts that no method uses
MOST_STEPS = 10     # and samples, numbers of a projection, ...: small enough for a test


def example_numbers(kind, name):
    """Numbers that a part takes: those of a method that comes with edgecl, counts cut short, or some of their type."""
    numbers = PARTS[kind][name].numbers
    methods = [method for method in map(read_method, method_names()) if name in method.parts[kind]]
    values = methods[0].numbers if methods else {}
    values = {number: values.get(number, type_[0] if isinstance(type_, tuple) else BY_TYPE[type_])
              for number, type_ in numbers.items()}
    return {number: min(value, MOST_STEPS) if numbers[number] is int else value for number, value in values.items()}


def rng(seed=0):
    return np.random.default_rng(seed)


def batch(columns, n=8, seed=0):
    x = torch.from_numpy(rng(seed).standard_normal((n * len(columns), 6)).astype(np.float32))
    y = torch.tensor([column for column in columns for _ in range(n)])
    x[torch.arange(len(y)), y] += 2.0       # each class has a direction of its own
    return Batch(x, y)


def plain(classes, head=Softmax):
    """A network whose features are its input."""
    network = Network(nn.Flatten(), nn.Identity(), head(6), 6)
    network.head.extend(classes, rng())
    return network.eval()


def step(logits, targets, old=None, known=0, **more):
    more.setdefault("features", torch.empty(len(logits), 0))
    features = more.pop("features")
    olds = 0 if old is None else len(old)
    return Step(features, logits, torch.tensor(targets), old, known, len(logits), olds, **more)


def gradient(loss, weights):
    return torch.autograd.grad(loss, weights)[0]
