"""Sessions whose rounds have sub-networks, for their tests."""
from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import torch

from edgecl.evaluation.datasets import digits
from edgecl.training.bench.options import RunOptions
from edgecl.training.bench.session import MethodRun
from edgecl.training.networks.network import outputs

SPACE = 500_000
SHAPES = {"mlp": ((64,), "float32"), "cnn": ((16, 16, 1), "uint8"), "resnet32": ((16, 16, 3), "uint8"),
          "tcn": ((40, 3), "float32")}


def rng(seed=0):
    return np.random.default_rng(seed)


@cache
def steps(each=40):
    """Three steps of two digits, as vectors."""
    data = digits()
    rows = np.concatenate([np.flatnonzero(data.y_train == c)[:each] for c in range(6)])
    x, y = data.x_train[rows], data.y_train[rows]
    return [(x[y // 2 == k], y[y // 2 == k]) for k in range(3)]


def everything():
    return np.concatenate([x for x, _ in steps()])


def session(method, seed=0, room=SPACE, network="mlp", **more):
    return MethodRun(method, network, *SHAPES[network], room, seed, RunOptions(**more))


def give(learner, kind, room, *numbers, **named):
    """Another plasticity for a learner that has learned nothing; with its task rule."""
    part = kind(room, learner.parts.plasticity.rule, *numbers, **named)
    learner.parts = replace(learner.parts, plasticity=part)
    return part


def taught(method, count=3, **more):
    learner = session(method, **more)
    for x, y in steps()[:count]:
        learner.learn(x, y)
    return learner


def answers(learner, task, x):
    """Features and logits of a task's sub-network."""
    net = learner.parts.plasticity.subnetwork(learner.network, task)
    return [outputs(part, torch.from_numpy(x)).numpy() for part in (net.features, lambda each: net(each)[1])]


def made_up(network, seed, n=24):
    shape, dtype = SHAPES[network]
    x = rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8) if dtype == "uint8" else \
        rng(seed).standard_normal((n, *shape)).astype(np.float32)
    return x, np.arange(n) % 2 + 2 * seed
