"""The loop calls the parts in their order; networks have their form; what is exported answers the same numbers."""
from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from edgecl.backbones.onnx_runtime import onnxruntime
from edgecl.errors import BadInput
from edgecl.evaluation.datasets import digits
from edgecl.rounds.method import FOLDER
from edgecl.training.balance.base import Balance, Chain
from edgecl.training.balance.corrections import FineTuning
from edgecl.training.batch import Batch
from edgecl.training.bench.options import RunOptions
from edgecl.training.bench.session import MethodRun
from edgecl.training.constraints.base import Constraint
from edgecl.training.loop import Parts, learning_round
from edgecl.training.memory.base import Memory
from edgecl.training.memory.exemplars import Reservoir
from edgecl.training.networks.heads import Softmax
from edgecl.training.networks.network import NETWORKS, build
from edgecl.training.optimisers import Sgd
from edgecl.training.passes import Allowance
from edgecl.training.plan import Plan
from edgecl.training.plasticity.packnet import PackNet
from edgecl.training.plasticity.task_rules import TaskRule

SHAPES = {"mlp": ((64,), "float32"), "cnn": ((16, 16, 1), "uint8"), "resnet32": ((16, 16, 3), "uint8"),
          "tcn": ((40, 3), "float32")}


def rng(seed=0):
    return np.random.default_rng(seed)


def vectors(n=50, columns=2, seed=0):
    x = torch.from_numpy(rng(seed).standard_normal((n, 6)).astype(np.float32))
    return Batch(x, torch.arange(n) % columns)


def network(classes=0):
    made = build("mlp", (6,), "float32", Softmax, 0)
    made.head.extend(classes, rng())
    return made


NOTHING = Memory(0, Batch(torch.empty(0, 6), torch.empty(0, dtype=torch.int64)))


def samples(name, n, seed=0):
    shape, dtype = SHAPES[name]
    if dtype == "uint8":
        return rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)
    return rng(seed).standard_normal((n, *shape)).astype(np.float32)


# the loop ---------------------------------------------------------------------------------------


class Diary(Constraint):
    """Writes down what it was called with."""

    needs_old = True

    def __init__(self, penalty=0.0, stop=False):
        self.calls, self.steps, self.amount, self.stop = [], [], penalty, stop

    def begin(self, network, rate):
        self.calls.append(f"begin {network.head.classes}")

    def penalty(self, step):
        self.calls.append("penalty")
        self.steps.append(step)
        return self.amount

    def observe(self, batch, gradients):
        self.calls.append(f"observe {len(batch)}")

    def references(self, memory, generator):
        self.calls.append("references")
        return [vectors(3)]

    def project(self, gradients, references):
        assert [[g.shape for g in found] for found in references] == [[g.shape for g in gradients]]
        self.calls.append("project")
        return [torch.zeros_like(g) for g in gradients] if self.stop else gradients

    def after_step(self, share):
        self.calls.append(f"after_step {share:.3f}")
        return False

    def end(self, network, new, generator):
        self.calls.append(f"end {len(new)} {network.training}")


class Ledger(Memory):
    """A memory that adds ten samples to the data set, replays the newest, and counts."""

    def __init__(self):
        self.extra, self.seen, self.updates = vectors(10, seed=5), [], 0

    def dataset(self, new):
        return new.join(self.extra)

    def observe(self, new, generator, seen=None):
        self.seen += new.x[:, 0].tolist()

    def replay(self, n, generator):
        return vectors(n, seed=6)

    def update(self, new, network):
        self.updates += len(new)


def test_the_parts_are_called_in_their_order():
    diary, learner = Diary(), network(2)
    losses = []
    learning_round(learner, Parts(NOTHING, Balance(), [diary]), vectors(columns=3), 3, Plan(2, 20, 0.1), rng(),
                   Allowance(progress=lambda done, loss: losses.append((done, loss))))
    assert diary.calls == ["begin 3", *(call for k, n in enumerate((20, 20, 10) * 2, 1) for call in (
        "penalty", f"observe {n}", "references", "project", f"after_step {k / 6:.3f}")), "end 50 False"]
    assert [done for done, _ in losses] == [20, 40, 50, 70, 90, 100]
    assert not learner.training


def test_a_penalty_is_added_to_the_loss_and_a_projection_replaces_the_gradients():
    losses = {}
    for amount in (0.0, 5.0):
        learning_round(network(2), Parts(NOTHING, Balance(), [Diary(amount)]), vectors(), 2, Plan(1, 50, 0.1), rng(),
                       Allowance(progress=lambda _, loss, amount=amount: losses.setdefault(amount, loss)))
    assert losses[5.0] == pytest.approx(losses[0.0] + 5)
    learner, untouched = network(2), network(2)
    learning_round(learner, Parts(NOTHING, Balance(), [Diary(stop=True)]), vectors(), 2, Plan(1, 10, 0.1, 0.9), rng())
    assert all(torch.equal(a, b) for a, b in zip(learner.parameters(), untouched.parameters()))


def test_old_outputs_are_those_of_the_old_network_row_by_row_and_computed_once():
    diary, memory, learner, passes = Diary(), Ledger(), network(2), []
    before = network(2)
    learner.register_forward_hook(lambda part, x, out: None if part.training else passes.append(len(x[0])))
    new = vectors(columns=3)
    learning_round(learner, Parts(memory, Balance(), [diary]), new, 3, Plan(3, 16, 0.5), rng())
    assert sum(passes) == 60       # not 180
    whole = new.join(memory.extra)
    wanted = before(whole.x)[1].detach()
    rows = {tuple(x.tolist()): wanted[i] for i, x in enumerate(whole.x)}
    assert all(step.old.shape[1] == step.known == 2 and step.logits.shape[1] == 3 for step in diary.steps)
    assert all(len(step.logits) == 2 * len(step.old) for step in diary.steps)       # as many replayed
    recorded = torch.cat([step.old for step in diary.steps[:4]]).sort(0).values
    torch.testing.assert_close(recorded, torch.stack(list(rows.values())).sort(0).values)
    first = diary.steps[0]      # before anything was trained, the new network's old outputs are the old ones
    torch.testing.assert_close(first.old, first.logits[:len(first.old), :2].detach())


def test_old_outputs_of_what_is_replayed_are_those_of_the_old_network_too():
    diary, learner, memory = Diary(), network(2), Reservoir(1000, NOTHING.nothing)
    memory.observe(vectors(), rng())
    before = network(2)
    xs = []
    learner.body.register_forward_hook(
        lambda body, x, out: xs.append(x[0].clone()) if body.training and len(x[0]) != 3 else None)    # a reference
    learning_round(learner, Parts(memory, Balance(), [diary]), vectors(seed=1), 3, Plan(2, 16, 0.5), rng())
    for step, x in zip(diary.steps, xs, strict=True):
        assert len(step.old) == len(step.logits) == 2 * step.fresh
        torch.testing.assert_close(step.old, before(x)[1].detach())


def test_each_new_sample_is_observed_once_whatever_the_epochs():
    memory, new = Ledger(), vectors()
    learning_round(network(2), Parts(memory, Balance()), new, 2, Plan(3, 16, 0.1), rng())
    assert sorted(memory.seen) == sorted(new.x[:, 0].tolist()) and memory.updates == 50


def test_nothing_is_asked_of_the_old_network_in_the_first_round():
    diary = Diary()
    learning_round(network(), Parts(NOTHING, Balance(), [diary]), vectors(), 2, Plan(1, 50, 0.1), rng())
    assert [step.old for step in diary.steps] == [None] and diary.steps[0].known == 0


@pytest.mark.parametrize("size", [1, 3, 10, 40])
def test_pieces_of_a_batch_are_all_of_it_and_mix_no_layers(size):
    above = Batch(torch.randn(7, 3), torch.arange(7), place=2)
    batch = replace(vectors(10), old=torch.randn(8, 2)).with_replayed(above)
    pieces = list(batch.pieces(size))
    assert batch.count == 17 and len(batch) == batch.fresh == 10 and max(map(len, pieces)) <= size
    lower, upper = ([piece for piece in pieces if piece.place == place] for place in (None, 2))
    for whole, parts in ((batch, lower), (above, upper)):
        assert torch.equal(torch.cat([part.x for part in parts]), whole.x)
        assert torch.equal(torch.cat([part.y for part in parts]), whole.y)
    assert sum(piece.fresh for piece in lower) == 10 and not any(piece.fresh for piece in upper)
    assert torch.equal(torch.cat([piece.old for piece in lower if piece.old is not None]), batch.old)


def test_replayed_samples_of_the_inputs_own_layer_join_the_new_ones():
    replayed = Batch(torch.randn(3, 6), torch.arange(3), torch.tensor([0.0, 0.5, 0.5]), torch.randn(3, 2))
    batch = vectors(4).with_replayed(replayed)
    assert batch.above is None and (batch.fresh, batch.replayed, batch.count) == (4, 3, 7)
    assert batch.weight.tolist() == [1, 1, 1, 1, 0, 0.5, 0.5]
    assert batch.recorded[:4].isnan().all() and torch.equal(batch.recorded[4:], replayed.recorded)
    assert [(len(piece), piece.fresh) for piece in batch.pieces(3)] == [(3, 3), (3, 1), (1, 0)]


def test_phases_come_from_the_parts():
    plan, tuning = Plan(4, 16, 0.1), FineTuning(0.5, 10, False)
    parts = Parts(NOTHING, Chain([tuning, FineTuning(1, 1, False)]))
    assert [(phase.plan.epochs, phase.plan.rate, phase.balanced) for phase in parts.phases(plan)] == [
        (4, 0.1, False), (2, 0.01, True), (4, 0.1, True)]
    first, again = Parts(NOTHING, FineTuning(1, 1, True)).phases(plan)
    assert (first.plan.epochs, again.plan.epochs, again.restart) == (0, 4, True)
    (only,) = Parts(NOTHING, Balance(), plasticity=PackNet(10**6, TaskRule(), 0.5)).phases(plan)
    assert only.plan.epochs == PackNet.passes * 4


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_it_steps_as_torch_does(decay):
    weights = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(5))]
    twins = [torch.nn.Parameter(weight.detach().clone()) for weight in weights]
    ours = Sgd(weights, Plan(1, 1, 0.1, 0.9, decay))
    theirs = torch.optim.SGD(twins, 0.1, 0.9, weight_decay=decay)
    for _ in range(3):
        gradients = [torch.randn_like(weight) for weight in weights]
        ours.step(gradients, 0.1)
        for twin, gradient in zip(twins, gradients):
            twin.grad = gradient
        theirs.step()
    for weight, twin in zip(weights, twins):
        torch.testing.assert_close(weight, twin)


def test_gradients_are_clipped_together():
    weights = [torch.zeros(2), torch.zeros(1), torch.zeros(1)]
    Sgd(weights, Plan(1, 1, 1.0, clip=1.0)).step([torch.tensor([3.0, 0]), torch.tensor([4.0]), None], 1.0)
    torch.testing.assert_close(torch.cat(weights), torch.tensor([-0.6, 0, -0.8, 0]))


def test_the_rate_falls_after_its_milestones():
    plan = Plan(70, 32, 2.0, milestones=(0.7, 0.9), factor=5)
    assert [plan.rate_after(epoch / 70) for epoch in (0, 48, 49, 62, 63)] == pytest.approx([2, 2, .4, .4, .08])


def test_without_epochs_the_network_stays_as_it_is():
    learner, untouched = network(2), network(2)
    learning_round(learner, Parts(NOTHING, Balance()), vectors(), 2, Plan(0, 32, 0.0), rng())
    assert all(torch.equal(a, b) for a, b in zip(learner.parameters(), untouched.parameters()))


# networks ---------------------------------------------------------------------------------------


def count(name, shape, dtype):
    made = build(name, shape, dtype, Softmax, 0)
    made.head.extend(10, rng())
    return sum(p.numel() for p in made.parameters())


def test_networks_have_their_parameters():
    assert count("cnn", (28, 28, 1), "uint8") == 93_322
    assert count("resnet32", (32, 32, 3), "uint8") == 464_154     # He et al. 2016, table 6: 0.46 million


@pytest.mark.parametrize("name", NETWORKS)
def test_a_seed_gives_the_weights_and_leaves_torch_alone(name):
    shape, dtype = SHAPES[name]
    torch.manual_seed(3)
    wanted = torch.rand(1)
    torch.manual_seed(3)
    same, twin, other = (build(name, shape, dtype, Softmax, seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), wanted)
    assert all(torch.equal(same[key], twin[key]) for key in same)
    assert any(not torch.equal(same[key], other[key]) for key in same)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_export_gives_the_same_numbers(name):
    shape, dtype = SHAPES[name]
    learner = MethodRun("er", name, shape, dtype, 50_000, 0, RunOptions(batch=8))
    x, y = samples(name, 24), np.arange(24) % 3
    learner.learn(x, y)
    exported = onnxruntime.InferenceSession(learner.export(), providers=["CPUExecutionProvider"])
    for n in (1, 5, 24):
        found = exported.run(None, {"input": x[:n]})
        with torch.no_grad():
            wanted = learner.network(torch.tensor(x[:n]))
        for ours, theirs in zip(wanted, found):
            assert np.abs(ours.numpy() - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("method", ["icarl", "slda", "ranpac", "first-session"])
def test_the_export_of_a_folded_head_gives_the_same_numbers(method):
    learner, x, y = MethodRun(method, "cnn", (16, 16, 1), "uint8", 9000, 0), samples("cnn", 60), np.arange(60) % 3
    learner.learn(x, y)
    exported = onnxruntime.InferenceSession(learner.export(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        wanted = learner.parts.balance.fold(learner.network)(torch.tensor(x))
    for ours, theirs in zip(wanted, exported.run(None, {"input": x})):
        assert np.abs(ours.numpy() - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_a_temporal_network_sees_the_past_only():
    made = build("tcn", (40, 3), "float32", Softmax, 0)
    levels = nn.Sequential(*list(made.body)[:-1])
    x = torch.from_numpy(samples("tcn", 2))
    changed = x.clone()
    changed[:, 25:] += 1
    before, after = levels(x), levels(changed)
    assert torch.equal(before[:, :, :25], after[:, :, :25]) and not torch.equal(before[:, :, 25:], after[:, :, 25:])


def test_too_small_images_are_refused():
    with pytest.raises(BadInput, match="8 x 8 are too small"):
        build("cnn", (8, 8, 1), "uint8", Softmax, 0)
    build("cnn", (9, 9, 1), "uint8", Softmax, 0)


# learning at all ---------------------------------------------------------------------------------


@cache
def images():
    """Digits as images of 16 x 16: (train, test) of x, y."""
    data = digits()

    def grown(x):
        return np.kron(np.rint(x * 255).astype(np.uint8).reshape(-1, 8, 8, 1), np.ones((1, 2, 2, 1), np.uint8))

    return (grown(data.x_train), data.y_train), (grown(data.x_test), data.y_test)


@cache
def score(method, rate=None):
    """Final accuracy on digits, five steps of two classes, 100 exemplars."""
    (x, y), (x_test, y_test) = images()
    learner = MethodRun(method, "cnn", (16, 16, 1), "uint8", 100 * 256 + 160, 0, RunOptions(epochs=3, rate=rate))
    for k in range(5):
        learner.learn(x[y // 2 == k], y[y // 2 == k])
    return float((learner.predict(x_test) == y_test).mean())


def test_methods_stand_in_their_order():
    assert score("finetune") < 0.35
    assert score("er") > score("finetune") + 0.3
    assert score("icarl") > score("finetune") + 0.3
    assert score("joint") > 0.93
    assert score("slda") > 0.8
    assert score("lwf") < score("er") and score("ewc") < score("er")


def test_an_importance_holds_the_weights(tmp_path):
    """EWC's penalty is not always 0: the weights move less than without."""
    text = (FOLDER / "ewc.toml").read_text("utf-8")
    (tmp_path / "ewc.toml").write_text(re.sub("importance = [0-9]+", "importance = 3000", text))
    (x, y), _ = images()
    moved = {}
    for method in ("finetune", tmp_path / "ewc.toml"):
        learner = MethodRun(method, "cnn", (16, 16, 1), "uint8", 0, 0, RunOptions(rate=0.005))
        learner.learn(x[y < 2], y[y < 2])
        before = torch.cat([p.detach().flatten() for p in learner.network.body.parameters()])
        learner.learn(x[y // 2 == 1], y[y // 2 == 1])
        after = torch.cat([p.detach().flatten() for p in learner.network.body.parameters()])
        moved[method] = float((after - before).norm())
    assert moved[tmp_path / "ewc.toml"] < 0.95 * moved["finetune"]


def test_a_diverging_round_is_refused(tmp_path):
    (x, y), _ = images()
    (tmp_path / "own.toml").write_text('paper = "none"\nrate = 1e5\nmomentum = 0.9\n')
    learner = MethodRun(tmp_path / "own.toml", "cnn", (16, 16, 1), "uint8", 0, 0, RunOptions(epochs=5))
    with pytest.raises(BadInput, match=r"the loss is (nan|inf) after .* at a rate of 100000; give a smaller rate"):
        learner.learn(x, y)


def test_the_norm_that_is_clipped_is_that_of_the_gradients_before_their_paces():
    """Gradients (3, 4) have a norm of 5, clipped to 1: steps are 0.6 and 0.8, times their paces."""
    weights = [torch.zeros(1), torch.zeros(1)]
    sgd = Sgd(weights, Plan(1, 1, 1.0, clip=1.0), [torch.tensor([10.0]), 2.0])
    sgd.step([torch.tensor([3.0]), torch.tensor([4.0])], 1.0)
    assert [w.item() for w in weights] == pytest.approx([-6.0, -1.6])
