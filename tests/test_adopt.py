"""A later round goes on from the head of the last one, by whatever method; without it, lwf would distil nothing."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers_networks import convolutions, rng

from edgecl.backbones.cut import Anatomy
from edgecl.rounds.job import Job
from edgecl.rounds.method import read_method
from edgecl.training.bench.session import parts_of
from edgecl.training.networks.pretrained import network_above
from edgecl.training.worker.tune import adopt, compose


def begun(method, before, classes=("ant", "bee", "cat"), known=2):
    """A network and parts as a worker makes them, after `adopt`; and what that answered."""
    anatomy, composed = Anatomy(convolutions()), read_method(method)
    (head,) = parts_of(composed, "head")
    network, parts = network_above(anatomy, anatomy.cut(), head), compose(composed, anatomy.cut())
    return network, parts, adopt(network, parts, before, Job(method, classes, known, "raw", None, 10**9, 60))


def left(method, classes=("ant", "bee"), **more):
    """What a round by that method left behind."""
    width = convolutions.__defaults__[0][-1]
    return {"method": np.array(method), "classes": np.array(classes), "rounds": np.array(3),
            "head/weight": rng().standard_normal((len(classes), width)).astype(np.float32),
            "head/bias": np.arange(len(classes), dtype=np.float32), **more}


@pytest.mark.parametrize("method", ["lwf", "er", "ewc", "icarl"])
def test_the_head_of_a_first_session_is_the_old_network_of_the_next_method(method):
    before = left("first-session")
    network, _, rounds = begun(method, before)
    assert rounds == 3
    assert network.head.classes == 2
    np.testing.assert_array_equal(network.head.weight.detach().numpy(), before["head/weight"])
    np.testing.assert_array_equal(network.head.bias.detach().numpy(), before["head/bias"])


def test_importances_are_for_the_same_method_only():
    kept = {"constraint0/head.bias": np.ones(2, np.float32)}
    for method, count in (("ewc", 1), ("first-session", 0)):
        _, parts, _ = begun("ewc", left(method, **kept))
        assert len(parts.constraints[0].omega) == count


def test_a_head_that_does_not_fit_is_left():
    other = {name: array for name, array in left("er").items() if name != "head/bias"}
    for before in (left("er", ("bee", "ant")), {**other, "head/scale": np.array(10.0, np.float32)}):
        network, _, rounds = begun("lwf", before)
        assert (network.head.classes, rounds) == (0, 3)
    network, _, rounds = begun("lwf", {})
    assert (network.head.classes, rounds) == (0, 0)
    assert torch.is_tensor(network.head.weight)
