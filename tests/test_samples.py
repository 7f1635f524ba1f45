"""`edgecl samples`: what is listed of each stored sample, by the command line, the learner and a daemon."""
from __future__ import annotations

import json
from contextlib import contextmanager

import numpy as np
import pytest
from helpers_daemon import serving
from helpers_state import create, refused, vectors

from edgecl.cli import main
from edgecl.errors import BadInput
from edgecl.learner import Learner
from edgecl.results import SampleSummary
from edgecl.runtime.client import Client
from edgecl.samples import Sample


def printed(capsys, *arguments):
    assert main([*map(str, arguments)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


@pytest.fixture
def learner(tmp_path):
    made = create(tmp_path / "s")
    made.learn([Sample(x, "walk.csv", group="walk", at=1.5 * i, unit="s") for i, x in enumerate(vectors("ant", 5))],
               "ant")
    made.learn(vectors("wasp", 3), "wasp")
    yield made
    made.close()


def test_each_sample_is_listed_with_where_and_when_and_how(learner):
    found = learner.samples()
    assert [each.label for each in found.samples] == ["ant"] * 5 + ["wasp"] * 3
    assert [each.source for each in found.samples[:3]] == ["walk.csv@0.00s", "walk.csv@1.50s", "walk.csv@3.00s"]
    assert [each.id for each in found.samples] == [
        f"{row.id >> 32}-{row.id & 0xFFFFFFFF}" for row in sorted(
            learner.repository.known().stored, key=lambda row: (row.label, row.id))]
    first, last = found.samples[0], found.samples[-1]
    assert first.taught is not None
    assert first.taught.endswith("+00:00")
    assert (first.kept, first.picture, last.taught, last.source) == ("exact", False, None, "")
    assert len({each.session for each in found.samples[:5]}) == 1
    assert first.session is not None
    assert last.session is None     # it shares its session with no other
    assert (found.taught, found.stored) == ({"ant": 5, "wasp": 3}, {"ant": 5, "wasp": 3})


def test_one_class_alone(learner):
    assert {each.label for each in learner.samples("wasp").samples} == {"wasp"}
    assert learner.samples("wasp").taught == {"wasp": 3}
    with pytest.raises(BadInput, match=r"no class is called 'bee'.*known are ant, wasp"):
        learner.samples("bee")


def test_ids_stay_while_other_samples_come(learner):
    before = {each.id: each for each in learner.samples().samples}
    learner.learn(vectors("bee", 4), "bee")
    after = {each.id: each for each in learner.samples().samples}
    assert len(after) == len(before) + 4
    assert all(after[number] == each for number, each in before.items())


def test_a_state_without_samples_lists_none(tmp_path, capsys):
    learner = create(tmp_path / "s")
    assert learner.samples().to_json() == {"generation": 1, "taught": 0, "stored": 0, "not_stored": {}, "samples": []}
    learner.close()
    refused(capsys, "samples", "--state", tmp_path / "s", "--class", "ant")


def test_statistics_alone_hold_no_samples(tmp_path):
    learner = create(tmp_path / "s", memory="statistics")
    learner.learn(vectors("ant", 40), "ant")
    found = learner.samples().to_json()
    assert (found["taught"], found["stored"], found["not_stored"], found["samples"]) == (40, 0, {"ant": 40}, [])
    assert learner.samples(suspicious=True).samples == []
    learner.close()


def test_samples_that_gave_way_are_counted(tmp_path, capsys):
    learner = create(tmp_path / "s", exemplars=20_000)
    for name in ("ant", "wasp"):
        for part in np.split(vectors(name, 1200), 4):
            learner.learn(part, name)
    learner.repository.heads.settle()
    found = learner.samples()
    gone = {label: found.taught[label] - found.stored[label] for label in ("ant", "wasp")}
    learner.close()
    assert found.taught == {"ant": 1200, "wasp": 1200}
    assert sum(gone.values()) > 0
    out = printed(capsys, "samples", "--state", tmp_path / "s")
    assert f"{sum(gone.values())} taught samples are not stored: " in out.splitlines()[-1]
    assert f"ant {gone['ant']}" in out.splitlines()[-1]
    assert json.loads(printed(capsys, "samples", "--state", tmp_path / "s", "--json"))["not_stored"] == {
        label: count for label, count in gone.items() if count}


def test_the_table_is_aligned_whatever_names_are_in_it(tmp_path, capsys):
    learner = create(tmp_path / "s")
    for name, source in (("ant", "a.csv"), ("茶碗", "b.csv"), ("a class with a long name", "photos/c d.csv")):
        learner.learn([Sample(x, source, at=i, unit="row") for i, x in enumerate(vectors("ant", 2))], name)
    learner.close()
    from rich.cells import cell_len

    title, head, *lines = printed(capsys, "samples", "--state", tmp_path / "s").splitlines()
    assert title == "6 stored samples of 6 taught"
    assert len(lines) == 6
    source = cell_len(head[:head.index("source")])
    for line in lines:
        before = next(end for end in range(len(line) + 1) if cell_len(line[:end]) == source)
        assert line[before:].startswith(("a.csv:", "b.csv:", "photos/c d.csv:"))
        assert line[before - 2:before] == "  "


def test_json_and_lists_agree(learner, capsys):
    path = learner.store.path
    expected = learner.samples().to_json()
    learner.close()
    assert json.loads(printed(capsys, "samples", "--state", path, "--json")) == expected
    assert {*expected["samples"][0]} == {"id", "class", "source", "taught", "kept", "near_duplicate", "picture",
                                         "session"}
    assert len(printed(capsys, "samples", "--state", path, "--class", "wasp").splitlines()) == 2 + 3


@contextmanager
def asked(service):
    with Client(service.path / "control.sock") as client:
        yield client


def test_a_daemon_answers_the_same(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("edgecl.runtime.service.Service.samples.__defaults__", (None, False, 0, 7))
    with serving(tmp_path / "s", control=(60.0, 60.0)) as (service, _, _):
        with asked(service) as client:
            page = client.ask("samples", start=7)
        assert (len(page["samples"]), page["total"]) == (7, 50)
        through = json.loads(printed(capsys, "samples", "--state", tmp_path / "s", "--json"))
        one = json.loads(printed(capsys, "samples", "--state", tmp_path / "s", "--json", "--class", "ant"))
        refused(capsys, "samples", "--state", tmp_path / "s", "--class", "bee")
        text = printed(capsys, "samples", "--state", tmp_path / "s")
    assert len(text.splitlines()) == 52
    learner = Learner.open(tmp_path / "s")
    assert through == learner.samples().to_json()
    assert one == learner.samples("ant").to_json()
    learner.close()


def test_a_page_beyond_the_end_is_empty(tmp_path):
    with serving(tmp_path / "s") as (service, _, _):
        assert service.samples(start=10 ** 9)["samples"] == []
        assert len(service.samples(start=-5)["samples"]) == 50


def test_only_suspicious_samples_carry_a_reason():
    plain = SampleSummary("3-1", "ant", "", None, "exact", False, False, None)
    assert "reason" not in plain.to_json()
    assert plain.to_json()["class"] == "ant"


def test_samples_of_a_state_that_keeps_none_were_never_stored(tmp_path, capsys):
    learner = create(tmp_path / "s", memory="statistics")
    learner.learn(vectors("a", 20), "a")
    learner.close()
    assert main(["samples", "--state", str(tmp_path / "s")]) == 0
    out = capsys.readouterr().out
    assert "20 taught samples are not stored: a 20" in out and "any more" not in out
