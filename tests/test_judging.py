"""Which head serves, and what is said of it: judged out of fold, whatever the order in which it was taught."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from edgecl.exemplars.buffer import Buffer
from edgecl.exemplars.codecs import codec_of
from edgecl.exemplars.columns import GrowingColumns
from edgecl.heads.onnx_head import HeadSession, build_head
from edgecl.heads.solvers import KINDS, solve
from edgecl.learning.judges import FEWEST_JUDGES, MAX_JUDGES, MOST_LOGITS, MOST_NUMBERS, judges_of
from edgecl.learning.judging import MIN_JUDGED, PRIOR_SAMPLES, SHRINKAGES
from edgecl.learning.knowledge import Knowledge
from edgecl.statistics.form import Form
from edgecl.statistics.transform import FeatureTransform


def taught(data, limit=10 ** 8, form=None, photos=False):
    """data: [(label, session numbers [n], own hashes [n], features [n, d])], taught in that order."""
    d, form = data[0][3].shape[1], form or Form(True)
    transforms = [FeatureTransform(d, d), *[FeatureTransform(d, 64, projected=True)] * bool(form.projected)]
    known = Knowledge(transforms, form, Buffer(limit, 2 ** 14, "reservoir", codec_of("raw", "feature", (d,))),
                      photos=photos)
    for label, sessions, own, x in data:
        known.add(label, [int(session) << 32 | int(each) for session, each in zip(sessions, own)], x)
    return known


def recordings(classes=5, d=12, people=6, each=6, shift=0.7, seed=0):
    """Windows of several people, each of whom does all: [(label, people, own hashes, features)]."""
    rng = np.random.default_rng(seed)
    means, habits = rng.normal(size=(classes, d)), shift * rng.normal(size=(people, d))
    of = np.repeat(np.arange(people), each)
    return [(f"class {number}", of, rng.integers(0, 2 ** 32, len(of)),
             (means[number] + habits[of] + rng.normal(size=(len(of), d))).astype(np.float32))
            for number in range(classes)]


def photos_of(classes=5, each=20, d=12, seed=0, spread=1.0):
    """Samples that each are a recording of their own."""
    rng = np.random.default_rng(seed)
    return [(f"class {number}", number * each + np.arange(each), rng.integers(0, 2 ** 32, each),
             (spread * rng.normal(size=d) + rng.normal(size=(each, d))).astype(np.float32))
            for number in range(classes)]


def answers(known, x):
    probabilities, unknown = HeadSession(build_head(known.judge("auto").head))(x)
    return probabilities, unknown


PROBE = 2 * np.random.default_rng(99).normal(size=(200, 12)).astype(np.float32)


@pytest.mark.parametrize("limit", [10 ** 8, 6000])
@pytest.mark.parametrize("data", [recordings(), recordings(people=2), photos_of(), photos_of(each=2)])
def test_answers_do_not_depend_on_order_numbers_or_commands(data, limit):
    expected = answers(taught(data, limit), PROBE)
    judged = taught(data, limit).judge("auto")
    rng = np.random.default_rng(0)
    for turn in range(24):
        numbers = rng.permutation(10 ** 6)[:1000]
        again = [(label, numbers[sessions], own, x) for label, sessions, own, x in data]
        if turn % 2:
            again = [again[place] for place in rng.permutation(len(again))]
        if turn % 3 == 2:   # in several commands
            again = [(label, s[part], own[part], x[part]) for label, s, own, x in again
                     for part in (slice(0, len(s) // 3), slice(len(s) // 3, None)) if len(s[part])]
        known = taught(again, limit)
        probabilities, unknown = answers(known, PROBE)
        assert np.abs(probabilities - expected[0]).max() < 1e-5
        assert (unknown == expected[1]).all()
        found = known.judge("auto")
        assert (found.judged, found.accuracy, found.head.kind) == (judged.judged, judged.accuracy, judged.head.kind)


def test_the_head_that_serves_has_learned_from_every_sample():
    data = photos_of()
    known = taught(data)
    head = known.judge("slda").head
    pooled = known.plain.pooled()
    assert head.shrinkage == pytest.approx(min(pooled.shrinkage, 0.7))
    assert np.array_equal(head.weight, solve("slda", pooled, known.transforms[0]).weight)
    assert {label: of for label, (_, of) in known.judge("slda").judged.items()} == {label: 20 for label, *_ in data}


def test_noise_is_judged_as_noise():
    """On pure noise a head scores chance on what it has not seen; on its own samples it would score all of them."""
    known = taught(photos_of(classes=10, each=6, d=200, spread=0))
    for kind in KINDS:
        if not kind.endswith("projected"):
            judged = known.judge(kind)
            assert np.sum([*judged.judged.values()], 0)[0] < 20
            assert np.mean([*judged.accuracy.values()]) < 0.35
    x = np.concatenate([x for *_, x in photos_of(classes=10, each=6, d=200, spread=0)])
    assert (known.judge("slda").head.logits(x).argmax(1) == np.repeat(np.arange(10), 6)).mean() > 0.95


def test_a_session_is_left_out_over_all_classes():
    """People differ more than what they do: windows of one's own person would answer for a person never seen."""
    by_person, mixed = (taught(recordings(shift=3, each=10)).judge("auto"), taught([
        (label, np.arange(len(own)) + 1000 * number, own, x)
        for number, (label, _, own, x) in enumerate(recordings(shift=3, each=10))]).judge("auto"))
    share = [np.sum([*found.judged.values()], 0) for found in (by_person, mixed)]
    assert share[0][0] / share[0][1] < share[1][0] / share[1][1] - 0.05


def test_the_shrinkage_climbs_from_a_floor_only_where_there_are_sessions():
    few = taught(recordings(people=5, each=60, shift=0.1)).judge("slda").head.shrinkage
    assert few in SHRINKAGES
    rng = np.random.default_rng(0)
    uneven = [(label, sessions, own, x * np.geomspace(1, 0.01, 12, dtype=np.float32))
              for label, sessions, own, x in photos_of(each=300)]
    assert taught(uneven).judge("slda").head.shrinkage < SHRINKAGES[0]
    sessions = [(label, np.arange(300) % 5, own, x) for label, _, own, x in uneven]
    assert taught(sessions).judge("slda").head.shrinkage == SHRINKAGES[0]
    parts = taught(sessions)                  # of which no session is stored whole, as beside a codebook
    parts.stored = [row._replace(coded="pq" if row.key % 4 else "") for row in parts.stored]
    assert not parts.judges().left.sessions and parts.judges().in_sessions
    assert parts.judge("slda").head.shrinkage == SHRINKAGES[0]
    habits = 8 * rng.normal(size=(4, 60))     # many directions, of which four people show hardly any
    means = rng.normal(size=(4, 60))
    data = [(label, np.repeat(np.arange(4), 40), rng.integers(0, 2 ** 32, 160), (
        means[number] + np.repeat(habits, 40, 0) * rng.normal(size=(160, 60)) * 0.2 + np.repeat(habits, 40, 0) * 0.3
        + 0.05 * rng.normal(size=(160, 60))).astype(np.float32)) for number, label in enumerate("abcd")]
    assert taught(data).judge("slda").head.shrinkage > SHRINKAGES[0]


@pytest.mark.parametrize(("each", "kind"), [(1, "ridge"), (3, "ridge"), (4, "slda")])
def test_ridge_serves_up_to_three_samples_per_class(each, kind):
    assert taught(photos_of(each=each)).judge("auto").head.kind == kind


@pytest.mark.parametrize(("each", "error"), [(1, 0.12), (2, 0.1), (3, 0.1), (5, 0.1), (20, 0.06)])
def test_confidence_is_sensible_from_one_sample_per_class_on(each, error):
    """Expected calibration error on digits, the mean of three draws."""
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    errors, sure = [], []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        mine = [rng.permutation(np.flatnonzero(y == number))[:each] for number in range(10)]
        known = taught([(f"{number}", places, rng.integers(0, 2 ** 32, each), x[places])
                        for number, places in enumerate(mine)])
        rest = np.setdiff1d(np.arange(len(x)), np.concatenate(mine))
        probabilities, _ = answers(known, x[rest])
        confidence, right = probabilities.max(1), probabilities.argmax(1) == y[rest]
        bins = (confidence * 10).astype(int)
        errors.append(sum(abs((confidence - right)[bins == each].sum()) for each in range(11)) / len(rest))
        sure.append(((confidence > 0.9) & ~right).mean())
    assert np.mean(errors) <= error
    assert np.mean(sure) <= 0.03


def test_class_figures_are_smoothed_and_silent_below_four():
    data = photos_of(spread=0.8)
    data[1] = tuple(each[:3] if not isinstance(each, str) else each for each in data[1])
    data[2] = tuple(each[:1] if not isinstance(each, str) else each for each in data[2])
    found = taught(data).judge("auto")
    assert found.judged["class 1"][1] == 3 < MIN_JUDGED
    assert "class 2" not in found.judged        # alone in its class, it can't be judged
    assert set(found.accuracy) == {"class 0", "class 3", "class 4"}
    mean = np.mean([right / of for right, of in found.judged.values()])
    for label, accuracy in found.accuracy.items():
        right, of = found.judged[label]
        assert accuracy == pytest.approx((right + PRIOR_SAMPLES * mean) / (of + PRIOR_SAMPLES), abs=1e-4)
    assert found.summary()["judged"]["class 0"] == [*found.judged["class 0"]]


def test_without_judging_samples_the_prior_alone_speaks():
    for limit in (10 ** 8, 1):
        judged = taught(photos_of(each=1 if limit > 1 else 20), limit).judge("auto")
        assert judged.loss is None or limit == 1
        assert judged.head.smoothing == 0
        assert 0 < judged.head.temperature < np.inf


def test_samples_that_a_round_was_tuned_on_do_not_judge_but_are_left_out_with_their_session():
    known = taught(recordings())
    known.stored = [row._replace(id=place) for place, row in enumerate(known.stored)]
    tuned = {row.id for row in known.stored if row.key % 3}
    known.mark(tuned, set())
    judges = known.judges()
    assert len(judges.left.rows) == len(known.stored) - len(tuned)
    assert judges.left.sessions
    for place, out in zip(judges.left.rows, judges.left.of):
        assert set(out) == set(np.flatnonzero(judges.rows.sessions == judges.rows.sessions[place]))
    assert known.judge("auto").head is not None


def test_rows_that_are_coded_are_never_taken_out():
    known = taught(photos_of())
    known.stored = [row._replace(coded="pq" if row.key % 2 else "") for row in known.stored]
    judges = known.judges()
    assert len(judges.rows.features) == sum(not row.coded for row in known.stored)


def judges_among(rows, counts, d=2):
    known = taught([("a", [0], [0], np.zeros((1, d), np.float32))])
    known.plain.counts = counts
    known.plain.sums = {label: np.zeros(d) for label in counts}
    return judges_of(rows, GrowingColumns()(rows), known.plain, known.transforms[0], True)


@pytest.mark.parametrize(("classes", "each"), [(3, 2000), (700, 4), (6000, 2), (40, 20)])
def test_at_most_so_many_judge_and_of_each_class_alike(classes, each):
    known = taught([("a", [0], [0], np.zeros((1, 2), np.float32))])
    first, counts = known.stored[0], {f"{number:05}": each for number in range(classes)}
    rng = np.random.default_rng(0)
    rows = [first._replace(label=label, key=int(key), feature=rng.normal(size=2).astype(np.float32))
            for label in counts for key in rng.integers(0, 2 ** 62, each)]
    found = judges_among(rows, counts)
    most = min(MAX_JUDGES, max(MOST_LOGITS // classes, FEWEST_JUDGES), MOST_NUMBERS // 2)
    sizes = np.bincount(found.truth, minlength=classes)
    assert min(most * 0.5, classes * each) <= len(found.truth) <= most
    assert sizes.max() - sizes.min() <= (1 if most < classes else 0)


def test_sessions_that_are_stored_in_part_are_not_left_out_as_such():
    data = recordings(people=40, each=6)
    known = taught(data, 20_000)
    kept = known.kept().columns.rows
    assert len(kept) < len(known.stored)
    judges = known.judges()
    taught_of = {session: sum(int((s == session).sum()) for _, s, _, _ in data) for session in range(40)}
    for place, out in zip(judges.left.rows, judges.left.of):
        session = judges.rows.sessions[place]
        if judges.rows.whole[place]:
            assert (judges.rows.sessions == session).sum() == taught_of[session]
        else:
            assert (judges.rows.classes[out] == judges.rows.classes[place]).all()


def test_the_lift_serves_only_if_it_is_clearly_better():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 12)).astype(np.float32)
    x[:, 3:] *= 0.2
    inside = (x[:, :3] ** 2).sum(1) < 2.4
    ring = [(label, np.arange(len(part)) + 1000 * place, rng.integers(0, 2 ** 32, len(part)), part)
            for place, (label, part) in enumerate((("in", x[inside]), ("out", x[~inside])))]
    form = Form(True, None, 64)
    assert taught(ring, form=form).judge("auto").head.kind == "slda-projected"
    assert taught(photos_of(each=60), form=form).judge("auto").head.kind == "slda"


def test_smoothing_is_part_of_the_exported_head():
    head = replace(taught(photos_of()).judge("auto").head, smoothing=0.1)
    probabilities, _ = HeadSession(build_head(head))(PROBE)
    plain, _ = HeadSession(build_head(replace(head, smoothing=0.0)))(PROBE)
    assert np.allclose(probabilities, 0.9 * plain + 0.1 / 5, atol=1e-6)


def test_long_features_whose_sessions_are_not_whole_are_shrunk_more():
    for d, least in ((64, SHRINKAGES[0]), (1024, SHRINKAGES[1])):
        rng = np.random.default_rng(0)
        spread = np.exp(-np.arange(d, dtype=np.float32) / 2)
        known = taught([(label, np.arange(200) % 5, rng.integers(0, 2 ** 32, 200),
                         (rng.normal(size=(200, d)) * spread + number * spread[0]).astype(np.float32))
                        for number, label in enumerate("ab")])
        known.stored = [row._replace(coded="pq" if row.key % 4 else "") for row in known.stored]
        judges = known.judges()
        assert judges.in_sessions and not judges.left.sessions
        assert known.plain.pooled().shrinkage < least
        assert known.judge("slda").head.shrinkage == least


def test_sessions_that_are_not_whole_make_no_head_as_sure_as_photos_may_be():
    """What is left of a session makes its windows easy: the same rows as photos, each on its own, may be surer."""
    data = recordings(people=5, each=40, shift=0.2)
    temperatures = []
    for apart in (False, True):
        known = taught([(label, np.arange(len(own)) + 1000 * number if apart else of, own, 4 * x)
                        for number, (label, of, own, x) in enumerate(data)])
        known.stored = [row._replace(coded="pq" if row.key % 4 else "") for row in known.stored]
        temperatures.append(known.judge("slda").head.temperature)
    assert temperatures[0] >= temperatures[1]


@pytest.mark.parametrize(("classes", "each"), [(400, 5), (999, 4)])
def test_every_class_of_many_has_a_figure(classes, each):
    known = taught([*photos_of(classes, each), ("few", np.arange(2) + 10 ** 6, np.arange(2), PROBE[:2])])
    judges, found = known.judges(), known.judge("slda")
    assert len(judges.left.rows) < MIN_JUDGED * classes
    assert set(found.accuracy) == {label for label in known.labels if label != "few"}
    assert min(of for label, (_, of) in found.judged.items() if label != "few") >= MIN_JUDGED
    assert not np.isin(judges.more.rows, judges.left.rows).any()


def test_samples_that_only_count_for_their_class_are_judged_as_the_others(monkeypatch):
    data = photos_of(400, 6)
    whole = taught(data).judge("slda")
    monkeypatch.setattr("edgecl.learning.judges.MOST_LOGITS", 4 * 400 * 400)    # four of each class judge at once
    at_once = taught(data)
    assert not len(at_once.judges().more.rows)
    assert at_once.judge("slda").judged == whole.judged
