"""Files of samples learned since the newest statistics are merged, so that they stay few; nothing else changes."""
from __future__ import annotations

import random
from contextlib import closing

import pytest
from helpers_state import answers, calls_of, create, knowledge, vectors

from edgecl.errors import BudgetError
from edgecl.exemplars.stored import unpack
from edgecl.learner import Learner
from edgecl.learning.repair import repair
from edgecl.state import journals, store
from edgecl.state.quota import pages
from edgecl.state.reader import JOURNAL

NAMES = ("ant", "bee", "cat", "dog")
MB = 10**6


def merged(lengths, limit):
    """The lengths of the files that come of files of these lengths, and how many bytes were written."""
    files, written = [], 0
    for new in lengths:
        count = journals.merged_count(files, new, limit)
        files[len(files) - count:] = [sum(files[len(files) - count:]) + new]
        written += files[-1]
    return files, written


@pytest.mark.parametrize("draw", [
    lambda _: 100, lambda n: 100 + n % 7, lambda n: random.Random(n).randrange(1, 200),
    lambda n: 2 ** random.Random(n).randrange(12), lambda n: 1 + n, lambda n: 3000 - n])
@pytest.mark.parametrize("limit", [20_000, 10**9])
def test_files_stay_few_and_bytes_are_written_few_times(draw, limit):
    lengths = [draw(n) for n in range(2500)]
    files, written = merged(lengths, limit)
    assert sum(files) == sum(lengths)
    assert max(files) <= max(limit, *lengths)
    assert len(files) <= 4 * sum(lengths) / limit + 30
    assert written <= 8 * sum(lengths)


def test_what_is_too_long_or_alone_is_not_merged():
    assert journals.merged_count([], 100, 10**6) == 0
    assert journals.merged_count([100, 100], 100, 10**6) == 0
    assert journals.merged_count([100, 100, 100], 100, 10**6) == 3
    assert journals.merged_count([400] * 3 + [100] * 3, 100, 10**6) == 6
    assert journals.merged_count([10**5, 100, 100, 100], 100, 10**6) == 3
    assert journals.merged_count([100, 100, 100], 100, 399) == 2    # as much as fits, if that is a long file
    assert journals.merged_count([100, 100, 100], 100, 150) == 0
    assert journals.merged_count([100] * 6, 100, -5) == 0


def journal_files(learner):
    """The files of samples: path, oldest and newest generation."""
    return [(learner.store.blobs.folder / name, *span) for name, *span in learner.store.files(JOURNAL)]


@pytest.fixture
def pair(fast_path, monkeypatch):
    """Two learners that were taught the same: one whose log moves every four generations, and one whose does not."""
    one = create(fast_path / "merged", 4 * MB, exemplars=MB // 2)
    plain = create(fast_path / "plain", 4 * MB, exemplars=MB // 2)

    def teach(label, count, seed):
        for learner, most in ((plain, 10**6), (one, 4)):
            monkeypatch.setattr(store, "MOST_LOGGED", most)
            learner.learn(vectors(label, count, seed), label)

    for number in range(200):
        teach(NAMES[number // 4 % 4], 1 + number % 3, number)
    yield one, plain, teach
    one.close()
    plain.close()


def test_merging_changes_nothing_that_is_known(pair):
    one, plain, teach = pair
    files = journal_files(one)
    assert 0 < len(files) <= 12
    assert [newest + 1 for _, _, newest in files][:-1] == [oldest for _, oldest, _ in files][1:]
    assert max(len([*unpack(path.read_bytes(), one.store.codec)]) for path, *_ in files) >= 16
    for learner in (one, plain):
        learner.repository.release()    # it is read again
    assert knowledge(one) == knowledge(plain)
    assert answers(one) == answers(plain)
    named = [{g.id for g in learner.history()} for learner in (one, plain)]
    assert len(named[0] & named[1]) >= 50
    ways_back = [learner.store.restorable() & named[0] & named[1] for learner in (one, plain)]
    assert ways_back[0] == ways_back[1]
    assert len(ways_back[0]) >= 50
    back = one.store.current - 30
    assert one.rollback(back) == plain.rollback(back)
    teach("elk", 5, 0)
    with closing(Learner.open(one.store.path)) as again:
        assert knowledge(again) == knowledge(plain)
        assert answers(again) == answers(plain)
        assert again.damage == []


def test_forgetting_leaves_no_trace_in_merged_files(pair):
    one, _, teach = pair
    teach("zebra", 3, 1)
    for number in range(8):
        teach("ant", 1, 1000 + number)
    feature = vectors("zebra", 3, 1)[1].tobytes()
    assert any(feature in path.read_bytes() for path, *_ in journal_files(one))
    one.forget("zebra")
    left = [path for path in one.store.path.rglob("*") if path.is_file() and path.name != "reserved"]
    assert [path for path in left if feature in path.read_bytes() or b"zebra" in path.read_bytes()] == []


def test_a_damaged_file_is_not_merged_and_loses_its_own_record_only(pair):
    one, plain, teach = pair
    path, oldest, newest = max(journal_files(one), key=lambda each: each[0].stat().st_size)
    records = [(start, end) for start, end, _ in unpack(path.read_bytes(), one.store.codec)]
    content = bytearray(path.read_bytes())
    content[records[2][1] - 3] ^= 1     # in a sample
    path.write_bytes(content)
    for number in range(60):
        teach("ant", 1, 1000 + number)
    assert path.read_bytes() == content
    assert [span for each, *span in journal_files(one) if each == path] == [[oldest, newest]]
    with closing(Learner.open(one.store.path)) as again:
        assert any(path.name in line for line in again.damage)
        lost = {row.id for row in plain.repository.known().stored} - {row.id for row in again.repository.known().stored}
    assert 0 < len(lost) <= 12
    assert len({number >> 32 for number in lost}) <= 4


def test_files_from_before_statistics_that_are_kept_are_not_merged(pair):
    one, _, teach = pair
    before = {path for path, *_ in journal_files(one)}
    one.learn(vectors("elk", 14_000), "elk")
    base = one.store.current
    assert one.store.newest.snapshot is not None
    for number in range(80):
        teach("ant", 1, 2000 + number)
    files = journal_files(one)
    assert all(newest <= base or oldest > base for _, oldest, newest in files)
    assert {path for path, _, newest in files if newest < base - 8} <= before
    assert len([each for each in files if each[1] > base]) <= 8


def test_without_room_in_the_quota_the_log_moves_alone(fast_path, monkeypatch):
    monkeypatch.setattr(store, "MOST_LOGGED", 2)
    learner = create(fast_path / "s", 4 * MB, exemplars=MB // 2)
    room = []
    move = journals.add_journal
    monkeypatch.setattr(store.compaction, "add_journal",
                        lambda *values: (room.append(values[-1]), move(*values[:-1], 0)))
    for number in range(30):
        learner.learn(vectors("ant", 2, number), "ant")
    assert len(journal_files(learner)) >= 14
    assert min(room) > 0
    assert len(learner.store.logged()) < 2
    monkeypatch.setattr(store.compaction, "add_journal", move)
    for number in range(8):
        learner.learn(vectors("ant", 2, 100 + number), "ant")
    assert len(journal_files(learner)) <= 8
    learner.close()


@pytest.mark.parametrize("quota", [300_000, 340_000, 400_000])
def test_merging_never_passes_the_quota(fast_path, monkeypatch, quota):
    """Every file is counted right after it was written: before the ones that it holds are deleted."""
    monkeypatch.setattr(store, "MOST_LOGGED", 2)
    learner, most = create(fast_path / "s", quota, exemplars=20_000), []
    write = learner.store.blobs.write

    def counted(blob, suffix):
        name = write(blob, suffix)
        reserved = learner.store.path / "reserved"
        most.append(sum(pages(path.lstat().st_size) for path in learner.store.path.rglob("*") if path.is_file())
                    + 2 * pages(1) - pages(learner.store.log.path.stat().st_nlink > 1 and learner.store.log.length))
        assert reserved.exists()
        return name

    monkeypatch.setattr(learner.store.blobs, "write", counted)
    refused = 0
    for number in range(120):
        try:
            learner.learn(vectors(NAMES[number % 4], 4, number), NAMES[number % 4])
        except BudgetError:
            refused += 1
    assert max(most) <= quota
    assert refused < 60
    assert learner.store.used_bytes() <= quota
    learner.close()


def test_status_costs_no_more_after_many_commits(fast_path, monkeypatch):
    monkeypatch.setattr(store, "MOST_LOGGED", 2)
    learner = create(fast_path / "s", 8 * MB, exemplars=2 * MB)
    calls = {}
    for number in range(1, 501):
        learner.learn(vectors(NAMES[number % 4], 1, number), NAMES[number % 4])
        if number in (60, 500):
            learner.close()     # which writes the head
            with closing(Learner.open(fast_path / "s")) as looking:
                calls[number] = [calls_of(looking.status), calls_of(looking.status)]
            learner = Learner.open(fast_path / "s")
    assert len(journal_files(learner)) <= 12
    assert calls[500][0] <= 1.2 * calls[60][0]
    assert calls[500][1] <= 1.2 * calls[60][1]
    learner.close()


def test_what_a_repair_lets_go_of_is_no_exact_way_back(fast_path, monkeypatch):
    monkeypatch.setattr(store, "MOST_LOGGED", 2)
    learner = create(fast_path / "s", 4 * MB, exemplars=MB // 2)
    for number in range(6):
        learner.learn(vectors("ant", 5, number), "ant")
        learner.predict(vectors("ant", 2))
    learner.close()
    path, oldest, _ = journal_files(learner := Learner.open(fast_path / "s"))[0]
    learner.close()
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with closing(Learner.open(fast_path / "s")) as learner:
        repair(learner.repository)
        ways_back = sorted(learner.store.restorable())
        assert ways_back[-1] == learner.store.current
        assert [number for number in ways_back[:-1] if number >= oldest] == []
        assert learner.store.alive()[-2].id > oldest
