"""`edgecl profile`: what it says, that its forecasts come true, and that the state it measures stays as it is."""
from __future__ import annotations

import json
from contextlib import suppress

import numpy as np
import pytest
from helpers_state import create, refused, tree, vectors

from edgecl.backbones.graph import GraphBuilder, finish_backbone
from edgecl.cli import main
from edgecl.commands.profile import MARK, conclusions, recommend, tables, to_toml
from edgecl.errors import BudgetError
from edgecl.evaluation.report import bars
from edgecl.learner import Learner
from edgecl.profiling import forecast, measure, profile, sandbox
from edgecl.settings import SETTING_NAMES, Settings, read_toml
from edgecl.state.quota import segment_bytes
from edgecl.statistics.form import Form

FORMS = {"nearest-mean": Form(False), "cosine": Form(False), "slda": Form(True), "ridge": Form(True, 16),
         "ridge-projected": Form(True, None, 1024)}


def backbone(side=16, channels=24):
    """A small image backbone: one convolution and the mean over the map."""
    g = GraphBuilder()
    x = g.node("Cast", [g.node("Transpose", ["image"], perm=[0, 3, 1, 2])], to=1)
    weight = g.weight("weight", np.random.default_rng(0).standard_normal((channels, 3, 3, 3)).astype(np.float32))
    x = g.node("Relu", [g.node("Conv", [x, weight], kernel_shape=[3, 3], pads=[1] * 4)])
    g.node("Flatten", [g.node("GlobalAveragePool", [x])], "features")
    model = g.model("small", {"image": ("uint8", ["n", side, side, 3])}, {"features": ("float32", ["n", channels])})
    return finish_backbone(model, "small", "image", (side, side, 3), channels)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with a state of photos, and what `profile` says of it and writes."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "small.onnx").write_bytes(backbone())
    settings = Settings(backbone=str(folder / "small.onnx"), quota=3_000_000, exemplars=100_000)
    learner = Learner.create(folder / "state", settings)
    for number, label in enumerate(("ant", "bee")):
        learner.learn(sandbox.samples("image", (16, 16, 3), 25, number), label)
    learner.close()
    before = tree(folder / "state")
    arguments = ["profile", "--state", folder / "state", "--out", folder / "new.toml", "--report", folder / "r.html",
                 "--seconds", "0.05", "--json"]
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda *text, **_: printed.append(" ".join(map(str, text))))
        assert main([str(argument) for argument in arguments]) == 0
    assert len(printed) == 1
    return folder, json.loads(printed[0]), before


@pytest.fixture(scope="module")
def vectors_profile(tmp_path_factory):
    """What `profile` finds for a state of vectors."""
    folder = tmp_path_factory.mktemp("vectors")
    learner = create(folder / "state")
    for label in ("ant", "bee", "cat"):
        learner.learn(vectors(label, 25), label)
    learner.close()
    return profile.profile(folder / "state", Settings(), 0.1)


def test_the_state_is_as_it_was(photos):
    folder, _, before = photos
    assert tree(folder / "state") == before
    assert sorted(path.name for path in folder.iterdir()) == ["new.toml", "r.html", "small.onnx", "state"]


def test_it_measures_every_part_in_each_precision(photos):
    _, found, _ = photos
    parts = {(x["part"], x["precision"]) for x in found["latency"]}
    assert parts == {("preprocess", "-"), ("backbone", "fp32"), ("backbone", "int8"), ("head", "fp32")}
    for x in found["latency"]:
        assert 0 < x["p50"] <= x["p95"] <= x["p99"]
        assert x["runs"] >= profile.LEAST_RUNS
        assert 1 <= x["threads"] <= found["cores"]
    assert [x["what"] for x in found["memory"]] == ["answering", "learning"]
    assert [x["kind"] for x in found["heads"]] == [
        "nearest-mean", "cosine", "slda", "ridge", "slda-projected", "ridge-projected"]
    assert {x["codec"] for x in found["codecs"]} >= {"raw", "jpeg", "int8-feature"}
    assert [x["codec"] for x in found["codecs"] if x["chosen"]] == ["int8-feature"]
    assert found["known"] == 2
    assert found["learn"]["milliseconds"] > 0
    assert found["learn"]["grown"] > 0
    assert found["learn"]["flash"] > 0
    assert len(found["conclusions"]) in range(3, 6)


def test_memory_is_near_its_forecast(photos, vectors_profile):
    for what, told, measured in [(x["what"], x["forecast"], x["measured"]) for x in photos[1]["memory"]] + \
                                [(x.what, x.forecast, x.measured) for x in vectors_profile.memory]:
        assert told == pytest.approx(measured, rel=0.05), what


def test_vectors_say_why_int8_was_not_measured(vectors_profile):
    assert vectors_profile.kind == "feature"
    assert any("int8" in note for note in vectors_profile.notes)
    assert [x.codec for x in vectors_profile.codecs if x.chosen] == ["raw"]
    raw = next(x for x in vectors_profile.codecs if x.codec == "raw")
    assert raw.each >= 4 * 16
    assert len(tables(vectors_profile)) == 5


def test_init_takes_the_settings_that_are_recommended(photos, monkeypatch):
    folder, found, _ = photos
    monkeypatch.chdir(folder)
    text = (folder / "new.toml").read_text("utf-8")
    assert text.startswith(MARK)
    values = read_toml(folder / "new.toml", SETTING_NAMES | {"state"})
    assert values["threads"] == found["recommended"]["threads"]
    assert main(["init", "--config", "new.toml"]) == 0
    learner = Learner.open(values["state"])
    assert learner.settings.quota == found["recommended"]["quota"]
    learner.close()


def test_int8_is_recommended_only_where_it_is_faster(vectors_profile):
    def told(int8):
        times = [profile.Latency("backbone", name, 1, ms, ms, ms, 20) for name, ms in (("fp32", 10.0), ("int8", int8))]
        rest = [x for x in vectors_profile.latency if x.part != "backbone"]
        done = profile.Profile(**{**vectors_profile.__dict__, "latency": rest + times})
        return recommend(done), "\n".join([to_toml(done, recommend(done)), *conclusions(done, recommend(done))])

    assert told(9.5)[0].int8 is None
    assert '# precision = "int8"' not in told(9.5)[1]
    assert told(5.0)[0].int8 == 2.0
    assert '# precision = "int8"' in told(5.0)[1]
    assert "--calibrate" in told(5.0)[1]


def test_more_threads_are_recommended_only_where_they_pay(vectors_profile):
    for times, wanted in (((10.0, 9.5), 1), ((10.0, 6.0), 2)):
        own = [profile.Latency("backbone", "fp32", n, ms, ms, ms, 20) for n, ms in enumerate(times, 1)]
        rest = [x for x in vectors_profile.latency if x.part != "backbone"]
        done = profile.Profile(**{**vectors_profile.__dict__, "latency": rest + own})
        assert recommend(done).values["threads"] == wanted


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("dimension", [24, 300])
def test_bytes_a_class_are_as_forecast(kind, dimension):
    form, classes, more = FORMS[kind], 12, 6
    told = [sum(forecast.class_bytes(kind, dimension, classes + n, form, 9)) for n in range(more)]
    measured = measure.measured_class_bytes(kind, dimension, classes, form, 9, more)
    assert sum(told) / more == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize(("head", "dimension", "quota", "exemplars", "least"), [
    ("nearest-mean", 400, 450_000, 30_000, 31), ("cosine", 200, 350_000, 0, 42), ("slda", 100, 400_000, 20_000, 48)])
def test_as_many_classes_fit_as_forecast(fast_path, head, dimension, quota, exemplars, least):
    """least: as many as fitted state directories of format 2."""
    learner = create(fast_path / "state", quota, exemplars, head)
    learner.learn(vectors("class-000", 6, dimension=dimension), "class-000")
    form = forecast.coarsest(learner.foundation.form, dimension)
    room = forecast.Room(quota, len(sandbox.backbone_bytes(learner)), exemplars, segment_bytes(exemplars))
    told = room.classes(head, dimension, form, 9)
    assert room.classes(head, dimension, form, 9, log=True) < told
    taught = 1
    with suppress(BudgetError):
        while taught < 1000:
            label = f"class-{taught:03}"
            learner.learn(vectors(label, 6, dimension=dimension), label)
            taught += 1
    learner.close()
    assert abs(told - taught) <= max(1, 0.05 * taught)
    assert taught >= least


def test_no_class_fits_where_not_even_one_does():
    assert forecast.Room(100_000, 80_000, 0, 4096).classes("slda", 64, Form(True)) == 0


def test_the_graph_tells_its_weights_and_its_largest_maps():
    graph = forecast.read_graph(backbone(side=32, channels=24))
    assert graph.weights == graph.largest == 4 * 24 * 27
    assert graph.live == 4 * 32 * 32 * (24 + 3)  # a map, and the pixels that it came from
    assert graph.nodes == 6


def test_a_state_that_waits_for_samples_can_be_profiled(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "_child", lambda _: (10 ** 8, 10 ** 8))  # other tests measure its processes
    create(tmp_path / "state", quota=3_000_000).close()
    found = profile.profile(tmp_path / "state", Settings(), 0.05)
    assert (found.known, found.kind, found.dimension) == (0, "feature", sandbox.NUMBERS)


def test_what_edgecl_did_not_write_stays(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(profile, "profile", lambda *_: pytest.fail("it was measured"))
    (tmp_path / "mine.toml").write_text("quota = '1MB'\n")
    assert "mine.toml" in refused(capsys, "profile", "--out", tmp_path / "mine.toml")
    assert (tmp_path / "mine.toml").read_text() == "quota = '1MB'\n"


@pytest.mark.parametrize(("arguments", "word"), [
    (["--state", "nowhere"], "nowhere"), (["--out", "nowhere/new.toml"], "folder"), (["--out", "."], "folder"),
    (["--seconds", "0"], "--seconds"), (["--seconds", "nan"], "--seconds"), (["--report", "nowhere/r.html"], "folder")])
def test_bad_input_is_refused_in_one_line(tmp_path, capsys, monkeypatch, arguments, word):
    monkeypatch.chdir(tmp_path)
    assert word in refused(capsys, "profile", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_a_report_is_refused_before_anything_is_measured(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("edgecl.commands.profile.find_spec", lambda _: None)
    monkeypatch.setattr(profile, "profile", lambda *_: pytest.fail("it was measured"))
    monkeypatch.chdir(tmp_path)
    assert "edgecl[report]" in refused(capsys, "profile", "--report", "r.html")


def test_the_report_has_bars_for_each_table(photos):
    folder, _, _ = photos
    page = (folder / "r.html").read_text("utf-8")
    assert page.count("<svg") == 4
    assert "ridge-projected" in page


def test_bars_name_each_group_and_value():
    drawing = bars(["one", "two"], {"told": [1.0, 2.0], "found": [1.5, 0.0]}, "MB")
    for word in ("one", "two", "told", "found", "MB", "1.5"):
        assert f">{word}<" in drawing
