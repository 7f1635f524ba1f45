"""Pseudo-rehearsal: each mechanism against a case whose answer is known."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgecl.training.cortex as cortex_module
from edgecl.errors import BadInput, BudgetError
from edgecl.evaluation.datasets import digits
from edgecl.gaussian import Gaussian
from edgecl.method import read_method
from edgecl.training.balance import Balance
from edgecl.training.batch import Batch
from edgecl.training.cortex import Cortex, round_weights
from edgecl.training.fearnet import FearNet, answered
from edgecl.training.gaussians import Gaussians, best_move, by_map, by_means
from edgecl.training.generator import GenerativeReplay, mix, shape_for
from edgecl.training.heads import Softmax
from edgecl.training.latent import Latent
from edgecl.training.loop import Parts, Plan, learning_round
from edgecl.training.network import Network, build
from edgecl.training.session import Session
from edgecl.training.translated import Translated


def rng(seed=0):
    return np.random.default_rng(seed)


def nothing(d):
    return Batch(torch.empty(0, d), torch.empty(0, dtype=torch.int64))


def covariance(d, seed=0):
    a = rng(seed).standard_normal((d, d))
    return a @ a.T / d + np.diag(rng(seed + 1).uniform(0.5, 2, d))


def network_of(d, classes=0):
    network = Network(nn.Flatten(), nn.Identity(), Softmax(d), d)
    network.head.extend(classes, rng())
    return network.eval()


def classes_of(columns, n=40, d=6, seed=0):
    """Samples about a mean of each column's own."""
    x = [rng(seed + c).standard_normal((n, d)) + 6 * rng(100 + c).standard_normal(d) for c in columns]
    return Batch(torch.tensor(np.concatenate(x), dtype=torch.float32), torch.tensor(columns).repeat_interleave(n))


# statistics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 3, 8])
def test_drawn_features_reproduce_mean_and_covariance(rank):
    """Of the full covariance where the rank is full; else of the diagonal, exactly, and what the rank carries."""
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
    """A round at a pace: with the map, the kept mean is nearer to where the old class has gone than without."""
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
    learner, found = Session("fetril", "mlp", (64,), "float32", 8000, 0), []
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


# FearNet ----------------------------------------------------------------------------------------


def test_pseudo_samples_come_from_full_covariances():
    cortex = Cortex(3, 3).start(rng())
    cortex.columns = [0]
    cortex.means = torch.tensor([[1.0, -2.0, 3.0]])
    cortex.factors = torch.linalg.cholesky(torch.tensor(covariance(3)[None], dtype=torch.float32))
    cortex.decoder = nn.Identity()
    x, of = cortex.dream(100_000, rng())
    assert np.linalg.norm(np.cov(x.numpy().T) - covariance(3)) <= 0.02 * np.linalg.norm(covariance(3))
    assert (x.mean(0) - cortex.means[0]).norm() < 0.02 * cortex.means.norm() and set(of.tolist()) == {0}
    assert abs(covariance(3)[0, 1]) > 0.05      # else a diagonal would do


def test_pseudo_samples_vary_as_real_ones_do_beside_what_the_decoder_tells():
    """Eight numbers by a code of one: what the code can't say is most of them, and is there again in the dream."""
    x = torch.from_numpy(rng().standard_normal((2000, 8)).astype(np.float32))
    cortex = Cortex(8, 1).start(rng())
    cortex.consolidate(x, torch.zeros(2000, dtype=torch.int64), 400, rng())
    dreamt, _ = cortex.dream(20_000, rng())
    assert cortex.residual.square().sum() > 0.5 * x.var(0).sum()
    torch.testing.assert_close(dreamt.var(0), x.var(0), rtol=0.1, atol=0.01)


def test_a_sleep_leaves_the_codes_of_what_is_known_where_they_are(monkeypatch):
    moved = {}
    for stay in (0.0, cortex_module.STAY):
        monkeypatch.setattr(cortex_module, "STAY", stay)
        cortex, known = Cortex(6, 4).start(rng()), classes_of([0, 1])
        cortex.consolidate(known.x, known.y, 300, rng())
        before = cortex.encoder(known.x)
        new = classes_of([2, 3])
        cortex.consolidate(new.x, new.y, 300, rng())
        moved[stay] = float((cortex.encoder(known.x) - before).square().mean() / before.var(0).mean())
    assert moved[cortex_module.STAY] < moved[0.0] / 4


def fearnet(sleep=3, dreams=300):
    memory, network = FearNet(20_000, nothing(6), sleep, dreams), network_of(6, 8)
    for k in range(sleep):
        memory.update(classes_of([2 * k, 2 * k + 1]), network)
    return memory, network


def test_recent_memory_is_empty_after_sleep_and_long_term_memory_knows_all():
    memory, network = fearnet()
    assert set(memory.of.tolist()) == {2, 3, 4, 5} and memory.cortex.columns == [0, 1] and memory.gate is not None
    memory.update(classes_of([6, 7]), network)
    assert len(memory.of) == 0 and memory.recent.nbytes == 0 and memory.gate is None
    assert memory.cortex.columns == [0, 1, 6, 7] or set(memory.cortex.columns) == set(range(8))
    x = classes_of(list(range(8)), seed=50)
    scaled = (x.x - memory.mean) / memory.scale
    said = torch.tensor(memory.cortex.columns)[memory.cortex.probabilities(scaled).argmax(1)]
    assert float((said == x.y).float().mean()) > 0.9        # the first two came back as pseudo-samples alone


def test_the_code_becomes_shorter_where_classes_become_too_many():
    """And what the long-term memory knew comes along as dreams: it is right about the first classes too."""
    memory, network = FearNet(4_000, nothing(16), 1, 1500), network_of(16, 32)
    codes = []
    for begin, end in ((0, 1), (1, 8), (8, 16), (16, 24), (24, 32)):
        memory.update(classes_of(list(range(begin, end)), d=16), network)
        codes.append(memory.cortex.code)
        assert memory.nbytes <= 4_000
    assert codes == sorted(codes, reverse=True) and codes[0] > codes[-1] and len(set(codes)) <= 3
    x = classes_of(list(range(32)), seed=50, d=16)
    scaled = (x.x - memory.mean) / memory.scale
    said = torch.tensor(memory.cortex.columns)[memory.cortex.probabilities(scaled).argmax(1)]
    assert float((said == x.y).float().mean()) > 0.6 and float((said == x.y)[x.y < 8].float().mean()) > 0.4
    with pytest.raises(BudgetError, match="FearNet on 16 features and 900 classes"):
        memory.check(900)


def test_weights_of_eight_bits_are_within_half_a_step_and_come_back_bit_by_bit():
    memory, _ = fearnet()
    was = memory.state()
    twin = FearNet(20_000, nothing(6), 3, 300)
    twin.load(was)
    for a, b in zip(memory.cortex.encoder.parameters(), twin.cortex.encoder.parameters()):
        assert torch.equal(a, b)
    assert all(np.array_equal(array, twin.state()[name]) for name, array in was.items())
    layers = nn.Sequential(nn.Linear(9, 5))
    exact = layers[0].weight.detach().clone()
    round_weights(layers)
    step = exact.abs().amax(1, keepdim=True) / 127
    assert bool(((layers[0].weight - exact).abs() <= 0.51 * step).all())


def test_without_sleep_recent_samples_are_kept_as_far_as_the_bytes_go():
    memory, network = FearNet(6_000, nothing(6), 0, 50), network_of(6, 8)
    for k in range(4):
        memory.update(classes_of([2 * k, 2 * k + 1], 100), network)
        assert memory.nbytes <= 6_000
    assert memory.cortex.columns == [0, 1] and set(memory.of.tolist()) == {2, 3, 4, 5, 6, 7} and memory.gate is not None


def test_recent_samples_that_do_not_fit_bring_sleep_forward():
    memory, network = FearNet(4_000, nothing(6), 100, 20), network_of(6, 4)
    memory.update(classes_of([0]), network)
    memory.update(classes_of([1], 400), network)
    assert len(memory.of) == 0 and memory.cortex.columns == [0, 1] and memory.nbytes <= 4_000


def test_the_gate_tells_recent_from_older_samples_and_has_seen_only_pseudo_samples_of_those():
    memory, _ = fearnet()
    recent, older = classes_of([2, 3, 4, 5], seed=50).x, classes_of([0, 1], seed=50).x
    chances = [float((answered(memory, (x - memory.mean) / memory.scale) > 0.5).float().mean())
               for x in (recent, older)]
    assert chances[0] > 0.9 and chances[1] < 0.1
    asked = []
    memory.cortex.dream, real = lambda n, generator: asked.append(n) or real(n, generator), memory.cortex.dream
    memory._gate(rng())
    assert len(asked) == 1      # no sample but those in recent memory, and what was dreamt


# privacy ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["statistics", "fetril", "dgr"])
def test_no_sample_is_kept_on_disk(method, tmp_path):
    """Nothing that is saved holds a taught input, as float32, float16 or bytes."""
    data = digits()
    learner, taught = Session(method, "mlp", (64,), "float32", 30_000, 0), []
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
    from helpers_rounds import conv_backbone, taught

    from edgecl.rounds import Wish

    with pytest.raises(BadInput, match="edgecl bench"):
        taught(tmp_path, conv_backbone(), 4).round(Wish(name, 60))
    assert read_method(name).paper


def test_a_worker_keeps_statistics_from_round_to_round(tmp_path):
    from io import BytesIO

    from helpers_rounds import conv_backbone, taught, teach

    from edgecl.rounds import Wish

    learner = taught(tmp_path, conv_backbone(), 12)
    for classes in (4, 5):
        assert learner.round(Wish("statistics", 60, epochs=1)).steps
        with np.load(BytesIO(learner.store.parts()), allow_pickle=False) as kept:
            assert kept["memory/mean"].shape == (classes, 32)
            assert kept["memory/columns"].tolist() == list(range(classes))
        teach(learner, 4, 12)
