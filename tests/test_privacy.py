"""A state of statistics only: no sample comes to the disk, at no moment; and what it does all the same."""
from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers_daemon import running
from helpers_state import answers, create, directory_bytes, in_a_child, vectors
from PIL import Image
from round_states import conv_backbone

from edgecl.cli import main
from edgecl.errors import BadInput, StateError
from edgecl.evaluation.datasets import digits
from edgecl.exemplars.codecs import Int8
from edgecl.exemplars.input_codecs import Delta16
from edgecl.learner import Learner
from edgecl.profiling import sandbox
from edgecl.rounds import worker
from edgecl.rounds.run import RoundRequest
from edgecl.samples import Sample
from edgecl.settings import Settings

KINDS = "exemplars", "statistics"
JPEG = b"\xff\xd8\xff"
TELLING = 6     # different bytes in a needle: zeros are everywhere


def forms(sample):
    """The bytes of a sample in every way in which one might be stored; of its start, to find it where it is cut."""
    rows = np.asarray(sample).reshape(1, -1)
    made = [rows.astype(kind) for kind in (np.float16, np.float32, np.float64)]
    if rows.dtype == np.uint8:
        made.append(rows)
    elif np.ndim(sample) == 1:
        made += [Int8(power).encode(rows)["codes"] for power in (1.0, 0.5)]
    starts = [part.tobytes()[:24] for part in made]
    return [start for start in starts if len(set(start)) >= TELLING]


def needles_of(samples, features=()):
    """All that `found` looks for."""
    made = [form for sample in [*samples, *features] for form in forms(sample)]
    return made + [bytes(Delta16(sample.shape).encode(sample)) for sample in samples if sample.ndim == 2]


def found(folder, samples, needles, searched=None):
    """Places of every needle in all files in and beside a state; of photos also as JPEG. searched: files, as they were,
    that need not be searched again."""
    places, searched = [], set() if searched is None else searched
    for file in (path for path in folder.rglob("*") if path.is_file() and path.name != "reserved"):
        try:
            data, about = file.read_bytes(), file.stat()
        except FileNotFoundError:       # a temporary that is gone already
            continue
        as_it_is = id(needles), about.st_ino, about.st_mtime_ns, len(data)
        if as_it_is in searched:
            continue
        searched.add(as_it_is)
        places += [file.name for needle in needles if needle in data]
        if samples[0].ndim == 3:
            places += [file.name for sample in samples for photo in photos_in(data)
                       if photo.shape == sample.shape and np.abs(photo - sample.astype(float)).mean() < 12]
    return places


def photos_in(data):
    start = -1
    while (start := data.find(JPEG, start + 1)) >= 0:
        try:
            yield np.asarray(Image.open(io.BytesIO(data[start:])).convert("RGB"), float)
        except OSError:
            continue


def photos(number, count):
    """Photos of one colour each, which JPEG keeps, each its own."""
    colours = np.random.default_rng(number).integers(0, 256, (count, 2, 2, 3))
    return colours.repeat(16, 1).repeat(16, 2).astype(np.uint8)


SAMPLES = {"vectors": lambda number, count: vectors(f"class {number}", count),
           "photos": photos,
           "windows": lambda number, count: sandbox.samples("window", (64, 6), count, number)}


def made(path, what, memory):
    if what == "vectors":
        return create(path / "state", quota=3_000_000, exemplars=200_000, memory=memory)
    if what == "windows":
        return Learner.create(path / "state", Settings("rocket", 30_000_000, 1_000_000, "delta16", memory=memory))
    (path / "small.onnx").write_bytes(conv_backbone((8, 16)))
    learner = Learner.create(path / "state", Settings(str(path / "small.onnx"), 30_000_000, 1_000_000, "jpeg",
                                                      memory=memory))
    (path / "small.onnx").unlink()
    return learner


@pytest.fixture
def watched(monkeypatch):
    """Whatever is put into a list is done at each moment in which a kill would leave something new on the disk."""
    todo = []

    def first(real):
        def wrapped(*args, **kwargs):
            done = real(*args, **kwargs)
            for each in todo:
                each()
            return done
        return wrapped

    for name in ("fsync", "fdatasync", "replace", "rename", "link"):
        monkeypatch.setattr(os, name, first(getattr(os, name)))
    return todo


@pytest.mark.parametrize("memory", KINDS)
def test_forget_leaves_no_byte_of_a_class_s_file_names(memory, tmp_path, watched):
    """In no file of the state, whichever way its samples came there; those of others stay. Statistics keep none."""
    settings = dict(quota=3_000_000, exemplars=12_000, memory=memory)
    learner, seen = create(tmp_path / "mine/state", **settings), set()
    secret, shown = [f"secret{number:03}" for number in range(20)], [f"shown{number:03}" for number in range(20)]

    def look():
        for file in (path for path in (tmp_path / "mine").rglob("*") if path.is_file() and path.name != "reserved"):
            try:
                data = file.read_bytes()
            except FileNotFoundError:       # a temporary that is gone already
                continue
            seen.update(name for name in [*secret, *shown] if name.encode() in data)

    def learn(label, numbered, names, learner=learner):
        learner.learn([Sample(x, f"photos/{name}/{i}.jpg", name) for place, name in enumerate(names)
                       for i, x in enumerate(vectors(label, 6, 100 * numbered + place))], label)

    learn("ant", 1, secret[:5])                   # a rewrite, then appends to the log
    learn("wasp", 1, shown[:10])
    watched.append(look)
    for number in range(5, 15):
        learn("ant", number, secret[number:number + 1])
        learn("wasp", number, shown[number:number + 1])
    other = create(tmp_path / "other/state", **settings)
    learn("ant", 50, secret[15:], other)
    other.close()
    learner.merge([other.store.path])
    learner.rollback()
    learn("ant", 60, secret[15:])
    assert {name[:5] for name in seen} == ({"secre", "shown"} if memory == "exemplars" else set())
    watched.clear()
    learner.forget("ant")
    for done in (lambda: None, lambda: Learner.open(tmp_path / "mine/state").close(), learner.close):
        done()
        seen.clear()
        look()
        assert {name[:5] for name in seen} == ({"shown"} if memory == "exemplars" else set())


@pytest.mark.parametrize("memory", KINDS)
@pytest.mark.parametrize("what", SAMPLES)
def test_no_sample_comes_to_the_disk_at_any_moment(what, memory, tmp_path, watched):
    """And with exemplars, the same search finds them at once."""
    every = {number: SAMPLES[what](number, 6) for number in range(3)}
    learner, seen = made(tmp_path, what, memory), []
    samples = np.concatenate(list(every.values()))
    told = {"needles": needles_of(samples), "searched": set()}

    def look():
        seen.extend(found(tmp_path, samples, told["needles"], told["searched"]))

    watched.append(look)
    for number, part in every.items():
        learner.learn(part, f"class {number}")
        if number == 0:     # the backbone is frozen: features stay as they are
            told["needles"] = needles_of(samples, learner.features(samples))
        look()
    learner.predict(samples)
    learner.learn(every[0][:5], "class 0", again=True)
    learner.rollback()
    learner.forget("class 2")
    Learner.open(tmp_path / "state").close()
    look()
    learner.close()
    look()
    assert bool(seen) == (memory == "exemplars")
    assert directory_bytes(tmp_path / "state", reserve=False) <= learner.settings.quota


@pytest.mark.parametrize("memory", KINDS)
def test_no_sample_lies_in_the_folder_of_a_round_nor_in_what_a_killed_one_leaves(memory, tmp_path, monkeypatch,
                                                                                 watched, warm):
    every = {number: photos(number, 6) for number in range(3)}
    learner, seen = made(tmp_path, "photos", memory), []
    for number, part in every.items():
        learner.learn(part, f"class {number}")
    samples = np.concatenate(list(every.values()))
    needles, searched = needles_of(samples, learner.features(samples)), set()

    def look(*_):
        seen.extend(found(tmp_path, samples, needles, searched))

    real = worker.run

    def run(folder, job, watch=None):
        assert (folder / "samples.npz").exists()
        look()
        done = real(folder, job, look)
        look()
        return done

    monkeypatch.setattr(worker, "run", run)
    watched.append(look)
    done = learner.round(RoundRequest("statistics", 600, epochs=1))
    assert done.steps
    look()
    assert bool(seen) == (memory == "exemplars")
    on = "pseudo-samples" if memory == "statistics" else "left-out samples"
    assert any(on in check[1] for check in done.checks if check[0] == "accuracy")
    assert (learner.history()[-1].detail.get("judged_on") == "pseudo-samples") == (memory == "statistics")
    learner.close()

    def killed():
        monkeypatch.setattr(worker, "run", lambda folder, job, watch=None: os._exit(9))
        Learner.open(tmp_path / "state").round(RoundRequest("fetril", 600))

    seen.clear()
    searched.clear()
    watched.clear()
    assert in_a_child(killed) == 9
    assert list(tmp_path.glob(".state-round-*/samples.npz"))
    look()
    assert bool(seen) == (memory == "exemplars")


def test_statistics_answer_as_well_as_exemplars_do(tmp_path, monkeypatch, warm):
    """Digits: the same accuracy, and a confidence and a threshold for the unknown that hold for real samples."""
    data = digits()
    learner = Learner.create(tmp_path / "state", Settings("identity", 16_000_000, 1_000_000, memory="statistics"))
    for number in range(7):
        learned = learner.learn(data.x_train[data.y_train == number], str(number))
    assert learned.judged_on == "pseudo-samples" and min(after for _, after in learned.accuracy.values()) > 0.7
    known = data.y_test < 7
    said = learner.predict(data.x_test[known])
    right = [each.label == str(y) for each, y in zip(said, data.y_test[known])]
    assert np.mean(right) > 0.97
    assert abs(np.mean([each.confidence for each in said]) - np.mean(right)) < 0.05
    assert np.mean([each.unknown for each in said]) < 0.1
    assert np.mean([each.unknown for each in learner.predict(data.x_test[~known])]) > 0.1
    before = answers(learner, data.x_test[:40])
    learner.close()
    learner = Learner.open(tmp_path / "state")
    assert answers(learner, data.x_test[:40]) == before
    done = learner.round(RoundRequest(None, 600))
    assert done.method == "statistics" and done.steps and done.samples == 700
    said = learner.predict(data.x_test[known])
    assert np.mean([each.label == str(y) for each, y in zip(said, data.y_test[known])]) > 0.96
    monkeypatch.setattr("edgecl.rounds.gate.check_accuracy", lambda *_: [])     # every round is taken
    for number in range(7, 10):
        learner.learn(data.x_train[data.y_train == number], str(number))
        done = learner.round(RoundRequest(None, 600))
        assert done.accepted and done.samples == 100 * (number + 1)
        known = data.y_test <= number
        said = learner.predict(data.x_test[known])
        assert np.mean([each.label == str(y) for each, y in zip(said, data.y_test[known])]) > 0.94


@pytest.mark.parametrize(("method", "says"), [
    *((name, "keeps statistics only; give --method fetril or statistics")
      for name in ("er", "first-session", "latent", "lwf")),
    ("fearnet", "can't keep or serve; give --method statistics")])
def test_methods_that_need_samples_are_refused_with_the_cure(method, says, tmp_path):
    learner = create(tmp_path / "state", memory="statistics")
    for name in ("ant", "wasp"):
        learner.learn(vectors(name, 10), name)
    with pytest.raises(BadInput, match=says):
        learner.round(RoundRequest(method, 600))


def test_so_few_samples_that_statistics_tell_them_are_refused(tmp_path):
    learner = create(tmp_path / "state", memory="statistics")
    for count in (1, 2):
        with pytest.raises(BadInput, match="teach 3 or more at once"):
            learner.learn(vectors("ant", count), "ant")
    assert not learner.classes()
    learner.learn(vectors("ant", 3), "ant")
    other = create(tmp_path / "other")
    other.learn(vectors("wasp", 2), "wasp")
    other.close()
    with pytest.raises(StateError, match="teach it 3 or more there"):
        learner.merge([tmp_path / "other"])
    assert [each.name for each in learner.classes()] == ["ant"]


@pytest.mark.parametrize("theirs", KINDS)
def test_merging_brings_no_samples(theirs, tmp_path):
    learner, other = create(tmp_path / "state", memory="statistics"), create(tmp_path / "other", memory=theirs)
    learner.learn(vectors("ant", 20), "ant")
    other.learn(vectors("wasp", 20), "wasp")
    other.learn(vectors("ant", 20, 1), "ant")
    other.close()
    learner.merge([tmp_path / "other"])
    learner.close()
    shutil.rmtree(tmp_path / "other")
    samples = np.concatenate([vectors("ant", 20), vectors("ant", 20, 1), vectors("wasp", 20)])
    assert not found(tmp_path, samples, needles_of(samples))
    learner = Learner.open(tmp_path / "state")
    assert [(c.name, c.samples, c.exemplars) for c in learner.classes()] == [("ant", 40, 0), ("wasp", 20, 0)]
    assert np.mean([each.label == "wasp" for each in learner.predict(vectors("wasp", 50, 2))]) > 0.9


def test_without_room_for_a_gaussian_of_each_the_scatter_of_all_is_drawn_from(tmp_path):
    learner = create(tmp_path / "state", exemplars=200, memory="statistics")
    for name in ("ant", "bee", "wasp"):
        learner.learn(vectors(name, 20), name)
    gaussians = learner.repository.known().gaussians
    assert not gaussians.of and set(gaussians.widths) == {"ant", "bee", "wasp"}
    assert all(each.accuracy > 0.8 for each in learner.classes())


def test_the_setting_is_in_the_configuration_and_the_status_says_so(tmp_path, capsys):
    config, state = tmp_path / "robot.toml", tmp_path / "state"
    config.write_text(f'state = "{state}"\nbackbone = "identity"\n[memory]\nkind = "statistics"\n')
    assert main(["init", "--config", str(config)]) == 0
    assert "no samples will be kept" in capsys.readouterr().out
    np.savetxt(tmp_path / "ant.csv", vectors("ant", 10), delimiter=",")
    assert main(["learn", "--config", str(config), "--class", "ant", str(tmp_path / "ant.csv")]) == 0
    assert main(["learn", "--config", str(config), "--class", "bee", str(tmp_path / "ant.csv")]) == 0
    assert "on pseudo-samples" in capsys.readouterr().out
    assert main(["status", "--state", str(state)]) == 0
    out = capsys.readouterr().out
    assert "memory      statistics only, no samples kept" in out and "exemplars" not in out
    assert main(["status", "--state", str(state), "--json"]) == 0
    assert '"memory": "statistics"' in capsys.readouterr().out
    assert main(["history", "--state", str(state)]) == 0
    assert "judged on pseudo-samples" in capsys.readouterr().out
    assert main(["init", "--state", str(tmp_path / "other"), "--memory-kind", "exemplars", "--config",
                 str(config)]) == 0
    capsys.readouterr()
    assert main(["predict", "--state", str(tmp_path / "other"), "--config", str(config),
                 str(tmp_path / "ant.csv")]) == 1
    assert "this state was created with exemplars" in capsys.readouterr().err
    for wrong, says in (('kind = "nothing"', "[memory]: kind is 'nothing'; give exemplars or statistics"),
                        ('kind = "statistics"\nsize = 3', "[memory] has unknown keys: size; known keys are kind")):
        config.write_text(f"[memory]\n{wrong}\n")
        assert main(["init", "--config", str(config), "--state", str(tmp_path / "third")]) == 1
        assert says in capsys.readouterr().err
    assert not (tmp_path / "third").exists()


def test_the_daemon_keeps_none_either_and_refuses_a_state_that_does(tmp_path):
    text = 'state = "state"\nbackbone = "identity"\nrounds = "off"\n[memory]\nkind = "statistics"\n'
    from edgecl.commands.direct_or_daemon import Parcel

    samples = vectors("ant", 12)
    needles = needles_of(samples)
    with running(tmp_path, text) as daemon, daemon.client() as client:
        for name in ("ant", "wasp"):
            with Parcel() as parcel:
                for each in vectors(name, 12):
                    parcel.add(each)
                client.ask("learn", parcel.seal(), label=name, groups=parcel.groups)
            assert not found(tmp_path, samples, needles)
        assert client.ask("status")["memory"] == "statistics"
        daemon.process.kill()
    assert not found(tmp_path, samples, needles)
    shutil.rmtree(tmp_path / "state")
    Learner.create(tmp_path / "state", Settings("identity")).close()
    with running(tmp_path, text) as daemon:
        assert daemon.process.wait(20) == 1
        assert "this state was created with exemplars" in Path(daemon.log).read_text()


def test_such_a_state_is_measured_and_its_settings_keep_the_kind(tmp_path, capsys):
    with_two = create(tmp_path / "state", memory="statistics")
    for name in ("ant", "wasp"):
        with_two.learn(vectors(name, 10), name)
    with_two.close()
    out = tmp_path / "new.toml"
    assert main(["profile", "--state", str(tmp_path / "state"), "--seconds", "0.2", "--out", str(out)]) == 0
    assert main(["init", "--config", str(out), "--state", str(tmp_path / "new")]) == 0
    assert "no samples will be kept" in capsys.readouterr().out
