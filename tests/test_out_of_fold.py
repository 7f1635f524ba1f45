"""Judging out of fold: the same as solving each head again without what is left out."""
from dataclasses import replace

import numpy as np
import pytest

from edgecl.heads.left_out import LearnedRows, LeftOut, by_sessions, left_out
from edgecl.heads.out_of_fold import OutOfFold
from edgecl.heads.solvers import cosine, nearest_mean, ridge, slda
from edgecl.statistics.class_statistics import ClassStatistics
from edgecl.statistics.covariance import Metric
from edgecl.statistics.transform import FeatureTransform


def data(n, d, classes, seed=0, sessions=7):
    """LearnedRows of a few classes and sessions: features float32 [n, d], classes, sessions [n]."""
    rng = np.random.default_rng(seed)
    y = np.sort(np.r_[np.arange(classes), np.arange(classes), rng.integers(0, classes, n - 2 * classes)])
    mix = rng.normal(size=(d, d)) / np.sqrt(d)
    x = (rng.normal(size=(n, d)) @ mix + rng.normal(size=(classes, d))[y]).astype(np.float32)
    return x, y, rng.integers(0, sessions, n)


def rows_of(x, y, sessions=None, own=None, whole=True):
    sessions = np.arange(len(x)) if sessions is None else np.asarray(sessions)
    return LearnedRows([*x], FeatureTransform(x.shape[1], x.shape[1]), y.astype(np.int64), sessions.astype(np.int64),
                np.arange(len(x)) if own is None else own, np.full(len(x), whole))


def leave_out(rows, counts, spread):
    """What is left out if all rows judge."""
    judging = np.flatnonzero(counts[rows.classes] > 1)
    return left_out(rows, judging, counts, spread, by_sessions(rows, judging))


def statistics_of(x, y, **settings):
    known = ClassStatistics(x.mean(0), **settings)
    for label in np.unique(y):
        known.add(f"{label:05d}", x[y == label])
    return known


def again(kind, x, y, classes, out, row, scale, shift):
    """The logits of one row by a head that is solved again without the rows `out`, -inf for a class that is gone:
    solved from scale (W / f) + shift I, the shift as it was."""
    stay = np.setdiff1d(np.arange(len(x)), out)
    pooled = statistics_of(x[stay], y[stay]).pooled()
    here = np.unique(y[stay])
    found = np.full(classes, -np.inf)
    full = statistics_of(x, y).pooled()
    rho = shift / scale * full.freedom      # of W + rho I
    h = x[row].astype(np.float64) - pooled.centre
    if kind == "ridge":
        weight, bias = ridge(pooled, rho)
    elif kind == "slda":
        inverse = np.linalg.inv(scale / max(pooled.freedom, 1) * (pooled.freedom * pooled.covariance
                                                                  + rho * np.eye(x.shape[1])))
        weight = pooled.means @ inverse
        bias = -(weight * pooled.means).sum(1) / 2
    else:
        weight, bias = {"nearest-mean": nearest_mean, "cosine": cosine}[kind](pooled)
    found[here] = weight @ h + bias
    return found / (np.linalg.norm(x[row].astype(np.float64)) if kind == "cosine" else 1)


def judged(kind, x, y, rows, left, e):
    pooled = statistics_of(x, y).pooled()
    plain = kind in ("nearest-mean", "cosine")
    return pooled, OutOfFold.of(pooled, rows, left, None if plain else e, ridge=kind == "ridge").logits(kind)


KINDS = "slda", "ridge", "nearest-mean", "cosine"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d", "classes"), [(60, 12, 4), (40, 70, 4), (90, 8, 12), (40, 200, 3)])
@pytest.mark.parametrize("by", ["session", "ball", "large session"])
@pytest.mark.parametrize("e", [0.05, 0.6])
def test_it_is_what_a_head_solved_again_says(kind, n, d, classes, by, e):
    x, y, sessions = data(n, d, classes, sessions=3 if by == "large session" else 7)
    if by == "ball":
        x[1::3] = x[::3][:len(x[1::3])] + 0.01 * x[1::3]    # near-copies, some of another class
        y[1::3] = y[::3][:len(y[1::3])]
    rows = rows_of(x, y, sessions if by != "ball" else None)
    counts = np.bincount(y, minlength=classes).astype(float)
    known = statistics_of(x, y)
    left = leave_out(rows, counts, known.spread(x))
    assert left.sessions == (by != "ball")
    assert max(map(len, left.of)) > 1
    pooled, logits = judged(kind, x, y, rows, left, e)
    for place, (row, out) in enumerate(zip(left.rows, left.of)):
        wanted = again(kind, x, y, classes, out, row, 1 - e, pooled.sphere(e))
        there = np.isfinite(wanted)
        assert (np.isfinite(logits[place]) == there).all() and row in out
        gap = logits[place][there] - wanted[there]
        if kind != "ridge" and kind != "cosine":
            gap -= gap.mean()   # all classes may share a number
        assert np.abs(gap).max() <= 1e-6 * np.abs(wanted[there]).max()


def test_a_row_whose_class_would_be_gone_is_judged_without_its_near_copies():
    x, y, _ = data(60, 12, 4)
    sessions = np.where(y == 2, 99, np.arange(60) % 5)
    counts = np.bincount(y).astype(float)
    left = leave_out(rows_of(x, y, sessions), counts, 1.0)
    assert left.sessions
    for row, out in zip(left.rows, left.of):
        assert len(out) == 1 if y[row] == 2 else set(out) == set(np.flatnonzero(sessions == sessions[row]))
    _, logits = judged("slda", x, y, rows_of(x, y, sessions), left, 0.1)
    assert np.isfinite(logits[y == 2]).all()


def test_a_class_that_goes_with_another_ones_session_is_no_answer():
    x, y, _ = data(60, 12, 4)
    sessions = np.where(y == 2, 0, np.arange(60) % 5)
    left = leave_out(rows_of(x, y, sessions), np.bincount(y).astype(float), 1.0)
    _, logits = judged("slda", x, y, rows_of(x, y, sessions), left, 0.1)
    lost = np.isneginf(logits[:, 2])
    assert (lost == ((sessions == 0) & (y != 2))).all() and lost.any()


def test_what_is_stored_in_part_stays_in_the_statistics():
    """Not all rows are stored: those that are not stay, and sessions that are not whole are not taken out as such."""
    x, y, sessions = data(90, 12, 4)
    stored = np.flatnonzero(np.arange(90) % 3 < 2)
    counts = np.bincount(y).astype(float)
    few = replace(rows_of(x[stored], y[stored], sessions[stored]), whole=np.zeros(len(stored), bool))
    left = leave_out(few, counts, 1.0)
    assert not left.sessions
    left = leave_out(replace(few, whole=sessions[stored] < 4), counts, 1.0)
    assert left.sessions
    pooled = statistics_of(x, y).pooled()
    logits = OutOfFold.of(pooled, few, left, 0.2).logits("slda")
    for place, (row, out) in enumerate(zip(left.rows, left.of)):
        wanted = again("slda", x, y, 4, stored[out], stored[row], 0.8, pooled.sphere(0.2))
        gap = logits[place] - wanted
        assert np.abs(gap - gap.mean()).max() <= 1e-6 * np.abs(wanted).max()
        assert len(out) == 1 or sessions[stored[row]] < 4


def test_near_copies_are_taken_out_together_but_never_more_than_half_of_a_class():
    x = np.random.default_rng(1).normal(size=(40, 30)).astype(np.float32)
    y = np.repeat([0, 1], 20)
    x[1:15] = x[0] + 0.01 * x[1:15]
    left = leave_out(rows_of(x, y), np.bincount(y).astype(float), statistics_of(x, y).spread(x))
    assert [len(out) for out in left.of] == [10] * 15 + [1] * 25
    assert all(row in out and (out < 15).all() for row, out in zip(left.rows[:15], left.of))
    alone = leave_out(rows_of(x[:3], np.array([0, 0, 1])), np.array([2., 1.]), 1.0)
    assert alone.rows.tolist() == [0, 1]    # a class of one sample can't be judged


def test_nothing_is_taken_out_for_samples_that_the_statistics_do_not_contain():
    x, y, _ = data(60, 12, 4)
    drawn, of, _ = data(20, 12, 4, seed=3)
    pooled, none = statistics_of(x, y).pooled(), np.zeros(0, np.int64)
    found = OutOfFold.of(pooled, rows_of(drawn, of), LeftOut(np.arange(20), [none] * 20, False), 0.3, ridge=True)
    for kind, solve in (("slda", slda), ("ridge", ridge)):
        weight, bias = solve(replace(pooled, penalty=0.3))
        gap = found.logits(kind) - ((drawn - pooled.centre) @ weight.T + bias)
        assert np.abs(gap - gap.mean(1, keepdims=True)).max() < 1e-9


def test_of_a_low_rank_form_only_the_means_are_without_it():
    x, y, _ = data(60, 12, 4)
    known = ClassStatistics.from_arrays(statistics_of(x, y).to_arrays(rank=3))
    pooled = known.pooled()
    assert not pooled.exact
    left = leave_out(rows_of(x, y), np.bincount(y).astype(float), 0.0)
    found = OutOfFold.of(pooled, rows_of(x, y), left, 0.2).distances()
    inverse = np.linalg.inv(pooled.shrunk(0.2))
    for row in range(60):
        stay = np.setdiff1d(np.flatnonzero(y == y[row]), row)
        gap = x[row] - x[stay].mean(0, dtype=np.float64)
        assert found[row, y[row]] == pytest.approx(gap @ inverse @ gap, rel=1e-5)


def test_the_head_that_serves_needs_no_other_factor(monkeypatch):
    x, y, _ = data(60, 12, 4)
    pooled = replace(statistics_of(x, y).pooled(), penalty=0.2)
    left = leave_out(rows_of(x, y), np.bincount(y).astype(float), 1.0)
    OutOfFold.of(pooled, rows_of(x, y), left, 0.2)
    expected = slda(replace(pooled))
    monkeypatch.setattr("edgecl.statistics.covariance.factored", None)
    weight, bias = slda(pooled)
    assert np.allclose(weight, expected[0]) and np.allclose(bias, expected[1])


def test_many_small_sessions_are_whitened_together(monkeypatch):
    """A factor of long features is read for each call: one per session took 300 s for 200 of them."""
    calls, whiten = [], Metric.whiten
    monkeypatch.setattr(Metric, "whiten", lambda self, x: calls.append(len(x)) or whiten(self, x))
    x, y, sessions = data(400, 64, 4, sessions=100)
    rows, pooled = rows_of(x, y, sessions), statistics_of(x, y).pooled()
    left = leave_out(rows, pooled.counts, 1.0)
    assert left.sessions
    OutOfFold.of(pooled, rows, left, 0.1)
    assert sum(calls) >= 400
    assert len(calls) < 5
