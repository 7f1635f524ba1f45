"""Class names: any printable text, in every command, the daemon, HTTP and Python; near-doubles ask first."""
from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from helpers_http import web
from helpers_needs import need_module
from helpers_state import create, refused, tree, vectors
from prometheus_client.parser import text_string_to_metric_families

from edgecl.cli import main
from edgecl.errors import BadInput, BudgetError
from edgecl.learner import Learner
from edgecl.samples import MAX_NAME_BYTES, check_class_name, check_new_name

LONG = "a tin of peeled and chopped tomatoes in their own juice, 400 g, n02"
GOOD = ["salt & pepper", "O'Brien", LONG, "x" * MAX_NAME_BYTES, "日本語の名前", "☕ mug", "50 % off", "a\\b", "[red]",
        "[link=x]", "cost: $5 or $6", "<b>bold<i>",
        '"quoted"', "a=b; c", "-5", "None", "null", "{0}", "é" * 100, "👨‍👩‍👧 family",
        "می‌خواهم", "a　b", "`x`", "%s %d", "*", "~", "#1"]
BAD = {"/": "'/'", "a/b": "'/'", ".": "dot", "..": "dot", ".hidden": "dot", "": "empty", "   ": "empty", " x": "space",
       "x ": "space", "\u3000x": "space", "a\nb": r"'\\n'", "a\tb": r"'\\t'", "a\x1b[31mb": r"'\\x1b'",
       "a\x7fb": r"'\\x7f'", "a\u202eb": "u202e", "a\u200bb": "u200b", "a\u2028b": "u2028", "a\x00b": "x00",
       "caf\udce9": "not UTF-8",
       "x" * (MAX_NAME_BYTES + 1): "256 bytes", "é" * 128: "256 bytes", "unknown": "none of the classes",
       "Unknown": "none of the classes", "UNKNOWN": "none of the classes", "ｕｎｋｎｏｗｎ": "none of the classes"}
ALIKE = [("mug", "Mug"), ("mug", "MUG"), ("coffee mug", "Coffee_Mug"), ("Straße", "STRASSE"), ("mug", "ｍｕｇ"),
         ("left-hand", "left hand"), ("x2", "x²"), ("mug", "mug\u200c"), ("a b", "a  b")]
UNLIKE = [("mug", "mugs"), ("1", "-1"), ("a", "ä"), ("class 1", "class 11"), ("12", "1 2"), ("cat", "car"),
          ("C", "C++")]


def csv(path, name, count=12, seed=0):
    """A .csv of vectors of a class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, vectors(name, count, seed), delimiter=",")
    return path


@pytest.mark.parametrize("name", GOOD)
def test_printable_text_is_a_class_name(name):
    assert check_class_name(name) == name


@pytest.mark.parametrize("name", BAD)
def test_other_text_is_not(name):
    with pytest.raises(BadInput, match=BAD[name]) as caught:
        check_class_name(name)
    assert str(caught.value).isprintable()


def test_names_are_kept_in_nfc():
    assert check_class_name("cafe\u0301") == "café"


@pytest.mark.parametrize(("known", "name"), ALIKE)
def test_nearly_the_name_of_a_known_class_asks_first(known, name):
    with pytest.raises(BadInput, match="did you mean that") as caught:
        check_new_name(name, [known, "other"])
    assert repr(known) in caught.value.what
    check_new_name(name, [known, name])     # both are known


@pytest.mark.parametrize(("known", "name"), UNLIKE)
def test_another_name_does_not_ask(known, name):
    check_new_name(name, [known])


@pytest.fixture
def state(tmp_path, monkeypatch):
    """A state of vectors that knows `mug`, in the working directory."""
    monkeypatch.chdir(tmp_path)
    with_mug = create(tmp_path / "s", quota=4_000_000)
    with_mug.learn(vectors("mug", 20), "mug")
    with_mug.close()
    return tmp_path / "s"


def test_every_name_passes_through_every_command(state, tmp_path, capsys):
    for name in GOOD:
        assert main(["learn", "--state", "s", f"--class={name}", str(csv(tmp_path / "x.csv", name))]) == 0, name
    told = capsys.readouterr().out
    assert all(f"{name}: 12 samples learned" in told for name in GOOD)
    for command in ("classes", "history", "status"):
        assert main([command, "--state", "s"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in ("[red]", "[link=x]", "☕ mug", "<b>bold<i>", "%s %d"))
    assert main(["classes", "--state", "s", "--json"]) == 0
    assert [each["name"] for each in json.loads(capsys.readouterr().out)] == sorted([*GOOD, "mug"])
    assert main(["export", "--state", "s", "out.onnx", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == sorted([*GOOD, "mug"])
    about = {each.key: each.value for each in onnx.load("out.onnx").metadata_props}
    assert json.loads(about["edgecl.head"])["labels"] == sorted([*GOOD, "mug"])
    for name in GOOD:
        (folder := tmp_path / "test" / name.replace("/", "")).mkdir(parents=True)
        csv(folder / "x.csv", name, 5, seed=1)
    assert main(["evaluate", "--state", "s", "test", "--json"]) == 0
    assert {*json.loads(capsys.readouterr().out)["per_class"]} == {*GOOD}
    assert main(["evaluate", "--state", "s", "test"]) == 0
    assert "[link=x]" in capsys.readouterr().out
    assert main(["predict", "--state", "s", "test/[red]/x.csv"]) == 0
    assert {json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()} == {"[red]"}
    assert main(["forget", "--state", "s", "--class=[link=x]"]) == 0
    assert Learner.open("s").labels == sorted({*GOOD, "mug"} - {"[link=x]"})


def test_bad_names_change_nothing(state, tmp_path, capsys):
    csv(tmp_path / "x.csv", "x")
    before = tree(state)
    for name in BAD:
        if "\0" not in name:    # which no argument can hold
            refused(capsys, "learn", "--state", "s", f"--class={name}", "x.csv")
    assert tree(state) == before


def test_near_doubles_are_refused_everywhere_and_allowed_everywhere(state, tmp_path, capsys):
    csv(tmp_path / "x.csv", "x")
    before = tree(state)
    for name in ("Mug", "MUG"):
        assert "'mug'" in refused(capsys, "learn", "--state", "s", "--class", name, "x.csv")
    csv(tmp_path / "f/a/x.csv", "a"), csv(tmp_path / "f/Mug/x.csv", "x")
    assert "--distinct" in refused(capsys, "learn", "--state", "s", "--from", "f")
    csv(tmp_path / "g/a/x.csv", "a"), csv(tmp_path / "g/A/x.csv", "x")
    assert "'A'" in refused(capsys, "learn", "--state", "s", "--from", "g")
    learner = Learner.open("s")
    with pytest.raises(BadInput, match="did you mean that"):
        learner.learn(vectors("x", 12), "Mug")
    assert tree(state) == before
    learner.learn(vectors("x", 12), "Mug", distinct=True)
    learner.learn(vectors("x", 12, seed=1), "Mug")      # it is known now
    assert learner.labels == ["Mug", "mug"]
    learner.close()
    assert main(["learn", "--state", "s", "--class", "MUG", "--distinct", "x.csv"]) == 0
    assert main(["learn", "--state", "s", "--from", "g", "--distinct"]) == 0
    assert [each.name for each in Learner.open("s").classes()] == ["A", "MUG", "Mug", "a", "mug"]


def test_two_forms_of_one_name_are_one_class(state, tmp_path, capsys):
    csv(tmp_path / "f/cafe\u0301/x.csv", "cafe"), csv(tmp_path / "f/café/y.csv", "cafe", seed=1)
    assert main(["learn", "--state", "s", "--from", "f"]) == 0
    out, err = capsys.readouterr()
    assert "café: 24 samples learned" in out
    assert "are one class" in err


def test_the_daemon_and_http_have_the_same_rule(tmp_path, capsys):
    with web(tmp_path / "state", classes=("ant", "wasp"), control=(60.0, 60.0)) as (client, service, _, _):
        rows = "\n".join(",".join(map(str, row)) for row in vectors("x", 8)).encode()
        csv_type = {"Content_Type": "text/csv"}
        assert "'/'" in client.refused(400, "POST", "/api/learn?class=a%2Fb", rows, **csv_type)
        assert "none of the classes" in client.refused(400, "POST", "/api/learn?class=Unknown", rows, **csv_type)
        assert "'ant'" in client.refused(400, "POST", "/api/learn?class=Ant", rows, **csv_type)
        assert client.post("/api/learn?class=Ant&distinct=1", rows, **csv_type)["label"] == "Ant"
        assert client.post("/api/learn?class=salt%20%26%20%22pepper%22", rows, **csv_type)["label"] == 'salt & "pepper"'
        assert client.get("/api/info")["classes"] == ["Ant", "ant", 'salt & "pepper"', "wasp"]
        metrics = client.ask("GET", "/metrics")[2].decode()
        assert {each.name for each in text_string_to_metric_families(metrics)} >= {"edgecl_classes"}
        csv(tmp_path / "x.csv", "x")
        state = str(tmp_path / "state")
        refused(capsys, "learn", "--state", state, "--class", "Wasp", tmp_path / "x.csv")
        refused(capsys, "learn", "--state", state, "--class", "..", tmp_path / "x.csv")
        refused(capsys, "forget", "--state", state, "--class", "caf\udce9")
        assert main(["learn", "--state", state, "--class", "Wasp", "--distinct", str(tmp_path / "x.csv")]) == 0
        assert main(["learn", "--state", state, "--class", LONG, str(tmp_path / "x.csv")]) == 0
        assert LONG in service.info()["classes"]
        with pytest.raises(BadInput, match="did you mean that"):
            service.learn("ANT", vectors("x", 5))


def test_a_class_of_an_older_edgecl_with_a_name_that_is_reserved_now_stays(state, monkeypatch):
    monkeypatch.setattr("edgecl.learner.check_class_name", lambda name: name)
    learner = Learner.open("s")
    learner.learn(vectors("x", 12), "unknown")
    learner.close()
    monkeypatch.undo()
    learner = Learner.open(state)
    assert learner.labels == ["mug", "unknown"]
    assert learner.predict(vectors("x", 1, seed=1))[0].label == "unknown"
    with pytest.raises(BadInput, match="none of the classes"):
        learner.learn(vectors("x", 3), "unknown")
    assert learner.forget("unknown")["class"] == "unknown"


def test_long_names_stay_inside_the_quota(tmp_path):
    learner = create(tmp_path / "s", quota=600_000, exemplars=8_000)
    names = [f"{number:03}" + "é" * 126 for number in range(40)]
    taught = []
    for name in names:
        try:
            learner.learn(vectors(name, 5), name)
        except BudgetError:
            break
        taught.append(name)
        assert sum(path.stat().st_size for path in (tmp_path / "s").rglob("*") if path.is_file()) <= 600_000
    assert len(taught) > 10
    learner.close()
    assert [each.name for each in Learner.open(tmp_path / "s").classes()] == taught


def test_names_are_text_in_reports(tmp_path):
    need_module("matplotlib", "report")
    from edgecl.evaluation.report import bars, curves, paragraph, table, write_report

    names = ["cost: $5 or $6", "<b>bold<i>", "[red]", "日本語", "a_b^c $\\frac{"]
    write_report(tmp_path / "r.html", names[1], names[1], [
        table(["class"], [[name] for name in names]), paragraph(names[1]),
        bars(names, {name: [1.0] * len(names) for name in names[:2]}, "x"),
        curves([1, 2], {name: [0.1, 0.2] for name in names}, "x", "y")])
    text = (tmp_path / "r.html").read_text("utf-8")
    assert "<b>" not in text
    assert text.count("cost: $5 or $6") >= 3
