"""Pseudo-rehearsal: each mechanism against a case whose answer is known."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers_generative import classes_of, covariance, network_of, nothing, rng

from edgecl.errors import BadInput, BudgetError
from edgecl.evaluation.datasets import digits
from edgecl.rounds.method import read_method
from edgecl.statistics.gaussian import Gaussian
from edgecl.training.balance.base import Balance
from edgecl.training.batch import Batch
from edgecl.training.bench.session import MethodRun
from edgecl.training.loop import Parts, learning_round
from edgecl.training.memory.fetril import Translated
from edgecl.training.memory.gaussians import Gaussians, best_move, by_map, by_means
from edgecl.training.memory.generator import GenerativeReplay, mix, shape_for
from edgecl.training.memory.latent import Latent
from edgecl.training.networks.heads import Softmax
from edgecl.training.networks.network import build
from edgecl.training.plan import Plan

# statistics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 3, 8])
def test_drawn_features_reproduce_mean_and_covariance(rank):
    """Of the full covariance if the rank is full; else of the exact diagonal and of what the rank holds."""
    true, mean = covariance(8), np.arange(8.0)
    kept = Gaussian.of(mean, true, rank)
    np.testing.assert_allclose(np.diag(kept.covariance), np.diag(true))
    if rank == 8:
        np.testing.assert_allclose(kept.covariance, true, atol=1e-9)
    x = kept.draw(100_000, rng())
    assert np.linalg.norm(x.mean(0) - mean) <= 0.02 * np.linalg.norm(mean)
    assert np.linalg.norm(np.cov(x.T) - kept.covariance) <= 0.02 * np.linalg.norm(kept.covariance)
    shorter = kept.cut(2)
    assert len(shorter.factor) == min(rank, 2)
    np.testing.assert_allclose(np.diag(shorter.covariance), np.diag(true))


def test_a_class_that_comes_again_is_as_if_seen_at_once():
    new, twice = classes_of([0], 60), Gaussians(10_000, nothing(6), 6, 0.0, "none")
    for part in (slice(20), slice(20, 60)):
        twice.update(Batch(new.x[part], new.y[part]), network_of(6, 1))
    np.testing.assert_allclose(twice.classes[0].mean, new.x.double().numpy().mean(0), atol=1e-5)
    np.testing.assert_allclose(twice.classes[0].covariance, np.cov(new.x.numpy().T, bias=True), atol=2e-3)


def test_the_rank_follows_from_the_bytes():
    for room, rank in ((3 * 52 + 4, 0), (3 * (52 + 12) + 4, 1), (3 * (52 + 48) + 27, 4), (9999, 6)):
        memory = Gaussians(room, nothing(6), 16, 0.0, "none")
        for column in range(3):
            memory.update(classes_of([column]), network_of(6, 3))
        assert [len(own.factor) for own in memory.classes.values()] == [rank] * 3
        assert memory.nbytes <= room
    with pytest.raises(BudgetError, match="each of 4 classes; give --memory 212"):
        Gaussians(184, nothing(6), 16, 0.0, "none").check(4)


def moved_samples(d=5, n=400, noise=0.0):
    """Two new classes before and after a known linear map; and an old one that no one has seen since."""
    weight, offset = np.eye(d) + 0.3 * rng(3).standard_normal((d, d)), rng(4).standard_normal(d)
    old = np.concatenate([rng(5).standard_normal((n, d)), rng(6).standard_normal((n, d)) + 2])
    now = old @ weight.T + offset + noise * rng(7).standard_normal(old.shape)
    return weight, offset, old, now, np.repeat([1, 2], n)


def test_the_drift_map_takes_mean_and_covariance_along_a_known_linear_map():
    weight, offset, old, now, columns = moved_samples()
    own = Gaussian.of(np.full(5, -1.0), covariance(5), 5)
    found = by_map(own, old, now, columns)
    np.testing.assert_allclose(found.mean, weight @ own.mean + offset, atol=1e-3)
    np.testing.assert_allclose(found.covariance, weight @ own.covariance @ weight.T, atol=1e-2)
    assert best_move(old, now, columns) == "map"


def test_mean_shifts_are_those_of_the_nearest_samples():
    """All samples shifted alike: the old mean is, too. Two far groups shifted apart: that of the near one."""
    _, _, old, _, columns = moved_samples()
    own = Gaussian.of(np.zeros(5), covariance(5), 5)
    np.testing.assert_allclose(by_means(own, old, old + 3, columns).mean, 3, atol=1e-9)
    far = old + 50 * (columns == 2)[:, None]
    shifts = np.where(columns == 1, 1.0, -1.0)[:, None]
    np.testing.assert_allclose(by_means(own, far, far + shifts, columns).mean, 1, atol=1e-6)
    assert np.array_equal(by_means(own, old, old + 3, columns).covariance, own.covariance)


def test_old_classes_follow_where_the_layers_below_move():
    """A round at a pace: with the map, the kept mean is nearer to where the old class has moved than without."""
    data, gaps = digits(), {}
    steps = [np.isin(data.y_train, [2 * k, 2 * k + 1]) for k in range(2)]
    images = (data.x_train.reshape(-1, 8, 8, 1) * 255).astype(np.uint8)
    for moves in ("map", "none"):
        network = build("mlp", (8, 8, 1), "uint8", Softmax, 0)
        memory = Gaussians(10**6, Batch(torch.from_numpy(images[:0]), torch.empty(0).long()), 16, 0.3, moves)
        for k, rows in enumerate(steps):
            batch = Batch(torch.from_numpy(images[rows]), torch.from_numpy(data.y_train[rows]))
            learning_round(network, Parts(memory, Balance()), batch, 2 * k + 2, Plan(2, 32, 0.02, 0.9), rng(k))
        now = memory.activations(torch.from_numpy(images[data.y_train == 0]), network).double().numpy().mean(0)
        gaps[moves] = np.linalg.norm(memory.classes[0].mean - now)
    assert 0 < gaps["map"] < 0.7 * gaps["none"]


# FeTrIL -----------------------------------------------------------------------------------------


def test_a_pseudo_feature_is_that_of_the_nearest_new_class_moved_to_the_old_mean():
    network, memory = network_of(6, 4), Translated(10_000, nothing(6))
    old, new = classes_of([0, 1]), classes_of([2, 3], seed=9)
    memory.update(old, network)
    memory.enter(new, network, rng())
    drawn = memory.replay(200, rng())
    assert set(drawn.y.tolist()) == {0, 1} and drawn.place == 2
    for column in (0, 1):
        mean = old.x[old.y == column].double().mean(0)
        means = {c: new.x[new.y == c].double().mean(0) for c in (2, 3)}
        nearest = min(means, key=lambda c: float((means[c] - mean).norm()))
        wanted = new.x[new.y == nearest].double() - means[nearest] + mean
        gaps = torch.cdist(drawn.x[drawn.y == column].double(), wanted).amin(1)
        assert float(gaps.max()) < 1e-4


def test_layers_below_stay_as_the_first_round_left_them():
    data = digits()
    learner, found = MethodRun("fetril", "mlp", (64,), "float32", 8000, 0), []
    for k in range(2):
        rows = np.isin(data.y_train, [2 * k, 2 * k + 1])
        learner.learn(data.x_train[rows], data.y_train[rows])
        found.append({name: p for name, p in learner.state().items() if name.startswith("network/")})
    same = {name for name, p in found[0].items() if np.array_equal(p, found[1][name])}
    assert same == {name for name in found[0] if not name.startswith("network/head")}


# latent -----------------------------------------------------------------------------------------


def test_eight_bits_are_right_to_half_a_step_and_counted():
    memory, x = Latent(10_000, nothing(6), 9, 8), classes_of([0, 1]).x
    packed = memory.packed(x, torch.zeros(len(x)))
    assert packed.x.dtype == torch.uint8 and packed.x.shape[1] == 6 + 8
    step = (x.amax(1) - x.amin(1)) / 255
    assert bool(((memory.unpacked(packed.x) - x).abs().amax(1) <= step / 2 + 1e-5).all())
    memory.update(classes_of([0, 1], 500), network_of(6, 2))
    assert 9_900 < memory.nbytes <= 10_000
    assert sum(map(len, memory.store.kept.values())) == (10_000 - 4 - 32) // 14


def test_product_codes_are_counted_with_their_book_and_come_back():
    """From a book of the first round's activations, which stays."""
    memory, network = Latent(10_000, nothing(48), 9, 2), network_of(48, 4)
    first = classes_of([0, 1], 300, 48)
    memory.update(first, network)
    book = memory.book
    memory.update(classes_of([2, 3], 300, 48), network)
    assert memory.book is book and 9_000 < memory.nbytes <= 10_000
    assert memory.store.size == 48 * 2 // 8 and book.shared_bytes <= 2_500
    missed = memory.unpacked(memory.packed(first.x, first.y).x) - first.x
    assert float(missed.square().mean()) < 0.1 * float(first.x.var())
    twin = Latent(10_000, nothing(48), 9, 2)
    twin.load(memory.state())
    assert all(np.array_equal(array, twin.state()[name]) for name, array in memory.state().items())
    memory.enter(classes_of([4], 9, 48), network, rng())
    assert memory.replay(20, rng()).x.shape == (20, 48)


def test_the_cut_follows_from_the_bytes():
    network = build("cnn", (28, 28, 1), "uint8", Softmax, 0)
    x = torch.zeros(1, 28, 28, 1, dtype=torch.uint8)
    places = [Latent(room, Batch(x[:0], torch.empty(0).long()), 300, 8).chosen(network, x)
              for room in (50_000, 200_000, 1_200_000, 4_000_000)]
    sizes = [network.below(x, place).numel() for place in places]
    assert sizes == [576, 576, 3136, 6272]      # the first: none fits, so the smallest
    for place in places:
        torch.testing.assert_close(network.above(place)(network.below(x, place))[1], network(x)[1])


# DGR --------------------------------------------------------------------------------------------


def test_the_mix_is_one_in_t_new():
    assert [mix(60, t) for t in (1, 2, 3, 4)] == [60, 30, 20, 15]
    memory, network = GenerativeReplay(4000, nothing(6), 3, True), network_of(6, 2)
    assert memory.amount(32) == 0
    for t in (2, 3, 4):
        memory.update(classes_of([0, 1]), network)
        assert 32 / (32 + memory.amount(32)) == 1 / t


def test_replay_is_labelled_by_the_old_solver():
    memory, network = GenerativeReplay(4000, nothing(6), 20, True), network_of(6, 3)
    memory.update(classes_of([0, 1, 2]), network)
    memory.enter(classes_of([3]), network, rng())
    with torch.no_grad():
        asked = network.head.weight.clone()
        network.head.weight.add_(7)                     # the solver goes on learning
    network.head.extend(4, rng())
    drawn = memory.replay(50, rng())
    with torch.no_grad():
        network.head.weight[:3] = asked
    assert torch.equal(drawn.y, network(drawn.x)[1][:, :3].argmax(1))


def test_the_generator_is_as_wide_as_the_bytes_allow():
    widths = [shape_for(room, 64)[0] for room in (4000, 16_000, 64_000)]
    assert widths == sorted(set(widths))
    for room in (4000, 16_000):
        memory = GenerativeReplay(room, nothing(6), 2, True)
        memory.update(classes_of([0, 1]), network_of(6, 2))
        assert 0.5 * room < memory.nbytes <= room
    with pytest.raises(BudgetError, match="generator of 6 numbers"):
        GenerativeReplay(40, nothing(6), 2, True)


def test_a_generator_without_its_own_replay_forgets():
    """After three rounds, what is generated of the first two digits is theirs less often."""
    data, shares = digits(), {}
    means = np.stack([data.x_train[data.y_train == c].mean(0) for c in range(6)])
    for recalls in (True, False):
        memory, network = GenerativeReplay(32_000, nothing(64), 250, recalls), network_of(64, 6)
        for k in range(3):
            rows = np.isin(data.y_train, [2 * k, 2 * k + 1])
            memory.update(Batch(torch.from_numpy(data.x_train[rows]), torch.from_numpy(data.y_train[rows])), network)
        x, columns = memory.generated(600, rng())
        nearest = ((x.numpy()[:, None] - means) ** 2).sum(2).argmin(1)
        shares[recalls] = float((nearest == columns.numpy())[columns.numpy() < 2].mean())
    assert shares[True] > 0.8 and shares[False] < shares[True] - 0.2


# privacy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["statistics", "fetril", "dgr"])
def test_no_sample_is_kept_on_disk(method, tmp_path):
    """Nothing that is saved holds a taught input, as float32, float16 or bytes."""
    data = digits()
    learner, taught = MethodRun(method, "mlp", (64,), "float32", 30_000, 0), []
    for k in range(2):
        rows = np.isin(data.y_train, [2 * k, 2 * k + 1])
        learner.learn(data.x_train[rows][:40], data.y_train[rows][:40])
        taught.append(data.x_train[rows][:40])
        np.savez(Path(tmp_path, f"{k}.npz"), **learner.state())
    files = [path.read_bytes() for path in tmp_path.iterdir()]
    for sample in np.concatenate(taught):
        bytes_of = [(sample * scale).astype(np.uint8) for scale in (16, 255)]
        for form in (sample, sample.astype(np.float16), *bytes_of):
            assert not any(form.tobytes() in content for content in files)
    assert not learner.parts.memory.exemplars()


@pytest.mark.parametrize("name", ["dgr", "fearnet"])
def test_what_a_state_cannot_serve_is_refused(name, tmp_path):
    from round_states import conv_backbone, taught

    from edgecl.rounds.run import RoundRequest

    with pytest.raises(BadInput, match="edgecl bench"):
        taught(tmp_path, conv_backbone(), 4).round(RoundRequest(name, 600))
    assert read_method(name).paper


def test_a_worker_keeps_statistics_from_round_to_round(tmp_path, warm):
    from io import BytesIO

    from round_states import conv_backbone, taught, teach

    from edgecl.rounds.run import RoundRequest

    learner = taught(tmp_path, conv_backbone(), 12)
    for classes in (4, 5):
        assert learner.round(RoundRequest("statistics", 600, epochs=1)).steps
        with np.load(BytesIO(learner.store.parts()), allow_pickle=False) as kept:
            assert kept["memory/mean"].shape == (classes, 32)
            assert kept["memory/columns"].tolist() == list(range(classes))
        teach(learner, 4, 12)
