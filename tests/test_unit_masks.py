"""CLNP, PathNet and DEN: which units a task freezes, chooses, adds and splits."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers_plasticity import SPACE, answers, everything, give, rng, session, steps, taught

from edgecl.training.batch import Batch
from edgecl.training.networks.network import outputs
from edgecl.training.plasticity.clnp import Clnp
from edgecl.training.plasticity.den import Den
from edgecl.training.plasticity.pathnet import PathNet

# CLNP --------------------------------------------------------------------------------------------


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
        give(learner, Clnp, SPACE, sparsity, 0.01)
        learner.learn(*steps()[0])
        return sum(int((owner > 0).sum()) for owner in learner.parts.plasticity.owner.values())

    def activity(sparsity):
        learner = session("clnp", epochs=4)
        give(learner, Clnp, SPACE, sparsity, 0.01)
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


# PathNet -----------------------------------------------------------------------------------------


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
            assert not (pools[1][name][rows] == ends[0][0][name][rows]).any(), "losers are initialised again"
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


# DEN ---------------------------------------------------------------------------------------------


def den(room=SPACE, epochs=2, **numbers):
    learner = session("den", epochs=epochs)
    values = {"l1": 5e-4, "l2": 1e-4, "group": 1e-3, "drift": 0.5, "units": 10, "loss": 0.01, "split": 0.05, **numbers}
    give(learner, Den, room, **values)
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
    part.workspace(learner.network, Batch(torch.from_numpy(everything()[:8]), torch.arange(8) % 2), rng())
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
