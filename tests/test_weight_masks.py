"""PackNet, lottery tickets and CPG: which weights a task keeps, picks and grows."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers_plasticity import SPACE, give, rng, session, steps, taught

from edgecl.evaluation.datasets import digits
from edgecl.training.plasticity.cpg import Cpg
from edgecl.training.plasticity.lottery import Lottery

# PackNet -----------------------------------------------------------------------------------------


def test_packnet_keeps_the_largest_weights_of_each_layer_and_frees_the_rest():
    learner = taught("packnet", 1)
    part = learner.parts.plasticity
    for name, mask in part.masks(learner.network, 0).items():
        weight = learner.network.state_dict()[name]
        assert int(mask.sum()) == mask.numel() - int(0.75 * mask.numel())
        assert torch.equal(weight != 0, mask), "what was given up is 0"
    learner.learn(*steps()[1])
    for name, mask in part.masks(learner.network, 1).items():
        free = mask.numel() - int(part.masks(learner.network, 0)[name].sum())
        assert int((part.owner[name] == 2).sum()) == free - int(0.75 * free)
        assert torch.all(mask[part.owner[name] == 1]), "earlier weights serve later tasks"


def test_packnet_prunes_by_size_in_a_case_worked_by_hand():
    part = taught("packnet", 1).parts.plasticity
    scores = torch.tensor([[.1, .9, .3], [.7, .2, .8]])
    mine = torch.tensor([[True, False, True], [True, True, True]])
    assert part.largest(scores, mine, 0.5).tolist() == [[False, False, True], [True, False, True]]


def test_packnets_owners_take_as_many_bits_as_the_tasks_need():
    learner, weights = session("packnet"), 64 * 256 + 256 * 128
    for k, (x, y) in enumerate(steps(), 1):
        learner.learn(x, y)
        assert learner.parts.plasticity.kept()["owner"].nbytes == weights * (1, 2, 2)[k - 1] // 8


# lottery -----------------------------------------------------------------------------------------


class Watched(Lottery):
    """Writes down each pruning: the weights just before it, and those after the rewind."""

    def open(self, network, generator):
        super().open(network, generator)
        self.seen = []

    def prune(self, share):
        before = {name: weight.clone() for name, weight in self.weights.items()}
        super().prune(share)
        self.seen.append((before, {name: mine.clone() for name, mine in self.mine.items()}))

    def rewind(self):
        super().rewind()
        self.seen[-1] += ({name: value.clone() for name, value in self.work.state_dict().items()},)


def test_a_ticket_is_what_is_largest_after_training_wound_back_to_its_initial_values():
    learner = session("lottery", epochs=1)
    part = give(learner, Watched, SPACE, 7, 0.2)
    initial = {name: value.clone() for name, value in learner.network.state_dict().items()}
    learner.learn(*steps()[0])
    assert len(part.seen) == 7
    for count, (trained, mine, rewound) in enumerate(part.seen, 1):
        for name, left in mine.items():
            assert left.float().mean() == pytest.approx(0.8 ** count, abs=0.001)
            assert trained[name].abs()[left].min() >= trained[name].abs()[(trained[name] != 0) & ~left].max()
            assert not torch.equal(trained[name][left], initial[name][left]), "it was trained"
            assert torch.equal(rewound[name], torch.where(left, initial[name], 0)), "and wound back"
        assert all(torch.equal(rewound[name], initial[name]) for name in ("body.1.bias", "neck.0.bias"))
        assert torch.equal(rewound["head.head.weight"][:2].abs().max(1).values <= 128 ** -0.5, torch.tensor([True] * 2))


def test_a_later_ticket_starts_from_fresh_weights_and_leaves_the_earlier_ones():
    learner = session("lottery")
    part = give(learner, Watched, SPACE, 2, 0.5)
    learner.learn(*steps()[0])
    first = {name: owner == 1 for name, owner in part.owner.items()}
    before = {name: value.clone() for name, value in learner.network.state_dict().items()}
    learner.learn(*steps()[1])
    for name, mine in first.items():
        assert all(torch.equal(rewound[name][mine], before[name][mine]) for _, _, rewound in part.seen)
        assert torch.all(part.seen[0][0][name][~mine] != 0), "free weights are initialised again"


def test_tickets_beat_random_ones_of_the_same_sparsity(monkeypatch):
    """All digits as one task; 3 % of the weights are left."""
    data, found = digits(), {}
    for kind in ("ticket", "random"):
        if kind == "random":
            monkeypatch.setattr(Lottery, "scores", lambda _, weight: torch.rand(
                weight.shape, generator=torch.Generator().manual_seed(len(weight))))
        for seed in range(3):
            learner = session("lottery", seed, epochs=2)
            give(learner, Lottery, SPACE, 6, 0.44)
            learner.learn(data.x_train[:600], data.y_train[:600])
            share = float(learner.parts.plasticity.masks(learner.network, 0)["body.1.weight"].float().mean())
            assert share == pytest.approx(0.56 ** 6, rel=0.01)
            found[kind, seed] = (learner.predict(data.x_test, among=range(10)) == data.y_test).mean()
    assert all(found["ticket", seed] > found["random", seed] + 0.1 for seed in range(3)), found


# CPG ---------------------------------------------------------------------------------------------


def cpg(goal, most=1.5, room=SPACE, seed=0, mask_rate=5e-4, epochs=1):
    learner = session("cpg", seed, epochs=epochs)
    give(learner, Cpg, room, goal, most, mask_rate)
    return learner


def test_cpg_grows_to_one_and_a_half_times_its_width_and_no_further():
    learner, factors = cpg(goal=2.0), []       # a goal that can't be reached
    for x, y in steps():
        learner.learn(x, y)
        factors.append(learner.parts.plasticity.factor)
        kept = learner.parts.plasticity.kept()
        assert len(kept["extra"]) == (int(256 * factors[-1]) - 256) * (64 + 128)
    assert factors == [1.5, 1.5, 1.5]
    assert learner.parts.plasticity.subnetwork(learner.network, 0).body[1].weight.shape == (384, 64)
    assert learner.network.body[1].weight.shape == (256, 64), "what has grown is counted, not hidden in the network"


def test_cpg_does_not_grow_where_the_goal_is_reached_or_the_memory_is_full():
    easy = cpg(goal=0.2)
    easy.learn(*steps()[0])
    assert easy.parts.plasticity.factor == 1.0
    full = cpg(goal=2.0, room=20_000)
    full.learn(*steps()[0])
    assert full.parts.plasticity.factor == 1.0 and full.nbytes <= 20_000


def test_cpg_compacts_as_far_as_the_goal_allows():
    easy, hard = cpg(goal=0.2), cpg(goal=2.0, most=1.0)
    for learner in (easy, hard):
        learner.learn(*steps()[0])
    left = [float(learner.parts.plasticity.masks(learner.network, 0)["body.1.weight"].float().sum() / (256 * 64))
            for learner in (easy, hard)]
    assert left[0] == pytest.approx(0.05, abs=0.005), "the last ratio is 0.95"
    assert left[0] <= left[1] < 1


def test_cpg_picks_some_of_the_frozen_weights_and_changes_none():
    learner = cpg(goal=0.9, mask_rate=2e-3, epochs=2)
    learner.learn(*steps()[0])
    part = learner.parts.plasticity
    before = part.subnetwork(learner.network, 0).state_dict()
    first = {name: mask.clone() for name, mask in part.masks(learner.network, 0).items()}
    learner.learn(*steps()[1])
    picked, second = part.picks[1], part.masks(learner.network, 1)
    net = part.subnetwork(learner.network, 1).state_dict()
    shares = [float(picked[name].sum() / first[name].sum()) for name in first]
    assert all(0 < share < 1 for share in shares), shares
    for name, mask in first.items():
        assert not (picked[name] & ~mask).any(), "only what an earlier task owns is picked"
        assert torch.equal(net[name][picked[name]], before[name][picked[name]])
        assert not net[name][mask & ~picked[name]].any()
        assert torch.equal(second[name], picked[name] | (part.owner[name] == 2))


def test_cpgs_masks_follow_adam_on_the_straight_through_gradient():
    part = Cpg(SPACE, None, 0.9, 1.5, 0.01)
    real = torch.full((3, 4), 0.01)
    part.real, part.moments, reference = {"w": real.clone()}, {"w": torch.zeros(2, 3, 4)}, real.clone().requires_grad_()
    adam = torch.optim.Adam([reference], lr=0.01)
    for seed in range(5):
        gradient = torch.from_numpy(rng(seed).standard_normal((3, 4)).astype(np.float32))
        part.count = seed + 1
        part._adam("w", gradient)
        reference.grad = gradient.clone()
        adam.step()
    torch.testing.assert_close(part.real["w"], reference.detach())
