"""Constraints: distillation against float64, Fisher information against finite differences and one pass a sample."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from edgecl.training.batch import Batch
from edgecl.training.constraints.distillation import Distillation
from edgecl.training.constraints.importances import Fisher
from edgecl.training.constraints.per_sample_gradients import fisher
from edgecl.training.networks.heads import Cosine, Softmax
from edgecl.training.networks.network import build
from edgecl.training.step import Step


def rng(seed=0):
    return np.random.default_rng(seed)


def step(logits, targets, old=None, known=0):
    return Step(torch.empty(len(logits), 0), logits, torch.tensor(targets), old, known, len(logits),
                0 if old is None else len(old))


# distillation -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "squared"), [(1.0, False), (2.0, False), (2.0, True), (5.0, True)])
def test_distillation_against_float64(temperature, squared):
    now, old = rng(0).standard_normal((7, 5)) * 3, rng(1).standard_normal((5, 3)) * 3

    def soft(z):
        p = np.exp(z / temperature)
        return p / p.sum(1, keepdims=True)

    q, p = soft(old), soft(now[:5, :3])      # of the first 5 samples, over the old outputs
    wanted = 0.7 * (temperature ** 2 if squared else 1) * (q * np.log(q / p)).sum(1).mean()
    part = Distillation(temperature, 0.7, squared)
    logits = torch.tensor(now, dtype=torch.float32, requires_grad=True)
    loss = part.penalty(step(logits, [0] * 7, torch.tensor(old, dtype=torch.float32), 3))
    assert float(loss.detach()) == pytest.approx(wanted, rel=1e-4)
    loss.backward()
    slope = 0.7 * (temperature ** 2 if squared else 1) * (p - q) / temperature / 5     # as of the cross-entropy
    np.testing.assert_allclose(logits.grad[:5, :3], slope, atol=1e-5)
    assert not logits.grad[5:].any() and not logits.grad[:, 3:].any()


# Fisher information -----------------------------------------------------------------------------


class _Deep(nn.Module):
    def __init__(self, *layers, head):
        super().__init__()
        self.layers, self.head = nn.Sequential(*layers), head

    def forward(self, x):
        features = self.layers(x)
        return features, self.head(features)


def by_sample(network, x):
    """The Fisher information by one backward pass for each sample and label."""
    found = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    for sample in x:
        chances = F.softmax(network(sample[None])[1][0], 0).detach()
        for label, chance in enumerate(chances):
            network.zero_grad()
            F.log_softmax(network(sample[None])[1], 1)[0, label].backward()
            for name, p in network.named_parameters():
                found[name] += chance * p.grad ** 2 / len(x)
    return found


def two_layers():
    torch.manual_seed(0)
    head = Softmax(3)
    head.extend(4, rng())
    return _Deep(nn.Linear(5, 3), nn.Tanh(), head=head).double().eval(), torch.randn(6, 5, dtype=torch.float64)


def test_fisher_by_sample_against_finite_differences():
    network, x = two_layers()
    found = fisher(network, x, "exact", rng())
    with torch.no_grad():
        chances = F.softmax(network(x)[1], 1)
        for name, p in network.named_parameters():
            for i in range(p.numel()):
                ends = []
                for shift in (1e-5, -1e-5):
                    p.view(-1)[i] += shift
                    ends.append(F.log_softmax(network(x)[1], 1))
                    p.view(-1)[i] -= shift
                slope = (ends[0] - ends[1]) / 2e-5
                wanted = (chances * slope ** 2).sum(1).mean()
                assert float(found[name].view(-1)[i]) == pytest.approx(float(wanted), rel=1e-6)


def test_fisher_is_not_the_square_of_the_mean_gradient():
    network, x = two_layers()
    found = fisher(network, x, "exact", rng())
    assert sum(float(f.sum()) for f in found.values()) > 0.01     # that of the mean is 0


def test_labels_drawn_from_the_model_give_the_exact_expectation_on_average():
    network, x = two_layers()
    exact, drawn = fisher(network, x, "exact", rng()), fisher(network, x.repeat(3000, 1), "drawn", rng())
    for name, f in exact.items():
        torch.testing.assert_close(drawn[name], f, rtol=0.1, atol=0.02 * float(f.max()))


@pytest.mark.parametrize("kind", ["convolution", "uneven", "dilated", "cosine", "window"])
def test_fisher_of_every_kind_of_layer(kind):
    torch.manual_seed(1)
    head = (Cosine if kind == "cosine" else Softmax)(4)
    head.extend(3, rng())
    layers, x = {
        "convolution": ([nn.Conv2d(2, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
                         nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(36, 4)], torch.randn(5, 2, 10, 10)),
        "uneven": ([nn.Conv2d(2, 3, (3, 2), (1, 2), (0, 1)), nn.Tanh(), nn.Conv2d(3, 2, 3, padding="same"), nn.Tanh(),
                    nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(84, 4, bias=False)],
                   torch.randn(5, 2, 9, 7)),
        "dilated": ([nn.Conv2d(2, 4, 3, dilation=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()],
                    torch.randn(5, 2, 8, 8)),
        "cosine": ([nn.Linear(6, 4), nn.ReLU()], torch.randn(5, 6)),
        "window": ([nn.Conv1d(2, 4, 3, dilation=2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten()],
                   torch.randn(5, 2, 9)),
    }[kind]
    network = _Deep(*layers, head=head).double().eval()
    for name, wanted in by_sample(network, x.double()).items():
        torch.testing.assert_close(fisher(network, x.double(), "exact", rng())[name], wanted)


def test_fisher_moves_no_batch_norm_and_leaves_no_gradient_or_hook():
    head = Softmax(4)
    head.extend(3, rng())
    network = _Deep(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head=head)
    network.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    new = Batch(torch.randn(9, 2, 5, 5) + 3, torch.zeros(9).long())
    Fisher(1.0, 1.0, 0, "drawn", "online").end(network, new, rng())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert not any(part._forward_hooks for part in network.modules())


def small():
    network = build("mlp", (6,), "float32", Softmax, 0)
    network.head.extend(2, rng())
    return network


def vectors():
    return Batch(torch.from_numpy(rng().standard_normal((40, 6)).astype(np.float32)), torch.zeros(40).long())


def test_the_penalty_by_hand_online_and_with_new_outputs():
    network, new = small(), vectors()
    part = Fisher(importance=3.0, gamma=0.5, samples=0, labels="exact", form="online")
    first = fisher(network, new.x, "exact", rng())
    part.end(network, new, rng())
    network.head.extend(3, rng())
    part.begin(network, [1e-4] * 9)
    with torch.no_grad():
        network.head.weight += 0.2      # the new output as well: it has no penalty
        network.head.bias[0] -= 0.1
    mean = sum(f.sum() for f in first.values()) / sum(f.numel() for f in first.values())
    wanted = 1.5 * (0.04 * first["head.weight"].sum() + 0.01 * first["head.bias"][0]) / mean
    assert part.penalty(step(torch.zeros(1, 3), [0])).item() == pytest.approx(float(wanted), rel=1e-5)
    second = fisher(network.eval(), new.x, "exact", rng())
    part.end(network, new, rng())
    torch.testing.assert_close(part.omega["head.weight"][:2],
                               second["head.weight"][:2] + 0.5 * first["head.weight"])
    torch.testing.assert_close(part.omega["head.weight"][2], second["head.weight"][2])
    part.begin(network, [1e-4] * 9)
    assert part.penalty(step(torch.zeros(1, 3), [0])).item() == 0       # about the newest weights


def test_the_gradient_added_by_hand_is_that_of_the_penalty():
    """Against autograd in float64, with new outputs, a scalar parameter, and a parameter that has no gradient."""
    network = build("mlp", (6,), "float32", Cosine, 0)
    network.head.extend(2, rng())
    part = Fisher(importance=3.0, gamma=1.0, samples=0, labels="exact", form="online")
    part.end(network, vectors(), rng())
    network.head.extend(3, rng())
    part.begin(network, [0.05] * 9)
    weights = dict(network.named_parameters())
    then = {name: p.detach().clone() for name, p in weights.items()}
    with torch.no_grad():
        for p in weights.values():
            p += torch.randn_like(p)
    mean = (sum(f.double().sum() for f in part.omega.values()) / sum(f.numel() for f in part.omega.values())).item()
    wanted, twins = 0.0, {name: p.detach().double().requires_grad_() for name, p in weights.items()}
    for name, f in part.omega.items():
        end = slice(len(f)) if f.dim() else ...
        moved = twins[name][end] - then[name].double()[end]
        wanted = wanted + ((3 * f.double() / mean).clamp(max=1 / 0.05) * moved ** 2).sum() / 2
    wanted.backward()
    assert float(part.penalty(step(torch.zeros(1, 3), [0]))) == pytest.approx(wanted.item(), rel=1e-5)
    start = [torch.ones_like(p) if place != 1 else None for place, p in enumerate(weights.values())]
    for name, before, found in zip(weights, start, part.project([g if g is None else g.clone() for g in start])):
        if before is None:
            assert found is None
        else:
            torch.testing.assert_close(found.double(), 1 + twins[name].grad, rtol=1e-5, atol=1e-6)
    assert not twins["head.weight"].grad[2].any()       # the new output is free


def test_a_step_of_sgd_never_passes_where_the_penalty_leads():
    network, part = small(), Fisher(importance=1e9, gamma=1.0, samples=0, labels="exact", form="online")
    part.end(network, vectors(), rng())
    exact = {name: f.clone() for name, f in part.omega.items()}
    part.begin(network, [0.1] * 9)
    before = [p.detach().clone() for p in network.parameters()]
    with torch.no_grad():
        for p in network.parameters():
            p += 0.5
    pull = part.project([torch.zeros_like(p) for p in network.parameters()])
    for p, old, gradient in zip(network.parameters(), before, pull):
        after = (p - 0.1 * gradient).detach()
        assert (after > old - 1e-5).all() and (after < old + 0.5 + 1e-5).all()
    assert all(torch.equal(f, exact[name]) for name, f in part.omega.items())      # F itself is not clamped


def test_samples_bounds_the_work():
    network, part, seen = small(), Fisher(1.0, 1.0, 5, "drawn", "online"), []
    network.body.register_forward_hook(lambda _, x, out: seen.append(len(x[0])))
    part.end(network, vectors(), rng())
    assert sum(seen) == 5
