"""Distillation and balance: for each trap a case worked by hand or a reference in float64."""
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers_parts import NOTHING, SIZE, batch, plain, rng, step
from torch import nn
from torch.nn import functional as F  # noqa: N812

from edgecl.training.balance.base import Balance, Chain, Done, Folded
from edgecl.training.balance.corrections import (
    Alignment,
    BiasCorrection,
    FineTuning,
    Imprinting,
    Rectified,
    Rescored,
    Scaled,
    Temperature,
    fit,
)
from edgecl.training.batch import held_back
from edgecl.training.constraints.distillation import ByRound, ClassShare
from edgecl.training.constraints.feature_distillation import LessForget, PooledOutputs, pooled
from edgecl.training.constraints.gradient_noise import GradientNoise
from edgecl.training.constraints.head_rules import FixedClasses, MarginRanking, PositiveWeights
from edgecl.training.loop import Parts, learning_round
from edgecl.training.memory.base import Memory
from edgecl.training.memory.exemplars import Herding, Reservoir
from edgecl.training.memory.statistics import Statistics
from edgecl.training.networks.heads import Cosine, Proxies, Softmax
from edgecl.training.networks.network import Network, build
from edgecl.training.plan import Plan

# UCIR --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "shape", "dtype"), [
    ("mlp", (6,), "float32"), ("cnn", (16, 16, 1), "uint8"), ("resnet32", (16, 16, 3), "uint8"),
    ("tcn", (40, 3), "float32")])
def test_features_of_a_cosine_head_may_be_negative(name, shape, dtype):
    x = rng().standard_normal((9, *shape)).astype(np.float32)
    x = torch.from_numpy((127 + 60 * x).clip(0, 255).astype(np.uint8) if dtype == "uint8" else x)
    signed, bound = build(name, shape, dtype, Cosine, 0), build(name, shape, dtype, Softmax, 0)
    assert (signed.features(x) < 0).any() and not (bound.features(x) < 0).any()
    if name != "resnet32":      # whose features are means
        torch.testing.assert_close(F.relu(signed.features(x)), bound.features(x))


def test_less_forget_is_weighed_by_the_root_of_old_to_new():
    h, before = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    one = step(torch.empty(2, 10), [0, 9], known=8, features=h, old_features=before)._replace(old_of=2)
    assert float(LessForget(5.0).penalty(one)) == pytest.approx(5 * math.sqrt(8 / 2) * (1 - 3 / 5) / 2)
    assert LessForget(5.0).penalty(one._replace(old_features=None)) == 0


def test_margin_ranking_looks_at_old_samples_and_their_hardest_new_classes():
    network, part = plain(5, Cosine), MarginRanking(0.5, 2)
    with torch.no_grad():
        network.head.weight.copy_(torch.eye(6)[:5] * torch.tensor([[1.0], [2.0], [3.0], [1.0], [5.0]]))
    part.begin(network, [])
    h = torch.tensor([[0.8, 0, 0.6, 0.0, 0.0, 0], [0.0, 0, 1.0, 0, 0, 0]])     # of old class 0, and of new class 2
    one = step(network.head(h), [0, 2], known=2, features=h)
    assert float(part.penalty(one).detach()) == pytest.approx((max(0, .5 - .8 + .6) + max(0, .5 - .8 + 0)) / 2)


def test_old_embeddings_stay_and_new_ones_learn():
    network, new = plain(2, Cosine), batch([2, 3])
    before = network.head.weight.detach().clone()
    parts = Parts(Memory(0, NOTHING), Imprinting(), [FixedClasses()])
    learning_round(network, parts, new, 4, Plan(3, 4, 0.1, 0.9, decay=0.1), rng())
    assert torch.equal(network.head.weight[:2], before)
    imprinted = F.normalize(F.normalize(new.x[new.y == 2]).mean(0), dim=0) * before.norm(dim=1).mean()
    assert (network.head.weight[2] - imprinted).norm() > 1e-4


def test_weights_of_the_head_are_never_negative_and_biases_may_be():
    network = plain(2)
    parts = Parts(Memory(0, NOTHING), Balance(), [PositiveWeights()])
    learning_round(network, parts, batch([0, 1, 2, 3]), 4, Plan(3, 4, 0.1, 0.9), rng())
    assert float(network.head.weight.detach().min()) == 0 and (network.head.weight > 0).any()
    assert any((weight < 0).any() for name, weight in network.named_parameters() if name != "head.weight")


def test_new_weights_are_imprinted():
    """The mean of unit features, as long as old weights are on average."""
    network, new = plain(2, Cosine), batch([2])
    network.head.extend(3, rng(1))
    Imprinting().start(network, new, 2)
    unit = new.x.numpy().astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    length = np.linalg.norm(network.head.weight[:2].detach(), axis=1).mean()
    wanted = length * unit.mean(0) / np.linalg.norm(unit.mean(0))
    np.testing.assert_allclose(network.head.weight[2].detach(), wanted, rtol=1e-5)


# PODNet ------------------------------------------------------------------------------------------


def test_pooled_outputs_of_a_case_worked_by_hand():
    """Squares summed along height and along width, both at once of unit length."""
    a, b = torch.tensor([[[[1.0, 2.0], [0.0, 2.0]]]]), torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    left = np.array([1, 8, 5, 4.0])
    wanted = np.linalg.norm(left / np.linalg.norm(left) - np.array([1, 0, 1, 0]) / math.sqrt(2))
    assert float(pooled(a, b)) == pytest.approx(wanted)


@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_pooled_outputs_pull_back_what_moved_and_leave_no_hook(name):
    shape, dtype = ((16, 16, 1), "uint8") if name == "cnn" else ((6,), "float32")
    network, part = build(name, shape, dtype, Softmax, 0), PooledOutputs(3.0, 1.0)
    network.head.extend(4, rng())
    x = torch.from_numpy(rng().integers(0, 256, (24, *shape)).astype(dtype) if name == "cnn" else
                         rng().standard_normal((24, 6)).astype(np.float32))
    part.begin(network, [])
    weights = [p for p in network.parameters() if p.dim() > 1]

    def penalty():
        features, logits = network(x)
        return part.penalty(step(logits, [0] * 24, known=2, features=features))

    assert float(penalty()) == 0
    with torch.no_grad():
        for p in weights:
            p.add_(0.05 * torch.from_numpy(rng(1).standard_normal(tuple(p.shape)).astype(np.float32)))
    moved = penalty()
    pull = torch.autograd.grad(moved, weights, allow_unused=True)
    assert float(moved) > 0.01 and all(g is not None and g.any() for g in pull[:-1])
    with torch.no_grad():
        for p, g in zip(weights, pull[:-1]):
            p.sub_(0.002 * g)
    assert float(penalty()) < float(moved)
    part.end(network, NOTHING, rng())
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in network.modules())


def test_proxies_of_a_case_worked_by_hand():
    head = Proxies(2, 2)
    head.extend(2, rng())
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[[1.0, 0.0], [0.0, 2.0]], [[-1.0, 0.0], [0.6, 0.8]]]))
        head.log_scale.fill_(math.log(2))
    y = []
    for cosines in (np.array([1, 0.0]), np.array([-1, 0.6])):
        near = -(3 * 3 + 3 * 3 - 2 * 3 * 3 * cosines)       # minus squared distances of vectors of length 3
        y.append(float((near * np.exp(near)).sum() / np.exp(near).sum()))
    logits = head(torch.tensor([[3.0, 0.0]]))
    assert logits.tolist()[0] == pytest.approx([2 * y[0], 2 * y[1]], rel=1e-4, abs=1e-5)
    for target in (0, 1):
        wanted = max(0, 2 * y[1 - target] - 2 * (y[target] - 0.6))
        assert float(head.loss(step(logits, [target])).detach()) == pytest.approx(wanted, rel=1e-4)


def test_no_scale_of_proxies_makes_wrong_answers_free():
    """However far a step goes, the scale stays above 0."""
    head = Proxies(2, 2)
    head.extend(2, rng())
    with torch.no_grad():
        head.log_scale.fill_(-8)
    logits = head(head.weight.detach()[1])
    assert (logits[:, 0] < logits[:, 1]).all() and float(head.loss(step(logits, [0, 0])).detach()) > 0


# EEIL --------------------------------------------------------------------------------------------


def test_noise_has_the_variance_and_not_the_deviation_of_the_schedule():
    part = GradientNoise(0.3, 0.55)
    part.begin(plain(2), [])
    for done in range(3):
        part.references(Memory(0, NOTHING), rng(done))
        (noise,) = part.project([torch.zeros(40_000)])
        assert float(noise.var()) == pytest.approx(0.3 / (1 + done) ** 0.55, rel=0.03)


def test_each_earlier_round_is_distilled_by_itself():
    """Two rounds of two and one outputs: a softmax over one output says nothing, one over two does."""
    part, network = ByRound(2.0), plain(2)
    part.end(network, NOTHING, rng())
    network.head.extend(3, rng())
    part.end(network, NOTHING, rng())
    again = ByRound(2.0)
    again.load(part.state())
    old, now = torch.tensor([[1.0, 0.0, 5.0]]), torch.tensor([[2.0, 0.0, -5.0, 0.0]])
    p, q = (np.exp(np.array(z) / 2) / np.exp(np.array(z) / 2).sum() for z in ([1, 0], [2, 0]))
    for each in (part, again):
        assert float(each.penalty(step(now, [3], old, 3))) == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-5)


def test_the_balanced_set_is_balanced_and_the_fine_tuning_sees_it_alone():
    memory, network, shown = Herding(10_000, NOTHING), plain(0), []
    for column, n in ((0, 30), (1, 4), (2, 12)):
        memory.update(batch([column], n), plain(3))
    assert np.bincount(memory.balanced().y).tolist() == [4, 4, 4]
    memory = Herding(10_000, NOTHING)
    memory.update(batch([0, 1], 7), plain(2))
    network.head.extend(2, rng())

    class Spy(ByRound):
        def penalty(self, step):
            shown.append(step)
            return super().penalty(step)

    learning_round(network, Parts(memory, FineTuning(2, 10, False), [Spy(2.0)]), batch([2], 20), 3, Plan(1, 50, 0.1),
                   rng())
    first, *later = shown
    assert first.old.shape == (34, 2) and len(later) == 2
    for each in later:      # the network before the fine-tuning is the teacher then, of all outputs (section 3.2)
        assert np.bincount(each.targets).tolist() == [7, 7, 7] and each.old.shape == (21, 3)


# BiC and WA --------------------------------------------------------------------------------------


def test_the_weights_of_the_two_losses_follow_the_numbers_of_classes():
    old, now = torch.tensor([[1.0, 0, 2, 0]]), torch.tensor([[2.0, 0, 2, 0, 1]])
    one, part = step(now, [4], old, 4), ClassShare(2.0)
    p, q = (F.softmax(each[:, :4] / 2, 1) for each in (old, now))
    assert part.label_weight(one) == pytest.approx(1 / 5)
    assert float(part.penalty(one)) == pytest.approx(0.8 * float((p * (p / q).log()).sum()), rel=1e-5)
    assert part.label_weight(step(now, [4])) == 1 and part.penalty(step(now, [4])) == 0


def test_held_back_samples_are_never_trained_on():
    """Not when they are new, and not as exemplars later; the memory keeps them, and the fit sees them all."""
    network, memory, shown, judged = plain(0), Reservoir(60 * SIZE + 64, NOTHING), [], []

    class Spy(BiasCorrection):
        def finish(self, network, memory, done):
            judged.append(done)
            super().finish(network, memory, done)

    network.body.register_forward_hook(
        lambda body, given, out: shown.append(given[0]) if body.training else None)
    data = [batch([2 * k, 2 * k + 1], 100, seed=k) for k in range(2)]
    for k, new in enumerate(data):
        learning_round(network, Parts(memory, Spy()), new, 2 * k + 2, Plan(2, 16, 0.1), rng(k))
    trained = {tuple(row.tolist()) for part in shown for row in part}
    held = [new.x[torch.from_numpy(held_back(new))] for new in data]
    assert all(5 < len(rows) < 40 for rows in held)
    assert not trained & {tuple(row.tolist()) for rows in held for row in rows}
    assert len(trained) == 400 - sum(map(len, held))
    kept = torch.cat(list(memory.exemplars().values()))
    assert any((held[0] == row).all(1).any() for row in kept)
    assert torch.equal(judged[1].held.x, held[1])


def test_a_bias_is_fitted_on_logits_once_and_by_class():
    """Against a scan of the loss in float64, on logits and not on probabilities; classes weigh alike."""
    generator = rng()
    logits, y = generator.standard_normal((60, 4)) * 2, np.repeat([0, 1, 2, 3], [5, 15, 30, 10])
    logits[np.arange(60), y] += 1
    logits[:, 2:] = 1.7 * logits[:, 2:] + 2
    mine = np.arange(4) >= 2
    designs = np.stack([np.where(mine, logits, 0), mine + 0 * logits])
    a, b = fit(np.where(mine, 0, logits), designs, y, np.array([1.0, 0.0]))

    def loss(a, b):
        z = torch.from_numpy(np.where(mine, a * logits + b, logits))
        weights = torch.from_numpy(1 / np.bincount(y) / 4)
        return float(F.cross_entropy(z, torch.from_numpy(y), reduction="none") @ weights[y]) \
            + 1e-3 / 2 * ((a - 1) ** 2 + b ** 2)

    best = loss(a, b)
    assert all(best <= loss(a + da, b + db) for da in (-.01, 0, .01) for db in (-.01, 0, .01))
    assert best < loss(1, 0) - 0.1 and a < 0.9


def test_a_bias_of_an_earlier_round_stays_and_only_the_newest_classes_get_one():
    network, memory = plain(2), Reservoir(10_000, NOTHING)
    memory.observe(batch([0, 1], 60), rng())
    network.head.extend(4, rng())
    before = network.head.weight.detach().clone()
    new = batch([2, 3], 60, seed=1)
    held = new.take(torch.from_numpy(np.flatnonzero(held_back(new))))
    with torch.no_grad():
        network.head.bias[2:] += 4      # too loud
    BiasCorrection().finish(network, memory, Done(2, new, held, network))
    after = network.head.weight.detach()
    assert torch.equal(after[:2], before[:2]) and not torch.allclose(after[2:], before[2:])
    ratio = after[2:] / before[2:]
    torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio))     # one number for both
    assert float(network.head.bias[2:].mean().detach()) < 3


def test_new_weights_are_aligned_to_the_old_by_their_mean_norms():
    network = plain(5)
    with torch.no_grad():
        network.head.weight[3:] *= 7
    before, bias = network.head.weight.detach().clone(), network.head.bias.detach().clone()
    Alignment().finish(network, Memory(0, NOTHING), Done(3, NOTHING, NOTHING, network))
    norms = before.norm(dim=1)
    torch.testing.assert_close(network.head.weight[3:], before[3:] * (norms[:3].mean() / norms[3:].mean()))
    assert torch.equal(network.head.weight[:3], before[:3]) and torch.equal(network.head.bias, bias)


# IL2M and temperature ----------------------------------------------------------------------------


def test_only_answers_that_are_new_are_rectified_and_by_scores():
    """p = (.3, .1, .6): the answer is new, so old scores are multiplied; p = (.5, .1, .4): it is old, so none is."""
    scores_of = torch.tensor([[0.3, 0.1, 0.6], [0.5, 0.1, 0.4]])

    class Fixed(nn.Module):
        def forward(self, x):
            return x, scores_of.log() + 3       # logits are free up to a constant

    found = Rescored(Fixed(), torch.tensor([2.5, 0.5]))(torch.empty(2, 0))[1].exp()
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.05, 0.6], [0.5, 0.1, 0.4]]))


def test_the_statistics_of_each_state_are_mean_scores():
    network, memory, part = plain(2), Reservoir(10_000, NOTHING), Rectified()
    first = batch([0, 1], 20)
    memory.observe(first, rng())
    part.finish(network, memory, Done(0, first, NOTHING, network))
    p = network(first.x)[1].detach().softmax(1).numpy()
    np.testing.assert_allclose(part.first, [p[:20, 0].mean(), p[20:, 1].mean()], rtol=1e-5)
    np.testing.assert_allclose(part.confidence, p.max(1).mean(), rtol=1e-5)
    assert isinstance(part.fold(network), Network)      # nothing is old
    network.head.extend(3, rng(1))
    second = batch([2], 20, seed=1)
    part.finish(network, memory, Done(2, second, NOTHING, network))
    now, conf = network(first.x)[1].detach().softmax(1).numpy(), network(second.x)[1].softmax(1).max(1).values.mean()
    means = np.array([now[:20, 0].mean(), now[20:, 1].mean()])
    wanted = part.first[:2] / means * float(conf.detach()) / part.confidence[:2]
    np.testing.assert_allclose(part.factors, wanted, rtol=1e-4)


def test_classes_of_another_methods_rounds_are_not_rectified():
    network, memory, part = plain(3), Reservoir(10_000, NOTHING), Rectified()
    memory.observe(batch([0, 1], 20), rng())
    part.finish(network, memory, Done(2, batch([2], 20), NOTHING, network))
    np.testing.assert_allclose(part.factors, [1, 1], rtol=1e-6)


def test_statistics_know_nothing_of_what_is_held_back():
    memory, new = Statistics(0, NOTHING, "map", 1.0, 0), batch([0, 1], 60)
    memory.split(new, True)
    memory.update(new, plain(2))
    assert sum(memory.statistics().counts.values()) == 120 - int(held_back(new).sum()) < 120


def test_a_temperature_changes_no_answer_and_lowers_the_held_back_loss():
    network, memory, part = plain(3), Reservoir(10_000, NOTHING), Temperature()
    data = batch([0, 1, 2], 200)
    held = data.take(torch.from_numpy(np.flatnonzero(held_back(data))))
    with torch.no_grad():
        network.head.weight.copy_(20 * torch.eye(6)[:3])        # far too sure
    part.finish(network, memory, Done(0, data, held, network))
    served, x = part.fold(network), batch([0, 1, 2], 100, seed=3).x
    before, after = network(x)[1].detach(), served(x)[1].detach()
    assert torch.equal(before.argmax(1), after.argmax(1)) and 0 < part.inverse < 0.5
    torch.testing.assert_close(after, before * part.inverse)
    losses = [float(F.cross_entropy(network(held.x)[1] * factor, held.y).detach())
              for factor in (part.inverse, 0.8 * part.inverse, 1.25 * part.inverse)]
    assert losses[0] < losses[1] and losses[0] < losses[2]


def test_parts_fold_one_upon_another_and_keep_their_state():
    network, memory = plain(3), Reservoir(10_000, NOTHING)
    data = batch([0, 1, 2], 60)
    memory.observe(data, rng())
    held = data.take(torch.from_numpy(np.flatnonzero(held_back(data))))
    chain, again = (Chain([Rectified(), Temperature()]) for _ in range(2))
    for known in (0, 2):
        chain.finish(network, memory, Done(known, data, held, network))
    served = chain.fold(network)
    assert isinstance(served, Scaled) and isinstance(served.served, Rescored) and served.affine() is None
    again.load(chain.state())
    assert torch.equal(again.fold(network)(data.x)[1], served(data.x)[1])
    weight, _, _ = Chain([Temperature()]).fold(network).affine()
    np.testing.assert_array_equal(weight, network.head.weight.detach())
    assert not isinstance(served, Folded)
