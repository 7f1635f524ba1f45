"""Suspicious labels: simulated mistakes are found, right labels are left in peace, and margins are exact."""
from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from helpers_daemon import serving
from helpers_state import create, vectors
from sklearn.datasets import load_digits

from edgecl.cli import main
from edgecl.heads.solvers import solve
from edgecl.learner import Learner
from edgecl.learning.suspicious import Evidence, limit_of, margins_of
from edgecl.samples import Sample
from edgecl.statistics.class_statistics import ClassStatistics


def taught(path, x, classes, sessions=None, names="abcdefghij", **settings):
    """A state that was taught features [n, d] of numbered classes; sessions: the name of each."""
    learner = create(path, **{"quota": 8_000_000, "exemplars": 2_000_000, **settings})
    for number in np.unique(classes):
        mine = np.flatnonzero(classes == number)
        learner.learn([Sample(x[i].astype(np.float32), f"{i}.csv", session="" if sessions is None else sessions[i])
                       for i in mine], names[number])
    return learner


def found(learner):
    """The numbers of the suspicious samples, worst first, and what is said of them."""
    listed = learner.samples(suspicious=True).samples
    return [int(each.source.removesuffix(".csv")) for each in listed], listed


def with_mistakes(y, share, seed):
    """The labels with some exchanged at random, and which."""
    rng, changed = np.random.default_rng(seed), y.copy()
    bad = rng.choice(len(y), round(share * len(y)), replace=False)
    for place in bad:
        changed[place] = rng.choice(np.setdiff1d(np.unique(y), y[place]))
    return changed, {*bad.tolist()}


@pytest.mark.parametrize("share", [0.02, 0.05])
def test_wrong_labels_of_digits_are_found_and_the_right_class_named(tmp_path, share):
    data = load_digits()
    x, y = data.data[:900] / 16, data.target[:900]
    changed, bad = with_mistakes(y, share, 1)
    learner = taught(tmp_path / "s", x, changed)
    numbers, listed = found(learner)
    learner.close()
    worst = numbers[:len(bad)]
    assert len({*worst} & bad) >= 0.8 * len(bad)
    named = {int(each.source.removesuffix(".csv")): each.looks_like for each in listed}
    right = [named[place] == "abcdefghij"[y[place]] for place in worst if place in bad]
    assert np.mean(right) >= 0.8
    assert [each.margin for each in listed] == sorted(each.margin for each in listed)
    assert all(each.reason == f"nearer to {each.looks_like!r} than to its own class"
               or each.reason.startswith("nearly the same as ") for each in listed)


def test_right_labels_are_left_in_peace(tmp_path):
    data = load_digits()
    learner = taught(tmp_path / "s", data.data[:900] / 16, data.target[:900])
    numbers, _ = found(learner)
    learner.close()
    assert len(numbers) <= 0.03 * 900


def test_a_recording_under_a_wrong_name_is_found_as_a_whole(tmp_path):
    """Its samples support each other, so that leaving out only one of them finds none."""
    rng = np.random.default_rng(0)
    centres, x, y, sessions = rng.normal(size=(4, 24)) * 2.2, [], [], []
    for number in range(4):
        for person in range(8):
            around = centres[number] + rng.normal(size=24) * 0.4
            x.append(around + rng.normal(size=(12, 24)) * 0.5)
            y += [number] * 12
            sessions += [f"{person} {number}"] * 12
    x, y = np.concatenate(x), np.array(y)
    wrong = np.flatnonzero(np.array(sessions) == "3 1")
    y[wrong] = 2
    learner = taught(tmp_path / "s", x, y, sessions)
    numbers, listed = found(learner)
    learner.close()
    assert {*numbers[:12]} == {*wrong.tolist()}
    assert {each.looks_like for each in listed[:12]} == {"b"}


def test_the_margin_is_that_of_a_head_that_never_saw_the_sample(tmp_path):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(30, 6)).astype(np.float32) + np.repeat(3 * rng.normal(size=(3, 6)), 10, 0).astype(np.float32)
    y = np.repeat(np.arange(3), 10)
    learner = taught(tmp_path / "s", x, y)
    known = learner.repository.known()
    evidence = Evidence.of(known)
    # no two samples are near-copies here, so both heads lack only the sample
    evidence = evidence._replace(spread=0.0)
    margins = margins_of(evidence)
    transform, e = known.transforms[0], evidence.pooled.sphere(evidence.pooled.shrinkage)
    expected = []
    for row in evidence.rows:
        statistics = ClassStatistics(np.zeros(6), True)
        for other in evidence.rows:
            if other.id != row.id:
                statistics.add(other.label, transform(other.feature[None]))
        pooled = statistics.pooled()
        shrinkage = evidence.pooled.shrinkage
        pooled = replace(pooled, penalty=shrinkage)
        object.__setattr__(pooled, "sphere", lambda _: e)   # which is kept, see `edgecl.heads.out_of_fold`
        head = solve("slda", pooled, transform)
        logits = head.logits(transform(row.feature[None]))[0]
        own = head.labels.index(row.label)
        other = int(np.argmax(np.where(np.arange(3) == own, -np.inf, logits)))
        apart = evidence.pooled.means[own] - evidence.pooled.means[other]
        length = np.sqrt(apart @ np.linalg.solve(evidence.pooled.shrunk(shrinkage), apart))
        expected.append((logits[own] - logits[other]) / length)
    expected = np.array(expected)
    learner.close()
    np.testing.assert_allclose(margins.of, expected / np.median(expected[expected > 0]), rtol=2e-3, atol=2e-3)


def test_the_same_content_in_two_classes_is_named(tmp_path):
    x = np.concatenate([vectors("ant", 20), vectors("wasp", 20)])
    x = np.concatenate([x, x[3:4], x[8:9] + 1e-3])
    y = np.array([0] * 20 + [1] * 22)
    learner = taught(tmp_path / "s", x, y)
    numbers, listed = found(learner)
    ids = {each.source: each.id for each in learner.samples().samples}
    learner.close()
    reasons = dict(zip(numbers, (each.reason for each in listed)))
    assert reasons[40] == f"the same as {ids['3.csv']} of 'a'"
    assert reasons[41] == f"nearly the same as {ids['8.csv']} of 'a'"
    assert 3 not in reasons     # the right one of the two
    assert 8 not in reasons


def test_features_that_all_point_one_way_are_not_nearly_the_same(tmp_path):
    """Their cosines are 1, but not their distances beside those within a class."""
    x = 1000 + np.concatenate([vectors("ant", 30), vectors("wasp", 30)])
    learner = taught(tmp_path / "s", x, np.repeat([0, 1], 30))
    assert learner.samples(suspicious=True).samples == []
    learner.close()


@pytest.mark.parametrize("counts", [(), (5,), (1, 1), (2, 1), (3, 2)])
def test_few_samples_tell_nothing(tmp_path, counts):
    learner = create(tmp_path / "s")
    for number, count in enumerate(counts):
        learner.learn(vectors(f"class {number}", count), f"class {number}")
    assert learner.samples(suspicious=True).samples == []
    learner.close()


def test_the_only_sample_of_its_class_may_be_a_copy_but_has_no_margin(tmp_path):
    x = vectors("ant", 10)
    learner = taught(tmp_path / "s", np.concatenate([x, x[:1]]), np.array([0] * 10 + [1]))
    listed = learner.samples(suspicious=True).samples
    learner.close()
    assert [each.label for each in listed] == ["b"]     # if one of the two is wrong, it is the one that stands alone
    assert listed[0].reason.startswith("the same as ")
    assert listed[0].margin is None


@pytest.mark.parametrize("settings", [{"head": "nearest-mean"}, {"exemplars": 12_000, "codec": "pq"}])
def test_other_heads_and_coded_samples(tmp_path, settings):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 16)) + np.repeat(4 * rng.normal(size=(3, 16)), 200, 0)
    changed, bad = with_mistakes(np.repeat(np.arange(3), 200), 0.03, 0)
    learner = taught(tmp_path / "s", x, changed, **settings)
    numbers, _ = found(learner)
    stored = {int(each.source.removesuffix(".csv")) for each in learner.samples().samples}
    learner.close()
    there = bad & stored
    assert len({*numbers} & there) >= 0.9 * len(there)
    assert len(numbers) <= 2 * len(there) + 5


def test_identical_features_everywhere_do_no_harm(tmp_path):
    learner = taught(tmp_path / "s", np.ones((40, 8)), np.repeat([0, 1], 20))
    listed = learner.samples(suspicious=True).samples
    learner.close()
    assert {each.reason.split()[0] for each in listed} <= {"the", "nearly"}


def test_the_limit_is_negative_and_follows_the_spread():
    assert limit_of(np.full(100, 1.0)) == 0.0
    wide = np.random.default_rng(0).normal(0.5, 1.0, 10_000)
    assert limit_of(wide) == pytest.approx(0.5 - 2.5, abs=0.1)
    assert limit_of(np.r_[wide, [np.nan] * 10_000]) == limit_of(wide)
    assert limit_of(np.array([-5.0] * 5)) == -np.inf


def test_the_order_of_teaching_changes_nothing(tmp_path):
    data = load_digits()
    x, (y, _) = data.data[:300] / 16, with_mistakes(data.target[:300], 0.05, 0)
    one = taught(tmp_path / "one", x, y)
    order = np.random.default_rng(0).permutation(300)
    other = create(tmp_path / "other", quota=8_000_000, exemplars=2_000_000)
    for part in np.split(order, 6):
        for number in np.unique(y[part]):
            other.learn([Sample(x[i].astype(np.float32), f"{i}.csv") for i in part[y[part] == number]],
                        "abcdefghij"[number])
    first, second = ({each.source: (each.margin, each.looks_like) for each in found(learner)[1]}
                     for learner in (one, other))
    one.close(), other.close()
    assert first.keys() == second.keys()
    for source, (margin, like) in first.items():
        assert second[source][0] == pytest.approx(margin, abs=2e-3)
        assert second[source][1] == like


def test_the_command_prints_a_table_and_a_daemon_the_same(tmp_path, capsys):
    with serving(tmp_path / "s", ("ant", "wasp", "bee"), control=(60.0, 60.0)) as (service, _, _):
        service.learn("ant", vectors("wasp", 2, seed=5), "wrong.npz")
        assert main(["samples", "--state", str(tmp_path / "s"), "--suspicious"]) == 0
        text = capsys.readouterr().out
        assert main(["samples", "--state", str(tmp_path / "s"), "--suspicious", "--json"]) == 0
        through = json.loads(capsys.readouterr().out)
    lines = text.splitlines()
    assert lines[0] == "2 suspicious samples of 77 stored, worst first"
    assert [line.split()[1] for line in lines[2:]] == ["ant", "ant"]
    assert all("nearer to 'wasp' than to its own class  wrong.npz[" in line for line in lines[2:])
    learner = Learner.open(tmp_path / "s")
    assert learner.samples(suspicious=True).to_json() == through
    assert learner.samples("bee", suspicious=True).samples == []
    learner.close()
    assert {"margin", "looks_like", "reason"} <= {*through["samples"][0]}
