"""`edgecl remove`, `move` and `rename`, on a state and through the daemon that serves it."""
from __future__ import annotations

import json
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
from helpers_daemon import serving, until
from helpers_state import create, refused, vectors

from edgecl.cli import main
from edgecl.errors import BadInput
from edgecl.runtime.client import Client
from edgecl.runtime.debounce import Debounce
from edgecl.runtime.protocol import Refused


@contextmanager
def taught(path, through):
    """A state of two classes of 25 vectors, closed, or served by a daemon."""
    if through == "daemon":
        with serving(path, control=(240.0, 240.0)):
            yield
        return
    learner = create(path)
    for label in ("ant", "wasp"):
        learner.learn(vectors(label, 25), label)
    learner.close()
    with nullcontext():
        yield


@pytest.fixture(params=["state", "daemon"])
def run(request, tmp_path, capsys):
    """Run a command on the state: what it prints; as JSON if it is asked for that."""
    with taught(tmp_path / "state", request.param):
        def called(*arguments):
            code = main([*map(str, arguments), "--state", str(tmp_path / "state")])
            out, err = capsys.readouterr()
            assert (code, err) == (0, ""), err
            return json.loads(out) if "--json" in arguments else out

        called.refused = lambda *arguments: refused(capsys, *arguments, "--state", tmp_path / "state")
        yield called


def counts(run):
    return {each["name"]: each["samples"] for each in run("classes", "--json")}


def test_remove(run):
    out = run("remove", "2-0", "2-7")
    assert out == ("removed 2 samples exactly, as if never taught; generation 4, and `edgecl rollback` brings them "
                   "back\n")
    assert counts(run) == {"ant": 23, "wasp": 25}
    assert run("remove", "3-1", "--json") == {
        "action": "remove", "generation": 5, "samples": 1, "label": None, "new": False, "ids": {"3-1": None},
        "gone": [], "exact": True, "why": "", "discarded": 0, "twice": 0}
    run("rollback")
    assert counts(run) == {"ant": 23, "wasp": 25}
    out = run("remove", *(f"2-{number}" for number in range(25) if number not in (0, 7)), "--erase")
    assert out == ("erased 23 samples exactly, as if never taught; generation 7\n"
                   "that was the last sample of ant: the class is gone\n")
    assert counts(run) == {"wasp": 25}
    assert "can't be restored" in run.refused("rollback", "4")


def test_move(run):
    out = run("move", "2-0", "3-7", "--class", "bee")
    assert out == ("moved 2 samples to the new class bee exactly, as if taught so; generation 4\n"
                   "2-0 is 4-0 now\n3-7 is 4-1 now\n")
    assert counts(run) == {"ant": 24, "bee": 2, "wasp": 24}
    told = run("move", "4-0", "--class", "ant", "--json")
    assert (told["ids"], told["new"], told["label"], told["exact"]) == ({"4-0": "5-0"}, False, "ant", True)
    assert counts(run) == {"ant": 25, "bee": 1, "wasp": 24}


def test_what_a_class_knows_already_counts_twice_and_is_said(run, tmp_path):
    np.savez(tmp_path / "same.npz", x_train=vectors("ant", 25)[:3], y_train=[0] * 3, x_test=vectors("ant", 25)[:3],
             y_test=[0] * 3, class_names=["bee"])
    run("learn", "--from", tmp_path / "same.npz")
    out = run("move", "4-1", "--class", "ant")
    assert "1 sample was in ant already, and counts twice now" in out and counts(run)["ant"] == 26
    assert run("rename", "bee", "ant", "--into", "--json")["twice"] == 2
    assert counts(run) == {"ant": 28, "wasp": 25}




def test_rename(run):
    assert run("rename", "ant", "gnu") == ("ant is called gnu now, 25 samples; generation 4\n"
                                           "25 stored samples with new ids: 4-0 to 4-24\n")
    assert counts(run) == {"gnu": 25, "wasp": 25}
    told = run("rename", "gnu", "wasp", "--into", "--json")
    assert (told["samples"], told["label"], told["gone"], told["ids"]["4-3"]) == (25, "wasp", ["gnu"], "5-3")
    assert counts(run) == {"wasp": 50}
    assert "rename ant to gnu" in run("history")
    assert {"class": "wasp", "from": "gnu"}.items() <= run("history", "--json")[-1].items()
    assert not {"renamed", "removed", "spare", "dropped"} & {key for row in run("history", "--json") for key in row}


def test_what_is_refused(run):
    before = counts(run), run("history", "--json")
    for arguments, words in ((("remove", "2-0", "9-9"), "9-9: no such sample is stored; list the stored samples"),
                             (("remove", "2-0", "2-0"), "2-0: named twice"), (("remove", "mug.jpg"), "is not the id"),
                             (("remove", "--erase", "2-0", "x"), "is not the id"),
                             (("move", "2-0", "--class", "ant"), "in class 'ant' already"),
                             (("move", "2-0", "--class", "a/b"), "class name"),
                             (("rename", "ant", "wasp"), "give --into"), (("rename", "bee", "gnu"), "known are ant"),
                             (("rename", "ant", "bee", "--into"), "no class is called 'bee'")):
        assert words in run.refused(*arguments)
    assert (counts(run), run("history", "--json")) == before


def test_values_of_other_types_on_the_socket_are_refused(tmp_path):
    with serving(tmp_path / "state", control=(240.0, 240.0)), Client(tmp_path / "state/control.sock") as client:
        for command, values in (("remove", {}), ("remove", {"ids": "2-0"}), ("remove", {"ids": ["2-0"], "erase": 1}),
                                ("move", {"ids": ["2-0"]}), ("rename", {"old": "ant", "new": 3})):
            with pytest.raises(Refused):
                client.ask(command, **values)
        for wrong in (True, None, 2.5, ["2-0"], {}, -1, 2 ** 70):
            with pytest.raises(BadInput):
                client.ask("remove", ids=["2-0", wrong])
        assert client.ask("remove", ids=[2 << 32, "2-1"])["samples"] == 2
        assert [each["samples"] for each in client.ask("classes")] == [23, 25]
        with pytest.raises(Refused, match="longer than"):
            client.ask("remove", ids=[f"2-{number}" for number in range(20_000)])


def test_a_renamed_label_stays_stable():
    changed = Debounce(3)
    assert [changed("cup") for _ in range(3)] == [False, False, True]
    changed.rename("cup", "mug")
    assert not any(changed("mug") for _ in range(5))
    assert [changed("cup") for _ in range(3)] == [False, False, True]


def test_what_a_source_shows_has_the_new_name_at_once(tmp_path):
    with serving(tmp_path / "state") as (service, loop, taps):
        source, events = service.sources.threads[0], service.subscribe()
        source.start()
        for number in range(4):
            taps["tap"].put(vectors("ant", 1, number)[0])
        until(lambda: loop.step(0.2) and source.frames == 4)
        assert service.latest()["tap"]["stable"] == "ant"
        service.rename("ant", "gnu")
        assert (service.latest()["tap"]["label"], service.latest()["tap"]["stable"]) == ("gnu", "gnu")
        assert [each.label for each in service.stable()] == ["gnu"]
        said = []
        until(lambda: said.append(events.get(1.0) or {}) or said[-1].get("label") == "gnu")
        assert said[-1]["changed"] is True
        taps["tap"].put(vectors("ant", 1, 5)[0])
        until(lambda: loop.step(0.2) and source.frames == 5)
        assert service.latest()["tap"]["stable"] == "gnu"
        events.close()
