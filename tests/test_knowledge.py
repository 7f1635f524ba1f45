"""Judging heads on held-back samples: chosen, calibrated and finite, whatever the data."""
from __future__ import annotations

import json

import numpy as np
import pytest

from edgecl.errors import BadInput
from edgecl.exemplars.buffer import Buffer, held_out
from edgecl.exemplars.codecs import codec_of
from edgecl.exemplars.stored import row_bytes
from edgecl.heads.calibration import Trial, calibrate, class_weights
from edgecl.heads.onnx_head import HeadSession, build_head
from edgecl.heads.solvers import KINDS, solve
from edgecl.learning.judging import Choice, Judge, limited
from edgecl.learning.knowledge import Knowledge
from edgecl.samples import sample_keys
from edgecl.statistics.form import Form
from edgecl.statistics.transform import FeatureTransform

D = 8


def buffer(limit=10 ** 6, admission="reservoir", codec="raw", dimension=D):
    return Buffer(limit, 2 ** 14, admission, codec_of(codec, "feature", (dimension,)))


def knowledge(data, form=None, room=1000):
    form = form or Form(True, None, 32)
    transforms = [FeatureTransform(D, D), *[FeatureTransform(D, 32, projected=True)] * bool(form.projected)]
    each = row_bytes(buffer().codec.feature, D)
    known = Knowledge(transforms, form, buffer(room * each + (1000 if room else 0)))
    for label, x in data.items():
        known.add(label, sample_keys(x), x)
    return known


def cloud(n, seed=0, centre=0.0):
    return (centre + np.random.default_rng(seed).standard_normal((n, D))).astype(np.float32)


DEGENERATE = {
    "one class": {"a": cloud(30)},
    "one sample": {"a": cloud(1)},
    "one sample each": {c: cloud(1, i) for i, c in enumerate("abc")},
    "two samples": {"a": cloud(2), "b": cloud(2, 1)},
    "identical samples": {"a": np.ones((30, D), np.float32), "b": np.zeros((30, D), np.float32)},
    "all identical": {"a": np.ones((30, D), np.float32), "b": np.ones((30, D), np.float32)},
    "equal classes": {"a": cloud(40), "b": cloud(40)},
    "zeros": {"a": np.zeros((30, D), np.float32), "b": np.zeros((30, D), np.float32)},
    "far away": {c: cloud(30, i, 1e5 + 5 * i) for i, c in enumerate("abc")},
    "huge": {c: cloud(30, i) * np.float32(1e12) for i, c in enumerate("abc")},
    "tiny": {c: cloud(30, i) * np.float32(1e-15) for i, c in enumerate("abc")},
    "more classes than dimensions": {f"{i:02}": cloud(4, i, i) for i in range(30)},
    "one large, one of one sample": {"a": cloud(300), "b": cloud(1, 1)},
}
FORMS = {"exact": Form(True), "projected": Form(True, None, 32), "rank": Form(True, 2), "means": Form(False)}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("data", DEGENERATE.values(), ids=DEGENERATE)
def test_every_judgement_is_finite_also_in_onnx_and_after_a_rest(data, form):
    known = knowledge(data, form)
    for _ in range(2):
        judged = known.judge("auto")
        assert judged.head.labels == tuple(sorted(data))
        assert 0 < judged.head.temperature < float("inf")
        x = np.concatenate(list(data.values()))
        probabilities, distance = HeadSession(build_head(judged.head)).session.run(
            ["probabilities", "novelty"], {"input": x})
        assert np.isfinite(probabilities).all() and np.isfinite(distance).all()
        assert np.allclose(probabilities.sum(1), 1, atol=1e-4)
        assert all(0 <= a <= 1 for a in judged.accuracy.values())
        known.load(known.snapshot(), [], known.stored)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_that_is_asked_for_is_served(kind):
    data = {c: cloud(20, i, i) for i, c in enumerate("abcd")}
    assert knowledge(data).judge(kind).head.kind == kind


def test_classes_that_are_the_same_are_not_called_with_confidence():
    data = {"a": cloud(40), "b": cloud(40)}
    head = knowledge(data).judge("auto").head
    probabilities, _ = HeadSession(build_head(head))(cloud(40))
    assert np.median(probabilities.max(1)) < 0.75


def test_no_class_no_head():
    known = Knowledge([FeatureTransform(D, D)], Form(True), buffer(1000))
    assert known.judge("auto").head is None
    assert known.judge("auto").summary() == {"held_back": {}, "head": None, "unknown_above": None}


def test_samples_that_judge_are_not_among_those_learned_from():
    """On pure noise a head scores chance on what it has not seen; on its own samples it would score all of them."""
    rng = np.random.default_rng(0)
    data = {c: rng.standard_normal((6, 200)).astype(np.float32) for c in "abcdefghij"}
    known = Knowledge([FeatureTransform(200, 200)], Form(True), buffer(10 ** 7, dimension=200))
    for label, x in data.items():
        known.add(label, sample_keys(x), x)
    judged = known.judge("slda")
    assert len(judged.accuracy) == 10
    assert np.mean(list(judged.accuracy.values())) < 0.5
    x, truth = np.concatenate(list(data.values())), np.repeat(np.arange(10), 6)
    held = np.isin([row.key for row in known.stored],
                   [row.key for rows in held_out(known.exemplars(), known.plain).values() for row in rows])
    right = judged.head.logits(x).argmax(1) == truth  # the head that serves has not learned from them either
    assert held.sum() == 10
    assert right[~held].mean() > 0.95
    assert right[held].mean() == np.mean(list(judged.accuracy.values()))


def test_the_penalty_is_chosen_on_held_back_samples(monkeypatch):
    """The analytic shrinkage is taken where nothing else is clearly better, and given up where it is far too strong."""
    def taught(noise):
        rng = np.random.default_rng(0)
        known = Knowledge([FeatureTransform(20, 20)], Form(True), buffer(10 ** 6, dimension=20))
        for c in "abcdef":
            mean = np.r_[np.zeros(6), rng.standard_normal(14)]
            x = (mean + noise * rng.standard_normal((160, 20))).astype(np.float32)
            known.add(c, sample_keys(x), x)
        held = {c: np.stack([r.feature for r in rows]) for c, rows in held_out(known.exemplars(), known.plain).items()}
        rest, _ = Judge(known.statistics, known.form).rest(held, known.transforms[0])
        return known.judge("slda").head.weight, rest, known

    even, rest, known = taught(np.ones(20))
    assert (even == solve("slda", rest, known.transforms[0]).weight).all()
    monkeypatch.setattr("edgecl.statistics.covariance.oas_shrinkage", lambda *_: 0.99)
    _, _, known = taught(np.r_[np.full(6, 40.0), np.full(14, 0.3)])  # noise that must be whitened
    assert np.mean(list(known.judge("slda").accuracy.values())) > 0.9
    monkeypatch.setattr("edgecl.learning.judging.PENALTIES", ())
    assert np.mean(list(known.judge("slda").accuracy.values())) < 0.3


def test_a_curved_border_calls_for_the_projection_and_a_plane_one_does_not():
    x = np.random.default_rng(0).standard_normal((900, 3)).astype(np.float32)
    inside = (x ** 2).sum(1) < 2.4
    known = Knowledge([FeatureTransform(3, 3), FeatureTransform(3, 256, projected=True)], Form(True, None, 256),
                      buffer(dimension=3))
    for label, part in (("in", x[inside]), ("out", x[~inside])):
        known.add(label, sample_keys(part), part)
    assert known.judge("auto").head.kind == "ridge-projected"
    plane = knowledge({c: cloud(100, i, 2 * i) for i, c in enumerate("ab")}, Form(True, None, 32))
    assert plane.judge("auto").head.kind != "ridge-projected"


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e20])
def test_a_refused_sample_leaves_nothing_behind(bad):
    x = cloud(5)
    x[3, 2] = bad
    known = Knowledge([FeatureTransform(D, D), FeatureTransform(D, 32, projected=True)], Form(True, None, 32), buffer())
    with pytest.raises(BadInput):
        known.add("a", sample_keys(x), x)
    assert (known.statistics, known.stored, known.labels) == ({}, [], [])
    known.add("a", [1] * 5, cloud(5))
    before = known.snapshot()
    with pytest.raises(BadInput):
        known.add("b", sample_keys(x), x)
    assert known.snapshot() == before


def test_forgetting_is_exact_while_every_sample_is_stored():
    data = {c: cloud(20, i, i) for i, c in enumerate("abc")}
    for room, form, exact in ((1000, Form(True), True), (6, Form(True), False), (0, Form(False), True),
                              (1000, Form(True, 2), False)):
        known = knowledge(data, form, room)
        known.stored = known.exemplars()
        assert known.forget("b") is exact
        assert known.labels == ["a", "c"]
        assert {row.label for row in known.stored} <= {"a", "c"}
        assert known.judge("auto").head.labels == ("a", "c")
    left = knowledge(data, Form(True))
    left.forget("b")
    expected = knowledge({c: x for c, x in data.items() if c != "b"}, Form(True))
    assert np.allclose(left.plain.pooled().covariance, expected.plain.pooled().covariance)


def test_the_temperature_minimises_the_balanced_log_loss():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], [200, 50, 20])
    logits = rng.standard_normal((270, 3)) * 3
    logits[np.arange(270), truth] += 3
    weight = class_weights(truth)

    def loss(temperature):
        scaled = (logits - logits.max(1, keepdims=True)) / temperature
        return weight @ (np.log(np.exp(scaled).sum(1)) - scaled[np.arange(270), truth])

    for scale in (1.0, 1e-6, 1e9):
        temperature, losses = calibrate(logits * scale, truth)
        assert weight @ losses == pytest.approx(min(loss(t) for t in np.geomspace(0.01, 100, 4000)), rel=1e-4)
        assert weight @ losses == pytest.approx(loss(temperature / scale), rel=1e-6)
    assert weight.sum() == pytest.approx(1)
    assert [weight[truth == c].sum() for c in range(3)] == pytest.approx([1 / 3] * 3)


# choosing again ------------------------------------------------------------------------------------------------------


def test_other_heads_are_tried_again_when_a_tenth_more_is_held_back(monkeypatch):
    tried = []
    real = Trial.run.__func__
    monkeypatch.setattr(Trial, "run", classmethod(lambda cls, head, *rest: tried.append(head.kind) or real(
        cls, head, *rest)))
    data = {c: cloud(100, i, 0.3 * i) for i, c in enumerate("abcd")}
    known = knowledge(data)
    first = known.judge("auto")
    assert set(tried) == set(KINDS) and first.choice.judges >= 20 and first.choice.kind == first.head.kind
    assert Choice(*json.loads(json.dumps(first.summary()["choice"]))) == first.choice
    tried.clear()
    again = known.judge("auto", chosen=first.choice)
    assert tried == [first.choice.kind]
    assert again.choice == first.choice
    assert np.array_equal(again.head.weight, first.head.weight) and again.head.temperature == first.head.temperature
    assert again.head.novelty.threshold == first.head.novelty.threshold
    few = first.choice._replace(judges=int(first.choice.judges / 1.1) - 1)
    for chosen in (None, few, first.choice._replace(kind="trained"), first.choice._replace(judges=0)):
        tried.clear()
        known.judge("auto", chosen=chosen)
        assert len(set(tried)) == len(KINDS)
    tried.clear()
    assert known.judge("ridge", chosen=Choice("slda", 1.0, 1000)).head.kind == "ridge"  # another one was asked for


@pytest.mark.parametrize("penalty", [1 / 9, 3.0])
def test_a_chosen_penalty_is_kept_relative_to_the_analytic_one(penalty):
    known = knowledge({c: cloud(100, i, i) for i, c in enumerate("abcd")}, Form(True))
    judged = known.judge("auto", chosen=Choice("slda", penalty, 1000))
    held = {label: np.stack([row.feature for row in rows]) for label, rows in known.judges().items()}
    rest, _ = Judge(known.statistics, known.form).rest(held, known.transforms[0])
    assert judged.head.shrinkage == pytest.approx(min(rest.shrinkage * penalty, 1))
    assert judged.choice == Choice("slda", penalty, 1000)


@pytest.mark.parametrize("noise", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("seed", range(3))
def test_rounding_does_not_choose_where_classes_are_separable(seed, noise):
    rng = np.random.default_rng(seed)
    known = Knowledge([FeatureTransform(16, 16)], Form(True), buffer(10 ** 6, dimension=16))
    for label in "abcdefgh":
        known.add(label, list(range(40)), (5 * rng.standard_normal(16) + noise * rng.standard_normal((40, 16))
                                           ).astype(np.float32))
    judged = known.judge("auto")
    assert (judged.head.kind, judged.choice.penalty) == ("slda", 1.0)


def test_at_most_a_thousand_samples_judge_evenly_over_classes():
    def rows(n):
        return list(range(n))

    for sizes in ({"a": 5000, "b": 3}, {f"{i:04}": 1 + i % 3 for i in range(900)}, {f"{i:05}": 2 for i in range(2500)}):
        few = limited({label: rows(n) for label, n in sizes.items()})
        assert 900 <= sum(map(len, few.values())) <= 1000
        assert all(set(mine) <= set(rows(sizes[label])) and len(set(mine)) == len(mine) for label, mine in few.items())
        level = max(map(len, few.values()))
        assert all(len(mine) == min(sizes[label], level) for label, mine in few.items())
    assert limited({"a": rows(1000)}) == {"a": rows(1000)}
    few = limited({f"{i:05}": rows(2) for i in range(5000)}, 200)
    assert len(few) == 200 and all(len(mine) == 1 for mine in few.values())
    assert [int(label) // 25 for label in few] == list(range(200))


@pytest.mark.parametrize(("classes", "judges"), [(40, 40), (1200, 833)])
def test_with_many_classes_fewer_samples_judge(classes, judges):
    rng, known = np.random.default_rng(0), Knowledge([FeatureTransform(2, 2)], Form(True), buffer(10 ** 7, dimension=2))
    for number in range(classes):
        known.add(f"{number:05}", list(range(10)), rng.standard_normal((10, 2)).astype(np.float32))
    assert sum(map(len, known.judges().values())) == classes
    assert sum(known.judge("nearest-mean", known.judges()).held.values()) == judges


@pytest.mark.parametrize("form", [Form(True), Form(True, 2), Form(True, None, 32), Form(False)])
def test_nothing_is_left_of_the_last_class_even_if_few_of_its_samples_were_stored(form):
    known = knowledge({"large": cloud(60, 1) * np.float32(1000)}, form, 6)
    known.stored = known.exemplars()
    assert known.forget("large")
    known.load(known.snapshot(), [], known.exemplars())
    clean = knowledge({}, form)
    for c in "ab":
        for each in (known, clean):
            each.add(c, [*range(40)], cloud(40, ord(c), ord(c)))
    if form.second_moment:
        found, truth = (each.plain.pooled().covariance for each in (known, clean))
        assert np.abs(found - truth).max() < 1e-3 * np.abs(truth).max()


# forgetting what drowned the others ----------------------------------------------------------------------------------

SHAPES = {"wrong unit": lambda x, s: x * s, "one outlier": lambda x, s: np.r_[x[:1] * s, x[1:]],
          "far away": lambda x, s: x + s}


def told_apart(known, data):
    head = known.judge("slda").head
    labels = np.array(head.labels)
    return np.mean([(labels[head.logits(head.transform(x)).argmax(1)] == label).mean() for label, x in data.items()])


@pytest.mark.parametrize("form", [Form(True), Form(True, None, 32), Form(True, 2)], ids=["exact", "projected", "rank"])
@pytest.mark.parametrize("room", [10_000, 300, 0])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e4, 1e6])
def test_a_forgotten_class_that_drowned_the_others_leaves_a_head_that_works(scale, shape, room, form):
    data = {c: cloud(120, i) + np.float32(3) * np.eye(D, dtype=np.float32)[i] for i, c in enumerate("abcd")}
    wrong = SHAPES[shape](cloud(60, 9), scale).astype(np.float32)
    clean = knowledge(data, form, 10_000)
    known = knowledge({**data, "wrong": wrong}, form, room)
    for _ in range(2):
        known.load(known.snapshot(), [], known.exemplars())
    exact = known.forget("wrong")
    assert exact is not bool(known.remains)
    known.load(known.snapshot(), [], known.exemplars())
    found, truth = (k.plain.pooled().covariance for k in (known, clean))
    error = np.abs(found - truth).max() / np.abs(truth).max()
    if exact:
        assert error < 1e-3
        assert all(s.residual == 0 for s in known.statistics.values())
    for statistics in known.statistics.values():
        values = np.linalg.eigvalsh(statistics.scatter())
        assert values[0] >= -1e-6 * values[-1]
    if room == 10_000 and form.rank is None:    # what is left is stored as it was learned
        assert exact
    assert told_apart(known, data) > told_apart(clean, data) - 0.05


def test_many_forgotten_classes_add_up():
    """Each costs less than would be said, all together more."""
    data = {c: cloud(60, i, 2 * i) for i, c in enumerate("abc")}
    known = knowledge(data, Form(True), 10_000)
    told = []
    for i in range(30):
        large = cloud(40, 100 + i) * np.float32(900)
        known.stored = [row for row in known.stored if row.label == "a"]     # cannot be learned again
        known.add("large", sample_keys(large), large)
        known.load(known.snapshot(), [], known.stored)
        told.append(known.forget("large"))
        known.load(known.snapshot(), [], known.stored)
    assert told[0] and not told[-1]
    clean = knowledge(data, Form(True)).plain.scatter()
    error = np.abs(known.plain.scatter() - clean).max() / np.abs(clean).max()
    assert error < 10 * known.plain.rounding() < 0.1
