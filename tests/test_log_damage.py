"""A damaged log: what is intact serves, what is lost is said, the evidence is kept, and learning goes on."""
from __future__ import annotations

import json
import os
import re
import shutil

import numpy as np
import pytest
from helpers_daemon import cli, running
from helpers_log import GARBAGE, NAMES, QUOTA, copied, put, record_of, records, remove
from helpers_state import answers, directory_bytes, flip, vectors

from edgecl.cli import main
from edgecl.exemplars.stored import HEADER
from edgecl.learner import Learner
from edgecl.state.acknowledged import ACKNOWLEDGED_FILE
from edgecl.state.write_ahead_log import LOG_FILE


def cut(place):
    """Truncate the log at a place that is computed from it."""
    return lambda state, made: os.truncate(state / LOG_FILE, place(state / LOG_FILE))


def in_record(label, change):
    """Change a record of the log, given its start and end."""
    return lambda state, made: change(state / LOG_FILE, *record_of(state / LOG_FILE, label))


def to_folder(state, made):
    (state / LOG_FILE).unlink()
    (state / LOG_FILE).mkdir()
    (state / LOG_FILE / "keep").write_text("mine")


def write(content):
    return lambda state, made: (state / LOG_FILE).write_bytes(content((state / LOG_FILE).read_bytes()))


def exemplars(folder):
    """A file of samples of a state."""
    return next((folder / "state" / "models").glob("*.exemplars")).read_bytes()


HEADER_AT = {"magic": 1, "bytes of JSON": 5, "bytes of samples": 9, "bytes of samples, high": 11, "digest of JSON": 20,
             "digest of samples": 40}
LOST = {  # what is done to the log -> classes that are lost, what is said, whether the log is set aside
    "missing": (lambda state, made: (state / LOG_FILE).unlink(), NAMES[1:], "learned.log is missing", False),
    "empty": (write(lambda _: b""), NAMES[1:], "learned.log is empty", False),
    "zeros": (write(lambda log: bytes(len(log))), NAMES[1:], "is not a log that can be read", True),
    "garbage": (write(lambda log: GARBAGE[:len(log)]), NAMES[1:], "is not a log that can be read", True),
    "a folder": (to_folder, NAMES[1:], "is not a log that can be read", True),
    "a file of samples": (lambda state, made: (state / LOG_FILE).write_bytes(exemplars(made)), NAMES[1:],
                          "is not a log that can be read", True),
    "of another state": (copied("other", LOG_FILE), NAMES[1:], "not the log of this database", True),
    "of another state, with what it acknowledged": (copied("other", LOG_FILE, ACKNOWLEDGED_FILE), NAMES[1:],
                                                    "not the log of this database", True),
    "older": (copied("before", LOG_FILE), ["elk"], "what was learned in generation 6 is lost", False),
    "cut in the first record": (cut(lambda log: 50), NAMES[1:], "is not a log that can be read", True),
    "cut behind the first record": (cut(lambda log: records(log)[0][1]), NAMES[1:], "generations 3, 4, 5, 6", False),
    "cut at a record": (cut(lambda log: record_of(log, "dog")[0]), NAMES[3:], "generations 5, 6 is lost", False),
    "cut in a record": (cut(lambda log: record_of(log, "dog")[0] + 600), NAMES[3:], "samples of 'dog'", False),
    "cut in half a record": (cut(lambda log: sum(record_of(log, "cat")) // 2), NAMES[2:], "learned.log has", False),
    "cut by one byte": (cut(lambda log: record_of(log, "elk")[1] - 1),
                        ["elk"], "80 samples of 'elk' (generation 6)", False),
    **{f"flipped: {what} of a record": (
        in_record("cat", lambda log, start, end, at=at: flip(log, start + at)), ["cat"], "learned.log is damaged",
        False) for what, at in HEADER_AT.items()},
    "flipped: JSON": (in_record("cat", lambda log, start, end: flip(log, start + HEADER.size + 9)), ["cat"],
                      "what was learned in generation 4 is lost", False),
    "flipped: samples": (in_record("cat", lambda log, start, end: flip(log, end - 9)), ["cat"],
                         "80 samples of 'cat' (generation 4) are lost", False),
    "flipped: last JSON": (in_record("elk", lambda log, start, end: flip(log, start + HEADER.size + 9)), ["elk"],
                           "what was learned in generation 6 is lost", False),
    "flipped: last samples": (in_record("elk", lambda log, start, end: flip(log, end - 9)), ["elk"],
                              "80 samples of 'elk' (generation 6) are lost", False),
    **{f"{size} bytes of {what} in a record": (
        in_record("cat", lambda log, start, end, size=size, data=data: put(log, start + 1000, data[:size])), ["cat"],
        "80 samples of 'cat' (generation 4) are lost", False)
       for size in (512, 4096) for what, data in (("zeros", bytes(4096)), ("garbage", GARBAGE))},
    **{f"last record but its first {size} bytes {what}": (
        in_record("elk", lambda log, start, end, size=size, data=data: put(log, start + size, data[:end - start - size])
                  ), ["elk"], "generation 6", False)
       for size in (0, 512, 4096) for what, data in (("zeros", bytes(20_000)), ("garbage", GARBAGE))},
    "a block across two records": (in_record("dog", lambda log, start, end: put(log, start - 100, bytes(512))),
                                   ["cat", "dog"], "generation 4", False),
    "bytes missing in a record": (in_record("cat", lambda log, start, end: remove(log, start + 1000, start + 1500)),
                                  ["cat"], "80 samples of 'cat' (generation 4) are lost", False),
    "a record missing": (in_record("cat", lambda log, start, end: remove(log, start, end)), ["cat"],
                         "what was learned in generation 4 is lost", False),
}
HARMLESS = {  # what changes nothing, and what is said of it
    "first record flipped": (lambda state, made: flip(state / LOG_FILE, 70), "no samples are lost"),
    "first record zeroed": (lambda state, made: put(state / LOG_FILE, 0, bytes(100)), "no samples are lost"),
    "first record missing": (lambda state, made: remove(state / LOG_FILE, 0, records(state / LOG_FILE)[0][1]),
                             "no samples are lost"),
    "garbage before": (write(lambda log: GARBAGE[:900] + log), "no samples are lost"),
    "garbage within": (in_record("cat", lambda log, start, end: log.write_bytes(
        log.read_bytes()[:start] + GARBAGE[:900] + log.read_bytes()[start:])), "no samples are lost"),
    "a file of samples within": (in_record("cat", lambda log, start, end: log.write_bytes(
        log.read_bytes()[:start] + exemplars(log.parents[1]) + log.read_bytes()[start:])), "no samples are lost"),
    "a log within": (in_record("cat", lambda log, start, end: log.write_bytes(
        log.read_bytes()[:start] + log.read_bytes())), "no samples are lost"),
    "garbage behind": (write(lambda log: log + GARBAGE), "did not end with a whole record"),
    "zeros behind": (write(lambda log: log + bytes(5000)), "did not end with a whole record"),
    "doubled": (write(lambda log: log * 2), "no samples are lost"),
    "another log behind": (lambda state, made: (state / LOG_FILE).write_bytes(
        (state / LOG_FILE).read_bytes() + (made / "other" / LOG_FILE).read_bytes()), "did not end with a whole record"),
    "acknowledged length missing": (lambda state, made: (state / ACKNOWLEDGED_FILE).unlink(), None),
    "acknowledged length empty": (lambda state, made: (state / ACKNOWLEDGED_FILE).write_bytes(b""), None),
    "acknowledged length garbage": (lambda state, made: (state / ACKNOWLEDGED_FILE).write_bytes(GARBAGE[:90]), None),
    "acknowledged length flipped": (lambda state, made: flip(state / ACKNOWLEDGED_FILE, 14), None),
    "acknowledged length older": (copied("before", ACKNOWLEDGED_FILE), None),
    "acknowledged length of another state": (copied("other", ACKNOWLEDGED_FILE), None),
}


def check(state, lost, said, kept):
    """Open a state twice, learn, open it again: what is lost, what is said, what is set aside."""
    hurt = (state / LOG_FILE).read_bytes() if (state / LOG_FILE).is_file() else b""
    wanted = [name for name in NAMES if name not in lost]
    learner = Learner.open(state)
    told = learner.damage
    assert [c.name for c in learner.classes()] == wanted
    assert [c.samples for c in learner.classes()] == [80] * len(wanted)
    assert (said is None and told == []) or any(said in line for line in told), told
    assert learner.status().warnings == told
    assert all(not number > 6 for number in learner.store.restorable())
    learner.close()
    again = Learner.open(state)
    assert again.damage == [line for line in told if "did not end with a whole record" not in line]
    assert again.learn(vectors("fox", 80), "fox").generation > 6
    assert [c.name for c in again.classes()] == [*wanted, "fox"]
    shown, restorable = answers(again), again.store.restorable()
    assert again.store.current in restorable
    again.close()
    last = Learner.open(state)
    assert answers(last) == shown
    assert last.store.restorable() == restorable
    aside = [path for path in (state / "set-aside").glob("*") if path.is_file()]
    assert [path.name for path in (state / "set-aside").glob("*")] == ([f"{LOG_FILE}.1"] if kept else [])
    assert [path.read_bytes() for path in aside] == [hurt] * len(aside)
    learner_bytes = last.status()
    assert directory_bytes(state) <= QUOTA
    assert learner_bytes.used_bytes == directory_bytes(state, reserve=False)
    last.learn(vectors("gnu", 2000), "gnu")  # more than a log takes: it moves
    assert directory_bytes(state) <= QUOTA
    assert [c.name for c in last.classes()] == [*wanted, "fox", "gnu"]
    told = [line for line in last.damage if "set aside in" not in line]
    last.close()
    assert [line for line in Learner.open(state).damage if "set aside in" not in line] == told
    evidence = b"".join(path.read_bytes() for path in (state / "set-aside").glob("*") if path.is_file())
    if kept or any("learned.log is damaged from" in line for line in told):
        assert evidence.startswith(hurt)
    return last


@pytest.mark.parametrize("hurt", LOST)
def test_what_is_intact_serves_and_what_is_lost_is_said_and_kept(logged, log_copies, hurt):
    change, lost, said, kept = LOST[hurt]
    change(logged, log_copies)
    check(logged, lost, said, kept)


@pytest.mark.parametrize("hurt", HARMLESS)
def test_what_holds_no_samples_loses_none(logged, log_copies, hurt):
    change, said = HARMLESS[hurt]
    change(logged, log_copies)
    check(logged, [], said, False)


def test_forgetting_deletes_what_is_set_aside_and_what_was_noted_of_the_class(logged, capsys):
    flip(logged / LOG_FILE, record_of(logged / LOG_FILE, "cat")[1] - 9)
    shutil.copytree(logged, logged.parent / "kept")
    learner = Learner.open(logged)
    learner.learn(vectors("cat", 20, seed=1), "cat")
    learner.learn(vectors("fox", 2000), "fox")
    assert (logged / "set-aside" / f"{LOG_FILE}.1").exists()
    learner.close()
    assert main(["forget", "--state", str(logged), "--class", "cat"]) == 0
    assert "1 damaged file that was set aside" in capsys.readouterr().out
    assert not (logged / "set-aside").exists()
    assert Learner.open(logged).damage == []
    assert not [path for path in logged.rglob("*") if path.is_file() and re.search(rb"\bcat\b", path.read_bytes())]


def test_foreign_files_and_folders_do_no_harm(logged):
    models = logged / "models"
    (models / "notes.txt").write_text("mine")
    (models / "folder").mkdir()
    (models / "folder" / "deep.onnx").write_text("mine")
    (models / f"{'a' * 64}.journal").mkdir()
    (models / f"{'b' * 64}.txt").write_text("mine")
    (models / f"{'c' * 64}.onnx").write_text("damaged, of ours")
    (models / f".{'d' * 64}.onnx.123.tmp").write_text("of a kill")
    learner = Learner.open(logged)
    assert learner.store.path.joinpath("set-aside", f"{'c' * 64}.onnx.1").read_text() == "damaged, of ours"
    learner.learn(vectors("fox", 2000), "fox")
    learner.forget("fox")
    assert (models / "notes.txt").exists()
    assert (models / "folder" / "deep.onnx").exists()
    assert (models / f"{'b' * 64}.txt").exists()
    assert not (models / f".{'d' * 64}.onnx.123.tmp").exists()


def test_commands_say_it_and_go_on(logged, tmp_path, capsys):
    flip(logged / LOG_FILE, record_of(logged / LOG_FILE, "cat")[1] - 9)
    ask = tmp_path / "ask.npz"
    np.savez(ask, x_train=vectors("ant", 4), y_train=np.zeros(4, np.int64), x_test=vectors("ant", 4),
             y_test=np.zeros(4, np.int64))
    for command, code in (("status", 0), ("predict", 0), ("classes", 0), ("doctor", 1)):
        rest = [str(ask)] if command == "predict" else []
        assert main([command, "--state", str(logged), *rest]) == code
        out, err = capsys.readouterr()
        if command != "classes":
            assert "80 samples of 'cat' (generation 4) are lost" in out + err
    main(["status", "--state", str(logged)])
    assert "rollback can restore 1, 2, 3\n" in capsys.readouterr().out
    assert main(["status", "--state", str(logged), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["restorable"] == [1, 2, 3]


BASE = """
state = "state"
backbone = "identity"
quota = 700000
codec = "raw"
rounds = "off"
"""


@pytest.mark.parametrize("torn", [True, False], ids=["torn", "acknowledged"])
def test_a_daemon_starts_says_it_and_learns(logged, log_copies, tmp_path, torn):
    start, end = record_of(logged / LOG_FILE, "elk")
    put(logged / LOG_FILE, start + 512, bytes(end - start - 512))
    if torn:
        os.truncate(logged / LOG_FILE, end)
        copied("before", ACKNOWLEDGED_FILE)(logged, log_copies)
    said = "did not end with a whole record" if torn else "80 samples of 'elk' (generation 6) are lost"
    with running(tmp_path, BASE) as daemon:
        assert [c["name"] for c in daemon.ask("classes")] == NAMES[:-1]
        assert any(said in line for line in daemon.ask("status")["warnings"])
        np.savez(tmp_path / "elk.npz", x_train=vectors("elk", 9), y_train=np.zeros(9, np.int64),
                 x_test=vectors("elk", 9), y_test=np.zeros(9, np.int64), class_names=np.array(["elk"]))
        code, _, err = cli(tmp_path, "learn", "--state", "state", "--class", "elk", "elk.npz")
        assert code == 0, err
        assert [c["name"] for c in daemon.ask("classes")] == NAMES
        assert daemon.log.read_text().count(said) == 1
