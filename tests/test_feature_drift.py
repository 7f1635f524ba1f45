"""Statistics taken along when the backbone changes, against those of the same samples seen anew."""
from __future__ import annotations

import numpy as np
import pytest

from edgecl.errors import BadInput, StateError
from edgecl.statistics.class_statistics import ClassStatistics
from edgecl.statistics.feature_drift import Drift, Pairs, moved

RNG = np.random.default_rng


def clouds(classes=4, samples=60, d=6, seed=0):
    rng = RNG(seed)
    mix = np.eye(d) + 0.3 * rng.standard_normal((d, d))
    return {f"c{c}": (5 + 3 * rng.standard_normal(d) + rng.standard_normal((samples, d)) @ mix).astype(np.float32)
            for c in range(classes)}


def collected(data, second_moment=True):
    store = ClassStatistics(next(iter(data.values()))[0], second_moment)
    for label, h in data.items():
        store.add(label, h)
    return store


def image(data, noise=0.0, out=None, seed=1):
    """The same samples through a fixed affine map, plus noise."""
    rng = RNG(seed)
    d = next(iter(data.values())).shape[1]
    weight, offset = np.eye(d, out or d) + 0.4 * rng.standard_normal((d, out or d)), 2 * rng.standard_normal(out or d)
    return {label: (h @ weight + offset + noise * rng.standard_normal((len(h), out or d))).astype(np.float32)
            for label, h in data.items()}


def paired(old, new, kept, contained=True):
    """Pairs of the first `kept` samples of each class."""
    return {label: Pairs(h[:kept], new[label][:kept], np.full(min(kept, len(h)), contained))
            for label, h in old.items() if kept}


def relative(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


def agree(found, expected, tolerance):
    found, expected = found.pooled(), expected.pooled()
    assert found.labels == expected.labels
    assert found.counts.tolist() == expected.counts.tolist()
    assert found.freedom == expected.freedom
    assert relative(found.means + found.centre, expected.means + expected.centre) <= tolerance
    assert relative(found.covariance, expected.covariance) <= tolerance


@pytest.mark.parametrize("contained", [True, False])
@pytest.mark.parametrize("out", [None, 4])
def test_an_affine_map_is_recovered_and_moves_means_and_covariance_exactly(contained, out):
    old = clouds()
    new = image(old, out=out)
    found = moved(collected(old), paired(old, new, 12, contained))
    agree(found, collected(new), 1e-5)


def test_a_class_without_a_pair_moves_by_the_map():
    old = clouds()
    new = image(old)
    pairs = paired(old, new, 15)
    del pairs["c2"]
    agree(moved(collected(old), pairs), collected(new), 1e-5)


def test_where_all_samples_are_at_hand_nothing_is_estimated(monkeypatch):
    old = clouds()
    new = {label: np.abs(h) ** 2 + RNG(3).standard_normal(h.shape).astype(np.float32) for label, h in old.items()}
    store = collected(old)
    approximate = ClassStatistics.from_arrays(store.to_arrays(rank=2))
    monkeypatch.setattr(Drift, "between", None)
    for statistics in (store, approximate):
        found = moved(statistics, paired(old, new, 60))
        agree(found, collected(new), 1e-12)
        assert found.diagonal is None
        assert np.abs(found.reference - found.pooled().centre).max() < 1e-5


def test_a_complete_class_is_exact_whatever_the_map_says_of_it():
    old = clouds()
    new = image(old)
    new["c1"] = np.tanh(new["c1"][::-1])  # its samples changed places: no map explains it
    pairs = paired(old, new, 20)
    pairs["c1"] = Pairs(old["c1"], new["c1"], np.ones(60, bool))
    expected = new["c1"].mean(0, np.float64)
    assert relative(moved(collected(old), pairs).mean("c1"), expected) < 1e-6
    approximate = ClassStatistics.from_arrays(collected(old).to_arrays(rank=2))
    assert relative(moved(approximate, pairs).mean("c1"), expected) < 1e-5


def test_a_class_with_a_shift_of_its_own_follows_its_pairs():
    old = clouds(samples=200)
    new = image(old, noise=0.1)
    new["c3"] += np.float32(4)
    expected = collected(new)
    pairs = paired(old, new, 30, contained=False) | paired({"c3": old["c3"]}, new, 120, contained=False)
    found = moved(collected(old), pairs)
    for label in old:
        assert np.abs(found.mean(label) - expected.mean(label)).max() < 0.15


def test_variance_that_the_map_does_not_explain_is_kept():
    old = clouds(samples=400)
    new = image(old, noise=1.5)
    expected = collected(new).pooled().covariance
    found = moved(collected(old), paired(old, new, 100, contained=False)).pooled().covariance
    assert np.trace(found) == pytest.approx(np.trace(expected), rel=0.1)
    assert np.allclose(np.diag(found), np.diag(expected), rtol=0.25)
    weight = Drift.between(paired(old, new, 100)).weight
    explained = weight @ collected(old).pooled().covariance @ weight.T
    assert np.trace(explained) < np.trace(expected) - 0.7 * 6 * 1.5 ** 2  # what would be left without the noise


def test_more_dimensions_than_pairs_beat_the_pairs_alone():
    old = clouds(classes=5, samples=80, d=60)
    rng = RNG(2)
    turn = np.linalg.qr(np.eye(60) + 0.03 * rng.standard_normal((60, 60)))[0]
    turn *= np.sign(np.diag(turn))
    new = {label: (1.5 * h @ turn + 0.3 * rng.standard_normal(h.shape)).astype(np.float32) for label, h in old.items()}
    truth = collected(new).pooled()
    found = moved(collected(old), paired(old, new, 6)).pooled()
    alone = collected({label: h[:6] for label, h in new.items()}).pooled()
    assert np.linalg.eigvalsh(found.covariance)[0] > 0

    def apart(a):
        return (np.linalg.norm(a.means + a.centre - truth.means - truth.centre),
                np.linalg.norm(a.covariance - truth.covariance))

    assert all(a < 0.5 * b for a, b in zip(apart(found), apart(alone)))


def test_noise_is_expected_also_where_few_pairs_cannot_see_it():
    old = clouds(d=60)
    pairs = paired(old, image(old, noise=1.0), 5)
    values = np.linalg.eigvalsh(Drift.between(pairs).noise)
    assert values[0] > 0.05 * values.mean()


def test_a_rank_form_moves_as_a_whole_and_stays_approximate():
    old = clouds(samples=50, d=24)
    new = image(old)
    approximate = ClassStatistics.from_arrays(collected(old).to_arrays(rank=8))
    drift = Drift.between(paired(old, new, 20))
    found = moved(approximate, paired(old, new, 20))
    covariance = drift.weight @ approximate.pooled().covariance @ drift.weight.T + drift.noise
    assert relative(found.pooled().covariance, covariance) < 1e-6
    expected = collected(new)
    for label in old:
        assert np.abs(found.mean(label) - expected.mean(label)).max() < 1e-4
    assert found.diagonal is not None
    with pytest.raises(StateError, match="be removed"):
        found.remove("c0", new["c0"][:1])
    again = ClassStatistics.from_arrays(found.to_arrays(rank=8)).pooled()
    assert np.allclose(np.diag(again.covariance), np.diag(found.pooled().covariance), rtol=1e-4)


def test_without_a_second_moment_the_means_move():
    old = clouds()
    new = image(old)
    found = moved(collected(old, second_moment=False), paired(old, new, 12))
    assert found.moment is None
    for label, h in new.items():
        assert np.abs(found.mean(label) - h.mean(0)).max() < 1e-4


def test_the_scatter_of_forgotten_classes_moves_too():
    old = clouds()
    new = image(old)
    forgotten = collected(old).without("c0")
    rest = {label: h for label, h in new.items() if label != "c0"}
    for kept in (12, 60):
        pairs = paired({label: old[label] for label in rest}, new, kept)
        agree(moved(forgotten, pairs), collected(new).without("c0"), 1e-5)


def test_one_pair_in_all_gives_a_shift():
    old = clouds(classes=2)
    new = {label: h + np.float32(3) for label, h in old.items()}
    agree(moved(collected(old), {"c1": Pairs(old["c1"][:1], new["c1"][:1], np.ones(1, bool))}), collected(new), 1e-5)


def test_one_pair_a_class_keeps_the_noise():
    old = clouds(classes=40, samples=20)
    new = image(old, noise=1.0)
    found = moved(collected(old), paired(old, new, 1, contained=False)).pooled().covariance
    assert np.trace(found) > np.trace(collected(new).pooled().covariance) - 2


def test_single_samples_that_are_left_carry_no_covariance_of_their_own():
    old = clouds(classes=2, samples=3)
    store = ClassStatistics.from_arrays(collected(old).to_arrays())
    found = moved(store, paired(old, image(old), 2))
    assert np.linalg.eigvalsh(found.pooled().covariance)[0] > -1e-6 * np.trace(found.pooled().covariance)


def test_float32_at_rest_leaves_the_scatter_positive_but_for_rounding():
    old = clouds(classes=3, samples=300, d=40)
    store = ClassStatistics.from_arrays(collected(old).to_arrays())
    values = np.linalg.eigvalsh(moved(store, paired(old, image(old), 290)).scatter())
    assert values[0] > -1e-6 * values[-1]


def test_what_was_contained_can_be_held_back_and_forgotten_afterwards():
    old = clouds()
    new = image(old, noise=0.5)
    found = moved(collected(old), paired(old, new, 20))
    rest = found.pooled({label: h[:20] for label, h in new.items()})
    assert rest.counts.tolist() == [40] * 4
    assert np.linalg.eigvalsh(rest.covariance)[0] > 0
    left = found.copy()
    for label, h in new.items():
        left.remove(label, h[:20])
    assert np.allclose(left.pooled().covariance, rest.covariance)


def test_the_arguments_are_not_changed():
    old = clouds()
    new = image(old)
    store, pairs = collected(old), paired(old, new, 10)
    before = store.to_arrays(), {label: [a.copy() for a in both] for label, both in pairs.items()}
    moved(store, pairs)
    assert all(np.array_equal(before[0][name], array) for name, array in store.to_arrays().items())
    assert all(np.array_equal(a, b) for label, both in pairs.items() for a, b in zip(before[1][label], both))


def test_what_cannot_be_moved_is_an_error():
    old = clouds(classes=2, samples=5)
    new = image(old)
    with pytest.raises(StateError, match="no stored sample shows"):
        moved(collected(old), {})
    twice = {"c0": Pairs(np.repeat(old["c0"], 2, 0), np.repeat(new["c0"], 2, 0), np.ones(10, bool))}
    with pytest.raises(StateError, match="10 of 5 samples of class 'c0'"):
        moved(collected(old), twice)
    new["c1"][0, 0] = np.nan
    with pytest.raises(BadInput, match="c1"):
        moved(collected(old), paired(old, new, 3))
