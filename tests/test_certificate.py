"""A certificate of forgetting says what was removed, and a state bears it out or contradicts it."""
from __future__ import annotations

import json
import shutil
from contextlib import closing

import pytest
from helpers_daemon import serving
from helpers_state import create, refused, traces, vectors

from edgecl.cli import main
from edgecl.learner import Learner

LABEL = "secretwasp"


@pytest.fixture
def state(tmp_path):
    learner = create(tmp_path / "state")
    for label in ("ant", LABEL, "cat"):
        learner.learn(vectors(label, 25), label)
    learner.close()
    return tmp_path / "state"


@pytest.fixture
def certified(state, tmp_path, capsys):
    assert main(["forget", "--class", LABEL, "--state", str(state), "--certificate", str(tmp_path / "c.json")]) == 0
    capsys.readouterr()
    return state


def checked(state, file, capsys):
    """The exit status of a check, and each finding."""
    code = main(["check", "--certificate", str(file), "--state", str(state), "--json"])
    found = json.loads(capsys.readouterr().out)
    return code, found, {each["check"]: each["ok"] for each in found["findings"]}


def test_what_it_says_and_that_the_state_bears_it_out(certified, tmp_path, capsys):
    said = json.loads((tmp_path / "c.json").read_text())
    with closing(Learner.open(certified)) as learner:
        assert said["state"] == learner.store.meta["id"]
        assert said["generation"] == learner.store.current
        assert (said["time"], said["action"]) == (learner.store.newest.created, "forget")
        assert said["after"]["samples"] == 50
    assert (said["removed"]["class"], said["removed"]["samples"], said["removed"]["stored"]) == (LABEL, 25, 25)
    assert len(set(said["removed"]["hashes"])) == 25
    assert said["before"]["statistics"] != said["after"]["statistics"]
    assert said["exact"] and said["remains"] == []
    code, found, oks = checked(certified, tmp_path / "c.json", capsys)
    assert code == 0 and found["valid"]
    assert all(oks.values())
    assert {*oks} == {"state", "history", "certificate", "statistics", "since", "class", "samples"}
    assert "holds none of the samples" in found["proves"][0] and "copies" in found["does_not_prove"][0]
    assert main(["check", "--certificate", str(tmp_path / "c.json"), "--state", str(certified)]) == 0
    out = capsys.readouterr().out
    assert "25 samples of 'secretwasp' forgotten" in out and "exactly" in out and "valid: nothing" in out


def test_no_byte_of_the_class_stays_in_the_state(certified):
    with closing(Learner.open(certified)) as learner:
        learner.learn(vectors("dog", 25), "dog")
    assert traces(certified, vectors(LABEL, 25), [LABEL]) == []


def test_the_certificate_tells_no_hash_that_two_states_share(tmp_path):
    """Nor does that which the state keeps of it tell the class to who tries names."""
    found = []
    for name in ("one", "two"):
        with closing(create(tmp_path / name)) as learner:
            learner.learn(vectors("ant", 25), "ant")
            learner.learn(vectors(LABEL, 25), LABEL)
            said = learner.forget(LABEL, certify=True)["certificate"]
            found.append((said, learner.store.newest.detail["certificate"]))
    assert not {*found[0][0]["removed"]["hashes"]} & {*found[1][0]["removed"]["hashes"]}
    assert found[0][1] != found[1][1]


CHANGES = [("removed", "class", "ant"), ("removed", "samples", 24), ("removed", "stored", 3), ("exact", None, False),
           ("remains", None, ["nothing"]), ("before", "statistics", "0" * 64), ("before", "generation", 1),
           ("after", "statistics", "0" * 64), ("after", "keys", "0" * 64), ("after", "samples", 49),
           ("generation", None, 2), ("generation", None, 99), ("time", None, "2020-01-01T00:00:00+00:00"),
           ("state", None, "x"), ("nonce", None, "0" * 32), ("edgecl", None, "9.9"), ("action", None, "remove"),
           ("removed", "hashes", []), ("removed", "hashes", ["0" * 16]), ("removed", "in_other_classes", 1)]


@pytest.mark.parametrize("change", CHANGES)
def test_a_tampered_certificate_is_found(change, certified, tmp_path, capsys):
    part, key, value = change
    said = json.loads((tmp_path / "c.json").read_text())
    if key is None:
        said[part] = value
    else:
        said[part][key] = value
    (tmp_path / "d.json").write_text(json.dumps(said))
    code, found, _ = checked(certified, tmp_path / "d.json", capsys)
    assert code == 1 and not found["valid"] and found["proves"] == []
    assert main(["check", "--certificate", str(tmp_path / "d.json"), "--state", str(certified)]) == 1
    assert "NOT valid" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "x", '{"edgecl_certificate": 1}', "[" * 100_000])
def test_what_is_not_a_certificate(text, state, tmp_path, capsys):
    (tmp_path / "c.json").write_text(text)
    refused(capsys, "check", "--certificate", tmp_path / "c.json", "--state", state)
    refused(capsys, "check", "--certificate", tmp_path / "none.json", "--state", state)
    refused(capsys, "check", "--certificate", tmp_path, "--state", state)


def test_other_states_contradict_it(state, tmp_path, capsys):
    """A copy from before the forgetting, one that went on otherwise, and another state."""
    for name in ("before", "otherwise"):
        shutil.copytree(state, tmp_path / name)
    assert main(["forget", "--class", LABEL, "--state", str(state), "--certificate", str(tmp_path / "c.json")]) == 0
    capsys.readouterr()
    code, found, oks = checked(tmp_path / "before", tmp_path / "c.json", capsys)
    assert code == 1 and oks["history"] is False and oks["class"] is False and oks["samples"] is False
    assert "a copy from before" in json.dumps(found)
    with closing(Learner.open(tmp_path / "otherwise")) as learner:
        learner.forget("ant")
    code, _, oks = checked(tmp_path / "otherwise", tmp_path / "c.json", capsys)
    assert code == 1 and oks["certificate" if "certificate" in oks else "history"] is False
    with closing(create(tmp_path / "other")) as learner:
        learner.learn(vectors("ant", 5), "ant")
    code, _, oks = checked(tmp_path / "other", tmp_path / "c.json", capsys)
    assert code == 1 and oks == {"state": False}


def test_it_holds_later_and_says_what_was_taught_again(certified, tmp_path, capsys):
    with closing(Learner.open(certified)) as learner:
        learner.learn(vectors("dog", 25), "dog")
        learner.rename("ant", "emmet")
    code, found, oks = checked(certified, tmp_path / "c.json", capsys)
    assert code == 0 and oks["samples"] and oks["class"]
    assert "learn, rename" in json.dumps(found)
    with closing(Learner.open(certified)) as learner:
        learner.learn(vectors(LABEL, 25)[:10], LABEL)
    code, found, oks = checked(certified, tmp_path / "c.json", capsys)
    assert code == 0 and oks["samples"] is None and oks["class"] is True
    assert "10 samples that were removed are known: they were taught again" in json.dumps(found)
    assert "holds none" not in json.dumps(found["proves"])


def test_a_history_that_has_let_go_of_it(certified, tmp_path, capsys):
    with closing(Learner.open(certified)) as learner:
        for number in range(70):
            learner.learn(vectors("ant", 1, 100 + number), "ant")
            if number % 20 == 0:
                learner.rollback(learner.learn(vectors("dog", 2, number), "dog").generation - 1)
        for number in range(60):
            learner.rename("cat" if number % 2 == 0 else "lynx", "lynx" if number % 2 == 0 else "cat")
    code, found, oks = checked(certified, tmp_path / "c.json", capsys)
    assert code == 0 and oks["history"] is None and oks["samples"] is True
    assert "can't tell the rest" in found["proves"][0]


def test_approximate_says_why(tmp_path, capsys):
    with closing(create(tmp_path / "state", exemplars=3_000)) as learner:
        for label in ("ant", "bee", "cat"):
            for seed in range(10):
                learner.learn(vectors(label, 30, seed), label)
        learner.forget("cat")     # the buffer lets go of what it has no room for
    command = ["forget", "--class", "ant", "--state", tmp_path / "state", "--certificate", tmp_path / "c.json"]
    assert main([*map(str, command)]) == 0
    said = json.loads((tmp_path / "c.json").read_text())
    assert not said["exact"] and "shared covariance remains" in said["remains"][0]
    assert said["removed"]["samples"] == len(said["removed"]["hashes"]) == 300 > said["removed"]["stored"]
    capsys.readouterr()
    code, found, _ = checked(tmp_path / "state", tmp_path / "c.json", capsys)
    assert code == 0 and "says what remains" in found["proves"][1]


@pytest.mark.parametrize("change", [
    {"state": "\x1b[2J"}, {"time": "now\x07"}, {"time": "a\nvalid"}, {"exact": False, "remains": ["\x1b]0;x\x07"]}])
def test_what_would_change_the_terminal_is_not_printed(change, certified, tmp_path, capsys):
    said = json.loads((tmp_path / "c.json").read_text()) | change
    (tmp_path / "d.json").write_text(json.dumps(said))
    error = refused(capsys, "check", "--certificate", tmp_path / "d.json", "--state", certified)
    assert "is not a certificate" in error


def test_samples_of_two_classes_are_not_named(tmp_path, capsys):
    with closing(create(tmp_path / "state")) as learner:
        learner.learn(vectors("ant", 10), "ant")
        learner.learn(vectors("ant", 4), "also")
        said = learner.forget("also", certify=True)["certificate"]
    same = int((vectors("ant", 10)[:4] == vectors("ant", 4)).all(1).sum())
    assert said["removed"]["in_other_classes"] == same and len(said["removed"]["hashes"]) == 4 - same
    (tmp_path / "c.json").write_text(json.dumps(said))
    assert checked(tmp_path / "state", tmp_path / "c.json", capsys)[0] == 0


def test_a_state_that_keeps_no_sample(tmp_path, capsys):
    with closing(create(tmp_path / "state", quota=3_000_000, memory="statistics")) as learner:
        for label in ("ant", "bee"):
            learner.learn(vectors(label, 25), label)
        said = learner.forget("bee", certify=True)["certificate"]
    assert said["removed"]["hashes"] is None and said["removed"]["samples"] == 25
    (tmp_path / "c.json").write_text(json.dumps(said))
    code, _, oks = checked(tmp_path / "state", tmp_path / "c.json", capsys)
    assert code == 0 and oks["samples"] is None and oks["certificate"]


def test_files_that_can_t_be_written_are_found_before_anything_is_forgotten(state, tmp_path, capsys):
    (tmp_path / "there.json").write_text("mine")
    for file in (state / "c.json", state / "models/c.json", tmp_path / "there.json", tmp_path / "none/c.json",
                 tmp_path):
        refused(capsys, "forget", "--class", LABEL, "--state", state, "--certificate", file)
    assert (tmp_path / "there.json").read_text() == "mine"
    with closing(Learner.open(state)) as learner:
        assert LABEL in [each.name for each in learner.classes()]
    refused(capsys, "forget", "--class", "unicorn", "--state", state, "--certificate", tmp_path / "c.json")
    assert not (tmp_path / "c.json").exists()


def test_a_certificate_that_can_t_be_written_is_printed(state, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgecl.commands.manage.write_atomically", full)
    assert main(["forget", "--class", LABEL, "--state", str(state), "--certificate", str(tmp_path / "c.json")]) == 1
    out, err = capsys.readouterr()
    (tmp_path / "d.json").write_text(out)
    assert "was forgotten, but" in err
    assert checked(state, tmp_path / "d.json", capsys)[0] == 0


def test_through_a_daemon(tmp_path, capsys):
    with serving(tmp_path / "state", classes=("ant", LABEL), control=(30, 30)) as (service, *_):
        file = tmp_path / "c.json"
        assert main(["forget", "--class", LABEL, "--state", str(service.path), "--certificate", str(file)]) == 0
        capsys.readouterr()
        code, found, oks = checked(service.path, file, capsys)
        assert code == 0 and oks["samples"] and found["class"] == LABEL
