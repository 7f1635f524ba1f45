"""A torn append to the log was never acknowledged: it is dropped with one warning."""
from __future__ import annotations

import shutil

import pytest
from helpers_log import GARBAGE, NAMES, put, record_of
from helpers_state import vectors

from edgecl.learner import Learner
from edgecl.state.acknowledged import ACKNOWLEDGED_FILE
from edgecl.state.write_ahead_log import LOG_FILE


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
def test_a_torn_append_is_dropped_with_one_warning(log_copies, tmp_path, size, how, known):
    whole, before = (log_copies / name / LOG_FILE for name in ("state", "before"))
    record = whole.read_bytes()[slice(*record_of(whole, "elk"))]
    assert len(record) > 4096
    for name, tail in torn(record, size, how).items():
        state = tmp_path / name / "state"
        shutil.copytree(log_copies / "before", state)
        (state / LOG_FILE).write_bytes(before.read_bytes() + tail)
        if not known:
            (state / ACKNOWLEDGED_FILE).unlink()
        learner = Learner.open(state)
        assert [c.name for c in learner.classes()] == NAMES[:-1]
        [told] = learner.damage
        assert told.startswith("learned.log did not end with a whole record, as after a power cut")
        assert ("nothing that was acknowledged was lost" in told) == known
        assert learner.store.restorable() == {1, 2, 3, 4, 5}
        learner.learn(vectors("elk", 80), "elk")
        learner.close()
        again = Learner.open(state)
        assert again.damage == []
        assert [c.name for c in again.classes()] == NAMES
        again.close()
        assert not (state / "set-aside").exists()


def test_a_torn_append_behind_a_damaged_record_is_dropped_too(logged):
    log = logged / LOG_FILE
    start, _ = record_of(log, "elk")
    put(log, start + 1000, bytes(600))  # rot: it was acknowledged
    learner = Learner.open(logged)
    told = learner.damage
    assert ["80 samples of 'elk' (generation 6) are lost" in line for line in told] == [True]
    learner.close()
    whole = log.read_bytes()
    shutil.copytree(logged, logged.with_name("later"))
    learner = Learner.open(logged.with_name("later"))
    learner.learn(vectors("fox", 80), "fox")
    record = (logged.with_name("later") / LOG_FILE).read_bytes()[len(whole):]
    for tail in (record[:20], record[:512], record[:4096] + bytes(len(record) - 4096), GARBAGE[:900], bytes(5000)):
        log.write_bytes(whole + tail)
        again = Learner.open(logged)
        assert [line for line in again.damage if "did not end with a whole record" not in line] == told
        assert [g.id for g in again.history()] == [1, 2, 3, 4, 5, 6]
        assert log.read_bytes() == whole
        again.close()


def test_what_another_process_is_writing_is_no_damage(log_copies):
    reader = Learner.open(log_copies / "before")
    assert reader.damage == []
    whole, log = (log_copies / "state" / LOG_FILE).read_bytes(), log_copies / "before" / LOG_FILE
    before = log.read_bytes()
    try:
        for length in (1, 30, 200, 2000, len(whole) - len(before) - 1):
            log.write_bytes(before + whole[len(before):len(before) + length])
            assert reader.store.damage() == []
            assert [c.name for c in reader.classes()] == NAMES[:-1]
    finally:
        log.write_bytes(before)
        reader.close()
