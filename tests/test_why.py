"""Why an answer is what it is: the likeliest classes, the nearest stored samples, how far outside; on real digits."""
from __future__ import annotations

import json

import numpy as np
import pytest
from helpers_daemon import serving
from helpers_http import image_state, packed, shades, web, web_of
from helpers_state import create, vectors

from edgecl.cli import main
from edgecl.errors import BadInput
from edgecl.evaluation.datasets import digits
from edgecl.heads import nearest
from edgecl.heads.nearest import NearestSamples
from edgecl.learner import Learner
from edgecl.results import Prediction
from edgecl.samples import NOTHING
from edgecl.settings import Settings
from edgecl.statistics.transform import FeatureTransform

KNOWN = range(7)    # digits that are taught; 7, 8 and 9 never are


@pytest.fixture(scope="module")
def split():
    found = digits()
    return found.x_train.reshape(len(found.x_train), -1).astype(np.float32), found.y_train, \
        found.x_test.reshape(len(found.x_test), -1).astype(np.float32), found.y_test


@pytest.fixture(scope="module")
def taught(split, tmp_path_factory):
    """A state that knows seven digits as vectors."""
    x, y, _, _ = split
    learner = Learner.create(tmp_path_factory.mktemp("why") / "state", Settings("identity", 16_000_000, 1_000_000))
    for digit in KNOWN:
        learner.learn(x[y == digit], f"digit {digit}")
    yield learner
    learner.close()


def brute_force(x, rows, photos):
    """Squared distances in units of the deviation, or of vectors of length 1."""
    a, b = np.asarray(x, np.float64), np.asarray(rows, np.float64)
    if photos:
        a, b = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (a, b))
    return ((a[:, None] - b) ** 2).sum(2)


@pytest.mark.parametrize("photos", [True, False])
@pytest.mark.parametrize("axes", [False, True])
def test_the_nearest_of_all_stored_samples_are_found(split, monkeypatch, photos, axes):
    x, y, asked, _ = split
    x, y, asked = x[:700] + 0.01, y[:700], asked[:100] + 0.01
    if axes:
        monkeypatch.setattr(nearest, "MOST_NUMBERS", {True: 2 ** 12, False: 2 ** 12})
    found = NearestSamples(list(x), y, FeatureTransform(64, 64), photos)
    places, similarities = found(asked)
    units = np.ones(64) if photos else \
        (0.9 * (v := sum(x[y == c].var(0) * (y == c).sum() for c in np.unique(y)) / 690) + 0.1 * v.mean()) ** -0.5
    apart = brute_force((asked - x.mean(0) * (not photos)) * units, (x - x.mean(0) * (not photos)) * units, photos)
    best = np.sort(apart, 1)[:, :3]
    near = np.take_along_axis(apart, places, 1)
    assert (near <= best * 1.02 + 1e-3 * best.mean()).mean() > (0.95 if axes else 0.97)     # up to rounding
    assert (np.diff(similarities, axis=1) <= 0).all() and similarities.max() <= 1
    own, same = found(x)
    assert (same[:, 0] > 0.999).all() and (own[:, 0] == np.arange(700)).mean() > 0.97      # a sample is like itself
    if photos:
        assert np.abs(similarities - (1 - near / 2)).max() < 2e-3     # the cosine


def test_fewer_stored_samples_than_are_asked_for_and_all_alike():
    x, same = np.ones((2, 8), np.float32), FeatureTransform(8, 8)
    for rows in (x, x[:1], 0 * x):
        places, similarities = NearestSamples(list(rows), np.zeros(len(rows), np.int64), same, False)(x)
        assert places.shape == similarities.shape == (2, len(rows)) and np.isfinite(similarities).all()


def test_an_answer_says_what_it_is_nearest_to(taught, split):
    x, y, _, _ = split
    asked = np.concatenate([x[y == digit][:20] for digit in KNOWN])
    plain, answers = taught.predict(asked), taught.predict(asked, why=True)
    stored = {f"{row.id >> 32}-{row.id & 0xffffffff}": row for row in taught.repository.known().stored}
    for before, answer, sample in zip(plain, answers, asked):
        why = answer.why
        assert before.why is None and (before.label, before.unknown) == (answer.label, answer.unknown)
        assert why.top[0].label == answer.label and why.top[0].probability == pytest.approx(answer.confidence)
        assert len(why.top) == 3 and [*why.top] == sorted(why.top, key=lambda each: -each.probability)
        assert np.abs(stored[why.nearest[0].id].feature - sample).max() < 0.1 and why.nearest[0].similarity > 0.999
        assert all(stored[match.id].label == match.label and not match.picture for match in why.nearest)
        assert not why.note


def test_a_stranger_is_further_outside_than_the_threshold(taught, split):
    _, _, asked, truth = split
    answers = taught.predict(asked, why=True)
    for answer in answers:
        assert answer.unknown == (answer.why.outside > 1) and answer.why.outside >= 0
    far = np.array([answer.why.outside for answer in answers])
    assert np.median(far[truth > 6]) > 1 > np.median(far[truth < 7])
    assert taught.predict(100 * asked[:1], why=True)[0].why.nearest[0].similarity < 0


def test_before_strangers_can_be_told_nothing_is_outside(tmp_path):
    learner = create(tmp_path / "state")
    learner.learn(vectors("ant", 2), "ant")
    answer, = learner.predict(vectors("ant", 1), why=True)
    assert answer.unknown is None and answer.why.outside is None
    assert [share.label for share in answer.why.top] == ["ant"] and len(answer.why.nearest) == 2
    learner.close()


def test_what_is_learned_removed_by_a_rollback_and_forgotten_shows_at_once(learner):
    asked = vectors("dog", 1, 3)
    before = learner.predict(asked, why=True)[0].why.nearest
    generation = learner.store.current
    learner.learn(vectors("dog", 25, 3), "dog")
    assert {match.label for match in learner.predict(asked, why=True)[0].why.nearest} == {"dog"}
    learner.rollback(generation)
    assert learner.predict(asked, why=True)[0].why.nearest == before
    learner.forget("wasp")
    assert "wasp" not in {match.label for match in learner.predict(vectors("wasp", 5), why=True)[0].why.nearest}


def test_a_state_without_samples_gives_the_classes_and_a_word_why(tmp_path):
    learner = Learner.create(tmp_path / "state", Settings("identity", 4_000_000, 100_000, memory="statistics"))
    for name in ("ant", "wasp"):
        learner.learn(vectors(name, 40), name)
    answer = learner.predict(vectors("ant", 1), why=True)[0].to_json()
    assert [each["class"] for each in answer["top"]] == ["ant", "wasp"]
    assert answer["nearest"] == [] and "keeps no samples" in answer["note"]
    learner.close()


def test_coded_samples_and_the_class_nothing_are_explained_too(tmp_path):
    learner = Learner.create(tmp_path / "state", Settings("identity", 8_000_000, 20_000, codec="pq"))
    for name in ("ant", "wasp", "bee", "fly", NOTHING):
        learner.learn(vectors(name, 300), name)
    assert any(row.coded for row in learner.repository.known().stored)
    answer, = learner.predict(vectors(NOTHING, 300)[7:8], why=True)
    assert answer.label is None and answer.why.top[0].label == NOTHING and answer.why.nearest[0].label == NOTHING
    learner.close()


def test_a_picture_that_shows_nothing_is_at_no_distance(tmp_path):
    learner = image_state(tmp_path / "state")
    answer, = learner.predict(np.zeros((1, 16, 16, 3), np.uint8), why=True)
    assert answer.unknown and answer.reason and answer.why.outside is None
    learner.close()


def test_damaged_samples_are_not_named(tmp_path):
    learner = create(tmp_path / "state")
    learner.learn(vectors("ant", 25), "ant")
    path = learner.store.path
    learner.predict(vectors("ant", 1))
    learner.close()
    for file in (path / "models").glob("*.exemplars"):
        file.write_bytes(b"damaged")
    learner = Learner.open(path)
    why = learner.predict(vectors("ant", 1), why=True)[0].why
    assert why.top and not why.nearest and why.note
    learner.close()


@pytest.mark.parametrize("scale", [0, 1e-30, 1e12, 1e30])
@pytest.mark.parametrize("axes", [False, True])
def test_absurd_numbers_are_answered_in_numbers(tmp_path, monkeypatch, scale, axes):
    if axes:
        monkeypatch.setattr(nearest, "MOST_NUMBERS", {True: 100, False: 100})
        monkeypatch.setattr(nearest, "FEWEST_AXES", 4)
        monkeypatch.setattr(nearest, "MOST_AXES", 4)
    learner = create(tmp_path / "state")
    for name in ("ant", "wasp"):
        learner.learn(vectors(name, 25), name)
    answer, = learner.predict(np.sign(vectors("ant", 1)) * np.float32(scale), why=True)
    found = json.loads(json.dumps(answer.to_json(), allow_nan=False))
    assert len(found["nearest"]) == 3 and found["outside"] is not None
    learner.close()


def test_what_is_removed_or_moved_is_not_named_any_more(learner):
    asked = vectors("ant", 25)[3:4]
    first = learner.predict(asked, why=True)[0].why.nearest[0]
    assert first.similarity > 0.99
    learner.remove([first.id])
    assert first.id not in {match.id for match in learner.predict(asked, why=True)[0].why.nearest}
    with pytest.raises(BadInput, match=first.id):
        learner.stored_input(first.id)
    learner.rollback()
    assert learner.predict(asked, why=True)[0].why.nearest[0].id == first.id
    learner.move([first.id], "cat")
    moved = learner.predict(asked, why=True)[0].why.nearest[0]
    assert moved.id != first.id and moved.label == "cat" and moved.similarity == first.similarity


def test_answers_come_through_json(taught, split):
    for answer in taught.predict(split[2][:5], why=True) + taught.predict(split[2][:5]):
        assert Prediction.from_json(json.loads(json.dumps(answer.to_json()))) == answer


# the whole command -------------------------------------------------------------------------------


def command(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def saved(path, x):
    y = np.zeros(len(x), np.int64)
    np.savez(path, x_train=x, y_train=y, x_test=x, y_test=y, class_names=[path.stem])
    return path


def test_the_command_says_why_directly_and_through_a_daemon(tmp_path, capsys):
    ask = saved(tmp_path / "ask.npz", vectors("wasp", 25)[:3])
    with serving(tmp_path / "state", control=(240.0, 240.0)) as (service, _, _):
        through = command(capsys, "predict", "--state", tmp_path / "state", ask, "--why")
        assert [*map(dict.keys, command(capsys, "predict", "--state", tmp_path / "state", ask))] == [
            dict.fromkeys(["source", "label", "confidence", "unknown", "milliseconds"]).keys()] * 3
        service.learn("dog", vectors("dog", 25))
        again = command(capsys, "predict", "--state", tmp_path / "state", ask, "--why")
        assert len(again[0]["top"]) == 3
    direct = command(capsys, "predict", "--state", tmp_path / "state", ask, "--why")
    assert [each["nearest"] for each in again] == [each["nearest"] for each in direct]
    assert [set(each) for each in through + again] == [set(each) for each in direct] * 2
    assert [each["nearest"][0]["id"] for each in through] == [each["nearest"][0]["id"] for each in direct]
    first = direct[0]
    assert set(first) == {"source", "label", "confidence", "unknown", "milliseconds", "top", "nearest", "outside"}
    assert set(first["top"][0]) == {"class", "probability"} and len(first["nearest"]) == 3
    assert set(first["nearest"][0]) == {"id", "class", "source", "similarity", "picture"}
    assert first["nearest"][0]["class"] == "wasp" and first["nearest"][0]["similarity"] > 0.99


def test_the_source_of_a_stored_sample_is_named(tmp_path, capsys):
    state, x = tmp_path / "state", vectors("ant", 6)
    create(state).close()
    for name, part in (("ant", x), ("wasp", vectors("wasp", 6))):
        assert main(["learn", "--state", str(state), "--class", name, str(saved(tmp_path / f"{name}.npz", part))]) == 0
    capsys.readouterr()
    answer = command(capsys, "predict", "--state", state, saved(tmp_path / "ask.npz", x[2:3]), "--why")[0]
    assert answer["nearest"][0]["source"].endswith("ant.npz[2]")


# the page's side ---------------------------------------------------------------------------------


def test_the_page_can_show_the_nearest_pictures(tmp_path):
    with web_of(image_state(tmp_path / "state")) as (client, *_):
        body, header = packed(x=shades(20, 25)[:2]), {"Content_Type": "application/x-npz"}
        plain = client.post("/api/predict", body, **header)
        answers = client.post("/api/predict?why=1", body, **header)
        assert "nearest" not in plain[0]
        assert client.post("/api/predict?why=0", body, **header)[0].keys() == plain[0].keys()
        match = answers[0]["nearest"][0]
        assert match["class"] == "dark" and match["picture"] is True
        assert client.get(f"/api/sample/{match['id']}")["image"].startswith("data:image/jpeg")
        assert "why=yes" in client.refused(400, "POST", "/api/predict?why=yes", body, **header)
        assert "99-7" in client.refused(404, "GET", "/api/sample/99-7")
        client.refused(404, "GET", "/api/sample/mug")
        client.refused(404, "GET", "/api/sample/..%2Fedgecl.db")


def test_a_state_that_stores_only_features_says_so(tmp_path):
    with web(tmp_path / "state") as (client, *_):
        answer, = client.post("/api/predict?why=1", {"samples": vectors("ant", 1).tolist()})
        assert answer["nearest"][0]["picture"] is False
        assert "feature" in client.refused(404, "GET", f"/api/sample/{answer['nearest'][0]['id']}")


def test_an_id_that_is_none_is_refused(taught):
    for text in ("mug", "", "1", "1-", "-1", "1-1-1", "99999999999-1"):
        with pytest.raises(BadInput):
            taught.stored_input(text)
