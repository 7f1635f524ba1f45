"""The command line on photos, recordings and vectors, and on everything that people get wrong."""
from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgecl.cli import COMMANDS, main, parser
from edgecl.learner import Learner

PHOTO = (240, 200)


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run a command in a folder of its own: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def photos(folder: Path, hue: int, count: int, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        pixels = rng.integers(0, 60, (*PHOTO, 3)).astype(np.uint8)
        pixels[60:160, 40:160, hue] += 180
        Image.fromarray(pixels).save(folder / f"{i:03d}.jpg", quality=90)
    return folder


def recordings(folder: Path, frequency: float, count: int, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        t = np.arange(120)[:, None] / 20
        values = np.sin(2 * np.pi * frequency * t + rng.uniform(0, 6, 3)) + 0.2 * rng.standard_normal((120, 3))
        np.savetxt(folder / f"{i}.csv", values, fmt="%.4f", delimiter=",", header="x,y,z", comments="")
    return folder


def everything(state: Path) -> dict[str, bytes]:
    return {str(p.relative_to(state)): p.read_bytes() for p in sorted(state.rglob("*")) if p.is_file()}


@pytest.fixture
def watch(run, tmp_path):
    """A state that knows two gestures."""
    recordings(tmp_path / "train/slow", 1, 3), recordings(tmp_path / "train/fast", 4, 3)
    assert run("init", "--state", "s", "--rate", 20, "--window", 2, "--quota", "8MB", "--calibrate", "train")[0] == 0
    assert run("learn", "--state", "s", "--from", "train")[0] == 0
    return tmp_path / "s"


def refused(result: tuple[int, str, str], *words: str) -> None:
    """Exit 1, nothing on stdout, one line on stderr that says what and the cure."""
    code, out, err = result
    lines = [line for line in err.splitlines() if not line.startswith("edgecl: refused ")]
    assert code == 1
    assert out == ""
    assert len(lines) == 1, err
    assert lines[0].startswith("edgecl: ")
    assert "; " in lines[0]
    for word in words:
        assert word in lines[0], lines[0]


def test_photos_from_init_to_answer(run, tmp_path):
    for name, hue in (("red", 0), ("green", 1)):
        photos(tmp_path / "train" / name, hue, 8)
        photos(tmp_path / "test" / name, hue, 3, seed=1)
    code, out, err = run("learn", "--class", "red", "train/red", "--json")
    assert code == 0
    assert "created edgecl-state" in err
    told = json.loads(out)
    assert set(told) == {"class", "samples", "refused", "seconds", "generation", "used_bytes", "accuracy"}
    assert (told["class"], told["samples"], told["refused"]) == ("red", 8, 0)
    assert run("learn", "--class", "green", "train/green")[0] == 0
    code, out, _ = run("evaluate", "test", "--json")
    assert json.loads(out)["accuracy"] == 1.0
    assert json.loads(out)["n"] == 6
    code, out, _ = run("predict", "test")
    answers = [json.loads(line) for line in out.splitlines()]
    assert len(answers) == 6
    assert set(answers[0]) == {"source", "label", "confidence", "unknown", "milliseconds"}
    assert all(Path(a["source"]).parent.name == a["label"] for a in answers)
    status = json.loads(run("status", "--json")[1])
    assert {"generation", "backbone", "head", "classes", "quota_bytes", "used_bytes", "exemplar_bytes",
            "exemplar_limit_bytes"} <= set(status)
    assert status["backbone"] == "efficientnet-lite0"
    assert status["used_bytes"] <= status["quota_bytes"]
    code, out, _ = run("export", "m.onnx", "--json")
    assert code == 0
    assert json.loads(out)["max_difference"] <= 1e-4


def test_three_broken_photos_of_a_hundred_are_named(run, tmp_path):
    folder = photos(tmp_path / "p", 0, 97)
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("no photo at all")
    (folder / "torn.jpg").write_bytes((folder / "000.jpg").read_bytes()[:900])
    code, out, err = run("learn", "--class", "mug", "p", "--json")
    assert code == 0
    assert (json.loads(out)["samples"], json.loads(out)["refused"]) == (97, 3)
    for name in ("empty.jpg", "text.jpg", "torn.jpg"):
        assert sum(name in line and "refused" in line for line in err.splitlines()) == 1


def test_recordings_with_groups_and_json(run, watch):
    out = run("classes", "--state", "s", "--json")[1]
    known = json.loads(out)
    assert [(c["name"], c["samples"]) for c in known] == [("fast", 15), ("slow", 15)]
    assert set(known[0]) == {"name", "samples", "exemplars", "accuracy", "right", "judged"}
    recordings(watch.parent / "new/fast", 4, 1, seed=9)
    out = run("predict", "--state", "s", "new/fast/0.csv")[1]
    assert {json.loads(line)["label"] for line in out.splitlines()} == {"fast"}
    out = run("learn", "--state", "s", "--class", "fast", "new/fast/0.csv", "--seconds", 2, "--json")[1]
    assert json.loads(out)["samples"] == 1
    history = json.loads(run("history", "--state", "s", "--json")[1])
    assert [g["action"] for g in history] == ["init", "learn", "learn", "learn"]
    assert [g["current"] for g in history] == [False, False, False, True]


def test_forget_rollback_and_merge(run, watch):
    assert json.loads(run("rollback", "--state", "s", "--json")[1])["classes"] == 1
    assert run("learn", "--state", "s", "--class", "slow", "train/slow")[0] == 0
    assert json.loads(run("forget", "--state", "s", "--class", "slow", "--json")[1])["exact"] is True
    assert json.loads(run("classes", "--state", "s", "--json")[1])[0]["name"] == "fast"
    for name in ("a", "b"):
        run("init", "--state", name, "--rate", 20, "--window", 2, "--quota", "8MB", "--calibrate", "train")
    run("learn", "--state", "a", "--class", "slow", "train/slow")
    run("learn", "--state", "b", "--class", "fast", "train/fast")
    told = json.loads(run("merge", "--state", "a", "b", "--json")[1])
    assert (told["classes"], told["samples"]) == (2, 30)
    refused(run("merge", "--state", "a", "b"), "merged here before")
    refused(run("merge", "--state", "a", "a"), "itself")


BAD_NAMES = {"../../x": "'/'", "": "empty", " x": "space", "a" * 10_000: "10000 characters", "a\nb": r"'\n'",
             ".hidden": "dot"}


@pytest.mark.parametrize("name", BAD_NAMES, ids=["path", "empty", "space", "long", "newline", "dot"])
def test_bad_class_names(run, watch, name):
    before = everything(watch)
    refused(run("learn", "--state", "s", "--class", name, "train/slow"), BAD_NAMES[name])
    assert everything(watch) == before


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


BAD_RECORDINGS = {
    "missing columns": ("x,y,z\n" + "1,2\n" * 60, "columns"),
    "two columns": ("1,2\n" * 60, "bad.csv: samples of shape 40 x 2, not 40 x 3"),
    "nan": ("x,y,z\n" + "1,2,3\n" * 50 + "1,nan,3\n" * 9, "NaN"),
    "infinity": ("x,y,z\n" + "1,inf,3\n" * 60, "infinity"),
    "short": ("x,y,z\n" + "1,2,3\n" * 10, "lasts 0.5 s"),
    "ragged": ("1,2,3\n" * 50 + "1,2\n", "columns"),
    "text": ("x,y,z\n" + "a,b,c\n" * 60, "could not convert"),
    "empty": ("", "empty")}


@pytest.mark.parametrize("kind", BAD_RECORDINGS)
def test_bad_recordings(run, watch, kind):
    text, word = BAD_RECORDINGS[kind]
    write(watch.parent / "bad.csv", text)
    before = everything(watch)
    refused(run("learn", "--state", "s", "--class", "slow", "bad.csv"), word)
    assert everything(watch) == before


def bomb(path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(path)


BAD_PHOTOS = {
    "truncated": (lambda p: p.write_bytes((p.parent / "good" / "000.jpg").read_bytes()[:700]), "can't be read"),
    "empty": (lambda p: p.touch(), "it is empty"),
    "text": (lambda p: p.write_text("hello"), "can't be read"),
    "bomb": (lambda p: bomb(p.with_suffix(".png")), "pixels")}


@pytest.mark.parametrize("kind", BAD_PHOTOS)
def test_bad_photos(run, tmp_path, kind):
    photos(tmp_path / "good", 0, 3)
    make, word = BAD_PHOTOS[kind]
    make(tmp_path / "bad.jpg")
    path = next(tmp_path.glob("bad.*"))
    assert run("init", "--state", "s", "--backbone", "efficientnet-lite0")[0] == 0
    assert run("learn", "--state", "s", "--class", "mug", "good")[0] == 0
    before = everything(tmp_path / "s")
    refused(run("learn", "--state", "s", "--class", "cup", path), word)
    refused(run("predict", "--state", "s", path), word)
    assert everything(tmp_path / "s") == before


@pytest.mark.parametrize(("arguments", "word"), [
    (("learn", "--class", "x", "nothere"), "does not exist"),
    (("learn", "--class", "x"), "no source"),
    (("learn", "--from", "nothere"), "is not a folder"),
    (("predict", "nothere.csv"), "does not exist"),
    (("forget", "--class", "never"), "known are fast, slow"),
    (("rollback", "99"), "restorable are: "),
    (("export", "nofolder/x.onnx"), "No such file"),
    (("export", "s/edgecl.db"), "is inside the state"), (("export", "s/models/../x.onnx"), "is inside the state"),
    (("export", "/dev/full"), "exists and is not a file"), (("export", "."), "exists and is not a file"),
    (("export", "x.onnx", "--int8"), "--calibrate"),
    (("merge", "nothere"), "no edgecl state"),
    (("evaluate", "train/slow"), "no subfolders"),
    (("status", "--config", "nothere.toml"), "nothere.toml")])
def test_wrong_words(run, watch, arguments, word):
    before = everything(watch)
    refused(run(*arguments, "--state", "s"), word)
    assert everything(watch) == before


@pytest.mark.parametrize(("arguments", "word"), [
    (("--quota", "3XB"), "200KB"), (("--quota", "0"), "quota"), (("--backbone", "nope"), "efficientnet-lite0"),
    (("--backbone", "nothere.onnx"), "nothere.onnx"), (("--head", "nope"), "slda"),
    (("--quota", "1MB", "--exemplars", "2MB"), "exemplars"), (("--rate", "-3"), "rate"),
    (("--quota", "1MB", "--backbone", "efficientnet-lite0"), "--quota "),
    (("--int8", "--backbone", "efficientnet-lite0"), "--calibrate"), (("--threads", "0"), "threads"),
    (("--seed", "-1"), "seed")])
def test_init_refuses(run, tmp_path, arguments, word):
    refused(run("init", "--state", "s", *arguments), word)
    assert list(tmp_path.iterdir()) == []


def test_the_quota_that_the_refusal_names_is_enough(run):
    err = run("init", "--state", "s", "--quota", "1MB", "--backbone", "efficientnet-lite0")[2]
    words = err.split()
    quota, exemplars = (words[words.index(flag) + 1].rstrip(",") for flag in ("--quota", "--exemplars"))
    short = str(int(quota) - 4096)
    assert run("init", "--state", "s", "--quota", short, "--exemplars", exemplars, "--backbone",
               "efficientnet-lite0")[0] == 1
    assert run("init", "--state", "s", "--quota", quota, "--exemplars", exemplars, "--backbone",
               "efficientnet-lite0")[0] == 0


def test_a_state_of_a_newer_version_is_left_alone(run, watch):
    database = sqlite3.connect(watch / "edgecl.db")
    database.execute("UPDATE meta SET value = '99' WHERE key = 'format'")
    database.commit()
    database.close()
    before = everything(watch)
    for command in (("status",), ("learn", "--class", "slow", "train/slow"), ("predict", "train")):
        refused(run(*command, "--state", "s"), "format 99")
    assert everything(watch) == before


def test_a_model_with_a_wrong_hash_is_refused(run, watch):
    status = json.loads(run("status", "--state", "s", "--json")[1])
    assert status["classes"] == 2
    for path in (watch / "models").glob("*.onnx"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(bytes(data))
    refused(run("predict", "--state", "s", "train/slow/0.csv"), "SHA-256")


def test_configuration_files_are_read_strictly(run, tmp_path):
    write(tmp_path / "ok.toml", 'state = "from-config"\nquota = "8MB"\nrate = 20\nwindow = 2\n')
    assert run("init", "--config", "ok.toml")[0] == 0
    assert json.loads(run("status", "--config", "ok.toml", "--json")[1])["quota_bytes"] == 8_000_000
    write(tmp_path / "bad.toml", "quota = '8MB'\nrat = 20\n")
    refused(run("init", "--config", "bad.toml", "--state", "x"), "rat", "known keys are")
    write(tmp_path / "bad.toml", "rate = 'fast'\n")
    refused(run("init", "--config", "bad.toml", "--state", "x"), "rate")


def test_vectors_by_csv_and_npz(run, tmp_path):
    rng = np.random.default_rng(0)
    for name, shift in (("a", 0), ("b", 3)):
        (tmp_path / "v" / name).mkdir(parents=True)
        np.savetxt(tmp_path / "v" / name / "rows.csv", rng.standard_normal((40, 5)) + shift, delimiter=",")
    assert run("init", "--state", "s", "--backbone", "identity", "--quota", "4MB")[0] == 0
    assert run("learn", "--state", "s", "--from", "v")[0] == 0
    assert json.loads(run("evaluate", "--state", "s", "v", "--json")[1])["accuracy"] > 0.95
    x = rng.standard_normal((60, 5)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x_train=x, y_train=np.repeat([0, 1], 30), x_test=x, y_test=np.repeat([0, 1], 30),
             class_names=np.array(["p", "q"]))
    assert run("learn", "--state", "s", "--from", "d.npz")[0] == 0
    assert json.loads(run("evaluate", "--state", "s", "d.npz", "--json")[1])["n"] == 60
    refused(run("learn", "--state", "s", "--class", "z", "d.npz"), "p, q")
    np.savez(tmp_path / "e.npz", x=x)
    refused(run("learn", "--state", "s", "--from", "e.npz"), "x_train")
    np.savez(tmp_path / "w.npz", x_train=x[:, :3], y_train=np.repeat([0, 1], 30))
    refused(run("learn", "--state", "s", "--from", "w.npz"), "no sample")


def test_sessions_are_named_on_the_command_line(run, tmp_path):
    x = np.random.default_rng(0).standard_normal((12, 5)).astype(np.float32)
    for name, rows in (("a", x[:4]), ("b", x[4:8])):
        (tmp_path / "v" / name).mkdir(parents=True)
        np.savetxt(tmp_path / "v" / name / "rows.csv", rows, delimiter=",")
    assert run("init", "--state", "s", "--backbone", "identity", "--quota", "4MB")[0] == 0
    assert run("learn", "--state", "s", "--from", "v", "--session", "monday")[0] == 0
    np.savetxt(tmp_path / "more.csv", x[8:9], delimiter=",")
    assert run("learn", "--state", "s", "--class", "b", "more.csv", "--session", " monday ")[0] == 0
    np.savez(tmp_path / "d.npz", x_train=x[9:], y_train=["a", "a", "b"], session_train=["monday", "friday", "friday"])
    assert run("learn", "--state", "s", "--class", "a", "d.npz", "--session", "sunday")[0] == 0
    assert run("learn", "--state", "s", "--class", "b", "--again", "more.csv")[0] == 0
    learner = Learner.open(tmp_path / "s")
    found = [row.key >> 32 for row in learner.repository.known().stored]
    learner.close()
    assert found[:10] == [found[0]] * 10
    assert len({found[0], *found[10:]}) == 3
    refused(run("learn", "--state", "s", "--class", "b", "more.csv", "--session", "  "), "session")


def test_every_command_stands_in_the_readme_and_has_help():
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    text = parser().format_help()
    for name in COMMANDS:
        assert f"edgecl {name}" in readme or f"| {name}" in readme
        assert name in text


def test_wrong_usage_exits_with_two(run):
    assert run("learn", "--class", "a", "--from", "b")[0] == 2
    assert run("nosuchcommand")[0] == 2
    assert run()[0] == 2


def test_doctor_names_what_it_checked(run):
    code, out, _ = run("doctor", "--json")
    found = json.loads(out)
    assert code == 0
    assert {"onnxruntime", "processor", "disk", "state"} <= {f["check"] for f in found}
    assert all(f["cure"] for f in found if f["level"] == "bad")
