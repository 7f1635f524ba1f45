"""Batches that go through in pieces learn the same, memory that runs out halves them, and time is left for the end."""
from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from edgecl.rounds.worker import MALLOC
from edgecl.training.batch import Batch
from edgecl.training.constraints.distillation import Distillation
from edgecl.training.constraints.importances import Fisher
from edgecl.training.networks.heads import Sigmoid, Softmax
from edgecl.training.networks.network import build, outputs
from edgecl.training.passes import CLOSING_MARGIN, FIRST_STEP, FORWARD, Allowance, Deadline, Objective

KNOWN, CLASSES, SAMPLES, OLD = 3, 5, 12, 7
METHODS = {  # head, constraints
    "finetune": (Softmax, lambda: []), "lwf": (Softmax, lambda: [Distillation(2.0, 1.0, False)]),
    "icarl": (Sigmoid, lambda: []), "ewc": (Softmax, lambda: [Fisher(100.0, 1.0, 0, "exact", "online")])}


def made(method):
    """A network that knows three of five classes, the method's constraints, a batch, and its old logits."""
    head, constraints = METHODS[method]
    network, parts, generator = build("mlp", (6,), "float32", head, 0), constraints(), np.random.default_rng(0)
    network.head.extend(KNOWN, generator)
    batch = Batch(torch.from_numpy(generator.standard_normal((SAMPLES, 6), np.float32)),
                  torch.from_numpy(generator.integers(0, CLASSES, SAMPLES)))
    for part in parts:
        part.end(network, batch, generator)
    old = outputs(lambda x: network(x)[1], batch.x[:OLD])
    network.head.extend(CLASSES, generator)
    for part in parts:
        part.begin(network, [0.01] * len(list(network.parameters())))
    with torch.no_grad():
        for p in network.parameters():      # away from what was learned, or nothing holds it
            p.add_(0.1 * torch.from_numpy(generator.standard_normal(tuple(p.shape), np.float32)))
    return network, parts, batch, old


def gradients(made_up, piece, **allowed):
    """The loss and all gradients, as a step would use them, and what was allowed in the end."""
    network, parts, batch, old = made_up
    allowance = Allowance(piece, **allowed)
    value, found = allowance.passes(Objective(network, parts, KNOWN, 0.1), replace(batch, old=old))[:2]
    for part in parts:
        found = part.project(found)
    return value, [g.numpy().copy() for g in found], allowance


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("piece", [1, 3, 5, 8, 12, 40])
def test_pieces_add_up_to_the_whole_batch(method, piece):
    made_up = made(method)
    whole, all_at_once, _ = gradients(made_up, None)
    value, in_pieces, allowance = gradients(made_up, piece)
    assert value == pytest.approx(whole, rel=1e-5)
    assert allowance.samples == SAMPLES
    for ours, theirs in zip(in_pieces, all_at_once):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6 * max(np.abs(theirs).max(), 1))


def test_the_constraints_of_these_methods_do_something():
    plain = gradients(made("finetune"), None)[1]
    for method in ("lwf", "icarl", "ewc"):
        assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(gradients(made(method), None)[1], plain)), method


def failing(network, most, error):
    """Passes of more than `most` samples fail."""
    def check(_, given):
        if len(given[0]) > most:
            raise error
    network.body.register_forward_pre_hook(check)


@pytest.mark.parametrize("error", [
    RuntimeError("[enforce fail at alloc_cpu.cpp:132] DefaultCPUAllocator: can't allocate memory: you tried to "
                 "allocate 4096 bytes. Error code 12 (Cannot allocate memory)"),
    MemoryError(), RuntimeError("std::bad_alloc"), torch.OutOfMemoryError("CUDA out of memory.")])
def test_where_memory_runs_out_pieces_are_halved_and_nothing_else_changes(error):
    made_up = made("lwf")
    whole, all_at_once, _ = gradients(made_up, None)
    failing(made_up[0], 4, error)
    value, in_pieces, allowance = gradients(made_up, None)
    assert allowance.piece == 3     # 12, 6, 3
    assert value == pytest.approx(whole, rel=1e-5)
    for ours, theirs in zip(in_pieces, all_at_once):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    assert gradients(made_up, 3)[2].piece == 3


def test_one_sample_too_much_and_other_errors_are_not_swallowed():
    for most, message in ((0, "out of memory"), (4, "mat1 and mat2 shapes cannot be multiplied")):
        made_up = made("finetune")
        failing(made_up[0], most, RuntimeError(message))
        with pytest.raises(RuntimeError, match=message):
            gradients(made_up, None)


def test_pieces_are_halved_where_memory_gets_tight_but_never_to_nothing():
    made_up = made("finetune")
    assert gradients(made_up, 8, tight=lambda: True)[2].piece == 4
    assert gradients(made_up, 1, tight=lambda: True)[2].piece == 1


def test_the_time_for_steps_ends_so_early_that_what_follows_can_be_done():
    now = [100.0]
    clock = Deadline(60.0, closing=300, files=0.7, each=0.03, batch=64, now=lambda: now[0])
    last = 0.7 + 0.03 * (FIRST_STEP * 64 + FORWARD * CLOSING_MARGIN * 300)      # one more step, 300 samples forward
    assert clock.last == pytest.approx(last)
    now[0] += (60 - last) / 2
    assert clock.spent(0) == pytest.approx(0.5)
    now[0] = 100 + 60 - last
    assert clock.spent(0) == pytest.approx(1.0)


def test_the_pace_of_the_steps_counts_but_not_that_of_the_first():
    now = [0.0]
    clock = Deadline(60.0, closing=300, files=0.7, each=0.03, batch=64, now=lambda: now[0])
    now[0] = 10.0       # loading code
    assert clock.spent(64) == pytest.approx(10 / (60 - clock.last))
    assert clock.each == 0.03
    now[0] = 16.4       # other programs take most of the time
    clock.spent(128)
    assert clock.each == pytest.approx(0.1)
    assert clock.last > 0.7 + 0.1 * 64 + 0.1 * FORWARD * 300


def test_a_time_that_is_too_short_for_a_step_is_spent_at_once():
    assert Deadline(2.0, closing=300, files=0.7, each=0.03, batch=64).spent(0) >= 1
    assert Allowance(stopped=lambda: True).spent() >= 1
    assert Allowance().spent() == 0


@pytest.mark.slow
def test_the_kernel_refuses_memory_and_the_batch_goes_through_in_pieces():
    code = """
import numpy as np, torch
from edgecl.training.worker import limits
from edgecl.training.passes import Allowance, Objective
from edgecl.training.networks.heads import Softmax
from edgecl.training.batch import Batch
from edgecl.training.networks.network import build
network = build("cnn", (96, 96, 3), "uint8", Softmax, 0)
network.head.extend(4, np.random.default_rng(0))
x = torch.randint(0, 256, (256, 96, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
batch, objective = Batch(x, torch.arange(256) % 4), Objective(network, (), 0)
whole = Allowance().passes(objective, batch)
limits.trim()
memory = limits.status("VmRSS")[0] + 60_000_000
limits.limit(memory)
peak = limits.Peak()
allowance = Allowance()
found = []
raised = peak.raised_by(lambda: found.append(allowance.passes(objective, batch)))
(value, gradients, *_), = found
same = all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(gradients, whole[1]))
print(allowance.piece, raised < 1.05 * 60_000_000 + 0.02 * memory, same, abs(value - whole[0]) < 1e-4)
"""
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True,
                         env={**os.environ, **MALLOC}).stdout.split()
    assert int(out[0]) in (64, 32, 16, 8)
    assert out[1:] == ["True", "True", "True"]
