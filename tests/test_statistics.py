"""Class statistics against textbook formulas: additive, order-free, precise, honest about what is approximate."""
from __future__ import annotations

import os

import numpy as np
import pytest

from edgecl.errors import BadInput, StateError
from edgecl.statistics.class_statistics import ClassStatistics
from edgecl.statistics.rounding import dither, seed_of
from edgecl.statistics.triangle import diagonal_at_rest, packed, unpacked

RNG = np.random.default_rng


def clouds(classes, samples, d, seed=0, offset=0.0, spread=1.0):
    rng = RNG(seed)
    mix = np.eye(d) + 0.3 * rng.standard_normal((d, d))
    return {f"c{c:03}": (offset + 3 * rng.standard_normal(d) + spread * rng.standard_normal((samples, d)) @ mix
                         ).astype(np.float32) for c in range(classes)}


def collected(data, reference=None, pieces=1, order=None, second_moment=True):
    first = next(iter(data.values()))
    store = ClassStatistics(first.mean(0) if reference is None else reference, second_moment)
    parts = [(label, part) for label, x in data.items() for part in np.array_split(x, pieces)]
    for i in RNG(order).permutation(len(parts)) if order is not None else range(len(parts)):
        store.add(*parts[i])
    return store


def textbook(data):
    """Pooled within-class covariance of float64 samples, each class about its own mean."""
    scatter = sum((x.astype(np.float64) - x.mean(0, np.float64)).T @ (x.astype(np.float64) - x.mean(0, np.float64))
                  for x in data.values())
    return scatter / (sum(map(len, data.values())) - len(data))


def rewritten(store, times=1, rank=None):
    for _ in range(times):
        store = ClassStatistics.from_arrays(store.to_arrays(rank))
    return store


def relative(a, b):
    return float(np.abs(a - b).max() / np.abs(b).max())


def test_five_samples_a_class_give_the_textbook_covariance():
    data = clouds(20, 5, 40)
    for pieces in (1, 5):  # at once, one at a time
        pooled = collected(data, pieces=pieces, order=pieces).pooled()
        assert relative(pooled.covariance, textbook(data)) < 1e-6
        assert relative(pooled.covariance, sum(np.cov(x.T.astype(np.float64)) for x in data.values()) / 20) < 1e-6
        assert pooled.freedom == 80
        assert relative(pooled.means + pooled.centre, np.stack([x.mean(0, np.float64) for x in data.values()])) < 1e-12


@pytest.mark.parametrize("reference", [np.zeros(6), np.full(6, -7.5)])
def test_the_reference_and_the_order_change_nothing(reference):
    data = clouds(4, 30, 6)
    a, b = collected(data).pooled(), collected(data, reference, pieces=30, order=3).pooled()
    assert a.labels == b.labels
    for name in ("counts", "centre", "means", "covariance"):
        assert relative(getattr(a, name), getattr(b, name)) < 1e-12
    assert np.abs(a.share @ a.means).max() < 1e-12


def test_one_add_of_many_equals_many_adds_across_block_borders():
    data = clouds(1, 700, 5)
    whole, single = collected(data), collected(data, pieces=700)
    assert relative(whole.moment, single.moment) < 1e-12
    assert whole.total == single.total == 700


def test_merged_stores_equal_the_union():
    data = clouds(5, 40, 8)
    left = {label: x[:15] for label, x in data.items() if label != "c004"}
    right = {label: x[15:] if label != "c004" else x for label, x in data.items()}
    for swap in (False, True):
        a, b = collected(left, np.full(8, 2.0)), collected(right, np.full(8, -40.0))
        a, b = (b, a) if swap else (a, b)
        a.merge(b)
        union = collected(data).pooled()
        for name in ("counts", "centre", "means", "covariance"):
            assert relative(getattr(a.pooled(), name), getattr(union, name)) < 1e-9
        assert a.pooled().labels == union.labels


def test_merging_needs_the_same_form():
    a = ClassStatistics(np.zeros(3))
    with pytest.raises(StateError, match="3 and 4 dimensions"):
        a.merge(ClassStatistics(np.zeros(4)))
    with pytest.raises(StateError, match="can't be merged"):
        a.merge(ClassStatistics(np.zeros(3), second_moment=False))


def test_what_is_held_is_as_if_never_added():
    data = clouds(4, 20, 7)
    held = {"c000": data["c000"][:19], "c002": data["c002"][5:9]}
    store = collected(data)
    rest = {"c000": data["c000"][19:], "c001": data["c001"], "c003": data["c003"],
            "c002": np.delete(data["c002"], range(5, 9), axis=0)}
    pooled, expected = store.pooled(held), collected(rest, np.zeros(7)).pooled()
    for name in ("counts", "centre", "means", "covariance"):
        assert relative(getattr(pooled, name), getattr(expected, name)) < 1e-9
    assert pooled.freedom == expected.freedom
    assert relative(store.pooled().covariance, textbook(data)) < 1e-9  # and the store itself is untouched


def test_rest_in_float32_costs_little_even_over_many_rewrites():
    data = clouds(10, 30, 24)
    store = ClassStatistics(data["c000"].mean(0))
    for label, x in data.items():
        for part in np.array_split(x, 6):
            store.add(label, part)
            store = rewritten(store)
    assert relative(store.pooled().covariance, textbook(data)) < 3e-6
    assert relative(rewritten(store, 5).pooled().covariance, store.pooled().covariance) < 1e-6


def test_features_far_from_zero_keep_their_precision_at_rest():
    data = clouds(5, 40, 10, offset=1e5, spread=1.0)
    guarded, bare = rewritten(collected(data)), rewritten(collected(data, np.zeros(10)))
    truth = textbook(data)
    for store in (guarded, bare):   # the scatter is kept about the class means, whatever the reference
        assert relative(store.pooled().covariance, truth) < 1e-6
    for label, x in data.items():   # the means are kept about the reference
        assert np.abs(guarded.mean(label) - x.mean(0, np.float64)).max() < 1e-5
        assert np.abs(bare.mean(label) - x.mean(0, np.float64)).max() < 2e-2


def test_forgetting_with_all_samples_is_exact():
    data = clouds(4, 25, 6)
    store = collected(data)
    left = store.without("c001", data["c001"]).pooled()
    expected = collected({label: x for label, x in data.items() if label != "c001"}).pooled()
    assert left.labels == expected.labels
    assert relative(left.covariance, expected.covariance) < 1e-9
    assert left.freedom == expected.freedom
    assert store.labels == ["c000", "c001", "c002", "c003"]


def test_forgetting_without_them_removes_the_mean_and_keeps_the_scatter_anonymous():
    data = clouds(4, 25, 6)
    left = rewritten(collected(data).without("c001"))
    assert "c001" not in left.labels
    assert left.residual == 24
    assert relative(left.pooled().covariance, textbook(data)) < 1e-6  # a mean over all classes' scatter, as before


def test_forgetting_the_last_class_leaves_an_empty_store_that_learns_again():
    data = clouds(2, 10, 5)
    for second_moment in (True, False):
        store = collected({"c000": data["c000"]}, second_moment=second_moment).without("c000")
        for rank in (None, 2):
            again = rewritten(store, rank=rank)
            assert (again.labels, again.total) == ([], 0)
            again.add("c001", data["c001"])
            assert np.isfinite(again.pooled().means).all()
            if second_moment:   # nothing of the forgotten class is in it
                assert again.residual == 0
                assert relative(again.pooled().covariance, textbook({"c001": data["c001"]})) < 1e-6


def test_what_rounding_leaves_of_a_forgotten_class_is_no_scatter_of_classes_of_one_sample():
    data = clouds(5, 9, 4)
    large = data["c004"] * np.float32(1e7)
    store = collected({label: data[label][:1] for label in ("c000", "c001")})
    store.add("large", large[:4])
    store = rewritten(store)
    store.add("large", large[4:])
    left = store.without("large", large)
    assert (left.degrees_of_freedom, left.rounding(), np.abs(left.scatter()).max()) == (0, 0, 0)
    left.add("c000", data["c000"][1:])
    few = {"c000": data["c000"], "c001": data["c001"][:1]}
    assert relative(left.pooled().covariance, textbook(few)) < 1e-6


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e16])
def test_features_that_cannot_be_summed_are_refused_and_change_nothing(bad):
    store = collected(clouds(2, 5, 3))
    before = store.to_arrays()
    sample = np.ones((2, 3), np.float32)
    sample[1, 2] = bad
    with pytest.raises(BadInput, match="c000"):
        store.add("c000", sample)
    assert all(np.array_equal(before[name], after) for name, after in store.to_arrays().items())


def test_the_largest_features_survive_the_rest_in_float32():
    store = ClassStatistics(np.zeros(2))
    store.add("a", np.full((100, 2), 1e15, np.float32) * np.array([[1, -1]], np.float32))
    assert np.isfinite(rewritten(store).moment).all()


@pytest.mark.parametrize(("data", "freedom"), [
    ({"a": np.ones((1, 3))}, 0), ({"a": np.eye(3)[:1], "b": np.eye(3)[1:2]}, 0), ({"a": np.eye(3)[:2]}, 1)])
def test_the_fewest_samples(data, freedom):
    pooled = collected({label: x.astype(np.float32) for label, x in data.items()}).pooled()
    assert pooled.freedom == freedom
    expected = textbook(data) if freedom else np.zeros((3, 3))
    assert np.allclose(pooled.covariance, expected, atol=1e-15)
    rested = rewritten(collected({label: x.astype(np.float32) for label, x in data.items()})).pooled()
    assert freedom or not rested.covariance.any()  # rounding is no covariance


def test_one_sample_may_come_as_a_vector():
    store = ClassStatistics(np.zeros(3))
    store.add("a", np.array([1, 2, 3], np.float32))
    assert store.counts == {"a": 1}
    assert store.pooled().centre.tolist() == [1, 2, 3]


def test_diagonal_and_rank_keep_the_variances_exactly_and_stay_positive():
    data = clouds(6, 50, 32)
    store = collected(data)
    approximate = rewritten(store, rank=8)
    exact, found = store.pooled().covariance, approximate.pooled().covariance
    assert np.allclose(np.diag(found), np.diag(exact), rtol=1e-5)
    assert relative(rewritten(approximate, 3, rank=8).pooled().covariance, found) < 1e-4
    strongest = np.linalg.eigh(exact)[1][:, -1]
    assert strongest @ found @ strongest > 0.95 * strongest @ exact @ strongest
    held = {label: x[:10] for label, x in data.items()}
    rest = approximate.pooled(held)  # samples can't be subtracted from an approximation: it stays positive
    assert np.linalg.eigvalsh(rest.covariance)[0] > 0
    assert np.allclose(np.diag(rest.covariance), np.diag(exact), rtol=1e-5)
    assert rest.counts.tolist() == [40] * 6
    assert approximate.without("c000", data["c000"]).residual == 49


@pytest.mark.parametrize(("second_moment", "rank"), [(True, None), (True, 4), (False, None)])
def test_bytes_at_rest_are_those_of_the_arrays(second_moment, rank):
    arrays = collected(clouds(3, 10, 16), second_moment=second_moment).to_arrays(rank)
    size = sum(a.nbytes for name, a in arrays.items() if name not in ("labels", "counts", "residual"))
    assert size == ClassStatistics.bytes_at_rest(16, 3, second_moment, rank)
    assert all(a.dtype != object for a in arrays.values())


def test_names_of_any_script_survive_the_rest():
    store = ClassStatistics(np.zeros(2), second_moment=False)
    for name in ("Äpfel", "苹果", "a b", "zz"):
        store.add(name, np.ones((1, 2), np.float32))
    assert rewritten(store).labels == store.labels == sorted(["Äpfel", "苹果", "a b", "zz"])


# precision at rest, and what is subtracted ---------------------------------------------------------------------------


def test_rounding_is_unbiased_and_a_function_of_its_content():
    x = np.random.default_rng(0).standard_normal(5) * [1, 1e-6, 1e6, 1e20, 1e-20]
    many = np.stack([dither(x, seed) for seed in range(4000)]).astype(np.float64)
    step = np.spacing(np.abs(x).astype(np.float32)).astype(np.float64)
    assert (np.abs(many - x) <= step).all()
    assert (np.abs(many.mean(0) - x) < 0.05 * step).all()
    assert np.array_equal(dither(x, 7), dither(x, 7))
    once = dither(x, 1)
    for near in (once, once * (1 + 1e-13), -once.astype(np.float64)):   # what was a float32 stays that one
        assert np.array_equal(dither(np.asarray(near, np.float64), 2), np.asarray(near, np.float32))
    assert seed_of(x) == seed_of(x.copy()) != seed_of(-x)


@pytest.mark.parametrize("d", [1, 2, 3, 4, 65])
def test_a_packed_scatter_is_off_by_at_most_2_to_the_minus_30_of_its_diagonal_and_packs_to_the_same_again(d):
    rng = RNG(d)
    for scale in (1.0, 1e-30, 1e30):
        rows = rng.standard_normal((3 * d, d)) * np.exp(rng.uniform(-20, 20, d)) * np.sqrt(scale)
        rows[:, :d // 3] = 0        # a feature that is always the same
        full = rows.T @ rows
        triangle = packed(full)
        found, allowed = unpacked(triangle, d), np.sqrt(np.outer(np.diag(full), np.diag(full)))
        assert (np.abs(found - full) <= 2 ** -30 * allowed).all()
        assert np.array_equal(found, found.T) and np.array_equal(np.diag(found), diagonal_at_rest(np.diag(full)))
        assert np.array_equal(packed(found), triangle)
        noise = 1 + 1e-13 * rng.standard_normal((d, d))
        assert np.array_equal(packed(found * (noise + noise.T) / 2), triangle)


def test_triangles_of_float32_are_read():
    rows = RNG(0).standard_normal((9, 5)).astype(np.float32)
    full = (rows.T @ rows).astype(np.float32)
    assert np.array_equal(unpacked(full[np.triu_indices(5)], 5), full)


@pytest.mark.parametrize("kind", ["others", "the same", "large"])
def test_thousands_of_forgotten_classes_leave_no_bias(kind):
    """Taught and forgotten again, with a rest in float32 after each: errors may grow as a random walk does."""
    cycles, data = int(os.environ.get("EDGECL_CYCLES", "400")), clouds(4, 40, 24)
    store, truth = collected(data), collected(data).scatter()
    for i in range(cycles):
        rng = RNG(1 if kind == "the same" else i)
        x = (rng.standard_normal((rng.integers(1, 6), 24)) * (8 if kind == "large" else 2) + 3).astype(np.float32)
        store.add("zzz", x)
        store = rewritten(rewritten(store).without("zzz", x).about_its_mean())
    error = relative(store.scatter(), truth)
    print(f"{cycles} cycles, {kind}: scatter {error:.1e}")
    assert error <= 1e-7 * np.sqrt(cycles) * (4 if kind == "large" else 1)
    assert store.residual == 0
    for label, x in data.items():
        assert np.abs(store.mean(label) - x.mean(0, np.float64)).max() < 1e-5


def test_large_classes_in_turn_leave_little_rounding():
    """A class 30 times larger than those that stay is always there when the statistics are written."""
    cycles, data = int(os.environ.get("EDGECL_CYCLES", "400")), clouds(4, 40, 24)
    store, truth, before = collected(data), collected(data).scatter(), np.zeros((0, 24), np.float32)
    for i in range(cycles):
        x = (RNG(i).standard_normal((RNG(i).integers(1, 6), 24)) * 30 + 90).astype(np.float32)
        store.add(f"large {i % 2}", x)
        if i:
            store = rewritten(store.without(f"large {1 - i % 2}", before).about_its_mean())
        before = x
    left = rewritten(store.without(f"large {(cycles - 1) % 2}", before).about_its_mean())
    error = relative(left.scatter(), truth)
    print(f"{cycles} cycles: scatter {error:.1e}")
    assert error <= 5e-8 * np.sqrt(cycles)


def test_what_was_read_is_written_as_the_same_bytes():
    store = rewritten(collected(clouds(3, 30, 20, offset=1e4)))
    once, again = store.to_arrays(), rewritten(store, 3).to_arrays()
    assert all(np.array_equal(once[name], again[name]) for name in ("labels", "counts", "sums", "scatter", "reference"))
    assert once["rounding"] == pytest.approx(float(again["rounding"]), rel=1e-12)


def test_statistics_of_format_2_are_read():
    data = clouds(4, 30, 12)
    store = collected(data)
    arrays = store.to_arrays()
    moment, d = store.moment, 12
    del arrays["scatter"], arrays["rounding"]
    arrays["moment"] = np.concatenate([moment[i, i:] for i in range(d)]).astype(np.float32)
    assert relative(ClassStatistics.from_arrays(arrays).pooled().covariance, textbook(data)) < 1e-5


@pytest.mark.parametrize("shape", ["all directions", "one direction", "one outlier", "mean only"])
@pytest.mark.parametrize("scale", [1, 1e2, 1e4, 1e6])
def test_rounding_tells_how_far_what_is_left_was_moved(shape, scale):
    """A class many times larger than the others is taught, written in float32, and subtracted again."""
    data, rng = clouds(5, 60, 12), RNG(3)
    large = rng.standard_normal((50, 12))
    if shape == "one direction":
        large += scale * np.outer(rng.standard_normal(50), rng.standard_normal(12))
    elif shape == "one outlier":
        large[17] *= scale
    elif shape == "mean only":
        large += scale
    else:
        large *= scale
    large = large.astype(np.float32)
    store = rewritten(collected({**data, "large": large}))
    left = store.without("large", large).about_its_mean()
    told, truth = left.rounding(), collected(data).scatter()
    values, vectors = np.linalg.eigh(truth)
    wrong = np.abs(np.diag(vectors.T @ left.scatter() @ vectors) / values - 1).max()
    assert wrong <= max(10 * told, 1e-6)
    if told <= 1e-3:
        assert relative(left.scatter(), truth) < 2e-2
    if shape == "mean only":        # costs the others nothing
        assert told < 1e-5
    if scale == 1e6 and shape != "mean only":
        assert told > 0.1
    values = np.linalg.eigvalsh(left.scatter())
    assert values[0] >= -1e-9 * values[-1]


@pytest.mark.parametrize("second_moment", [True, False])
@pytest.mark.parametrize("begun", [True, False])
def test_samples_added_one_at_a_time_and_in_bulk_give_the_same_bits(second_moment, begun):
    rng = np.random.default_rng(3)
    h = rng.standard_normal((700, 9)).astype(np.float32)
    labels = [f"class {number}" for number in rng.integers(0, 6, 700)]
    single, bulk = (ClassStatistics(h[0], second_moment) for _ in range(2))
    if begun:
        for statistics in (single, bulk):
            statistics.add("class 0", h[:5])
            statistics.add("class 1", h[5:6])
    for label, sample in zip(labels, h):
        single.add(label, sample)
    for start, end in ((0, 1), (1, 300), (300, 300), (300, 700)):
        bulk.add_each(labels[start:end], h[start:end])
    assert single.counts == bulk.counts
    assert all(np.array_equal(single.sums[label], bulk.sums[label]) for label in single.labels)
    assert not second_moment or np.array_equal(single.scatter(), bulk.scatter())
    with pytest.raises(BadInput, match="class 7"):
        bulk.add_each(["class 7"], np.full((1, 9), np.nan, np.float32))
    assert single.counts == bulk.counts
