"""FearNet: its three parts, its sleep, and what it keeps of a session."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers_generative import classes_of, covariance, network_of, nothing, rng
from torch import nn

import edgecl.training.memory.fearnet_long_term as cortex_module
from edgecl.errors import BudgetError
from edgecl.training.memory.fearnet import FearNet
from edgecl.training.memory.fearnet_long_term import Cortex, round_weights


def test_pseudo_samples_come_from_full_covariances():
    cortex = Cortex(3, 3).start(rng())
    cortex.columns = [0]
    cortex.means = torch.tensor([[1.0, -2.0, 3.0]])
    cortex.factors = torch.linalg.cholesky(torch.tensor(covariance(3)[None], dtype=torch.float32))
    cortex.decoder = nn.Identity()
    x, of = cortex.dream(100_000, rng())
    assert np.linalg.norm(np.cov(x.numpy().T) - covariance(3)) <= 0.02 * np.linalg.norm(covariance(3))
    assert (x.mean(0) - cortex.means[0]).norm() < 0.02 * cortex.means.norm() and set(of.tolist()) == {0}
    assert abs(covariance(3)[0, 1]) > 0.05      # else a diagonal would do


def test_pseudo_samples_vary_as_real_ones_do_beside_what_the_decoder_tells():
    """Eight numbers by a code of one: what the code can't say is most of them, and is there again in the dream."""
    x = torch.from_numpy(rng().standard_normal((2000, 8)).astype(np.float32))
    cortex = Cortex(8, 1).start(rng())
    cortex.consolidate(x, torch.zeros(2000, dtype=torch.int64), 400, rng())
    dreamt, _ = cortex.dream(20_000, rng())
    assert cortex.residual.square().sum() > 0.5 * x.var(0).sum()
    torch.testing.assert_close(dreamt.var(0), x.var(0), rtol=0.1, atol=0.01)


def test_a_sleep_leaves_the_codes_of_what_is_known_where_they_are(monkeypatch):
    moved = {}
    for stay in (0.0, cortex_module.STABILITY):
        monkeypatch.setattr(cortex_module, "STABILITY", stay)
        cortex, known = Cortex(6, 4).start(rng()), classes_of([0, 1])
        cortex.consolidate(known.x, known.y, 300, rng())
        before = cortex.encoder(known.x)
        new = classes_of([2, 3])
        cortex.consolidate(new.x, new.y, 300, rng())
        moved[stay] = float((cortex.encoder(known.x) - before).square().mean() / before.var(0).mean())
    assert moved[cortex_module.STABILITY] < moved[0.0] / 4


def fearnet(sleep=3, dreams=300):
    memory, network = FearNet(20_000, nothing(6), sleep, dreams), network_of(6, 8)
    for k in range(sleep):
        memory.update(classes_of([2 * k, 2 * k + 1]), network)
    return memory, network


def test_recent_memory_is_empty_after_sleep_and_long_term_memory_knows_all():
    memory, network = fearnet()
    assert set(memory.of.tolist()) == {2, 3, 4, 5} and memory.cortex.columns == [0, 1] and memory.gate is not None
    memory.update(classes_of([6, 7]), network)
    assert len(memory.of) == 0 and memory.recent.nbytes == 0 and memory.gate is None
    assert memory.cortex.columns == [0, 1, 6, 7] or set(memory.cortex.columns) == set(range(8))
    x = classes_of(list(range(8)), seed=50)
    scaled = (x.x - memory.mean) / memory.scale
    found = torch.tensor(memory.cortex.columns)[memory.cortex.probabilities(scaled).argmax(1)]
    assert float((found == x.y).float().mean()) > 0.9        # the first two came back as pseudo-samples alone


def test_the_code_becomes_shorter_where_classes_become_too_many():
    """And what the long-term memory knew comes along as dreams: it is right about the first classes too."""
    memory, network = FearNet(4_000, nothing(16), 1, 1500), network_of(16, 32)
    codes = []
    for begin, end in ((0, 1), (1, 8), (8, 16), (16, 24), (24, 32)):
        memory.update(classes_of(list(range(begin, end)), d=16), network)
        codes.append(memory.cortex.code)
        assert memory.nbytes <= 4_000
    assert codes == sorted(codes, reverse=True) and codes[0] > codes[-1] and len(set(codes)) <= 3
    x = classes_of(list(range(32)), seed=50, d=16)
    scaled = (x.x - memory.mean) / memory.scale
    found = torch.tensor(memory.cortex.columns)[memory.cortex.probabilities(scaled).argmax(1)]
    assert float((found == x.y).float().mean()) > 0.6 and float((found == x.y)[x.y < 8].float().mean()) > 0.4
    with pytest.raises(BudgetError, match="FearNet on 16 features and 900 classes"):
        memory.check(900)


def test_weights_of_eight_bits_are_within_half_a_step_and_come_back_bit_by_bit():
    memory, _ = fearnet()
    was = memory.state()
    twin = FearNet(20_000, nothing(6), 3, 300)
    twin.load(was)
    for a, b in zip(memory.cortex.encoder.parameters(), twin.cortex.encoder.parameters()):
        assert torch.equal(a, b)
    assert all(np.array_equal(array, twin.state()[name]) for name, array in was.items())
    layers = nn.Sequential(nn.Linear(9, 5))
    exact = layers[0].weight.detach().clone()
    round_weights(layers)
    step = exact.abs().amax(1, keepdim=True) / 127
    assert bool(((layers[0].weight - exact).abs() <= 0.51 * step).all())


def test_without_sleep_recent_samples_are_kept_as_far_as_the_bytes_go():
    memory, network = FearNet(6_000, nothing(6), 0, 50), network_of(6, 8)
    for k in range(4):
        memory.update(classes_of([2 * k, 2 * k + 1], 100), network)
        assert memory.nbytes <= 6_000
    assert memory.cortex.columns == [0, 1] and set(memory.of.tolist()) == {2, 3, 4, 5, 6, 7} and memory.gate is not None


def test_recent_samples_that_do_not_fit_bring_sleep_forward():
    memory, network = FearNet(4_000, nothing(6), 100, 20), network_of(6, 4)
    memory.update(classes_of([0]), network)
    memory.update(classes_of([1], 400), network)
    assert len(memory.of) == 0 and memory.cortex.columns == [0, 1] and memory.nbytes <= 4_000


def test_the_gate_tells_recent_from_older_samples_and_has_seen_only_pseudo_samples_of_those():
    memory, _ = fearnet()
    recent, older = classes_of([2, 3, 4, 5], seed=50).x, classes_of([0, 1], seed=50).x
    chances = [float((memory.gate((x - memory.mean) / memory.scale) > 0).float().mean())
               for x in (recent, older)]
    assert chances[0] > 0.9 and chances[1] < 0.1
    asked = []
    memory.cortex.dream, real = lambda n, generator: asked.append(n) or real(n, generator), memory.cortex.dream
    memory._gate(rng())
    assert len(asked) == 1      # no sample but those in recent memory, and what was dreamt
