"""Advice: confused pairs and where they come from, an exact learning curve, and silence where numbers are few."""
from __future__ import annotations

import json

import numpy as np
import pytest
from helpers_daemon import serving
from helpers_state import create, refused, vectors

from edgecl.cli import main
from edgecl.heads.left_out import LeftOut
from edgecl.heads.solvers import solve
from edgecl.learner import Learner
from edgecl.learning.judges import judges_of
from edgecl.learning.learning_curve import learning_curve
from edgecl.samples import Sample
from edgecl.statistics.class_statistics import ClassStatistics

NAMES = "abcdefgh"


def taught(path, classes, **settings):
    """A state that was taught these samples: name -> [(source, features [n, d])]."""
    learner = create(path, **{"quota": 8_000_000, "exemplars": 2_000_000, **settings})
    for name, sources in classes.items():
        learner.learn([Sample(x.astype(np.float32), source, at=number, unit="row")
                       for source, rows in sources for number, x in enumerate(rows)], name)
    return learner


def blobs(count, apart, classes=2, d=6, seed=0):
    """Samples [count, d] of each class; apart: of their means along one axis, in standard deviations."""
    rng = np.random.default_rng(seed)
    return {NAMES[c]: rng.normal(size=(count, d)) + np.eye(d)[0] * apart * c for c in range(classes)}


def test_a_confused_pair_is_named_with_its_numbers(tmp_path):
    x = blobs(60, 1.5)
    learner = taught(tmp_path / "s", {name: [("", rows)] for name, rows in x.items()})
    found = learner.advise()
    learner.close()
    pair, = found.confused
    assert {pair.label, pair.taken_for} == {"a", "b"}
    assert 3 <= pair.wrong <= 30
    assert (pair.of, pair.back_of) == (60, 60)
    assert found.right == pytest.approx(1 - (pair.wrong + pair.back_wrong) / 120, abs=1e-4)
    assert found.advice[0].startswith(f"{pair.label!r} is taken for {pair.taken_for!r}: {pair.wrong} of 60 judged")


def test_the_recording_that_most_mistakes_come_from_is_named(tmp_path):
    x = blobs(60, 9)
    astray = np.random.default_rng(1).normal(size=(8, 6)) + np.eye(6)[0] * 6
    learner = taught(tmp_path / "s", {"a": [("day.csv", x["a"]), ("night.csv", astray)], "b": [("other.csv", x["b"])]})
    pair, = learner.advise().confused
    sentence = learner.advise().advice[0]
    learner.close()
    assert (pair.label, pair.taken_for, pair.source) == ("a", "b", "night.csv")
    assert pair.from_source == pair.wrong >= 6
    assert f"{pair.wrong} of the {pair.wrong} are from night.csv" in sentence


def test_mistakes_from_everywhere_name_no_recording(tmp_path):
    x = blobs(80, 1.5)
    learner = taught(tmp_path / "s", {name: [("one.csv", rows[:40]), ("two.csv", rows[40:])]
                                      for name, rows in x.items()})
    pair, = learner.advise().confused
    learner.close()
    assert (pair.source, pair.from_source) == (None, 0)


def test_a_photo_of_its_own_is_counted_by_its_folder(tmp_path):
    x = blobs(60, 9)
    astray = np.random.default_rng(1).normal(size=(8, 6)) + np.eye(6)[0] * 6
    learner = create(tmp_path / "s", quota=8_000_000, exemplars=2_000_000)
    learner.learn([Sample(row.astype(np.float32), f"day/{i}.jpg") for i, row in enumerate(x["a"])]
                  + [Sample(row.astype(np.float32), f"night/{i}.jpg") for i, row in enumerate(astray)], "a")
    learner.learn(x["b"].astype(np.float32), "b")
    pair, = learner.advise().confused
    learner.close()
    assert pair.source == "night"


def test_few_samples_carry_no_advice(tmp_path):
    for count in (2, 3, 5):
        x = blobs(count, 0.5, classes=3)
        learner = taught(tmp_path / str(count), {name: [("", rows)] for name, rows in x.items()})
        found = learner.advise()
        learner.close()
        assert found.all_need is None
        assert {each.verdict for each in found.classes} == {None}
        assert not any("will" in sentence for sentence in found.advice)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_known_well_needs_no_more(tmp_path, seed):
    x = blobs(80, 8, classes=3, seed=seed)
    learner = taught(tmp_path / "s", {name: [("", rows)] for name, rows in x.items()})
    found = learner.advise()
    learner.close()
    assert [each.verdict for each in found.classes] == ["enough"] * 3
    assert found.all_need == "enough"
    assert "enough samples" in found.advice[0]
    assert found.advice[-1].endswith("more samples of these classes will hardly help")
    assert found.confused == []


def test_what_still_gains_needs_more(tmp_path):
    """200 features, 4 classes of 30: the means are not known well yet."""
    rng = np.random.default_rng(0)
    means = rng.normal(size=(4, 200)) * 0.2
    x = {NAMES[c]: means[c] + rng.normal(size=(30, 200)) for c in range(4)}
    learner = taught(tmp_path / "s", {name: [("", rows)] for name, rows in x.items()})
    found = learner.advise()
    learner.close()
    assert found.right > found.right_with_three_quarters > found.right_with_half
    assert found.all_need == "more"
    assert found.advice[-1].endswith("more samples will help")


def test_overlap_that_no_more_samples_cure_is_told_apart_from_too_few(tmp_path):
    x = blobs(400, 2, d=3)
    learner = taught(tmp_path / "s", {name: [("", rows)] for name, rows in x.items()})
    found = learner.advise()
    learner.close()
    assert {each.verdict for each in found.classes} == {"other"}
    assert any("more samples like these will hardly help" in sentence for sentence in found.advice)


def test_the_curve_is_that_of_states_that_were_taught_less(tmp_path):
    x = blobs(40, 3, classes=3)
    learner = taught(tmp_path / "s", {name: [("", rows)] for name, rows in x.items()})
    known = learner.repository.known()
    transform, plain = known.transforms[0], known.plain
    judges = judges_of(known.stored, known.kept().columns, plain, transform, True)
    judges = judges._replace(left=LeftOut(judges.left.rows, [row[None] for row in judges.left.rows], False))
    curve, said = learning_curve(plain, judges, "slda")
    labels = plain.labels
    rows, expected = judges.rows, {}
    h = rows.h(np.arange(len(rows.classes)))
    rank = np.arange(len(rows.classes)) - np.searchsorted(rows.classes, rows.classes)   # by own hash
    for name, draws in (("full", [(1, 1)]), ("half", [(2, 0), (2, 1)]), ("three_quarters", [(4, 0), (4, 2)])):
        right = []
        for one_in, first in draws:
            kept = rank % one_in != first
            some = []
            for row in judges.left.rows.tolist():
                statistics = ClassStatistics(h.mean(0), True)
                for label in range(3):
                    mine = kept & (rows.classes == label)
                    mine[row] = False
                    statistics.add(labels[label], h[mine])
                head = solve("slda", statistics.pooled(), transform)
                some.append(int(head.logits(h[row:row + 1])[0].argmax()) == rows.classes[row])
            right.append(some)
        expected[name] = np.mean(right, 0)
    learner.close()
    for name, values in expected.items():
        assert np.mean(getattr(curve, name) == values) >= 0.98, name
    assert np.array_equal(curve.full, said == judges.truth)


def test_sessions_are_left_out_as_a_whole(tmp_path):
    rng = np.random.default_rng(0)
    learner = create(tmp_path / "s", quota=8_000_000, exemplars=2_000_000)
    for number, name in enumerate("abc"):
        learner.learn([Sample((rng.normal(size=8) + 4 * np.eye(8)[number] + person).astype(np.float32),
                              f"{person}.csv", session=str(person))
                       for person in range(6) for _ in range(8)], name)
    found = learner.advise()
    learner.close()
    assert found.judged == 144
    assert found.right_with_half is not None


@pytest.mark.parametrize("settings", [{"head": "nearest-mean"}, {"head": "ridge"}, {"head": "auto"},
                                      {"codec": "pq", "exemplars": 12_000}])
def test_every_kind_of_head_and_memory(tmp_path, settings):
    x = blobs(100, 2, classes=3)
    learner = taught(tmp_path / "s", {name: [("", rows)] for name, rows in x.items()}, **settings)
    found = learner.advise()
    head = learner.status().head
    learner.close()
    assert found.head == head
    assert found.advice


def test_what_can_not_be_judged_is_refused_with_the_cure(tmp_path, capsys):
    learner = create(tmp_path / "s")
    learner.close()
    assert "learned nothing yet" in refused(capsys, "advise", "--state", tmp_path / "s")
    learner = Learner.open(tmp_path / "s")
    learner.learn(vectors("ant", 5), "ant")
    learner.close()
    assert "knows 1 class" in refused(capsys, "advise", "--state", tmp_path / "s")
    learner = create(tmp_path / "m", memory="statistics")
    learner.learn(vectors("ant", 40), "ant"), learner.learn(vectors("wasp", 40), "wasp")
    learner.close()
    assert "keeps no samples" in refused(capsys, "advise", "--state", tmp_path / "m")


def test_one_sample_of_each_class_can_not_judge(tmp_path):
    learner = taught(tmp_path / "s", {name: [("", rows)] for name, rows in blobs(1, 3, classes=3).items()})
    found = learner.advise()
    learner.close()
    assert (found.judged, found.right) == (0, None)
    assert found.advice == ["no stored sample can judge: teach two or more samples of each class"]


def test_the_command_and_a_daemon_say_the_same(tmp_path, capsys):
    with serving(tmp_path / "s", control=(60.0, 60.0)):
        assert main(["advise", "--state", str(tmp_path / "s"), "--json"]) == 0
        through = json.loads(capsys.readouterr().out)
        assert main(["advise", "--state", str(tmp_path / "s")]) == 0
        lines = capsys.readouterr().out.splitlines()
    learner = Learner.open(tmp_path / "s")
    assert json.loads(json.dumps(learner.advise().to_json())) == through
    learner.close()
    assert lines == through["advice"]
    assert {"class", "taught", "stored", "judged", "right", "right_with_half", "verdict"} == {*through["classes"][0]}
