"""The class `nothing`: answered as unknown without a label everywhere, taught and forgotten like any other, and never
merged unless asked."""
from __future__ import annotations

import json
from contextlib import closing

import numpy as np
import pytest
from helpers_daemon import serving
from helpers_http import image_state, shades
from helpers_state import create, knowledge, vectors

from edgecl.cli import main
from edgecl.commands.direct_or_daemon import Direct
from edgecl.errors import StateError
from edgecl.evaluation.prequential import Pace, play, shares
from edgecl.results import Prediction
from edgecl.runtime.mqtt import Publisher, Topics
from edgecl.samples import NOTHING, Sample


def taught(path, *names, **settings):
    """A state of vectors that knows these classes."""
    learner = create(path, **settings)
    for name in names:
        learner.learn(vectors(name, 25), name)
    return learner


def samples(name, count, seed=7):
    return [Sample(each, f"{name}.npz", label=name) for each in vectors(name, count, seed)]


def test_what_is_like_nothing_has_no_label_and_is_unknown(tmp_path):
    with closing(taught(tmp_path / "s", "ant", "wasp", NOTHING)) as learner:
        ant, rest = learner.predict(np.concatenate([vectors("ant", 1, 7), vectors(NOTHING, 1, 7)]))
        assert (ant.label, ant.unknown, ant.reason) == ("ant", False, None)
        assert (rest.label, rest.unknown) == (None, True)
        assert rest.confidence > 0.9
        assert NOTHING in rest.reason
        assert [each.name for each in learner.classes()] == ["ant", NOTHING, "wasp"]
        learner.forget(NOTHING)
        again = learner.predict(vectors(NOTHING, 1, 7))[0]
        assert again.label in ("ant", "wasp")
        assert again.reason is None


@pytest.mark.parametrize("name", ["Nothing", "nothing else", "idle", "background"])
def test_no_other_name_means_nothing(tmp_path, name):
    with closing(taught(tmp_path / "s", "ant", name)) as learner:
        assert {answer.label for answer in learner.predict(vectors(name, 5, 7))} == {name}


def test_a_state_that_knows_only_nothing_answers_unknown(tmp_path):
    with closing(taught(tmp_path / "s", NOTHING)) as learner:
        assert all(answer.label is None and answer.unknown for answer in learner.predict(vectors("ant", 3)))


def test_unknown_is_the_right_answer_for_a_sample_of_nothing(tmp_path):
    assert Prediction("", None, 0.9, True, 1.0).right(NOTHING)
    assert Prediction("", "ant", 0.9, True, 1.0).right(NOTHING)
    assert not Prediction("", "ant", 0.9, None, 1.0).right(NOTHING)
    assert not Prediction("", None, 0.9, True, 1.0).right("ant")
    with closing(taught(tmp_path / "s", "ant", "wasp", NOTHING)) as learner:
        found = learner.evaluate([*samples("ant", 10), *samples(NOTHING, 30)])
        assert found.accuracy == 1.0
        assert found.per_class == {"ant": 1.0, NOTHING: 1.0}
        assert found.n == 40
        assert found.unknown_rate <= 0.2        # of the ants
        only = learner.evaluate(samples(NOTHING, 5))
        assert (only.accuracy, only.unknown_rate) == (1.0, 0.0)


def test_a_replay_counts_nothing_as_right(tmp_path):
    with closing(taught(tmp_path / "s", "ant", "wasp", NOTHING)) as learner:
        heard = list(play(samples(NOTHING, 10), Direct(learner), Pace(0.0, teach=0.0), ["ant", "wasp", NOTHING]))
        assert shares(heard) == {"samples": 10, "accuracy": 1.0, "accuracy_known": 1.0, "unknown_rate": 1.0}


def test_the_command_line_says_null_and_why(tmp_path, capsys):
    taught(tmp_path / "s", "ant", "wasp", NOTHING).close()
    np.savez(tmp_path / "ask.npz", y_train=[0, 1],
             x_train=np.concatenate([vectors("ant", 1, 7), vectors(NOTHING, 1, 7)]))
    assert main(["predict", "--state", str(tmp_path / "s"), str(tmp_path / "ask.npz")]) == 0
    ant, rest = map(json.loads, capsys.readouterr().out.splitlines())
    assert "reason" not in ant
    assert rest["label"] is None
    assert rest["unknown"] is True
    assert NOTHING in rest["reason"]


def test_a_daemon_says_it_everywhere(tmp_path):
    with serving(tmp_path / "state", ("ant", "wasp", NOTHING), debounce=2) as (service, loop, _):
        source, events, sent = service.sources.threads[0], service.subscribe(), []

        class Broker:
            def publish(self, topic, payload, **_):
                sent.append((topic, json.loads(payload)))

        publisher = Publisher(service, Broker(), Topics("desk"))
        for name in ("ant", "ant", NOTHING, NOTHING):
            loop.offer(source, Sample(vectors(name, 1, 7)[0], "tap"))
            assert loop.step(0.0)
            event = events.get(0)
            publisher.take(event)
        assert (event["label"], event["unknown"], event["changed"], event["stable"]) == (None, True, True, None)
        assert NOTHING in event["reason"]
        assert [value["label"] for topic, value in sent if "/source/" in topic] == ["ant", "unknown"]
        latest = service.latest()["tap"]
        assert (latest["label"], latest["unknown"], latest["stable"]) == (None, True, None)
        assert NOTHING in latest["reason"]
        assert service.review()["clusters"] == []           # nothing to be named
        assert service.predict(vectors(NOTHING, 1, 8))[0]["label"] is None
        assert "reason" not in service.predict(vectors("ant", 1, 8))[0]


# merging -------------------------------------------------------------------------------------------


def boards(folder, theirs):
    """A state that knows ant and nothing, and the path of one that knows these classes, by other samples."""
    other = create(folder / "other")
    for name in theirs:
        other.learn(vectors(name, 25, 5), name)
    other.close()
    return taught(folder / "mine", "ant", NOTHING), folder / "other"


def test_a_merge_leaves_the_nothing_of_others_out(tmp_path):
    learner, other = boards(tmp_path, ("ant", NOTHING, "wasp"))
    with closing(learner), closing(taught(tmp_path / "wanted", "ant", NOTHING)) as wanted:
        learner.merge([other])
        assert {each.name: each.samples for each in learner.classes()} == {"ant": 50, NOTHING: 25, "wasp": 25}
        assert learner.history()[-1].detail["left_out"] == 25
        for name in ("ant", "wasp"):
            wanted.learn(vectors(name, 25, 5), name)
        probe = np.concatenate([vectors(name, 10, 9) for name in ("ant", "wasp", NOTHING)])
        assert [each.label for each in learner.predict(probe)] == [each.label for each in wanted.predict(probe)]
        np.testing.assert_allclose([each.confidence for each in learner.predict(probe)],
                                   [each.confidence for each in wanted.predict(probe)], atol=1e-4)
        assert learner.status().exact
    with closing(create(tmp_path / "again")) as untouched:
        untouched.merge([other], nothing=True)      # what was left out is still there
        assert NOTHING in [each.name for each in untouched.classes()]


def test_a_merge_takes_it_if_asked(tmp_path, capsys):
    learner, other = boards(tmp_path, ("ant", NOTHING, "wasp"))
    learner.close()
    for more, left_out, count in (([], 25, 25), (["--nothing"], None, 50)):
        state = tmp_path / f"copy{count}"
        taught(state, "ant", NOTHING).close()
        assert main(["merge", "--state", str(state), "--json", str(other), *more]) == 0
        assert json.loads(capsys.readouterr().out).get("left_out") == left_out
        assert main(["classes", "--state", str(state), "--json"]) == 0
        assert {each["name"]: each["samples"] for each in json.loads(capsys.readouterr().out)}[NOTHING] == count
    taught(tmp_path / "last", "ant").close()
    assert main(["merge", "--state", str(tmp_path / "last"), str(other)]) == 0
    assert "--nothing" in capsys.readouterr().out


def test_a_state_that_knows_only_nothing_is_not_merged(tmp_path):
    learner, other = boards(tmp_path, (NOTHING,))
    with closing(learner):
        before = knowledge(learner)
        with pytest.raises(StateError, match="--nothing"):
            learner.merge([other])
        assert knowledge(learner) == before
        learner.merge([other], nothing=True)
        assert {each.name: each.samples for each in learner.classes()}[NOTHING] == 50


def test_a_merge_is_not_called_exact_if_the_rest_of_nothing_could_not_be_taken_out(tmp_path):
    other = create(tmp_path / "other", exemplars=2_000)
    for name, count in (("ant", 20), ("wasp", 100), (NOTHING, 5000)):     # more than are stored
        other.learn(vectors(name, count, 5), name)
    other.close()
    with closing(taught(tmp_path / "mine", "ant", exemplars=2_000)) as learner:
        learner.merge([tmp_path / "other"])
        assert [each.name for each in learner.classes()] == ["ant", "wasp"]
        assert not learner.status().exact


# the hint ------------------------------------------------------------------------------------------


INIT = ["init", "--state", "s", "--rate", "20", "--window", "2", "--quota", "8MB", "--calibrate", "train"]


def recordings(folder, *frequencies):
    """A class of recordings for each frequency."""
    for frequency in frequencies:
        place = folder / f"class{frequency}"
        place.mkdir(parents=True)
        t = np.arange(400)[:, None] / 20
        np.savetxt(place / "0.csv", np.sin(2 * np.pi * frequency * t + np.arange(3)), fmt="%.4f", delimiter=",",
                   header="x,y,z", comments="")
    return folder


def test_nothing_is_proposed_once_after_the_second_class(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recordings(tmp_path / "train", 1, 2, 3)
    assert main(INIT) == 0
    said = []
    for name in ("class1", "class2", "class2", "class3"):
        capsys.readouterr()
        assert main(["learn", "--state", "s", "--class", name, f"train/{name}"]) == 0
        said.append("teach `nothing` too" in capsys.readouterr().out)
    assert said == [False, True, False, False]


@pytest.mark.parametrize(("arguments", "proposed"), [(["--from", "train"], 1), (["--from", "train", "--json"], 0)])
def test_nothing_is_proposed_once_for_a_folder(tmp_path, capsys, monkeypatch, arguments, proposed):
    monkeypatch.chdir(tmp_path)
    recordings(tmp_path / "train", 1, 2, 3)
    assert main(INIT) == 0
    capsys.readouterr()
    assert main(["learn", "--state", "s", *arguments]) == 0
    assert capsys.readouterr().out.count("teach `nothing` too") == proposed


def test_nothing_is_not_proposed_for_vectors_nor_if_it_is_taught(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recordings(tmp_path / "train", 1)
    (tmp_path / "train/class1").rename(tmp_path / "train/nothing")
    recordings(tmp_path / "train", 2)
    assert main(INIT) == 0
    assert main(["learn", "--state", "s", "--from", "train"]) == 0
    create(tmp_path / "v").close()
    np.savez("v.npz", x_train=np.concatenate([vectors("ant", 5), vectors("wasp", 5)]), y_train=[0] * 5 + [1] * 5)
    assert main(["learn", "--state", "v", "--from", "v.npz"]) == 0
    assert "teach `nothing` too" not in capsys.readouterr().out


def test_photos_have_a_hint_of_their_own(tmp_path, capsys):
    image_state(tmp_path / "s", ("dark",)).close()
    np.savez(tmp_path / "light.npz", x_train=shades(150, 8), y_train=np.zeros(8, int), class_names=["light"])
    assert main(["learn", "--state", str(tmp_path / "s"), "--class", "light", str(tmp_path / "light.npz")]) == 0
    assert "photos of the background" in capsys.readouterr().out


# too early to tell ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
def test_before_unknown_can_be_told_everybody_hears_how_many_samples_are_missing(tmp_path, capsys, count):
    state = str(tmp_path / "s")
    with closing(create(tmp_path / "s")) as learner:
        learner.learn(vectors("ant", count), "ant")
        answer = learner.predict(vectors("ant", 1, 7))[0]
        assert (answer.label, answer.unknown) == ("ant", None)
        assert not answer.right(NOTHING)
        words = f"needs {3 - count} more sample{'s' * (count < 2)}"
        assert words in answer.reason
        found = learner.evaluate([*samples("ant", 3), *samples("wasp", 3)])
        assert (found.unknown_rate, found.untaught) == (0.0, {"wasp": 0.0})
    np.savez(tmp_path / "ask.npz", x_train=vectors("ant", 1, 7), y_train=[0])
    assert main(["predict", "--state", state, str(tmp_path / "ask.npz")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["unknown"] is None
    assert words in told["reason"]
    assert main(["status", "--state", state]) == 0
    assert words in capsys.readouterr().out
    assert main(["status", "--state", state, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unknown_needs"] == 3 - count
    main(["doctor", "--state", state])
    assert words in capsys.readouterr().out
    with closing(type(learner).open(tmp_path / "s")) as learner:
        learner.learn(vectors("ant", 3 - count, 5), "ant")
        assert learner.predict(vectors("ant", 1, 7))[0].unknown is not None
        assert learner.status().unknown_needs is None
    assert main(["status", "--state", state]) == 0
    assert "needs" not in capsys.readouterr().out
