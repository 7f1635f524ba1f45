"""GEM against a solver of its own, A-GEM against its formula, and what memory keeps for them."""
from __future__ import annotations

import numpy as np
import pytest
import quadprog
import torch

from edgecl.errors import BudgetError
from edgecl.evaluation.datasets import digits
from edgecl.training.batch import Batch
from edgecl.training.bench.session import MethodRun
from edgecl.training.constraints.projections import AverageGradient, TaskGradients, by_round, drawn, dual
from edgecl.training.memory.episodes import Episodes, spread
from edgecl.training.memory.exemplars import Herding, Reservoir

NOTHING = Batch(torch.empty(0, 6), torch.empty(0, dtype=torch.int64))
SIZE = 6 * 4 + 4


def rng(seed=0):
    return np.random.default_rng(seed)


def batch(columns, n=8, seed=0):
    x = torch.from_numpy(rng(seed).standard_normal((n * len(columns), 6)).astype(np.float32))
    return Batch(x, torch.tensor([column for column in columns for _ in range(n)]))


# GEM --------------------------------------------------------------------------------------------


def problem(seed):
    """A gradient of 20 numbers and up to 12 tasks', some of them alike, some the same."""
    generator = rng(seed)
    t = int(generator.integers(1, 13))
    others = generator.standard_normal((t, 20)) * 10.0 ** generator.uniform(-2, 2, (t, 1))
    if t > 2:
        others[1] = others[0] * (1 if seed % 2 else 1.001)
    return generator.standard_normal(20) * 10.0 ** generator.uniform(-2, 2), others


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_the_dual_against_quadprog(margin):
    for seed in range(200):
        g, others = problem(seed)
        square = others @ others.T + 1e-3 * np.eye(len(others))
        wanted = quadprog.solve_qp(square, -(others @ g), np.eye(len(others)), np.full(len(others), margin))[0]
        found = dual(square, others @ g, margin)
        assert (found >= margin).all()
        projected, theirs = g + others.T @ found, g + others.T @ wanted
        assert np.abs(projected - theirs).max() <= 1e-6 * max(np.abs(theirs).max(), 1)
        assert (others @ projected + 1e-3 * found >= -1e-9 * np.abs(square).max()).all()    # no task's loss would rise


def tensors(row):
    """As the gradients of two parameters and of one that has none."""
    return [torch.tensor(row[:12]).view(3, 4), None, torch.tensor(row[12:])]


def project(part, g, others):
    part.shapes = [torch.Size([3, 4]), torch.Size([5]), torch.Size([8])]
    found = part.project(tensors(g), iter([tensors(row) for row in others]))
    assert found[1] is None
    return torch.cat([found[0].flatten(), found[2]]).numpy()


def test_a_projected_gradient_raises_no_tasks_loss_and_stays_where_none_would_rise():
    violated = 0
    for seed in range(200):
        generator = rng(seed)
        g, others = generator.standard_normal(20), generator.standard_normal((seed % 6 + 1, 20))
        found = project(TaskGradients(0, 0.0, 1e-9), g, others)
        if (others @ g >= 0).all():
            assert np.array_equal(found, g)
            continue
        violated += 1
        assert (others @ found).min() > -1e-6
        assert np.linalg.norm(found - g) <= np.linalg.norm(g) + 1e-9    # 0 obeys as well, and this is the nearest
    assert violated > 100


def test_the_gradients_of_tasks_count_in_the_budget():
    """Six digits in three rounds with an mlp of 64 x 256, 256 x 128 and 129 x C weights: one task, then two."""
    data = digits()
    first, second = (4 * k * (64 * 256 + 256 + 256 * 128 + 128 + 129 * c) for k, c in ((1, 4), (2, 6)))

    def learn(memory, rounds):
        learner = MethodRun("gem", "mlp", (64,), "float32", memory, 0)
        for k in range(rounds):
            rows = data.y_train // 2 == k
            learner.learn(data.x_train[rows][:40], data.y_train[rows][:40])
        return learner

    room = 3 * (64 * 4 + 4 + 4)
    learner = learn(second + room, 3)
    before = learner.state()
    assert learner.parts.memory.nbytes <= room
    with pytest.raises(BudgetError, match=f"{first + 100} bytes can't hold {first} bytes of tasks' gradients and .* 2 "
                                          f"rounds; give --memory {first + 2 * (64 * 4 + 4 + 4)} or more"):
        learn(first + 100, 2)
    with pytest.raises(BudgetError, match=f"{second} bytes of tasks' gradients .* --memory {second + room} or more"):
        learn(second + room - 1, 3)
    assert all(np.array_equal(array, learner.state()[name]) for name, array in before.items())


def test_tasks_are_rounds_where_memory_keeps_them_apart_and_else_the_classes_that_came_in_one():
    part, apart, herding = TaskGradients(0, 0.5, 1e-3), Episodes(5000, NOTHING, 6), Herding(5000, NOTHING)
    part.bounds = [2, 3]
    apart.update(batch([0, 1]), None)
    apart.update(batch([2, 0], seed=1), None)
    assert [sorted(set(task.y.tolist())) for task in part.tasks(apart)] == [[0, 1], [0, 2]]
    herding.hold(batch([0, 1, 2]))
    assert [sorted(set(task.y.tolist())) for task in part.tasks(herding)] == [[0, 1], [2]]
    taken = Episodes(5000, NOTHING, 6)
    taken.hold(batch([0, 1, 2], 20))        # in a worker's hands it does not say when each came
    assert [(len(task), sorted(set(task.y.tolist()))) for task in part.tasks(taken)] == [(6, [0, 1]), (6, [2])]
    assert by_round({}, [2, 3], 0) == []


# A-GEM ------------------------------------------------------------------------------------------


def test_a_gem_against_its_formula():
    for seed in range(50):
        g, r = rng(seed).standard_normal((2, 20))
        found = project(AverageGradient(8), g, [r])
        wanted = g - (g @ r) / (r @ r) * r if g @ r < 0 else g
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-12)
        if g @ r < 0:
            assert found @ r == pytest.approx(0, abs=1e-12)


def test_a_gem_with_a_reference_gradient_of_0():
    g = rng().standard_normal(20)
    assert np.array_equal(project(AverageGradient(8), g, [np.zeros(20)]), g)


@pytest.mark.parametrize("kind", ["episodes", "reservoir"])
def test_a_gem_with_a_memory_of_one_sample_and_a_reference_that_never_shrinks(kind):
    memory = Episodes(10_000, NOTHING, 0) if kind == "episodes" else Reservoir(10_000, NOTHING)
    part = AverageGradient(8)
    assert list(part.references(memory, rng())) == []
    for count in (1, 3, 30):
        new = batch([0, 1], count, seed=count)
        memory.observe(new, rng())
        memory.update(new, None)
        kept = sum(map(len, memory.exemplars().values()))
        for _ in range(5):
            (asked,) = part.references(memory, rng(count))
            assert len(asked) == min(8, kept)
        assert sum(map(len, memory.exemplars().values())) == kept       # nor does a step make memory grow


def test_what_is_drawn_is_drawn_from_all_alike():
    groups, counts = [batch([0], 3), batch([1], 1), batch([2], 6)], np.zeros(3)
    generator = rng()
    for _ in range(2000):
        counts += np.bincount(drawn(groups, 2, generator).y, minlength=3)
    np.testing.assert_allclose(counts / counts.sum(), [0.3, 0.1, 0.6], atol=0.02)
    whole = drawn(groups, 99, generator)
    assert torch.equal(whole.x, torch.cat([group.x for group in groups]))


# the memory of rounds ---------------------------------------------------------------------------


def test_episodes_are_equal_shares_that_fit():
    memory = Episodes(12 * SIZE + 3 * 4, NOTHING, 0)
    for k in range(3):
        memory.update(batch([2 * k, 2 * k + 1], 20, seed=k), None)
        assert memory.nbytes <= memory.room
    assert [len(task) for task in memory.tasks()] == [4, 4, 4]
    assert [sorted(task.y.tolist()) for task in memory.tasks()] == [[k, k, k + 1, k + 1] for k in (0, 2, 4)]
    assert memory.replay(5, rng()) is None
    memory.reserve(6 * SIZE)
    memory.dataset(batch([6]))
    assert [len(task) for task in memory.tasks()] == [2, 2, 2] and memory.nbytes <= memory.room - memory.reserved
    few = Episodes(12 * SIZE + 3 * 4, NOTHING, 3)
    few.update(batch([0], 20), None)
    assert len(few.tasks()[0]) == 3


def test_a_share_is_spread_over_classes_and_over_the_round():
    y = torch.tensor([0] * 90 + [1] * 10)
    rows = spread(y, 10)
    assert [int((y[rows] == column).sum()) for column in (0, 1)] == [5, 5]
    assert sorted(rows[y[rows] == 0].tolist()) == [0, 22, 44, 67, 89]
    assert len(spread(y, 40)) == 30 and len(spread(y, 1)) == 1      # the smaller class has no more
