"""Importances of weights: each against its formula in float64."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from edgecl.training.batch import Batch
from edgecl.training.constraints.importances import Fisher, Quadratic, Sensitivity
from edgecl.training.constraints.path_integrals import PathIntegral, RiemannianWalk
from edgecl.training.constraints.per_sample_gradients import fisher, sensitivity
from edgecl.training.networks.heads import Softmax
from edgecl.training.networks.network import Network, build
from edgecl.training.step import Step

RATES = [1e-6] * 9      # so small that no strength is bounded


def rng(seed=0):
    return np.random.default_rng(seed)


def network(classes=4):
    """float64 [n, 5] -> tanh -> softmax."""
    torch.manual_seed(0)
    made = Network(nn.Linear(5, 3), nn.Tanh(), Softmax(3), 3)
    made.head.extend(classes, rng())
    return made.double().eval()


def samples(n=6, seed=0, classes=4):
    generator = rng(seed)
    x, y = generator.standard_normal((n, 5)), generator.integers(0, classes, n)
    return Batch(torch.from_numpy(x), torch.from_numpy(y))


def step(batch, logits):
    return Step(torch.empty(0), logits, batch.y, None, 0, len(batch), 0)


def gradients(learner, batch):
    return torch.autograd.grad(learner.head.loss(step(batch, learner(batch.x)[1])), list(learner.parameters()))


def descend(part, learner, batch, rate=0.1):
    """A step of the loop."""
    found = gradients(learner, batch)
    part.observe(batch, found)
    with torch.no_grad():
        for p, g in zip(learner.parameters(), part.project([g.clone() for g in found])):
            p -= rate * g
    part.after_step(1.0)


def shake(learner, seed=0):
    with torch.no_grad():
        for p in learner.parameters():
            p += 0.1 * torch.from_numpy(rng(seed).standard_normal(p.shape))


def pull(part, learner):
    return part.project([torch.zeros_like(p) for p in learner.parameters()])


# Fisher information -----------------------------------------------------------------------------


def test_fisher_against_the_analytic_one_of_two_layers():
    """F = 1/n sum_x sum_c p_c (d log p_c / d theta)^2, with d log p_c / dz = e_c - p."""
    learner, batch = network(), samples()
    w, head = learner.body.weight.detach(), learner.head.weight.detach()
    h = torch.tanh(batch.x @ w.T + learner.body.bias.detach())
    p = F.softmax(h @ head.T + learner.head.bias.detach(), 1)
    wanted = {name: torch.zeros_like(value) for name, value in learner.named_parameters()}
    for c in range(4):
        delta = F.one_hot(torch.tensor(c), 4) - p
        inner = (delta @ head) * (1 - h ** 2)
        for sample in range(len(batch)):
            for name, slope in (("head.weight", torch.outer(delta[sample], h[sample])), ("head.bias", delta[sample]),
                                ("body.weight", torch.outer(inner[sample], batch.x[sample])),
                                ("body.bias", inner[sample])):
                wanted[name] += p[sample, c] * slope ** 2 / len(batch)
    for name, f in fisher(learner, batch.x, "exact", rng()).items():
        torch.testing.assert_close(f, wanted[name].detach(), rtol=1e-10, atol=1e-12)


def test_fisher_of_given_labels_is_the_square_of_their_own_gradients():
    learner, batch = network(), samples()
    found = fisher(learner, batch.x, batch.y, rng(), 4)
    wanted = [torch.zeros_like(p) for p in learner.parameters()]
    for i in range(len(batch)):
        for total, g in zip(wanted, gradients(learner, batch.take(torch.tensor([i])))):
            total += g ** 2 / len(batch)
    for f, total in zip(found.values(), wanted):
        torch.testing.assert_close(f, total.detach())


@pytest.mark.parametrize("take", [lambda n, x, chunk: fisher(n, x, "exact", rng(), chunk), sensitivity])
def test_how_many_samples_pass_at_a_time_changes_nothing(take):
    learner, x = network(), samples(11).x
    whole = take(learner, x, 11)
    for chunk in (1, 4):
        for name, found in take(learner, x, chunk).items():
            torch.testing.assert_close(found, whole[name])


def test_samples_pass_in_pieces_that_fit_the_rounds_memory():
    learner, passed = network(), []
    learner.body.register_forward_hook(lambda _, given, out: passed.append(len(given[0])))
    learner.block = 6       # samples that fit without training: with gradients of all layers, half as many
    for part in (Fisher(1.0, 1.0, 0, "drawn", "online"), Sensitivity(1.0, 0)):
        part.end(learner, samples(7), rng())
    assert passed == [3, 3, 1] * 2


# the penalty ------------------------------------------------------------------------------------


def test_l2_is_ewc_with_a_fisher_information_of_1():
    learner = network()
    plain, weighted = Quadratic(3.0), Fisher(3.0, 1.0, 0, "exact", "online")
    plain.end(learner, samples(), rng())
    weighted.load({name: np.ones(p.shape) for name, p in learner.named_parameters()})
    assert plain.nbytes < 40        # it keeps shapes, no numbers
    learner.head.extend(6, rng())
    for part in (plain, weighted):
        part.begin(learner, RATES)
    shake(learner)
    batch = samples()
    logits = learner(batch.x)[1]
    assert float(plain.penalty(step(batch, logits))) == float(weighted.penalty(step(batch, logits))) > 0
    for ours, theirs in zip(pull(plain, learner), pull(weighted, learner)):
        assert torch.equal(ours, theirs)
    assert not pull(plain, learner)[2][4:].any() and not pull(plain, learner)[3][4:].any()      # new outputs are free


def test_what_holds_has_no_unit():
    """Importances a million times as large hold as strongly, by `importance` on average."""
    learner, pulls = network(), []
    for unit in (1.0, 1e6):
        part = Fisher(3.0, 1.0, 0, "exact", "online")
        part.load({name: unit * (np.arange(p.numel()).reshape(p.shape) % 11) for name, p in learner.named_parameters()})
        part.begin(learner, RATES)
        pulls.append([float(spring.stiffness.sum()) for spring in part.springs])
    assert pulls[0] == pytest.approx(pulls[1]) and sum(pulls[0]) == pytest.approx(
        3 * sum(p.numel() for p in learner.parameters()))


def test_importances_of_0_hold_nothing():
    learner, part = network(), Fisher(3.0, 1.0, 0, "exact", "online")
    part.load({name: np.zeros(p.shape) for name, p in learner.named_parameters()})
    part.begin(learner, RATES)
    shake(learner)
    assert not any(g.any() for g in pull(part, learner))


def test_the_offline_form_is_the_sum_of_a_penalty_for_each_round():
    """lambda / 2 sum_t F_t (theta - theta_t)^2, each about the weights after its own round, by the mean of the sum."""
    learner, part = network(), Fisher(3.0, 1.0, 0, "exact", "offline")
    rounds = []
    for seed in range(3):
        shake(learner, seed)
        batch = samples(seed=seed)
        rounds.append((fisher(learner, batch.x, "exact", rng()),
                       {name: p.detach().clone() for name, p in learner.named_parameters()}))
        part.end(learner, batch, rng())
        learner.head.extend(5 + seed, rng(seed))
    twin = Fisher(3.0, 1.0, 0, "exact", "offline")
    twin.load({name: array.copy() for name, array in part.state().items()})
    total = [sum(float(f[name].sum()) for f, _ in rounds) for name, _ in learner.named_parameters()]
    scale = 3 / (sum(total) / sum(f.numel() for f in rounds[-1][0].values()))
    for each in (part, twin):
        each.begin(learner, RATES)
        shake(learner, 7)
        for (name, p), found in zip(learner.named_parameters(), pull(each, learner)):
            wanted = torch.zeros_like(p)
            for f, then in rounds:
                wanted[:len(f[name])] += scale * f[name] * (p.detach()[:len(f[name])] - then[name])
            torch.testing.assert_close(found, wanted.detach())
    assert part.nbytes == 2 * sum(f.nbytes for f in part.omega.values())      # however many rounds there were


# MAS --------------------------------------------------------------------------------------------


def test_sensitivity_is_the_mean_of_absolute_gradients_by_sample():
    learner, batch = network(), samples()
    wanted = [torch.zeros_like(p) for p in learner.parameters()]
    for sample in batch.x:
        for total, g in zip(wanted, torch.autograd.grad(learner(sample[None])[1].square().sum(),
                                                        list(learner.parameters()))):
            total += g.abs() / len(batch)
    found = sensitivity(learner, batch.x)
    for f, total in zip(found.values(), wanted):
        torch.testing.assert_close(f, total.detach())
    part = Sensitivity(1.0, 0)
    for _ in range(2):
        part.end(learner, batch, rng())
    torch.testing.assert_close(part.omega["body.weight"], 2 * found["body.weight"])


def test_sensitivity_of_a_network_of_convolutions():
    learner = build("cnn", (9, 9, 1), "uint8", Softmax, 0)
    learner.head.extend(3, rng())
    x = torch.from_numpy(rng().integers(0, 256, (5, 9, 9, 1)).astype(np.uint8))
    wanted = [torch.zeros_like(p) for p in learner.parameters()]
    for sample in x:
        for total, g in zip(wanted, torch.autograd.grad(learner(sample[None])[1].square().sum(),
                                                        list(learner.parameters()))):
            total += g.abs() / len(x)
    for f, total in zip(sensitivity(learner, x).values(), wanted):
        torch.testing.assert_close(f, total.detach(), rtol=1e-4, atol=1e-5)


# SI ---------------------------------------------------------------------------------------------


def test_the_credit_along_a_straight_path_is_what_the_loss_lost():
    learner, batch, part = network(), samples(), PathIntegral(1.0, 0.1)
    part.begin(learner, RATES)
    way = [-g for g in gradients(learner, batch)]
    first = learner.head.loss(step(batch, learner(batch.x)[1])).item()
    for _ in range(400):
        part.observe(batch, gradients(learner, batch))
        with torch.no_grad():
            for p, d in zip(learner.parameters(), way):
                p += d / 400
        part.after_step(1.0)
    lost = first - learner.head.loss(step(batch, learner(batch.x)[1])).item()
    credit = [c.clone() for c in part.path.credit]
    assert lost > 0.1 and sum(float(c.sum()) for c in credit) == pytest.approx(lost, rel=0.01)
    part.end(learner, batch, rng())
    for omega, c, d in zip(part.omega.values(), credit, way):
        torch.testing.assert_close(omega, (c / (d ** 2 + 0.1)).relu())


def test_credit_comes_from_the_loss_alone_and_adds_up_over_rounds():
    """In round two a penalty is at work: with its gradient in the credit, it would be another."""
    learner, batch, part = network(), samples(), PathIntegral(50.0, 0.1)
    wanted = [torch.zeros_like(p) for p in learner.parameters()]
    for seed in range(2):
        part.begin(learner, RATES)
        start = [p.detach().clone() for p in learner.parameters()]
        credit = [torch.zeros_like(p) for p in learner.parameters()]
        for k in range(3):
            some = samples(seed=10 * seed + k)
            before, slopes = [p.detach().clone() for p in learner.parameters()], gradients(learner, some)
            descend(part, learner, some, rate=0.02)
            for c, g, p, old in zip(credit, slopes, learner.parameters(), before):
                c -= g * (p.detach() - old)
        part.end(learner, batch, rng())
        for total, c, p, old in zip(wanted, credit, learner.parameters(), start):
            total += (c / ((p.detach() - old) ** 2 + 0.1)).relu()
    for omega, total in zip(part.omega.values(), wanted):
        torch.testing.assert_close(omega, total.detach())


# RWalk ------------------------------------------------------------------------------------------


def test_riemannian_walk_against_its_equations():
    """F moves by alpha; over each two steps s += relu(credit / (1/2 F delta^2 + damping)); old and new s are averaged;
    what holds is F / max F + s / max s."""
    learner, part = network(), RiemannianWalk(3.0, 0.9, 2, 1e-3)
    moving, score = None, None
    for seed in range(2):
        part.begin(learner, RATES)
        fresh = [torch.zeros_like(p) for p in learner.parameters()]
        for window in range(3):
            start, credit = [p.detach().clone() for p in learner.parameters()], [torch.zeros_like(p) for p in fresh]
            for k in range(2 if window < 2 else 1):     # the last is short
                some = samples(seed=100 * seed + 10 * window + k)
                if k == 0:
                    now = list(fisher(learner.eval(), some.x, some.y, rng()).values())
                    moving = now if moving is None else [0.9 * f + 0.1 * old for f, old in zip(now, moving)]
                before, slopes = [p.detach().clone() for p in learner.parameters()], gradients(learner, some)
                descend(part, learner, some)
                for c, g, p, old in zip(credit, slopes, learner.parameters(), before):
                    c -= g * (p.detach() - old)
            for s, c, f, p, old in zip(fresh, credit, moving, learner.parameters(), start):
                s += (c / (0.5 * f * (p.detach() - old) ** 2 + 1e-3)).relu()
        part.end(learner, samples(), rng())
        score = fresh if score is None else [(s + old) / 2 for s, old in zip(fresh, score)]
    for found, s in zip(part.score.values(), score):
        torch.testing.assert_close(found, s.detach())
    most, best = max(float(f.max()) for f in moving), max(float(s.max()) for s in score)
    for found, f, s in zip(part.strengths().values(), moving, score):
        torch.testing.assert_close(found, (f / most + s / best).detach())


def test_riemannian_walk_moves_no_batch_norm_beside_the_steps_own():
    learner = build("tcn", (80, 2), "float32", Softmax, 0)
    learner.head.extend(2, rng())
    learner.train()
    part, batch = RiemannianWalk(1.0, 0.9, 1, 1e-3), Batch(torch.randn(4, 80, 2) + 3, torch.zeros(4).long())
    part.begin(learner, RATES)
    slopes = gradients(learner, batch)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    part.observe(batch, slopes)
    assert learner.training
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
