"""Sub-networks: one contract for every method that has them, on real rounds, what each paper's mechanism does."""
from __future__ import annotations

from functools import cache

import numpy as np
import onnxruntime
import pytest
import torch

from edgecl.errors import BadInput, BudgetError
from edgecl.evaluation.datasets import digits
from edgecl.evaluation.report import tasks_and_units
from edgecl.method import method_names, read_method
from edgecl.training.clnp import Clnp
from edgecl.training.compact import compacted
from edgecl.training.cpg import Cpg
from edgecl.training.den import Den
from edgecl.training.heads import Softmax
from edgecl.training.lottery import Lottery
from edgecl.training.masks import bits_for, pack, unpack, weight_names
from edgecl.training.memory import Batch
from edgecl.training.network import build, outputs
from edgecl.training.pathnet import PathNet
from edgecl.training.session import Session
from edgecl.training.task_rules import pick

METHODS = [name for name in method_names() if read_method(name).plastic]
FROZEN = [name for name in METHODS if name != "den"]     # which goes on changing old units a little
UNITS = ("clnp", "pathnet", "cpg", "den")      # whose units must be told apart
SPACE = 500_000
SHAPES = {"mlp": ((64,), "float32"), "cnn": ((16, 16, 1), "uint8"), "resnet32": ((16, 16, 3), "uint8"),
          "tcn": ((40, 3), "float32")}


def rng(seed=0):
    return np.random.default_rng(seed)


@cache
def steps(each=40):
    """Three steps of two digits, as vectors."""
    data = digits()
    rows = np.concatenate([np.flatnonzero(data.y_train == c)[:each] for c in range(6)])
    x, y = data.x_train[rows], data.y_train[rows]
    return [(x[y // 2 == k], y[y // 2 == k]) for k in range(3)]


def everything():
    return np.concatenate([x for x, _ in steps()])


def session(method, seed=0, room=SPACE, network="mlp", **more):
    return Session(method, network, *SHAPES[network], room, seed, **more)


def taught(method, count=3, **more):
    learner = session(method, **more)
    for x, y in steps()[:count]:
        learner.learn(x, y)
    return learner


def answers(learner, task, x):
    """Features and logits of a task's sub-network."""
    net = learner.parts.plasticity.subnetwork(learner.network, task)
    return [outputs(part, torch.from_numpy(x)).numpy() for part in (net.features, lambda each: net(each)[1])]


def made_up(network, seed, n=24):
    shape, dtype = SHAPES[network]
    x = rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8) if dtype == "uint8" else \
        rng(seed).standard_normal((n, *shape)).astype(np.float32)
    return x, np.arange(n) % 2 + 2 * seed


# the contract -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", FROZEN)
def test_a_frozen_sub_network_does_not_change_by_a_bit(method):
    learner, before = session(method, epochs=2), []
    for x, y in steps():
        learner.learn(x, y)
        before.append(answers(learner, len(before), everything()))
        for task, old in enumerate(before):
            found = answers(learner, task, everything())
            assert all(a.tobytes() == b.tobytes() for a, b in zip(old, found)), task
    parts = learner.parts.plasticity
    used = [torch.cat([mask.flatten() for mask in parts.masks(learner.network, k).values()]) for k in range(3)]
    assert all(0 < mask.float().mean() < 1 for mask in used[:2]), "each is a part of the network"
    assert not torch.equal(used[0], used[1])


@pytest.mark.parametrize(("method", "network"), [(m, n) for m in METHODS for n in ("cnn", "tcn", "resnet32")])
def test_other_networks_too_and_their_export_answers_the_same(method, network):
    learner, old = session(method, network=network), None
    if network == "resnet32" and method in UNITS:
        with pytest.raises(BadInput, match="--backbone cnn, mlp or tcn"):
            learner.learn(*made_up(network, 0))
        return
    for task in range(2):
        learner.learn(*made_up(network, task))
        old = old or answers(learner, 0, made_up(network, 0)[0])
    x = made_up(network, 0)[0]
    same = [a.tobytes() == b.tobytes() for a, b in zip(old, answers(learner, 0, x))]
    assert all(same) or method not in FROZEN
    found = onnxruntime.InferenceSession(learner.export(), providers=["CPUExecutionProvider"]).run(None, {"input": x})
    with torch.no_grad():
        wanted = learner.parts.plasticity.serve(learner.network)(torch.from_numpy(x))
    for a, b in zip(found, wanted):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_answers_among_a_task_are_its_sub_networks_own(method):
    learner = taught(method)
    for task in range(3):
        z = answers(learner, task, everything())[1]
        assert np.array_equal(learner.predict(everything(), among=[2 * task, 2 * task + 1]), 2 * task + z.argmax(1))


@pytest.mark.parametrize("method", METHODS)
def test_what_does_not_fit_is_refused_with_the_size_before_anything_changed(method):
    learner = taught(method, 1)
    before = learner.state()
    learner.parts.plasticity.room = learner.nbytes + 10
    with pytest.raises(BudgetError, match="give --memory") as refusal:
        learner.learn(*steps()[1])
    assert all(np.array_equal(array, learner.state()[name]) for name, array in before.items())
    needed = int(refusal.value.cure.split()[2])
    learner.parts.plasticity.room = needed
    learner.learn(*steps()[1])
    assert learner.nbytes <= needed


@pytest.mark.parametrize("method", METHODS)
def test_what_units_are_used_is_told(method):
    learner = taught(method)
    usage = learner.usage()
    assert list(usage) == ["body.1", "neck.0"]
    for layer, width in (("body.1", 256), ("neck.0", 128)):
        shares = np.array(usage[layer])
        assert shares.shape[0] == 3 and shares.shape[1] >= width and 0 < shares.max() <= 1


@pytest.mark.parametrize("method", METHODS)
def test_classes_that_come_again_are_the_last_sub_networks(method):
    learner = taught(method, 2)
    learner.learn(*steps()[0])
    assert [task.columns for task in learner.parts.plasticity.tasks] == [[], [2, 3], [0, 1]]
    z = answers(learner, 2, everything())[1]
    assert np.array_equal(learner.predict(everything(), among=[0, 1]), z.argmax(1))
    exported = onnxruntime.InferenceSession(learner.export(), providers=["CPUExecutionProvider"])
    found = exported.run(["logits"], {"input": everything()})[0]
    assert np.array_equal(found.argmax(1), learner.predict(everything()))


# what can't work --------------------------------------------------------------------------------


PLASTIC = 'paper = "x"\nrate = 0.1\nplasticity = "packnet"\npruned = 0.5\n'


@pytest.mark.parametrize(("text", "says"), [
    (PLASTIC, "nothing tells which is to answer; give task_rule = entropy or nearest-mean or ncm"),
    ('paper = "x"\nrate = 0.1\ntask_rule = "entropy"\n', "task_rule needs sub-networks.*give plasticity = packnet or"),
    (PLASTIC + 'task_rule = "entropy"\nmemory = "reservoir"\n', "leave out memory"),
    (PLASTIC + 'task_rule = "entropy"\ndecay = 0.1\n', "no decay"),
    (PLASTIC + 'task_rule = "guess"\n', "give one of none, entropy, nearest-mean, ncm"),
])
def test_a_composition_that_cannot_work_is_refused(tmp_path, text, says):
    (tmp_path / "own.toml").write_text(text)
    with pytest.raises(BadInput, match=says):
        read_method(tmp_path / "own.toml")


@pytest.mark.parametrize("rule", ["entropy", "nearest-mean", "ncm"])
@pytest.mark.parametrize("head", ["softmax", "sigmoid", "cosine"])
def test_every_rule_with_every_head_is_exported_as_it_answers(tmp_path, rule, head):
    (tmp_path / "own.toml").write_text(PLASTIC + f'task_rule = "{rule}"\nhead = "{head}"\n')
    learner = taught(tmp_path / "own.toml", epochs=2)
    exported = onnxruntime.InferenceSession(learner.export(), providers=["CPUExecutionProvider"])
    found = exported.run(["logits"], {"input": everything()})[0].argmax(1)
    assert np.array_equal(found, learner.predict(everything()))
    assert (found == np.concatenate([y for _, y in steps()])).mean() > 0.6      # at random: 1/6


# rules and masks --------------------------------------------------------------------------------


def test_the_chosen_tasks_best_class_is_the_best_of_all():
    generator = rng()
    log_p = [torch.from_numpy(generator.standard_normal((200, k)).astype(np.float32) * 4).log_softmax(1)
             for k in (2, 5, 1)]
    scores = [torch.from_numpy(generator.standard_normal(200).astype(np.float32)) for _ in range(3)]
    logits = pick(log_p, scores)
    best = torch.stack([part.max(1).values for part in logits], 1).argmax(1)
    assert torch.equal(best, torch.stack(scores, 1).argmax(1))
    assert all(torch.equal(a.argmax(1), b.argmax(1)) for a, b in zip(logits, log_p))


def test_numbers_of_any_bits_are_packed_and_found_again():
    for bits in (1, 2, 3, 5, 8):
        numbers = {"a": torch.from_numpy(rng(bits).integers(0, 2**bits, (3, 5), dtype=np.uint8)),
                   "b": torch.from_numpy(rng(9).integers(0, 2**bits, 7, dtype=np.uint8))}
        packed = pack(numbers, bits)
        assert packed.nbytes == -(-22 * bits // 8)
        assert all(torch.equal(numbers[name], t) for name, t in unpack(packed, bits, numbers).items())
    assert [bits_for(n) for n in (1, 2, 3, 4, 7, 8)] == [1, 2, 2, 3, 3, 4]


@pytest.mark.parametrize("name", ["mlp", "cnn", "tcn"])
def test_units_of_no_use_are_gone_and_the_answers_the_same(name):
    net = build(name, *SHAPES[name], Softmax, 0)
    net.head.extend(3, rng())
    with torch.no_grad():
        for weight in (net.state_dict()[each] for each in weight_names(net)):
            weight[::2] = 0
            weight[:, 1::3] = 0
    x = torch.from_numpy(made_up(name, 0)[0])
    wanted, size = net(x), sum(p.numel() for p in net.parameters())
    small, features = compacted(net)
    found = small(x)
    torch.testing.assert_close(found[0], wanted[0][:, features])
    torch.testing.assert_close(found[1], wanted[1])
    assert sum(p.numel() for p in small.parameters()) < 0.6 * size
    assert set(wanted[0].detach().abs().amax(0).nonzero().flatten().tolist()) <= set(features.tolist())


# PackNet ----------------------------------------------------------------------------------------


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


# lottery ----------------------------------------------------------------------------------------


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
    part = learner.parts.plasticity = Watched(SPACE, learner.parts.plasticity.rule, 7, 0.2)
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
    part = learner.parts.plasticity = Watched(SPACE, learner.parts.plasticity.rule, 2, 0.5)
    learner.learn(*steps()[0])
    first = {name: owner == 1 for name, owner in part.owner.items()}
    before = {name: value.clone() for name, value in learner.network.state_dict().items()}
    learner.learn(*steps()[1])
    for name, mine in first.items():
        assert all(torch.equal(rewound[name][mine], before[name][mine]) for _, _, rewound in part.seen)
        assert torch.all(part.seen[0][0][name][~mine] != 0), "what was free is drawn anew"


def test_tickets_beat_random_ones_of_the_same_sparsity(monkeypatch):
    """All digits as one task; 3 % of the weights are left."""
    data, found = digits(), {}
    for kind in ("ticket", "random"):
        if kind == "random":
            monkeypatch.setattr(Lottery, "scores", lambda _, weight: torch.rand(
                weight.shape, generator=torch.Generator().manual_seed(len(weight))))
        for seed in range(3):
            learner = session("lottery", seed, epochs=2)
            rule = learner.parts.plasticity.rule
            learner.parts.plasticity = Lottery(SPACE, rule, 6, 0.44)
            learner.learn(data.x_train[:600], data.y_train[:600])
            share = float(learner.parts.plasticity.masks(learner.network, 0)["body.1.weight"].float().mean())
            assert share == pytest.approx(0.56 ** 6, rel=0.01)
            found[kind, seed] = (learner.predict(data.x_test, among=range(10)) == data.y_test).mean()
    assert all(found["ticket", seed] > found["random", seed] + 0.1 for seed in range(3)), found


# CLNP -------------------------------------------------------------------------------------------


def test_clnp_freezes_the_active_units_and_zeroes_what_goes_from_unused_to_used():
    learner = taught("clnp", 2, epochs=3)
    part, state = learner.parts.plasticity, learner.network.state_dict()
    for group, owner in part.owner.items():
        assert set(owner.unique().tolist()) == {0, 1, 2}, group
    made, read = part.owner["neck.0"], part.owner["body.1"]
    weight = state["neck.0.weight"]
    used = made > 0
    assert not weight[used][:, read == 0].any(), "unused -> used"
    assert not weight[made == 1][:, read == 2].any(), "what came later -> what was frozen"
    assert weight[made == 2][:, read == 1].any(), "what was frozen -> what came later"
    assert not weight[~used].any() and not state["neck.0.bias"][~used].any()


def test_clnp_gives_up_the_least_active_units_first():
    part = Clnp(SPACE, None, 0.0, 0.0)
    part.owner = {"a": torch.tensor([0, 1, 0, 0, 0], dtype=torch.uint8)}
    mean = {"a": torch.tensor([.5, .0, .1, .0, .9])}
    assert part.active(mean, 0.5)["a"].tolist() == [True, True, False, False, True]
    assert part.active(mean, 0.0)["a"].tolist() == [True, True, True, False, True]      # 0 is never active


def test_a_penalty_on_activations_leaves_fewer_units_active():
    def active(sparsity):
        learner = session("clnp", epochs=4)
        learner.parts.plasticity = Clnp(SPACE, learner.parts.plasticity.rule, sparsity, 0.01)
        learner.learn(*steps()[0])
        return sum(int((owner > 0).sum()) for owner in learner.parts.plasticity.owner.values())

    def activity(sparsity):
        learner = session("clnp", epochs=4)
        learner.parts.plasticity = Clnp(SPACE, learner.parts.plasticity.rule, sparsity, 0.01)
        f, _ = answers_after(learner)
        return float(f.sum(1).mean())

    def answers_after(learner):
        learner.learn(*steps()[0])
        return answers(learner, 0, everything())

    assert activity(0.01) < 0.7 * activity(0.0)
    assert 0 < active(0.01) < 384


def test_clnps_file_grows_by_what_is_used_only():
    learner = session("clnp", epochs=3)
    learner.learn(*steps()[0])
    alive = {group: int((owner > 0).sum()) for group, owner in learner.parts.plasticity.owner.items()}
    weights = 64 * alive["body.1"] + alive["body.1"] * alive["neck.0"] + sum(alive.values()) + 2 * alive["neck.0"] + 2
    size = len(learner.export())
    assert size < 4 * 49_000 * 0.8, "the whole network is 197 KB"
    assert 4 * weights < size < 4 * weights + 4 * 2 * alive["neck.0"] + 6000


# PathNet ----------------------------------------------------------------------------------------


def test_pathnet_freezes_the_winner_and_initialises_losers_and_genotypes_anew():
    learner = session("pathnet", epochs=3)
    part = learner.parts.plasticity
    pools, births, ends = [], [], []
    opened, closed = part.open, part.close

    def open_(*given):
        opened(*given)
        pools.append({name: value.clone() for name, value in part.pool.items()})
        births.append(part.genotypes.copy())

    def close(*given):
        part.leave()
        ends.append(({name: value.clone() for name, value in part.pool.items()}, part.genotypes.copy()))
        closed(*given)

    part.open, part.close = open_, close
    for x, y in steps()[:2]:
        learner.learn(x, y)
    winner = part.masks(learner.network, 0)
    for name, mask in winner.items():
        assert torch.equal(pools[1][name][mask], ends[0][0][name][mask]), "the winner stays"
        if name.endswith("weight"):
            rows = ~mask.any(1)
            assert not (pools[1][name][rows] == ends[0][0][name][rows]).any(), "losers are drawn anew"
    assert not np.array_equal(births[1], ends[0][1]) and not np.array_equal(births[0], births[1])
    assert not np.array_equal(births[0], ends[0][1]), "and evolution had changed them"


def test_a_tournaments_loser_becomes_a_near_copy_of_its_winner():
    part = PathNet(SPACE, None, 10, 4, 8, 4)
    part.generator, part.fitness = rng(3), np.zeros(8)
    moves = []
    for _ in range(300):
        part.genotypes = part.generator.integers(10, size=(8, 3, 4))
        before = part.genotypes.copy()
        part.overwrite(2, 5)
        assert np.array_equal(np.delete(part.genotypes, 5, 0), np.delete(before, 5, 0))
        moves.append((part.genotypes[5] - before[2] + 5) % 10 - 5)
    assert set(np.unique(moves)) == {-2, -1, 0, 1, 2}
    assert np.mean(np.array(moves) != 0) == pytest.approx(1 / 12 * 4 / 5, abs=0.015)     # one in five moves by 0


def test_a_path_has_no_more_modules_than_it_may():
    learner = taught("pathnet")
    for path in learner.parts.plasticity.paths:
        assert path.shape == (2, 10) and (path.sum(1) <= 4).all() and path.any(1).all()


# CPG --------------------------------------------------------------------------------------------


def cpg(goal, most=1.5, room=SPACE, seed=0, mask_rate=5e-4, epochs=1):
    learner = session("cpg", seed, epochs=epochs)
    learner.parts.plasticity = Cpg(room, learner.parts.plasticity.rule, goal, most, mask_rate)
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


# the file ---------------------------------------------------------------------------------------


def test_what_sub_networks_share_is_in_the_file_once(tmp_path):
    """Nine tasks: their masks take more than a byte."""
    (tmp_path / "own.toml").write_text(PLASTIC + 'task_rule = "entropy"\n')
    learner = session(tmp_path / "own.toml")
    for task in range(9):
        x, y = steps()[task % 3]
        learner.learn(x, y + 10 * task)
    weights = 64 * 256 + 256 * 128
    own = 9 * 4 * (256 + 128 + len(learner.classes) * 129)      # biases, and the head, of which each has a copy
    exported = learner.export()
    assert weights * 6 < len(exported) < weights * 6 + own + 60_000
    runtime = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    found = runtime.run(None, {"input": everything()})
    with torch.no_grad():
        wanted = learner.parts.plasticity.serve(learner.network)(torch.from_numpy(everything()))
    for a, b in zip(found, wanted):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_report_has_a_picture_of_what_each_task_uses():
    learner = taught("clnp")
    drawing = tasks_and_units(learner.usage())
    assert drawing.count("<image") >= 2 and "body.1: 256 units" in drawing


# DEN --------------------------------------------------------------------------------------------


def den(room=SPACE, epochs=2, **numbers):
    learner = session("den", epochs=epochs)
    values = {"l1": 5e-4, "l2": 1e-4, "group": 1e-3, "drift": 0.5, "units": 10, "loss": 0.01, "split": 0.05, **numbers}
    learner.parts.plasticity = Den(room, learner.parts.plasticity.rule, **values)
    for x, y in steps()[:2]:
        learner.learn(x, y)
    return learner.parts.plasticity, learner


def counts(part):
    """Group -> units that came with each task."""
    return {group: [int((stamps == k).sum()) for k in (1, 2)] for group, stamps in part.stamps.items()}


def test_den_adds_units_only_where_the_loss_stays_over_the_threshold():
    assert counts(den(loss=1e9, split=1e9)[0]) == {"body.1": [256, 0], "neck.0": [128, 0]}
    assert counts(den(loss=0.0, split=1e9)[0]) == {"body.1": [256, 10], "neck.0": [128, 10]}


def test_dens_splits_are_triggered_by_drift():
    part = den(loss=1e9, split=0.01)[0]
    some = counts(part)
    assert counts(den(loss=1e9, split=1e9)[0]) == {"body.1": [256, 0], "neck.0": [128, 0]}
    assert all(0 < some[group][1] < size for group, size in (("body.1", 256), ("neck.0", 128)))
    kept = part.kept()
    wide = {group: sum(pair) for group, pair in some.items()}
    weights = 64 * wide["body.1"] + wide["body.1"] * wide["neck.0"] + sum(wide.values())
    assert len(kept["extra"]) == weights - 64 * 256 - 256 * 128 - 384, "what has grown is counted"


def test_a_split_unit_goes_back_and_its_copy_answers_for_the_new_task(monkeypatch):
    seen = {}
    original = Den._split

    def split(self):
        seen["drift"] = self.drifted()
        trained = {name: value.clone() for name, value in self.parameters.items()}
        before = outputs(lambda x: self.work(x)[1], self.samples.x)
        original(self)
        for group, pairs in self.copies.items():
            assert [old for old, _ in pairs] == (seen["drift"][group] > 0.01).nonzero().flatten().tolist()
            for old, _ in pairs:
                for part in ("weight", "bias"):
                    name = f"{group}.{part}"
                    assert torch.equal(self.parameters[name][old], self.before[name][old]), "the old one goes back"
            if group == "body.1":
                assert all(torch.equal(self.parameters["body.1.weight"][new], trained["body.1.weight"][old])
                           for old, new in pairs), "the copy goes on"
        after = outputs(lambda x: self.work(x)[1], self.samples.x)
        seen["agree"] = float((before.argmax(1) == after.argmax(1)).float().mean())

    monkeypatch.setattr(Den, "_split", split)
    den(loss=1e9, split=0.01)
    assert seen["agree"] > 0.9


def test_den_follows_non_zero_paths_from_the_tasks_outputs():
    part, learner = den()
    part.begin(learner.network, Batch(torch.from_numpy(everything()[:8]), torch.arange(8) % 2), rng())
    head, neck = part.parameters["head.head.weight"], part.parameters["neck.0.weight"]
    head[part.rows[0], 5] = 1.0
    neck[5] = 0
    neck[5, [3, 200]] = 1.0
    found = part.selected()
    assert found["neck.0"].nonzero().flatten().tolist() == [5]
    assert found["body.1"].nonzero().flatten().tolist() == [3, 200]


def test_den_answers_for_a_task_without_units_that_came_later():
    part, learner = den(loss=0.0)
    net = part.subnetwork(learner.network, 0).state_dict()
    late = part.stamps["body.1"] == 2
    assert late.any() and not net["body.1.weight"][late].any() and not net["neck.0.weight"][:, late].any()
    before = answers(learner, 0, everything())[1].argmax(1)
    x, y = steps()[2]
    learner.learn(x, y)
    assert (answers(learner, 0, everything())[1].argmax(1) == before).mean() > 0.9, "it may drift, but little"


def test_den_grows_no_further_than_its_memory():
    _, learner = den(room=30_000, loss=0.0)
    assert learner.nbytes <= 30_000
