"""What a learner knows: the heads that it gives are finite, whatever the data, and what is forgotten leaves nothing."""
from __future__ import annotations

import numpy as np
import pytest

from edgecl.errors import BadInput
from edgecl.exemplars.buffer import Buffer
from edgecl.exemplars.codecs import codec_of
from edgecl.exemplars.stored import row_bytes
from edgecl.heads.onnx_head import HeadSession, build_head
from edgecl.heads.solvers import KINDS
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
    assert known.judge("auto").summary() == {"judged": {}, "accuracy": {}, "head": None, "unknown_above": None}


def test_a_curved_border_calls_for_the_projection_and_a_plane_one_does_not():
    x = np.random.default_rng(0).standard_normal((900, 3)).astype(np.float32)
    inside = (x ** 2).sum(1) < 2.4
    known = Knowledge([FeatureTransform(3, 3), FeatureTransform(3, 256, projected=True)], Form(True, None, 256),
                      buffer(dimension=3))
    for label, part in (("in", x[inside]), ("out", x[~inside])):
        known.add(label, sample_keys(part), part)
    assert known.judge("auto").head.kind == "slda-projected"
    plane = knowledge({c: cloud(100, i, 2 * i) for i, c in enumerate("ab")}, Form(True, None, 32))
    assert plane.judge("auto").head.kind == "slda"


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
