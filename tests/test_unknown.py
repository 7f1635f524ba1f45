"""Unknown samples: scores, their scale out of fold and their threshold, against what they are by definition."""
from __future__ import annotations

from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from helpers_heads import learned

from edgecl.exemplars.buffer import FEWEST_EXACT, Buffer, _exact_ranks
from edgecl.exemplars.codecs import codec_of
from edgecl.exemplars.pseudo_samples import ClassGaussians
from edgecl.heads import unknown
from edgecl.heads.head import LEAST_DISTANCE, NearestRow, Novelty, Scale
from edgecl.heads.left_out import LearnedRows, LeftOut
from edgecl.heads.onnx_head import build_head
from edgecl.heads.out_of_fold import OutOfFold
from edgecl.heads.relative_distance import relative_distance
from edgecl.heads.solvers import solve
from edgecl.heads.unknown import MANY_CLASSES, MIN_JUDGES, ROW_BYTES, Judged, fit, rows_bytes, rows_held
from edgecl.learner import Learner
from edgecl.learning.knowledge import Knowledge
from edgecl.learning.plan import head_bytes
from edgecl.samples import NOTHING
from edgecl.settings import Settings
from edgecl.statistics.form import Form
from edgecl.statistics.transform import FeatureTransform


@pytest.mark.parametrize("scaled", [False, True])
def test_the_nearest_row_is_that_of_all_rows(scaled):
    rng = np.random.default_rng(3)
    rows, x = (3 + rng.standard_normal((n, 30)).astype(np.float32) for n in (50, 20))
    x = np.concatenate([x, rows[:3], np.zeros((1, 30), np.float32), 1e6 * rows[:1]])
    units = (rows.mean(0), 1 / rows.std(0)) if scaled else (None, None)
    nearest = NearestRow.of(rows, *units)

    def exact(a):
        a = (a.astype(np.float64) - units[0]) * units[1] if scaled else a.astype(np.float64)
        return a if scaled else a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-30)

    apart = ((exact(x)[:, None] - exact(rows)) ** 2).sum(2)
    size = (exact(rows) ** 2).sum(1).mean()
    found = np.exp(nearest(x))
    far = apart.min(1) > 0.01 * size
    assert np.abs(np.sqrt(found[far] / apart.min(1)[far]) - 1).max() < 0.1
    assert np.isfinite(nearest(x)).all()
    assert nearest.least == pytest.approx(LEAST_DISTANCE * size, rel=0.05)
    assert np.array_equal(nearest(x), np.concatenate([nearest(one[None]) for one in x]))


def knowledge(data, kind="feature", limit=100_000, covariance=True, sessions=None, statistics=False):
    """What is known after these classes of vectors (label -> [n, d])."""
    d = next(iter(data.values())).shape[1]
    buffer = Buffer(limit, 2 ** 14, "reservoir", codec_of("auto", "feature", (d,), 1.0))
    known = Knowledge([FeatureTransform(d, d)], Form(covariance), buffer,
                      ClassGaussians(limit // 2) if statistics else None, photos=kind == "image")
    rng = np.random.default_rng(0)
    for label, x in data.items():
        own = rng.integers(0, 2 ** 31, len(x))
        recordings = own if sessions is None else np.asarray(sessions[label])
        known.add(label, [int(r) << 32 | int(o) for r, o in zip(recordings, own)], np.asarray(x, np.float32))
    return known


def clouds(classes, n, d=40, seed=0, width=0.4):
    rng = np.random.default_rng(seed)
    return {f"c{c:02}": (2 + rng.standard_normal(d) + width * rng.standard_normal((n, d))).astype(np.float32)
            for c in range(classes)}


def novelty_of(known):
    head = known.judge("auto").head
    return head, head.novelty


def called(known, x):
    head, novelty = novelty_of(known)
    x = np.asarray(x, np.float32)
    return novelty.score(head.transform.plain(x), head.logits(head.transform(x))) > novelty.threshold


@pytest.mark.parametrize("kind", ["image", "feature"])
@pytest.mark.parametrize(("classes", "n"), [(1, 3), (1, 30), (2, 4), (5, 10), (MANY_CLASSES + 5, 12)])
def test_strangers_are_unknown_from_three_samples_of_one_class_on(kind, classes, n):
    every = clouds(classes + 3, n + 40)
    taught = {label: x[:n] for label, x in [*every.items()][:classes]}
    known = knowledge(taught, kind)
    near = np.concatenate([x for label, x in every.items() if label not in taught])
    rest = np.concatenate([every[label][n:] for label in taught])
    assert called(known, near).mean() > 0.95
    assert called(known, rest).mean() < 0.15
    far = np.random.default_rng(9).normal(size=(5, 40))
    assert called(known, np.concatenate([np.full((1, 40), -50.0), np.zeros((1, 40)), 40 * far])).all()


@pytest.mark.parametrize(("counts", "needs"), [((1,), 2), ((2,), 1), ((1, 1), 2), ((2, 1), 1), ((1, 1, 1, 1), 2),
                                               ((3,), 0), ((2, 2), 0), ((5, 1), 0)])
def test_before_that_it_says_how_many_samples_are_missing(counts, needs):
    every = clouds(len(counts), 12)
    taught = {label: x[:n] for (label, x), n in zip(every.items(), counts)}
    novelty = novelty_of(knowledge(taught))[1]
    assert novelty.needs == needs
    assert np.isfinite(novelty.threshold) == (needs == 0)
    if needs:   # so many more of the largest class are enough, one fewer is not
        largest = max(taught, key=lambda label: len(taught[label]))
        for more in (needs - 1, needs):
            x = every[largest][:len(taught[largest]) + more]
            assert np.isfinite(novelty_of(knowledge({**taught, largest: x}))[1].threshold) == (more == needs)


@pytest.mark.parametrize("head", ["nearest-mean", "cosine"])
def test_a_head_without_covariance_tells_strangers_too(head):
    known = knowledge(clouds(3, 20), covariance=False)
    found = known.judge(head).head
    x = np.random.default_rng(8).standard_normal((50, 40)).astype(np.float32) * 3
    assert (found.novelty.score(x, found.logits(x)) > found.novelty.threshold).all()
    assert found.novelty.near is None


def test_samples_that_are_all_alike_do_not_break_it():
    x = np.ones((20, 40), np.float32)
    known = knowledge({"a": x})
    assert not called(known, x).any()
    assert called(known, -x).all()
    assert np.isfinite(novelty_of(knowledge({"a": x, "b": x, "c": 0 * x}))[1].threshold)


def test_a_sample_is_compared_with_no_row_of_its_own_session():
    """Each session is a copy of one window: left out as a whole, what is left is far away."""
    rng = np.random.default_rng(0)
    centres = 2 + rng.standard_normal((6, 40))
    x = np.repeat(centres, 10, 0) + 0.01 * rng.standard_normal((60, 40))
    known = knowledge({"a": x}, sessions={"a": np.repeat(np.arange(6), 10)})
    assert called(known, 2 + rng.standard_normal((200, 40))).mean() < 0.2
    assert called(known, 2 + 4 * rng.standard_normal((200, 40))).mean() > 0.9


def brute_force(known, left_rows):
    """`near` out of fold of some judging rows, all in d dimensions, from statistics without what is left out."""
    judges, head = known.judges(), known.judge("auto").head
    rows, labels, found = judges.rows, known.labels, []
    x = np.array(rows.features, np.float64)
    pooled = known.plain.pooled()
    e, f, d = head.shrinkage, pooled.freedom, x.shape[1]
    rho = e * np.trace(pooled.covariance) / d
    for place in left_rows:
        stay = np.setdiff1d(np.arange(len(x)), judges.left.of[place])
        means = np.stack([x[stay][rows.classes[stay] == c].mean(0) for c in range(len(labels))])
        apart = x[stay] - means[rows.classes[stay]]
        within = (1 - e) * apart.T @ apart / f + rho * np.eye(d)
        scale = (len(stay) - len(labels)) / f
        inner = np.linalg.inv(within) * scale
        own = x[judges.left.rows[place]] - pooled.centre
        centred = means - pooled.centre
        md = min((own - m) @ inner @ (own - m) for m in centred)
        # MD_0 keeps the metric of all samples between the means, see `unknown._relative`
        z = centred @ inner @ own
        full = np.linalg.inv((1 - e) * pooled.covariance + rho * np.eye(d))
        gram = pooled.means @ full @ pooled.means.T + np.diag(1 / pooled.share)
        found.append(md - (own @ inner @ own - z @ np.linalg.solve(gram, z)))
    return np.array(found)


def test_the_relative_distance_out_of_fold_is_the_one_solved_again():
    known = knowledge(clouds(4, 25, d=15, width=0.8))
    judges, judged = known.judges(), known.judge("slda")
    pooled = replace(known.plain.pooled(), penalty=judged.head.shrinkage)
    out = OutOfFold.of(pooled, judges.rows, judges.left, judged.head.shrinkage)
    few = np.arange(0, len(judges.left.rows), 7)
    found, expected = unknown._relative(pooled, out, few), brute_force(known, few)
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


def test_rows_are_of_each_class_equally_many_whatever_the_order():
    data = clouds(5, 40)
    data["c00"] = data["c00"][:3]
    found = [novelty_of(knowledge(dict(order), limit=100_000))[1] for order in (data.items(), [*data.items()][::-1])]
    most = rows_held(100_000, False, 40, 5)
    assert len(found[0].like.rows) == min(most, 163)
    small = novelty_of(knowledge(data, limit=8_000))[1]
    assert 0 < len(small.like.rows) <= rows_held(8_000, False, 40, 5) < 163
    assert small.like.rows.nbytes < rows_bytes(8_000, False, 40, 5)
    rows = LearnedRows([*np.concatenate([*data.values()])], FeatureTransform(40, 40),
                       np.repeat(np.arange(5), [3, *[40] * 4]), np.arange(163),
                       np.random.default_rng(4).permutation(163), np.ones(163, np.bool_))
    kept = unknown._kept(rows, 50)
    assert np.bincount(rows.classes[kept]).tolist() == [3, 11, 11, 11, 11]
    for c in range(5):
        mine = rows.classes == c
        assert set(rows.own[kept][rows.classes[kept] == c]) == set(np.sort(rows.own[mine])[:11])
    assert len(unknown._kept(rows, 4)) == 0


def test_more_bytes_for_exemplars_are_never_fewer_rows_and_never_pass_the_limit():
    for photos in (False, True):
        held = [rows_held(exemplars, photos, 672, 9) for exemplars in range(0, 20_000_000, 50_000)]
        assert held == sorted(held) and held[0] == 0
        assert held[-1] * 672 <= unknown.ROWS_NUMBERS[photos]
    assert rows_bytes(0, True, 1280, 1) == 0


def test_without_room_for_rows_the_relative_distance_alone_tells():
    known = knowledge(clouds(12, 12), limit=1_900)   # some samples are kept, but not a row of each class in the head
    assert len(known.kept().columns.rows) >= 3 and not rows_held(1_900, False, 40, 12)
    head, novelty = novelty_of(known)
    assert novelty.like is None and novelty.near is not None and np.isfinite(novelty.threshold)
    assert len(build_head(head)) < 12_000


def test_no_row_is_held_where_no_sample_may_be_kept():
    known = knowledge(clouds(3, 30), statistics=True)
    novelty = novelty_of(known)[1]
    assert novelty.like is None
    assert novelty.near is not None and np.isfinite(novelty.threshold)


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 6.3138), (2, 2.9200), (3, 2.3534), (5, 2.0150), (10, 1.8125),
                                                   (30, 1.6973), (1000, 1.6464)])
def test_the_quantile_of_student(freedom, quantile):
    assert unknown.t95(freedom) == pytest.approx(quantile, rel=0.004)


def test_with_fewer_sessions_it_is_more_careful():
    scores = np.random.default_rng(0).standard_normal(60)
    limits = [unknown._threshold(scores, groups, 2, False) for groups in (1, 2, 3, 10, 60)]
    assert limits == sorted(limits, reverse=True) and limits[0] > limits[-1]


def test_judges_without_any_row_left_give_no_threshold():
    pooled = learned(2, 12)[0]
    rows = LearnedRows([], FeatureTransform(12, 12), *(np.zeros(0, np.int64) for _ in range(3)), np.zeros(0, np.bool_))
    judged = Judged(rows, LeftOut(np.zeros(0, np.int64), [], False), np.zeros(0, np.int64), np.zeros(0, np.int64),
                    pooled, False, 10_000)
    novelty = fit(solve("slda", pooled, FeatureTransform(12, 12)), pooled, None, judged)
    assert novelty.needs is None and not np.isfinite(novelty.threshold)


def test_a_broad_class_does_not_make_it_lenient_for_a_tight_one():
    """Strangers as far from the tight class as samples of the broad one are from theirs."""
    rng = np.random.default_rng(5)
    centre = np.zeros((2, 40))
    centre[1, :] = 10
    data = {label: (middle + width * rng.standard_normal((60, 40))).astype(np.float32)
            for label, middle, width in zip(("tight", "broad"), centre, (0.2, 2.0))}
    known = knowledge(data, sessions={label: np.arange(60) // 3 for label in data})
    scale = novelty_of(known)[1].like_scale
    assert scale.mean[1] < scale.mean[0] - 2     # alphabetical: broad, tight
    rest = {label: middle + width * rng.standard_normal((200, 40)) for label, middle, width in
            zip(("tight", "broad"), centre, (0.2, 2.0))}
    assert called(known, 1.2 * rng.standard_normal((200, 40))).mean() > 0.9
    assert called(known, rest["tight"]).mean() < 0.15 and called(known, rest["broad"]).mean() < 0.15


def test_scales_of_classes_begin_with_that_of_all():
    rng = np.random.default_rng(2)
    scores = np.concatenate([rng.standard_normal(500), 5 + 3 * rng.standard_normal(500), [40.0]])
    best = np.repeat([0, 1, 2], [500, 500, 1])
    mean, deviation = unknown._scale(scores, best, 4, 0.05)
    assert np.abs(mean[:2] - [0, 5]).max() < 0.3 and np.abs(deviation[:2] - [1, 3]).max() < 0.3
    assert mean[3] == pytest.approx(scores.mean(), rel=1e-6)        # no sample was taken for it
    assert deviation[3] == pytest.approx(scores.std(ddof=1), rel=1e-6)
    assert mean[3] < mean[2] < mean[3] + 0.25 * (40 - mean[3])      # one sample weighs little
    assert (unknown._scale(np.zeros(5), np.zeros(5, np.int64), 2, 0.05).deviation >= np.float32(0.05)).all()


def test_independent_samples_are_kept_known_at_a_rate_and_others_with_more_care():
    for n in (60, 300, 2000):
        scores = np.random.default_rng(n).standard_normal(n)
        sure, careful = (unknown._threshold(scores, n, 5, independent) for independent in (True, False))
        assert 0.95 <= (scores <= sure).mean() <= 0.975 and sure < careful
    few = np.random.default_rng(0).standard_normal(60)
    assert unknown._threshold(few, 4, 5, True) == unknown._threshold(few, 4, 5, False)    # four sessions tell little
    assert unknown._threshold(few, 60, 1, False) < unknown._threshold(few, 60, 2, False)


def test_the_class_nothing_has_no_part_in_the_threshold():
    """However far its samples are from each other."""
    every, sessions = clouds(2, 200), np.arange(60) // 2
    data = {label: x[:60] for label, x in every.items()}
    far = (100 * np.random.default_rng(3).standard_normal((60, 40))).astype(np.float32)
    limits = []
    for broad in (far, 2 * far):
        known = knowledge({**data, NOTHING: broad}, sessions=dict.fromkeys([*data, NOTHING], sessions))
        head, novelty = novelty_of(known)
        place = head.labels.index(NOTHING)
        assert novelty.like_scale.mean[place] < 3       # of all named ones, not log(100 ** 2)
        rest = np.concatenate([x[60:] for x in every.values()])
        assert called(known, rest).mean() < 0.15
        limits.append(novelty.threshold)
    assert np.ptp(limits) < 0.5


@pytest.mark.parametrize("classes", [2, 50, 900])
def test_the_plan_of_a_head_has_room_for_its_scales(classes):
    pooled = learned(classes, 16, 3)[0] if classes > 2 else learned(classes, 16)[0]
    head = solve("slda", pooled, FeatureTransform(16, 16))
    rows = NearestRow.of(np.random.default_rng(0).standard_normal((64, 16)).astype(np.float32),
                         np.zeros(16, np.float32), np.ones(16, np.float32))
    scale = Scale(np.zeros(classes, np.float32), np.ones(classes, np.float32))
    novelty = Novelty(relative_distance(head, pooled), scale, rows, scale, threshold=1.0)
    names = sum(len(label) + 4 for label in head.labels)
    room = head_bytes(16, classes, Form(True), names, 64 * (16 + ROW_BYTES) + 8 * 16)
    assert len(build_head(replace(head, novelty=novelty))) <= room


def coded(path, dimension, limit):
    """A state of four classes whose buffer is so small that most samples are coded."""
    learner = Learner.create(path, Settings("identity", 60_000_000, limit, "pq"))
    for seed, label in enumerate("abcda"):
        learner.learn(np.random.default_rng(seed).normal(seed % 4, 1, (60, dimension)).astype(np.float32), label)
    return learner


def test_where_every_sample_is_coded_no_number_of_samples_is_said_to_be_missing(tmp_path):
    # a quarter of the buffer is too small for samples that stay as they were learned, so that they could judge
    with closing(coded(tmp_path / "state", 1280, 14_000)) as learner:
        status, [found] = learner.status(), learner.predict(np.zeros((1, 1280), np.float32))
        assert status.unknown_needs is None
        assert found.unknown is None
        assert "keeps no samples as they were learned" in found.reason


def test_as_many_samples_stay_exact_beside_a_codebook_as_can_judge():
    assert FEWEST_EXACT == MIN_JUDGES


@pytest.mark.parametrize(("dimension", "limit"), [(64, 2_000), (64, 4_000), (256, 5_000), (1280, 18_000)])
def test_three_exact_samples_beside_a_codebook_are_enough_to_tell_what_is_unknown(tmp_path, dimension, limit):
    with closing(coded(tmp_path / "state", dimension, limit)) as learner:
        x = np.random.default_rng(9).standard_normal((80, dimension)).astype(np.float32)
        known, far = learner.predict(x + np.arange(80)[:, None] % 4), learner.predict(9 * x)
        assert np.mean([answer.unknown for answer in known]) < 0.1
        assert np.mean([answer.unknown for answer in far]) > 0.6


@pytest.mark.parametrize("taught", "ae")
def test_a_class_without_an_exact_sample_is_not_unknown_since_others_have_some(tmp_path, monkeypatch, taught):
    # as in a state of an earlier edgecl, which coded every sample of so small a buffer
    monkeypatch.setattr("edgecl.exemplars.buffer.FEWEST_EXACT", 20)
    with closing(coded(tmp_path / "state", 64, 4_000)) as learner:
        monkeypatch.undo()
        more = np.random.default_rng(77).normal("abcde".index(taught), 1, (20, 64)).astype(np.float32)
        learner.learn(more, taught)
        x = np.random.default_rng(9).standard_normal((80, 64)).astype(np.float32)
        assert np.mean([answer.unknown for answer in learner.predict(x + 3)]) < 0.15
        assert np.mean([answer.unknown for answer in learner.predict(9 * x)]) > 0.9


def in_sessions(count, n, seed, d=40, apart=0.3):
    """Two classes of vectors in so many sessions that each have an offset of their own, and the number of each."""
    rng = np.random.default_rng(seed)
    offset = apart * rng.standard_normal((count, 1, d))
    data = {label: (middle + offset + 0.1 * rng.standard_normal((count, n, d))).reshape(-1, d).astype(np.float32)
            for label, middle in (("a", -3.0), ("b", 3.0))}
    return data, dict.fromkeys(data, np.repeat(np.arange(count), n))


def test_whom_nobody_has_seen_is_known_if_rows_of_the_own_session_do_not_count():
    data, sessions = in_sessions(6, 20, seed=1)
    known = knowledge(data, sessions=sessions)
    judges, head, pooled = known.judges(), known.judge("auto").head, known.plain.pooled()
    each = np.arange(len(judges.rows.classes))
    alone = LeftOut(each, [*each[:, None]], False)
    judged = Judged(judges.rows, alone, each, judges.rows.classes, pooled, False, 100_000)
    new = np.concatenate([*in_sessions(5, 20, seed=2)[0].values()])

    def refused(judged):
        novelty = fit(head, pooled, None, judged)
        return float((novelty.score(new, head.logits(new)) > novelty.threshold).mean())

    assert refused(judged) > 0.9        # those of the own session are the nearest, by far
    assert refused(judged._replace(in_sessions=True)) < 0.4


def test_classes_of_one_session_alone_judge_by_all_rows():
    data, sessions = in_sessions(1, 20, seed=1)
    known = knowledge(data, sessions=sessions)
    judges, pooled = known.judges(), known.plain.pooled()
    each = np.arange(len(judges.rows.classes))
    alone = LeftOut(each, [*each[:, None]], False)
    judged = Judged(judges.rows, alone, each, judges.rows.classes, pooled, False, 100_000)
    thresholds = {fit(known.judge("auto").head, pooled, None, judged._replace(in_sessions=way)).threshold
                  for way in (False, True)}
    assert np.isfinite([*thresholds]).all()


def test_what_stays_as_it_was_learned_is_of_as_many_sessions_as_there_are():
    """A quarter of a buffer with codes: rows of one session alone would not tell how others differ."""
    data, sessions = in_sessions(6, 60, seed=3)
    known = knowledge(data, sessions=sessions, limit=30_000)
    columns = known.kept().columns
    for label in data:
        order = np.argsort(_exact_ranks(columns))
        mine = order[columns.rows["label"][order] == columns.labels.index(label)]
        assert len(np.unique(columns.rows["key"][mine[:6]] >> 32)) == 6
