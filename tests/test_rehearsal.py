"""Rehearsal: for each trap a case worked by hand or a reference in float64."""
from __future__ import annotations

import math

import pytest
import torch
from helpers_parts import NOTHING, SIZE, batch, gradient, plain, rng, step
from torch import nn
from torch.nn import functional as F  # noqa: N812

from edgecl.training.balance.base import Balance
from edgecl.training.balance.corrections import FineTuning
from edgecl.training.batch import Batch, Seen
from edgecl.training.constraints.distillation import LogitReplay
from edgecl.training.loop import Parts, learning_round
from edgecl.training.memory.exemplars import Reservoir
from edgecl.training.memory.replay import ByGradient, Greedy, Recorded, replacing, scores
from edgecl.training.networks.heads import Asymmetric, Softmax
from edgecl.training.networks.network import Network, build
from edgecl.training.passes import Allowance
from edgecl.training.plan import Plan
from edgecl.training.step import Step

# ER-ACE -----------------------------------------------------------------------------------------


def test_new_samples_do_not_push_classes_that_are_not_among_them():
    """Outputs 0, 1 are old, 2, 3 new; the step's new samples are of 2 alone. A replayed sample is compared with all."""
    logits = torch.tensor([[1.0, 2.0, 0.5, 3.0], [1.0, 2.0, 0.5, 3.0]], requires_grad=True)
    loss = Asymmetric(6).loss(step(logits, [2, 0], fresh=1, present=torch.tensor([2])))
    assert float(loss.detach()) == pytest.approx((0 + (math.log(sum(map(math.exp, (1, 2, .5, 3)))) - 1)) / 2)
    pull = gradient(loss, logits)
    assert torch.equal(pull[0], torch.zeros(4)) and (pull[1] != 0).all()
    both = Asymmetric(6).loss(step(logits, [2, 0], fresh=1, present=torch.tensor([2, 3])))
    new = math.log(math.exp(.5) + math.exp(3)) - .5
    assert float(both.detach()) == pytest.approx((new + math.log(sum(map(math.exp, (1, 2, .5, 3)))) - 1) / 2)


def test_the_loop_says_which_samples_are_new():
    steps = []

    class Spy(Softmax):
        def loss(self, step):
            steps.append(step)
            return super().loss(step)

    network = Network(nn.Flatten(), nn.Identity(), Spy(6), 6)
    memory = Reservoir(1000, NOTHING)
    memory.observe(batch([0, 1]), rng())
    learning_round(network, Parts(memory, Balance()), batch([2]), 3, Plan(1, 8, 0.1), rng())
    assert [each.fresh for each in steps] == [8] and steps[0].present.tolist() == [2]
    assert set(steps[0].targets[:8].tolist()) == {2} and len(steps[0].targets) == 16


# DER++ ------------------------------------------------------------------------------------------


def recorded(room=1000):
    memory = Recorded(room, NOTHING, 0.5, "insertion")
    for k in range(2):      # one class, then another: two logits, then three
        new = batch([k], 20, seed=k)
        made = torch.arange(20 * (2 + k), dtype=torch.float32).reshape(20, 2 + k)
        memory.observe(new, rng(k), Seen(torch.empty(20, 0), made, torch.empty(0, 0), torch.empty(0, 0), NOTHING.y))
    return memory


def test_two_draws_are_independent_one_for_logits_and_one_for_labels():
    memory, same, n = recorded(), 0, 50
    for seed in range(40):
        drawn = memory.replay(n, rng(seed))
        assert len(drawn) == 2 * n and drawn.weight.tolist() == [0.0] * n + [0.5] * n
        assert drawn.recorded[:n].isfinite().any(1).all() and not drawn.recorded[n:].isfinite().any()
        same += int((drawn.x[:n] == drawn.x[n:]).all(1).sum())
    held = sum(len(samples) for samples in memory.exemplars().values())
    assert same / (40 * n) == pytest.approx(1 / held, abs=0.02)      # and not 1


def test_logits_are_those_of_the_insertion_and_those_of_later_outputs_say_that_none_was_seen():
    """No output is left out of what is replayed, as none is where all are there from the start."""
    memory, network = recorded(), plain(4)
    memory.begin(network, 3)
    for column, samples in memory.exemplars().items():
        new = batch([column], 20, seed=column)
        for sample, logits in zip(samples, memory.logits[column]):
            row = int(torch.nonzero((new.x == sample).all(1))[0])
            assert logits[:2 + column].tolist() == [row * (2 + column) + i for i in range(2 + column)]
            own = logits[:2 + column].double()
            chances = (logits[2 + column:].double() - own.logsumexp(0)).exp()
            assert chances.tolist() == pytest.approx([1 / 41] * (2 - column), rel=1e-4)     # 40 samples were seen
    drawn = memory.replay(10, rng())
    assert drawn.recorded[:10].isfinite().all() and memory.nbytes <= memory.room


def test_logit_replay_is_the_mean_squared_difference_of_the_first_draw():
    held = torch.tensor([[1.0, 3.0, 9.0], [math.nan] * 3])
    logits = torch.tensor([[2.0, 5.0, 9.0], [7.0, 7.0, 7.0]], requires_grad=True)
    loss = LogitReplay(0.5).penalty(Step(torch.empty(2, 0), logits, torch.tensor([0, 1]), None, 2, 6, 0, recorded=held))
    assert float(loss.detach()) == pytest.approx(0.5 * (1 + 4) / 3 / 2)      # over outputs, then over 6 / 3 draws
    assert gradient(loss, logits)[1].tolist() == [0, 0, 0]


def test_der_loss_of_a_step_is_the_papers():
    """CE of new + beta x CE of the second draw + alpha x MSE of the first, each a mean of its own."""
    network, seen = plain(3), []

    class Spy(LogitReplay):
        def penalty(self, step):
            seen.append(step)
            return super().penalty(step)

    memory, values = recorded(), []
    learning_round(network, Parts(memory, Balance(), [Spy(0.3)]), batch([2], 8), 3, Plan(1, 8, 0.1), rng(),
                   Allowance(progress=lambda _, loss: values.append(loss)))
    (one,) = seen
    assert len(one.logits) == 24
    ce = F.cross_entropy(one.logits, one.targets, reduction="none").detach()
    told = one.recorded[8:16].isfinite()
    gap = torch.where(told, one.logits[8:16].detach() - one.recorded[8:16].nan_to_num(), 0)
    gap = gap.square().sum(1) / told.sum(1)
    assert values[0] == pytest.approx(float(ce[:8].mean() + 0.5 * ce[16:].mean() + 0.3 * gap.mean()), rel=1e-5)


def test_logits_that_are_missing_are_those_of_the_network_as_it_came():
    memory, network = Recorded(1000, NOTHING, 0.5, "insertion"), plain(2)
    memory.hold(batch([0, 1]))
    memory.begin(network, 2)
    wanted = network(torch.stack(memory.kept[1]))[1]
    torch.testing.assert_close(torch.stack(memory.logits[1]), wanted.detach())


def test_outputs_that_a_network_has_not_learned_are_not_recorded_as_it_drew_them():
    memory, network = Recorded(1000, NOTHING, 0.5, "round"), plain(2)
    memory.hold(batch([0, 1]))
    network.head.extend(4, rng(1))
    memory.begin(network, 2)
    for column, logits in memory.logits.items():
        found = network(torch.stack(memory.kept[column]))[1].detach()
        torch.testing.assert_close(torch.stack(logits)[:, :2], found[:, :2])
        for each in logits:
            assert each[2] == each[3] < each[:2].logsumexp(0) - 2


# GDumb and GSS -----------------------------------------------------------------------------------


def numbered(start, stop, column):
    x = torch.arange(start, stop, dtype=torch.float32)[:, None].repeat(1, 6)
    return Batch(x, torch.full((len(x),), column))


def test_the_greedy_sampler_keeps_the_first_and_takes_from_the_largest():
    memory = Greedy(10 * SIZE + 2 * 16, NOTHING)
    memory.observe(numbered(0, 30, 0), rng())
    assert memory.exemplars()[0][:, 0].tolist() == list(range(10))     # no later one replaces them
    memory.observe(numbered(0, 30, 1), rng())
    assert memory.exemplars()[1][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert len(memory.exemplars()[0]) == 5 and memory.replay(4, rng()) is None


def test_training_afresh_is_on_the_memory_alone_and_forgets_the_weights():
    """Every batch is of exemplars; the weights before the round make no difference."""
    ends = []
    for seed in (0, 1):
        network, shown = build("mlp", (6,), "float32", Softmax, seed), []
        network.body.register_forward_hook(
            lambda body, given, out, shown=shown: shown.append(given[0]) if body.training else None)
        memory = Greedy(10 * SIZE + 2 * 16, NOTHING)
        learning_round(network, Parts(memory, FineTuning(3, 1, True)), batch([0, 1], 50), 2, Plan(1, 4, 0.1), rng())
        kept = torch.cat(list(memory.exemplars().values()))
        assert sum(map(len, shown)) == 30 and len(kept) == 10
        assert all((kept == row).all(1).any() for part in shown for row in part)
        ends.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert torch.equal(*ends)


def test_a_score_is_the_largest_cosine_of_whole_gradients_plus_one():
    """Against the outer products of the last layer themselves, in float64."""
    generator, n, m = rng(), 5, 7
    made = Seen(*(torch.from_numpy(generator.standard_normal(shape)) for shape in ((n, 6), (n, 3), (m, 6), (m, 3))),
                torch.from_numpy(generator.integers(0, 3, m)))
    new = Batch(torch.empty(n, 6), torch.from_numpy(generator.integers(0, 3, n)))

    def whole(features, logits, columns):
        pull = logits.softmax(1) - F.one_hot(columns, 3)
        return F.normalize((pull[:, :, None] * features[:, None]).flatten(1))

    cosines = whole(made.features, made.logits, new.y) @ whole(made.old_features, made.old_logits, made.old_columns).T
    assert scores(new, made, rng()) == pytest.approx((1 + cosines.max(1).values).tolist(), rel=1e-5)


def test_a_sample_is_replaced_with_the_chance_of_the_paper():
    """C_i / (c + C_i), i drawn by C_i; nothing is replaced where c is 1 or more."""
    assert replacing(0.6, 0.2) == pytest.approx(0.75) and replacing(0.0, 0.5) == 0
    counts, marks, runs = {0: 0, 1: 0}, (0.9, 0.3), 3000
    for seed in range(runs):
        memory = ByGradient(2 * (SIZE + 4) + 16, NOTHING)
        memory.hold(numbered(0, 2, 0))
        memory.scores = {0: list(marks)}
        opposite = Seen(torch.ones(1, 6), torch.zeros(1, 2), torch.ones(1, 6), torch.zeros(1, 2), torch.tensor([1]))
        memory.observe(numbered(7, 8, 0), rng(seed), opposite)      # -cosine: a score of 0
        kept = memory.exemplars()[0][:, 0].tolist()
        for i in (0, 1):
            counts[i] += i not in kept
    assert counts[0] / runs == pytest.approx(0.75, abs=0.03) and counts[1] / runs == pytest.approx(0.25, abs=0.03)
    memory.scores = {0: [0.9, 0.3]}
    alike = Seen(torch.ones(1, 6), torch.zeros(1, 2), torch.ones(1, 6), torch.zeros(1, 2), torch.tensor([0]))
    before = memory.exemplars()[0].clone()
    memory.observe(numbered(9, 10, 0), rng(), alike)
    assert torch.equal(memory.exemplars()[0], before)
