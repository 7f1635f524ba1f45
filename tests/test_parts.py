"""Parts: each against a case worked by hand or a reference in float64, and one contract for every row of the tables."""
from __future__ import annotations

import inspect
import math
from importlib import import_module

import numpy as np
import pytest
import torch
from helpers_parts import example_numbers
from torch import nn

from edgecl.rounds.parts import EXEMPLARS, PARTS
from edgecl.training.balance.base import Done, ExemplarMeans
from edgecl.training.batch import Batch
from edgecl.training.memory.exemplars import Herding, Reservoir
from edgecl.training.networks.heads import Sigmoid, Softmax
from edgecl.training.networks.network import Network
from edgecl.training.step import Step

ROWS = [(kind, name) for kind, rows in PARTS.items() for name in rows]
def class_of(kind, name):
    module, _, cls = PARTS[kind][name].where.rpartition(".")
    return getattr(import_module(f"edgecl.training.{module}"), cls)


def made(kind, name, *given):
    return class_of(kind, name)(*given, **example_numbers(kind, name))


def rng(seed=0):
    return np.random.default_rng(seed)


def batch(columns, n=8, width=6, seed=0):
    """n random vectors of each column."""
    x = torch.from_numpy(rng(seed).standard_normal((n * len(columns), width)).astype(np.float32))
    return Batch(x, torch.tensor([column for column in columns for _ in range(n)]))


NOTHING = Batch(torch.empty(0, 6), torch.empty(0, dtype=torch.int64))
SIZE = 6 * 4


def plain(head=Softmax, classes=0, width=6):
    """A network whose features are its input."""
    network = Network(nn.Flatten(), nn.Identity(), head(width), width)
    network.head.extend(classes, rng())
    return network.eval()


def step(logits, targets, old=None, known=0):
    return Step(torch.empty(len(logits), 0), logits, torch.tensor(targets), old, known, len(logits),
                0 if old is None else len(old))


# the contract: every row ------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), ROWS)
def test_a_row_names_a_class_and_its_very_numbers(kind, name):
    signature = inspect.signature(class_of(kind, name))
    taken = [p for p in signature.parameters if p not in ("room", "nothing", "dimension", "rule", "args", "kwargs")]
    assert taken == list(PARTS[kind][name].numbers)
    assert class_of(kind, name).__doc__


@pytest.mark.parametrize("name", PARTS["memory"])
def test_memory_keeps_its_bytes_its_input_and_its_state(name):
    room, network = 10 * SIZE + 3 * 16 + 5, plain(classes=3)
    memory, twin = (made("memory", name, room, NOTHING) for _ in range(2))
    assert memory.replay(4, rng()) is None
    for k in range(3):
        new = batch([k], 20, seed=k)
        before = new.x.clone()
        data = memory.dataset(new)
        assert torch.equal(data.x[:len(new)], new.x) and torch.equal(data.y[:len(new)], new.y)
        memory.observe(new, rng(k))
        memory.update(new, network)
        assert torch.equal(new.x, before)
        state = memory.state()
        assert memory.nbytes == sum(array.nbytes for array in state.values())
        assert memory.nbytes <= room or not memory.bounded
        held = {column: samples.clone() for column, samples in memory.exemplars().items()}
        assert ("exemplars" in PARTS["memory"][name].gives) == bool(held)
        new.x.fill_(7)     # nor is the input kept
        assert all(torch.equal(held[column], samples) for column, samples in memory.exemplars().items())
        twin.load({name: array.copy() for name, array in state.items()})
        assert all(np.array_equal(array, twin.state()[name]) for name, array in state.items())
        again = [part.replay(5, rng(9)) for part in (memory, twin)]
        assert again == [None, None] or (torch.equal(again[0].x, again[1].x) and len(again[0]) in (5, 10))


def descend(part, network, new, rate=0.1):
    """A step of the loop."""
    weights = list(network.parameters())
    gradients = torch.autograd.grad(network.head.loss(step(network(new.x)[1], new.y.tolist())), weights)
    part.observe(new, gradients)
    with torch.no_grad():
        for p, gradient in zip(weights, part.project(gradients)):
            p -= rate * gradient
    part.after_step(1.0)


ACTIVATIONS = {"less-forget", "margin-ranking", "fixed-classes", "positive-weights", "pooled-outputs", "logit-replay",
               "gradient-noise"}
# what holds features, or other than a penalty on weights: see test_balance.py, test_rehearsal.py
PENALTIES = [name for name, row in PARTS["constraint"].items() if not row.needs and name not in ACTIVATIONS]


@pytest.mark.parametrize("name", [name for name in PARTS["constraint"] if name not in ACTIVATIONS.union(PENALTIES)])
@pytest.mark.parametrize("memory", [name for name, row in PARTS["memory"].items() if row.gives >= EXEMPLARS])
def test_a_projection_obeys_what_memory_keeps(name, memory):
    """With any memory; where nothing is kept, the gradients stay; a part that was saved and loaded does the same."""
    network, kept, new = plain(classes=2), made("memory", memory, 10_000, NOTHING), batch([0, 1])
    part, twin = made("constraint", name), made("constraint", name)
    weights = list(network.parameters())

    def gradients(some):
        return torch.autograd.grad(network.head.loss(step(network(some.x)[1], some.y.tolist())), weights)

    part.begin(network, [0.01] * 9)
    assert list(part.references(kept, rng())) == []
    before = gradients(new)
    assert all(torch.equal(a, b) for a, b in zip(part.project([g.clone() for g in before], ()), before))
    kept.observe(new, rng())
    kept.update(new, network)
    part.end(network, new, rng())
    twin.load({name: array.copy() for name, array in part.state().items()})
    assert part.nbytes == sum(array.nbytes for array in part.state().values())
    network.head.extend(3, rng(1))
    weights = list(network.parameters())
    found = []
    for each in (part, twin):
        each.begin(network, [0.01] * 9)
        asked = each.references(kept, rng(2))
        assert len(asked) == 1 and set(asked[0].y.tolist()) == {0, 1}
        (reference,) = (gradients(some) for some in asked)
        against = [-g + 0.1 * torch.ones_like(g) for g in reference]
        assert sum(float((a * r).sum()) for a, r in zip(against, reference)) < 0
        found.append(each.project([g.clone() for g in against], iter([reference])))
        assert sum(float((a * r).sum()) for a, r in zip(found[-1], reference)) > -0.0011     # the ridge of the dual
        each.after_step(1.0)
    assert all(torch.equal(a, b) for a, b in zip(*found))


@pytest.mark.parametrize("name", PENALTIES)
def test_a_constraint_is_0_at_first_and_not_0_once_something_moved(name):
    part, network, new = made("constraint", name), plain(classes=2), batch([0, 1])
    part.begin(network, [0.01] * 9)
    assert float(part.penalty(step(network(new.x)[1], new.y.tolist()))) == 0
    assert part.nbytes == 0
    descend(part, network, new)
    part.end(network, new, rng())
    twin = made("constraint", name)
    twin.load({name: array.copy() for name, array in part.state().items()})
    assert part.nbytes == sum(array.nbytes for array in part.state().values())
    found = []
    for each in (part, twin):
        network, old = plain(classes=2), plain(classes=2)(new.x)[1].detach()
        network.head.extend(3, rng(1))
        each.begin(network, [0.01] * 9)
        penalties = []
        for shift in (0.0, 0.3):
            with torch.no_grad():
                network.head.weight += shift * torch.arange(6)
                network.head.weight[0] += shift
            penalties.append(each.penalty(step(network(new.x)[1], new.y.tolist(), old, 2)))
        found.append([penalty.item() for penalty in penalties])
        pull = each.project([torch.zeros_like(p) for p in network.parameters()])
        assert penalties[1].shape == () and penalties[1].requires_grad != any(bool(g.any()) for g in pull)    # not both
        assert each.project([None] * len(pull)) == [None] * len(pull)
        each.after_step(1.0)
    assert found[0] == found[1] and abs(found[0][0]) < 1e-6 and found[0][1] > 1e-4


@pytest.mark.parametrize("name", PARTS["head"])
def test_a_head_grows_and_keeps_the_old_outputs_bit_for_bit(name):
    head = made("head", name, 6)
    head.extend(2, rng())
    x = batch([0]).x
    before, weights = head(x), [p.detach().clone() for p in head.parameters()]
    head.extend(2, rng())
    assert torch.equal(head(x), before)
    head.extend(5, rng())
    assert head.classes == 5 and head(x).shape == (8, 5)
    assert all(torch.equal(p[:2] if p.dim() else p, old) for p, old in zip(head.parameters(), weights))
    torch.testing.assert_close(head(x)[:, :2], before)
    loss = head.loss(step(head(x), [4] * 8))
    assert loss.shape == () and torch.isfinite(loss) and loss.requires_grad


@pytest.mark.parametrize("name", PARTS["balance"])
def test_balance_folds_into_what_serves_and_changes_nothing(name):
    network, part, row = plain(classes=3), made("balance", name), PARTS["balance"][name]
    kind = next(kind for kind, memory in PARTS["memory"].items() if row.needs - {"affine outputs"} <= memory.gives)
    memory = made("memory", kind, 10_000, NOTHING)
    new = batch([0, 1, 2])
    memory.observe(new, rng())
    memory.update(new, network)
    part.start(network, new, 2)
    part.finish(network, memory, Done(2, new, new, network))
    before = [p.clone() for p in network.state_dict().values()]
    features, logits = part.fold(network)(new.x)
    assert len(features) == len(new) and logits.shape == (len(new), 3)
    assert all(torch.equal(a, b) for a, b in zip(before, network.state_dict().values()))


# iCaRL ------------------------------------------------------------------------------------------


def test_icarl_loss_of_a_case_worked_by_hand():
    """Outputs sigma = .75, .5, .25; old targets .5, .75; the new class, 2, is right; then a sample of old class 0
    that has the same targets for the old outputs (not 1 and 0), and 0 for the new one."""
    logits, old = torch.tensor([[math.log(3), 0, -math.log(3)]] * 2), torch.tensor([[0, math.log(3)]] * 2)
    shared = -(.5 * math.log(.75) + .5 * math.log(.25)) - math.log(.5)
    loss = Sigmoid(4).loss(step(logits, [2, 0], old, 2))
    assert float(loss) == pytest.approx((2 * shared - math.log(.25) - math.log(.75)) / 2)
    first = Sigmoid(4).loss(step(logits[:1], [0]))       # the first round: nothing is old
    assert float(first) == pytest.approx(-math.log(.75) - math.log(.5) - math.log(.75))


def brute_herding(features, m):
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    mean = unit.mean(0) / np.linalg.norm(unit.mean(0))
    chosen = []
    for k in range(m):
        left = [i for i in range(len(unit)) if i not in chosen]
        gaps = [np.linalg.norm(mean - (unit[chosen].sum(0) + unit[i]) / (k + 1)) for i in left]
        chosen.append(left[int(np.argmin(gaps))])
    return chosen


def test_herding_is_greedy_in_order_and_shrinks_from_the_end():
    network, room = plain(classes=3), 12 * SIZE + 3 * 16
    memory = Herding(room, NOTHING)
    new = batch([0], 30)
    new.x[:, 0] *= 50       # without normalisation, the order would be another
    memory.update(new, network)
    first = memory.exemplars()[0]
    wanted = brute_herding(new.x.numpy().astype(np.float64), 13)
    assert torch.equal(first, new.x[wanted])            # room for 13 beside one class's 16 bytes
    assert wanted != sorted(wanted)
    memory.update(batch([1], 30, seed=1), network)
    memory.update(batch([2], 30, seed=2), network)
    assert [len(samples) for samples in memory.exemplars().values()] == [4, 4, 4]
    assert torch.equal(memory.exemplars()[0], first[:4])


def test_herding_rounds_down():
    memory = Herding(11 * SIZE + 3 * 16, NOTHING)
    memory.update(batch([0, 1, 2], 30), plain(classes=3))
    assert [len(samples) for samples in memory.exemplars().values()] == [3, 3, 3]      # not ceil(11 / 3)


def test_nearest_mean_of_exemplars_with_their_mirror_images():
    """A network whose features are the pixels: means against float64."""
    nothing = Batch(torch.empty((0, 3, 4, 1), dtype=torch.uint8), NOTHING.y)
    network = Network(_Pixels(), nn.Identity(), Softmax(12), 12, mirror=2).eval()
    network.head.extend(2, rng())
    x = torch.from_numpy(rng().integers(0, 256, (20, 3, 4, 1), dtype=np.uint8))
    memory = Herding(2 * 3 * 12 + 32, nothing)
    memory.update(Batch(x, torch.tensor([0, 1] * 10)), network)
    part = ExemplarMeans()
    part.finish(network, memory, Done(0, memory.nothing, memory.nothing, network))
    means = []
    for column in (0, 1):
        held = memory.exemplars()[column].numpy().astype(np.float64)
        assert len(held) == 3      # means come from these alone, not from the ten that were learned
        views = [held.reshape(3, -1), held[:, :, ::-1].reshape(3, -1)]
        mean = np.mean([(v / np.linalg.norm(v, axis=1, keepdims=True)).mean(0) for v in views], 0)
        means.append(mean / np.linalg.norm(mean))
    np.testing.assert_allclose(part.means, means, rtol=1e-5)
    flat = x.numpy().reshape(20, -1).astype(np.float64)
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    distance = ((unit[:, None] - np.array(means)) ** 2).sum(2)
    np.testing.assert_allclose(part.fold(network)(x)[1].detach(), 1 - distance, atol=1e-5)     # 2 f.mu - 1


class _Pixels(nn.Module):
    def forward(self, x):
        return x.flatten(1).float()


def test_a_class_without_exemplars_is_never_the_nearest():
    network, memory, part = plain(classes=3), Reservoir(1000, NOTHING), ExemplarMeans()
    memory.observe(batch([0, 2]), rng())
    part.finish(network, memory, Done(0, memory.nothing, memory.nothing, network))
    assert set(part.fold(network)(batch([1], 50).x)[1].argmax(1).tolist()) <= {0, 2}


# the reservoir ----------------------------------------------------------------------------------


def numbered(start, stop, column=0):
    x = torch.arange(start, stop, dtype=torch.float32)[:, None].repeat(1, 6)
    return Batch(x, torch.full((len(x),), column))


def test_a_reservoir_is_uniform_also_after_it_was_saved_and_loaded():
    kept = []
    for seed in range(150):
        generator, memory = rng(seed), Reservoir(10 * SIZE + 16, NOTHING)
        memory.observe(numbered(0, 100), generator)
        resumed = Reservoir(10 * SIZE + 16, NOTHING)
        resumed.load(memory.state())
        resumed.observe(numbered(100, 200), generator)
        kept += resumed.exemplars()[0][:, 0].tolist()
    assert len(kept) == 1500
    assert np.mean(np.array(kept) < 100) == pytest.approx(0.5, abs=3 * 0.5 / math.sqrt(1500))   # without counters: 0.1


def test_a_class_that_made_room_stays_uniform():
    kept = []
    for seed in range(150):
        generator, memory = rng(seed), Reservoir(12 * SIZE + 48, NOTHING)
        for new in (numbered(0, 50), numbered(0, 50, 1), numbered(0, 50, 2), numbered(50, 100)):
            memory.observe(new, generator)
        assert sorted(len(samples) for samples in memory.exemplars().values()) == [4, 4, 4]
        kept += memory.exemplars()[0][:, 0].tolist()
    assert np.mean(np.array(kept) < 50) == pytest.approx(0.5, abs=3 * 0.5 / math.sqrt(600))


def test_replay_is_balanced_where_the_stream_is_not():
    memory = Reservoir(30 * SIZE + 48, NOTHING)
    for new in (numbered(0, 500), numbered(0, 4, 1), numbered(0, 300, 2)):
        memory.observe(new, rng())
    assert {column: len(samples) for column, samples in memory.exemplars().items()} == {0: 13, 1: 4, 2: 13}
    drawn = memory.replay(6000, rng()).y
    assert [int((drawn == column).sum()) for column in range(3)] == pytest.approx([2000] * 3, abs=150)
