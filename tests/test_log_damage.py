"""A damaged log: what is intact serves, what is lost is said, the evidence is kept, and learning goes on."""
from __future__ import annotations

import json
import os
import re
import shutil

import numpy as np
import pytest
from helpers_daemon import cli, running
from helpers_state import answers, create, directory_bytes, flip, vectors

from edgecl.cli import main
from edgecl.exemplars.codecs import Float32
from edgecl.exemplars.stored import HEADER, unpack
from edgecl.learner import Learner
from edgecl.state.acknowledged import ACKNOWLEDGED_FILE
from edgecl.state.write_ahead_log import LOG_FILE

NAMES = ["ant", "bee", "cat", "dog", "elk"]  # ant lies in a snapshot (generation 2), the others in the log (3 to 6)
QUOTA = 700_000
GARBAGE = np.random.default_rng(5).bytes(100_000)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Copies of one state: as it is, before its last learn, and of another state."""
    folder = tmp_path_factory.mktemp("made")
    for name, seed in (("state", 0), ("other", 7)):
        learner = create(folder / name, quota=QUOTA, exemplars=40_000)
        for label in NAMES:
            if label == "elk" and name == "state":
                shutil.copytree(folder / "state", folder / "before")
            learner.learn(vectors(label, 80, seed), label)
        learner.close()
    return folder


@pytest.fixture
def state(made, tmp_path):
    shutil.copytree(made / "state", tmp_path / "state")
    return tmp_path / "state"


def records(log):
    """Start, end and JSON of each record of a log."""
    return [(start, end, record.about) for start, end, record in unpack(log.read_bytes(), lambda _: Float32())]


def record_of(log, label):
    """Start and end of the record that holds a class."""
    return next((start, end) for start, end, about in records(log) if about["labels"] == [label])


def put(log, place, data):
    """Write bytes over those of a log."""
    whole = bytearray(log.read_bytes())
    whole[place:place + len(data)] = data
    log.write_bytes(whole)


def remove(log, begin, end):
    """Take bytes out of a log."""
    data = log.read_bytes()
    log.write_bytes(data[:begin] + data[end:])


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


def copied(where, *names):
    """Put files of another copy in the place of the state's."""
    def change(state, made):
        for name in names:
            shutil.copy(made / where / name, state / name)
    return change


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
    "garbage behind": (write(lambda log: log + GARBAGE), "were not a whole record"),
    "zeros behind": (write(lambda log: log + bytes(5000)), "were not a whole record"),
    "doubled": (write(lambda log: log * 2), "no samples are lost"),
    "another log behind": (lambda state, made: (state / LOG_FILE).write_bytes(
        (state / LOG_FILE).read_bytes() + (made / "other" / LOG_FILE).read_bytes()), "were not a whole record"),
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
    assert again.damage == [line for line in told if "were not a whole record" not in line]
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
def test_what_is_intact_serves_and_what_is_lost_is_said_and_kept(state, made, hurt):
    change, lost, said, kept = LOST[hurt]
    change(state, made)
    check(state, lost, said, kept)


@pytest.mark.parametrize("hurt", HARMLESS)
def test_what_holds_no_samples_loses_none(state, made, hurt):
    change, said = HARMLESS[hurt]
    change(state, made)
    check(state, [], said, False)


def torn(record, size, how):
    """What a power cut leaves of an append: whole blocks and, for the others, zeros or garbage, or nothing."""
    blocks = [record[start:start + size] for start in range(0, len(record), size)]
    filled = [bytes(len(block)) if how != "garbage" else GARBAGE[:len(block)] for block in blocks]
    parts = {"first": blocks[:1] + filled[1:], "all but the first": filled[:1] + blocks[1:],
             "all but the last": blocks[:-1] + filled[-1:], "none": filled,
             "every other": [(block, other)[place % 2] for place, (block, other) in enumerate(zip(blocks, filled))]}
    if how == "short":
        parts = {"first": blocks[:1], "all but the last": blocks[:-1]}
    return {name: b"".join(part) for name, part in parts.items() if b"".join(part) != record}


@pytest.mark.parametrize("known", [True, False], ids=["acknowledged length known", "unknown"])
@pytest.mark.parametrize("how", ["zeros", "garbage", "short"])
@pytest.mark.parametrize("size", [512, 4096])
def test_a_torn_append_is_dropped_with_one_warning(made, tmp_path, size, how, known):
    whole, before = (made / name / LOG_FILE for name in ("state", "before"))
    record = whole.read_bytes()[slice(*record_of(whole, "elk"))]
    assert len(record) > 4096
    for name, tail in torn(record, size, how).items():
        state = tmp_path / name / "state"
        shutil.copytree(made / "before", state)
        (state / LOG_FILE).write_bytes(before.read_bytes() + tail)
        if not known:
            (state / ACKNOWLEDGED_FILE).unlink()
        learner = Learner.open(state)
        assert [c.name for c in learner.classes()] == NAMES[:-1]
        [told] = learner.damage
        assert told.startswith(f"the last {len(tail)} bytes of learned.log were not a whole record, as a power cut")
        assert learner.store.restorable() == {1, 2, 3, 4, 5}
        learner.learn(vectors("elk", 80), "elk")
        learner.close()
        again = Learner.open(state)
        assert again.damage == []
        assert [c.name for c in again.classes()] == NAMES
        again.close()
        assert not (state / "set-aside").exists()


def test_a_torn_append_behind_a_damaged_record_is_dropped_too(state):
    log = state / LOG_FILE
    start, _ = record_of(log, "elk")
    put(log, start + 1000, bytes(600))  # rot: it was acknowledged
    learner = Learner.open(state)
    told = learner.damage
    assert ["80 samples of 'elk' (generation 6) are lost" in line for line in told] == [True]
    learner.close()
    whole = log.read_bytes()
    shutil.copytree(state, state.with_name("later"))
    learner = Learner.open(state.with_name("later"))
    learner.learn(vectors("fox", 80), "fox")
    record = (state.with_name("later") / LOG_FILE).read_bytes()[len(whole):]
    for tail in (record[:20], record[:512], record[:4096] + bytes(len(record) - 4096), GARBAGE[:900], bytes(5000)):
        log.write_bytes(whole + tail)
        again = Learner.open(state)
        assert [line for line in again.damage if "were not a whole record" not in line] == told
        assert [g.id for g in again.history()] == [1, 2, 3, 4, 5, 6]
        assert log.read_bytes() == whole
        again.close()


def test_what_another_process_is_writing_is_no_damage(state, made):
    reader = Learner.open(made / "before")
    assert reader.damage == []
    whole, log = (made / "state" / LOG_FILE).read_bytes(), made / "before" / LOG_FILE
    before = log.read_bytes()
    try:
        for length in (1, 30, 200, 2000, len(whole) - len(before) - 1):
            log.write_bytes(before + whole[len(before):len(before) + length])
            assert reader.store.damage() == []
            assert [c.name for c in reader.classes()] == NAMES[:-1]
    finally:
        log.write_bytes(before)
        reader.close()


def test_an_older_database_erases_nothing(state):
    old = {name: (state / name).read_bytes() for name in ("edgecl.db", "edgecl.copy")}
    learner = Learner.open(state)
    learner.learn(vectors("fox", 2000), "fox")  # the log moves
    numbers = [learner.learn(vectors(name, 20), name).generation for name in ("gnu", "hen")]
    learner.close()
    log = (state / LOG_FILE).read_bytes()
    (state / "edgecl.db").write_bytes(old["edgecl.db"])
    again = Learner.open(state)
    assert {"fox", "gnu", "hen"} < {c.name for c in again.classes()}  # the copy of its rows is newer
    again.close()
    for name, content in old.items():
        (state / name).write_bytes(content)
    files = {path.name: path.read_bytes() for path in (state / "models").iterdir()}
    again = Learner.open(state)
    kept = [path.read_bytes() for name in ("models", "set-aside") for path in (state / name).iterdir()]
    assert all(content in kept for content in files.values())   # the newer statistics among them
    assert any("learned.log is not the log of this database" in line for line in again.damage)
    assert any(f"generations {numbers[0]} to {numbers[1]} are in it" in line for line in again.damage)
    assert again.learn(vectors("ibis", 20), "ibis").generation > numbers[1]
    assert (state / "set-aside" / f"{LOG_FILE}.1").read_bytes() == log


def test_an_older_database_and_log_erase_nothing(state):
    old = {name: (state / name).read_bytes() for name in ("edgecl.db", "edgecl.copy", LOG_FILE, ACKNOWLEDGED_FILE)}
    learner = Learner.open(state)
    learner.forget("ant")   # which leaves none of the files that the old rows name
    learner.close()
    for name, content in old.items():
        (state / name).write_bytes(content)
    files = {path.name: path.read_bytes() for path in (state / "models").iterdir()}
    Learner.open(state).close()
    kept = [path.read_bytes() for name in ("models", "set-aside") for path in (state / name).iterdir()]
    assert files and all(content in kept for content in files.values())


def test_a_log_of_the_epoch_before_is_replaced_only_if_it_is_what_moved(state, tmp_path):
    log = state / LOG_FILE
    before = log.read_bytes()
    learner = Learner.open(state)
    learner.learn(vectors("fox", 2000), "fox")
    learner.close()
    log.write_bytes(before)  # as a kill between the commit and the beginning of the next log leaves it
    learner = Learner.open(state)
    assert learner.damage == []
    assert not (state / "set-aside").exists()
    learner.close()
    log.write_bytes(before[:-1] + b"x")
    learner = Learner.open(state)
    assert any("learned.log is not the log of this database" in line for line in learner.damage)
    assert (state / "set-aside" / f"{LOG_FILE}.1").read_bytes() == before[:-1] + b"x"
    assert [c.name for c in learner.classes()] == [*NAMES, "fox"]


def test_a_log_of_the_epoch_before_is_damage_if_the_next_one_was_acknowledged(state):
    log = state / LOG_FILE
    before = log.read_bytes()
    learner = Learner.open(state)
    learner.learn(vectors("fox", 2000), "fox")
    number = learner.learn(vectors("gnu", 20), "gnu").generation
    learner.close()
    log.write_bytes(before)  # somebody restored this one file
    learner = Learner.open(state)
    assert any("learned.log is not the log of this database" in line for line in learner.damage)
    assert [c.name for c in learner.classes()] == [*NAMES, "fox"]
    assert learner.learn(vectors("hen", 20), "hen").generation > number
    learner.close()


def test_the_same_damage_a_second_time_is_said_and_counted_again(state):
    for number in range(3):
        given = Learner.open(state).learn(vectors(f"class {number}", 20), f"class {number}").generation
        (state / LOG_FILE).unlink()
        learner = Learner.open(state)
        assert sum("learned.log is missing" in line for line in learner.damage) == 1
        assert learner.learn(vectors("fox", 20), "fox").generation > given
        learner.close()


def test_numbers_are_not_given_out_twice_if_nothing_tells_which_were(state):
    (state / LOG_FILE).unlink()
    (state / ACKNOWLEDGED_FILE).unlink()
    assert Learner.open(state).learn(vectors("fox", 20), "fox").generation > 6


def test_forgetting_deletes_what_is_set_aside_and_what_was_noted_of_the_class(state, made, capsys):
    flip(state / LOG_FILE, record_of(state / LOG_FILE, "cat")[1] - 9)
    shutil.copytree(state, state.parent / "kept")
    learner = Learner.open(state)
    learner.learn(vectors("cat", 20, seed=1), "cat")
    learner.learn(vectors("fox", 2000), "fox")
    assert (state / "set-aside" / f"{LOG_FILE}.1").exists()
    learner.close()
    assert main(["forget", "--state", str(state), "--class", "cat"]) == 0
    assert "1 damaged file that was set aside" in capsys.readouterr().out
    assert not (state / "set-aside").exists()
    assert Learner.open(state).damage == []
    assert not [path for path in state.rglob("*") if path.is_file() and re.search(rb"\bcat\b", path.read_bytes())]


def test_foreign_files_and_folders_do_no_harm(state):
    models = state / "models"
    (models / "notes.txt").write_text("mine")
    (models / "folder").mkdir()
    (models / "folder" / "deep.onnx").write_text("mine")
    (models / f"{'a' * 64}.journal").mkdir()
    (models / f"{'b' * 64}.txt").write_text("mine")
    (models / f"{'c' * 64}.onnx").write_text("damaged, of ours")
    (models / f".{'d' * 64}.onnx.123.tmp").write_text("of a kill")
    learner = Learner.open(state)
    assert learner.store.path.joinpath("set-aside", f"{'c' * 64}.onnx.1").read_text() == "damaged, of ours"
    learner.learn(vectors("fox", 2000), "fox")
    learner.forget("fox")
    assert (models / "notes.txt").exists()
    assert (models / "folder" / "deep.onnx").exists()
    assert (models / f"{'b' * 64}.txt").exists()
    assert not (models / f".{'d' * 64}.onnx.123.tmp").exists()


def test_commands_say_it_and_go_on(state, tmp_path, capsys):
    flip(state / LOG_FILE, record_of(state / LOG_FILE, "cat")[1] - 9)
    ask = tmp_path / "ask.npz"
    np.savez(ask, x_train=vectors("ant", 4), y_train=np.zeros(4, np.int64), x_test=vectors("ant", 4),
             y_test=np.zeros(4, np.int64))
    for command, code in (("status", 0), ("predict", 0), ("classes", 0), ("doctor", 1)):
        rest = [str(ask)] if command == "predict" else []
        assert main([command, "--state", str(state), *rest]) == code
        out, err = capsys.readouterr()
        if command != "classes":
            assert "80 samples of 'cat' (generation 4) are lost" in out + err
    main(["status", "--state", str(state)])
    assert "rollback can restore 1, 2, 3\n" in capsys.readouterr().out
    assert main(["status", "--state", str(state), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["restorable"] == [1, 2, 3]


BASE = """
state = "state"
backbone = "identity"
quota = 700000
codec = "raw"
rounds = "off"
"""


@pytest.mark.parametrize("torn", [True, False], ids=["torn", "acknowledged"])
def test_a_daemon_starts_says_it_and_learns(state, made, tmp_path, torn):
    start, end = record_of(state / LOG_FILE, "elk")
    put(state / LOG_FILE, start + 512, bytes(end - start - 512))
    if torn:
        os.truncate(state / LOG_FILE, end)
        copied("before", ACKNOWLEDGED_FILE)(state, made)
    said = "were not a whole record" if torn else "80 samples of 'elk' (generation 6) are lost"
    with running(tmp_path, BASE) as daemon:
        assert [c["name"] for c in daemon.ask("classes")] == NAMES[:-1]
        assert any(said in line for line in daemon.ask("status")["warnings"])
        np.savez(tmp_path / "elk.npz", x_train=vectors("elk", 9), y_train=np.zeros(9, np.int64),
                 x_test=vectors("elk", 9), y_test=np.zeros(9, np.int64), class_names=np.array(["elk"]))
        code, _, err = cli(tmp_path, "learn", "--state", "state", "--class", "elk", "elk.npz")
        assert code == 0, err
        assert [c["name"] for c in daemon.ask("classes")] == NAMES
        assert daemon.log.read_text().count(said) == 1
