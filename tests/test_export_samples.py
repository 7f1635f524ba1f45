"""What was taught leaves again, as files with a manifest, and what learns them knows the same."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import pytest
from helpers_candidates import accept, candidate, matrix, world
from helpers_daemon import serving
from helpers_state import create, refused, traces, vectors
from PIL import Image
from round_states import conv_backbone
from test_exact import difference, served

from edgecl.cli import main
from edgecl.errors import BadInput
from edgecl.learner import Learner
from edgecl.learning.sample_archive import SampleArchive
from edgecl.learning.sample_export import BACKBONE, MANIFEST, folder_names
from edgecl.samples import Sample
from edgecl.settings import Settings

KINDS = ("vectors", "int8 vectors", "jpeg", "raw photos", "delta16", "raw windows", "photo features")
NAMES = ("mug", "Tasse à café", "con", "a.b", "x" * 60)


def data(what, number, count=12):
    rng = np.random.default_rng(number)
    if "vectors" in what:
        return vectors(f"class {number}", count)
    if what in ("delta16", "raw windows"):
        return (rng.standard_normal((count, 40, 3)).cumsum(1) * (number + 1)).astype(np.float32)
    shades = rng.integers(0, 256, (count, 4, 4, 3)) // 2 + 25 * number
    return shades.repeat(8, 1).repeat(8, 2).clip(0, 255).astype(np.uint8)


def empty(path, what):
    """A state that has learned nothing."""
    codec = {"vectors": "raw", "jpeg": "jpeg", "delta16": "delta16", "photo features": "int8-feature"}.get(
        what, "raw" if "raw" in what else "auto")
    backbone = "identity" if "vectors" in what else "rocket"
    if what in ("jpeg", "raw photos", "photo features"):
        backbone = str(path.parent / "small.onnx")
        (path.parent / "small.onnx").write_bytes(conv_backbone((8, 16)))
    return Learner.create(path, Settings(backbone, 20_000_000, 2_000_000, codec))


def filled(path, what):
    """A state of several classes, taught in parts, with sessions, sources and near-duplicates."""
    learner = empty(path, what)
    for number, name in enumerate(NAMES):
        samples = data(what, number)
        for part in (samples[:5], samples[5:]):
            learner.learn([Sample(each, f"files/{number}.bin", "one" if number else "", None, place, "index",
                                  "monday" if number == 1 else "") for place, each in enumerate(part)], name)
    return learner


def stored(learner):
    return sorted((row.label, row.key, row.feature.tobytes(), row.origin, row.tick, row.spare, row.input)
                  for row in learner.repository.known().stored)


def assert_equal(found, expected):
    """That two states know and answer the same."""
    here, there = found.repository.known(), expected.repository.known()
    assert here.plain.counts == there.plain.counts
    assert difference(here.plain.scatter(), there.plain.scatter()) <= 1e-6
    for label in here.labels:
        assert difference(here.plain.mean(label), there.plain.mean(label)) <= 1e-6
    assert stored(found) == stored(expected)
    (kind, ours), (other, theirs) = served(found), served(expected)
    assert kind == other
    for name in ("weight", "bias", "reference", "temperature"):
        assert difference(ours[name], theirs[name]) <= 1e-4


@pytest.mark.parametrize("what", KINDS)
def test_a_state_that_learns_an_export_knows_the_same(what, tmp_path, capsys):
    with closing(filled(tmp_path / "one", what)) as first:
        taught = {row.origin.taught for row in first.repository.known().stored}
        assert first.export_samples(tmp_path / "out").samples == 12 * len(NAMES)
        second = empty(tmp_path / "two", what)
        second.close()
        time.sleep(1.1)     # times of teaching are whole seconds
        assert main(["learn", "--state", str(tmp_path / "two"), "--from", str(tmp_path / "out")]) == 0
        assert "note" not in capsys.readouterr().err
        with closing(Learner.open(tmp_path / "two")) as second:
            assert_equal(second, first)
            assert {row.origin.taught for row in second.repository.known().stored} == taught
            generation = second.store.current
        assert main(["learn", "--state", str(tmp_path / "two"), "--from", str(tmp_path / "out")]) == 0   # twice
        with closing(Learner.open(tmp_path / "two")) as second:
            assert second.store.current == generation
    assert [line for line in capsys.readouterr().out.splitlines() if "already known, left out" in line]


def test_a_default_state_is_made_for_an_export(tmp_path, monkeypatch, capsys):
    """Without a state, and without a backbone that was named: that of the export."""
    monkeypatch.chdir(tmp_path)
    with closing(filled(tmp_path / "one", "delta16")) as first:
        first.export_samples("out")
        assert main(["learn", "--from", "out"]) == 0
        with closing(Learner.open("edgecl-state")) as second:
            assert second.store.newest.backbone == first.store.newest.backbone
            assert second.repository.known().plain.counts == first.repository.known().plain.counts


def test_manifest_and_files(tmp_path):
    """Photos are the bytes that are stored; the manifest says where each came from, and when."""
    with closing(filled(tmp_path / "one", "jpeg")) as learner:
        rows = {row.id: row for row in learner.repository.known().stored}
        learner.export_samples(tmp_path / "out")
    about, *lines = map(json.loads, (tmp_path / "out" / MANIFEST).read_text().splitlines())
    assert len(lines) == len(rows) == 60
    assert {each["class"]: each["taught"] for each in about["classes"]} == dict.fromkeys(NAMES, 12)
    for line in lines:
        generation, number = map(int, line["id"].split("-"))
        row = rows[(generation << 32) + number]
        assert (tmp_path / "out" / line["file"]).read_bytes() == row.input
        assert (line["class"], line["source"], line["position"]) == (row.label, row.source, row.at)
        assert line["taught"].endswith("+00:00") and (line["kept"], line["unit"]) == ("exact", "index")
        assert (line["session"] is None) == (row.label == "mug")
        with Image.open(tmp_path / "out" / line["file"]) as image:
            assert image.format == "JPEG"
    assert {line["file"].partition("/")[0] for line in lines} == {path.name for path in (tmp_path / "out").iterdir()
                                                                 if path.is_dir()}


def test_arrays_are_as_learn_takes_them(tmp_path, capsys):
    """A class's folder without the manifest is a source of samples like any other."""
    with closing(filled(tmp_path / "one", "raw windows")) as learner:
        learner.export_samples(tmp_path / "out")
    assert main(["init", "--state", str(tmp_path / "two"), "--backbone", "rocket"]) == 0
    command = ["learn", "--state", tmp_path / "two", "--class", "mug", tmp_path / "out/mug/windows.npz"]
    assert main([*map(str, command)]) == 0
    with closing(Learner.open(tmp_path / "two")) as two:
        assert two.classes()[0].samples == 12


def test_folders_of_any_class():
    labels = ["mug", "Mug", "MUG-2", ".hidden", "..", "con", "Con.x", "a/b", "a%2Fb", "é", "e\u0301", "x" * 255,
              "x" * 254, "日" * 85, " ends ", "dot.", "__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "~",
              "tab\there", "q?", "q*", "ß", "ss", "recycler", "#recycle", "System Volume Information", "train"]
    names = folder_names(labels)
    assert [*names] == sorted(labels)
    assert len({name.casefold() for name in names.values()}) == len(labels)
    for name in names.values():
        assert 0 < len(name.encode()) <= 110
        assert not set(name) & set('<>:"/\\|?*') and name.isprintable()
        assert name[0] not in ". " and name[-1] not in ". "
        assert name not in ("con", "lost+found", "__MACOSX", "@eaDir", "recycler")
    assert names["mug"] == "mug" or names["Mug"] == "Mug"


def test_what_is_not_stored_is_counted_and_said(tmp_path, capsys):
    with closing(create(tmp_path / "one", exemplars=3_000)) as learner:
        for name in ("ant", "bee", "cat"):
            for seed in range(10):
                learner.learn(vectors(name, 30, seed), name)
        learner.forget("cat")
    assert main(["export-samples", str(tmp_path / "out"), "--state", str(tmp_path / "one"), "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["samples"] + sum(about["not_stored"].values()) == 600
    assert about["not_stored"]
    assert main(["export-samples", str(tmp_path / "other"), "--state", str(tmp_path / "one"), "--class", "ant"]) == 0
    out = capsys.readouterr().out
    assert "not exported, since they are not stored any more: " in out and "of bee" not in out
    assert main(["learn", "--from", str(tmp_path / "other"), "--state", str(tmp_path / "two")]) == 0
    assert "were not stored any more" in capsys.readouterr().err


def test_what_product_codes_keep_is_exported_but_not_learned(tmp_path, capsys):
    rng = np.random.default_rng(0)
    with closing(Learner.create(tmp_path / "one", Settings("identity", 3_000_000, 40_000, "pq"))) as learner:
        for number in range(4):
            learner.learn((rng.standard_normal((400, 32)) + 5 * number).astype(np.float32), f"class {number}")
        coded = sum(bool(row.coded) for row in learner.repository.known().stored)
        assert coded
        assert learner.export_samples(tmp_path / "out").coded == coded
    assert main(["export-samples", str(tmp_path / "more"), "--state", str(tmp_path / "one")]) == 0
    assert f"{coded} of them as product codes have kept them" in capsys.readouterr().out
    assert main(["learn", "--from", str(tmp_path / "out"), "--state", str(tmp_path / "two")]) == 0
    err = capsys.readouterr().err
    assert "kept as product codes only" in err
    with closing(Learner.open(tmp_path / "two")) as two:
        assert sum(each.samples for each in two.classes()) == \
            sum(line["kept"] == "exact" for each in SampleArchive(tmp_path / "out").labels
                for line in SampleArchive(tmp_path / "out").samples(each))


def test_a_class_that_is_nearly_a_known_one_is_asked_about(tmp_path, capsys):
    with closing(create(tmp_path / "one")) as learner:
        learner.learn(vectors("ant", 5), "Ant")
        learner.export_samples(tmp_path / "out")
    with closing(create(tmp_path / "two")) as learner:
        learner.learn(vectors("bee", 5), "ant")
    command = ["learn", "--from", tmp_path / "out", "--state", tmp_path / "two"]
    assert "did you mean" in refused(capsys, *command)
    assert main([*map(str, command), "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == [{"class": "Ant", "exact": 5}]
    assert main([*map(str, command), "--distinct"]) == 0
    with closing(Learner.open(tmp_path / "two")) as two:
        assert [each.name for each in two.classes()] == ["Ant", "ant"]


def test_refused_before_anything_is_written(tmp_path, monkeypatch, capsys):
    with closing(create(tmp_path / "one")) as learner:
        learner.learn(vectors("ant", 5), "ant")
    with closing(create(tmp_path / "none")):
        pass
    with closing(create(tmp_path / "statistics", quota=3_000_000, memory="statistics")) as learner:
        learner.learn(vectors("ant", 5), "ant")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/a.txt").write_text("mine")
    state = ["--state", tmp_path / "one"]
    assert "exists already" in refused(capsys, "export-samples", tmp_path / "full", *state)
    assert (tmp_path / "full/a.txt").read_text() == "mine"
    assert "inside the state" in refused(capsys, "export-samples", tmp_path / "one/out", *state)
    assert "no class is called" in refused(capsys, "export-samples", tmp_path / "out", *state, "--class", "bee")
    assert "nothing yet" in refused(capsys, "export-samples", tmp_path / "out", "--state", tmp_path / "none")
    assert "keeps no samples" in refused(capsys, "export-samples", tmp_path / "out", "--state", tmp_path / "statistics")
    assert not (tmp_path / "out").exists()
    for name in ("empty", "here"):
        (tmp_path / name).mkdir()
    assert main(["export-samples", str(tmp_path / "empty"), *map(str, state)]) == 0
    assert (tmp_path / "empty" / MANIFEST).exists()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["export-samples", ".", *map(str, state)]) == 0
    assert (tmp_path / "here" / MANIFEST).exists()


def test_a_changed_export(tmp_path, capsys):
    """A photo that was changed is learned as it is, one that was deleted is left out, changed arrays are refused."""
    with closing(filled(tmp_path / "one", "jpeg")) as learner:
        learner.export_samples(tmp_path / "out")
    first, second = sorted((tmp_path / "out/mug").iterdir())[:2]
    first.unlink()
    Image.fromarray(data("jpeg", 9, 1)[0]).save(second, "JPEG")
    empty(tmp_path / "two", "jpeg").close()
    command = ["learn", "--from", tmp_path / "out", "--state", tmp_path / "two"]
    assert main([*map(str, command)]) == 0
    err = capsys.readouterr().err
    assert "mug: left out 1 sample whose files are not there any more" in err
    assert "mug: 1 sample learned as the files are now" in err
    with closing(Learner.open(tmp_path / "two")) as two:
        assert {each.name: each.samples for each in two.classes()} == {**dict.fromkeys(NAMES, 12), "mug": 11}
    with (tmp_path / "out/features.npz").open("r+b") as file:
        file.seek(100)
        file.write(b"x")
    empty(tmp_path / "three", "jpeg").close()
    assert "features.npz was changed since" in refused(capsys, *command[:-1], tmp_path / "three")


@pytest.mark.parametrize("line", [
    b"", b"{}", b"[]", b"not JSON", b'{"edgecl_samples": 1}', b'{"edgecl_samples": 2}', b"\xff", b"[" * 100_000])
def test_a_first_line_that_is_not_of_an_export(line, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MANIFEST).write_bytes(line)
    refused(capsys, "learn", "--from", tmp_path / "out", "--state", made(tmp_path))


def made(tmp_path):
    create(tmp_path / "state").close()
    return tmp_path / "state"


@pytest.mark.parametrize("change", [
    {"file": "../../etc/passwd"}, {"file": "/etc/passwd"}, {"file": "a\0.npz"}, {"file": "\0.jpg"},
    {"file": "\ud800.npz"}, {"file": "a" * 5000}, {"index": 99}, {"index": -1}, {"index": None},
    {"key": "x"}, {"key": "-000000000000001"}, {"taught": "yesterday"}, {"taught": 5}, {"position": "far"},
    {"class": ""}, {"class": "a\nb"}, {"kept": None}, {"file": "nowhere.npz"}, {"unit": "mile"}, {"id": None}])
def test_a_line_that_can_t_be_right(change, tmp_path, capsys):
    with closing(filled(tmp_path / "one", "vectors")) as learner:
        learner.export_samples(tmp_path / "out")
    path = tmp_path / "out" / MANIFEST
    about, first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([about, json.dumps({**json.loads(first), **change}), *rest]))
    error = refused(capsys, "learn", "--from", tmp_path / "out", "--state", made(tmp_path))
    assert "passwd" not in error or "names the file" in error


def test_another_backbone(tmp_path, capsys):
    """Photos go through the backbone of the state; what is kept as features only can't."""
    for what, count in (("jpeg", 12), ("photo features", 0)):
        base = tmp_path / what.replace(" ", "-")
        base.mkdir()
        with closing(filled(base / "one", what)) as learner:
            learner.export_samples(base / "out")
        (base / "other.onnx").write_bytes(conv_backbone((12, 20)))
        Learner.create(base / "two", Settings(str(base / "other.onnx"), 20_000_000, 2_000_000, "jpeg")).close()
        assert main(["learn", "--from", str(base / "out"), "--state", str(base / "two")]) == 0
        err = capsys.readouterr().err
        with closing(Learner.open(base / "two")) as two:
            assert {each.name: each.samples for each in two.classes()} == (dict.fromkeys(NAMES, 12) if count else {})
            if count:
                assert {row.source for row in two.repository.known().stored} == {f"files/{n}.bin" for n in range(5)}
        assert ("went through the backbone of this state" if count else "kept as features only") in err


def test_after_a_round(tmp_path, monkeypatch, capsys):
    """The backbone that a round has tuned goes along; its features are no samples for another one."""
    taught = [(label, 25, 0) for label in ("ant", "wasp", "cat")]
    with closing(create(tmp_path / "one", exemplars=40_000)) as learner:
        for label, count, seed in taught:
            learner.learn(vectors(label, count, seed), label)
        accept(learner, candidate(learner, world(*taught), matrix(1)), monkeypatch)
        learner.export_samples(tmp_path / "out")
        create(tmp_path / "two", exemplars=40_000).close()
        assert main(["learn", "--from", str(tmp_path / "out"), "--state", str(tmp_path / "two")]) == 0
        with closing(Learner.open(tmp_path / "two")) as two:
            assert_equal(two, learner)
            assert two.store.tuned() is not None
            before, after = learner.repository.known().stored, two.repository.known().stored
            assert {row.key: (row.trained, row.judges) for row in before} == {
                row.key: (row.trained, row.judges) for row in after}
            two.learn(vectors("dog", 25), "dog")
    with closing(create(tmp_path / "three", exemplars=40_000)) as three:
        three.learn(vectors("bee", 25), "bee")
    capsys.readouterr()
    assert main(["learn", "--from", str(tmp_path / "out"), "--state", str(tmp_path / "three")]) == 0
    assert capsys.readouterr().err.count("kept as features only, by another backbone") == 3
    with closing(Learner.open(tmp_path / "three")) as three:
        assert [each.name for each in three.classes()] == ["bee"]


def test_what_shows_nothing_goes_along(tmp_path, capsys):
    """A state that was taught black photos as a class answers them so, and so does one that learns its export."""
    with closing(empty(tmp_path / "one", "jpeg")) as learner:
        learner.learn(data("jpeg", 1), "mug")
        learner.learn(np.zeros((8, 32, 32, 3), np.uint8) + np.arange(8, dtype=np.uint8)[:, None, None, None], "night")
        expected = [each.label for each in learner.predict(np.zeros((1, 32, 32, 3), np.uint8))]
        learner.export_samples(tmp_path / "out")
    empty(tmp_path / "two", "jpeg").close()
    assert main(["learn", "--from", str(tmp_path / "out"), "--state", str(tmp_path / "two")]) == 0
    assert "show nothing" not in capsys.readouterr().out
    with closing(Learner.open(tmp_path / "two")) as two:
        assert [each.label for each in two.predict(np.zeros((1, 32, 32, 3), np.uint8))] == expected == ["night"]


def test_into_a_state_that_keeps_no_sample(tmp_path, capsys):
    with closing(create(tmp_path / "one", quota=3_000_000)) as learner:
        for label in ("ant", "bee"):
            learner.learn([Sample(vector, "secret-file.csv") for vector in vectors(label, 25)], label)
        learner.export_samples(tmp_path / "out")
    create(tmp_path / "two", quota=3_000_000, memory="statistics").close()
    assert main(["learn", "--from", str(tmp_path / "out"), "--state", str(tmp_path / "two")]) == 0
    with closing(Learner.open(tmp_path / "two")) as two:
        assert {each.name: each.samples for each in two.classes()} == {"ant": 25, "bee": 25}
    assert traces(tmp_path / "two", vectors("ant", 25), ["secret-file"]) == []


def test_through_a_daemon(tmp_path, monkeypatch, capsys):
    """A user who may not read the state gets it from the daemon; a state is taught an export beside its daemon."""
    with serving(tmp_path / "state", control=(30, 30)) as (service, *_):
        path = service.path
        with closing(Learner.open(path)) as learner:
            learner.export_samples(tmp_path / "direct")
        monkeypatch.setattr("edgecl.commands.leave.readable", lambda path: False)
        assert main(["export-samples", str(tmp_path / "out"), "--state", str(path)]) == 0
        mine, theirs = ({file.relative_to(tmp_path / folder): file.read_bytes()
                         for file in (tmp_path / folder).rglob("*") if file.is_file()} for folder in ("out", "direct"))
        assert mine.keys() == theirs.keys()
        assert [name for name in mine if mine[name] != theirs[name]] in ([], [type(next(iter(mine)))(MANIFEST)])


WRITE = """
import os, signal, sys
from edgecl.cli import main
count, real = 0, os.fsync
def fsync(descriptor):
    global count
    count += 1
    if count == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGINT)
    return real(descriptor)
os.fsync = fsync
raise SystemExit(main(["export-samples", sys.argv[2], "--state", sys.argv[1]]))
"""


@pytest.mark.parametrize("place", [1, 2, 3])
def test_nothing_half_written_after_ctrl_c(place, tmp_path):
    with closing(create(tmp_path / "one")) as learner:
        for name in ("ant", "bee"):
            learner.learn(vectors(name, 5), name)
    made = subprocess.run([sys.executable, "-c", WRITE, tmp_path / "one", tmp_path / "out", str(place)],
                          capture_output=True, text=True, env={**os.environ}, timeout=600)
    assert made.returncode == 130, made.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one"]
    assert signal.SIGINT


def test_an_export_of_a_class_reads_no_other(tmp_path):
    with closing(filled(tmp_path / "one", "vectors")) as learner:
        learner.export_samples(tmp_path / "out", "mug")
    assert SampleArchive(tmp_path / "out").labels == ["mug"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([BACKBONE, MANIFEST, "mug"])
    with pytest.raises(BadInput):
        SampleArchive(tmp_path)
