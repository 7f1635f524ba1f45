"""A power cut at any moment leaves the state as it was before or after a step, whatever the disk had not yet synced."""
from __future__ import annotations

import os
import random
from collections import Counter

import pytest
from helpers_needs import need
from helpers_state import JOBS

STATES = int(os.environ.get("EDGECL_CUTS", "300"))
PARTS = 6   # of all sequences, a test each, so that several processes share them
VIEW = {"answers": [["ant", 0.9, False]], "means": {"ant": [1.0, 2.0]}, "history": [["init", {}, False]], "damage": []}
LATER = {**VIEW, "means": {"ant": [1.0, 2.0], "bee": [3.0, 4.0]}}


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_a_power_cut_leaves_before_or_after(part):
    need("strace", "strace")
    import powerloss

    wrong: list[str] = []
    every = list(powerloss.SEQUENCES)
    names = every[part::PARTS]
    states = STATES * len(names) // len(every)
    found = powerloss.campaign(states, names, JOBS, report=wrong.append)
    assert not wrong
    total = sum((outcome.counts for outcome in found.values()), Counter())
    assert set(total) == {"before", "after"}
    assert total.total() >= 0.9 * states
    assert {name for name, outcome in found.items() if outcome.counts["before"] + outcome.counts["after"] < 8} == set()


@pytest.fixture
def left(tmp_path):
    """A function: what a cut at the end may leave of what some work does in a folder: for each cut the files, as name
    and content."""
    need("strace", "strace")
    import crash
    from disk_model import Disk
    from disk_trace import OPTIONS, Tracer
    from power_cuts import cuts

    def after(work):
        folder = tmp_path / "folder"
        folder.mkdir()
        (folder / "old").write_bytes(b"old" * 1000)
        start = Disk.read(folder)
        assert crash.trace(lambda: work(folder), "-o", str(tmp_path / "log"), *OPTIONS) == 0
        tracer = Tracer(str(folder), start.after([]))
        tracer.follow(tmp_path / "log")
        assert tracer.disk.digest() == Disk.read(folder).digest()
        ends = [cut for cut in cuts(tracer.operations, random.Random(0)) if cut.at == len(tracer.operations)]
        disks = [cut.disk(start, tracer.operations) for cut in ends]
        return [{path[1:]: disk.content(inode) for path, inode in disk.paths()
                 if isinstance(disk.inodes[inode], bytes)} for disk in disks]

    return after


def put(path, data, sync=True):
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        if sync:
            os.fsync(file.fileno())


def sync(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def test_what_is_not_synced_may_be_lost_or_torn_or_garbage(left):
    data = random.Random(1).randbytes(9000)
    contents = {files.get("new") for files in left(lambda folder: put(folder / "new", data, sync=False))}
    assert {None, b"", data, data[:512], data[:4096] + bytes(len(data) - 4096), bytes(len(data))} <= contents
    assert any(each and len(each) == len(data) and each not in (data, bytes(len(data))) for each in contents)


def test_a_synced_file_is_whole_but_its_name_may_be_lost(left):
    assert {files.get("new") for files in left(lambda folder: put(folder / "new", b"new"))} == {None, b"new"}


def test_a_synced_file_in_a_synced_folder_is_always_there(left):
    def work(folder):
        put(folder / "new", b"new")
        sync(folder)

    assert {files["new"] for files in left(work)} == {b"new"}


def test_renaming_before_the_sync_may_leave_an_empty_file_in_the_place_of_the_old_one(left):
    def work(folder):
        put(folder / "new", b"new" * 1000, sync=False)
        (folder / "new").rename(folder / "old")

    assert {b"", b"old" * 1000, b"new" * 1000} <= {files.get("old") for files in left(work)}


def test_renaming_after_the_sync_leaves_the_old_file_or_the_new_one(left):
    def work(folder):
        put(folder / "new", b"new" * 1000)
        (folder / "new").rename(folder / "old")

    assert {files.get("old") for files in left(work)} == {b"old" * 1000, b"new" * 1000}


def test_a_deletion_may_be_lost_and_so_may_a_length(left):
    def work(folder):
        (folder / "old").unlink()
        put(folder / "other", b"other" * 1000)
        os.truncate(folder / "other", 7)

    found = left(work)
    assert {"old" in files for files in found} == {True, False}
    assert {len(files["other"]) for files in found if "other" in files} == {7, 5000}


def test_the_model_follows_every_call_that_changes_a_folder(left):
    def work(folder):
        (folder / "in").mkdir()
        os.link(folder / "old", folder / "in" / "second")
        with (folder / "in" / "copied").open("wb") as target, (folder / "old").open("rb") as source:
            os.sendfile(target.fileno(), source.fileno(), None, 100)
            os.copy_file_range(source.fileno(), target.fileno(), 50, offset_src=7)
            os.posix_fallocate(target.fileno(), 0, 5000)
            os.pwrite(target.fileno(), b"in the middle", 2000)
            again = os.dup(target.fileno())
            os.lseek(again, 10, os.SEEK_SET)
            os.write(target.fileno(), b"behind")
            os.ftruncate(again, 4000)
        with (folder / "old").open("ab") as file:
            file.write(b"at the end")
        inside = os.open(folder / "in", os.O_RDONLY)
        os.mkdir("deep", dir_fd=inside)
        os.rename("second", "deep/third", src_dir_fd=inside, dst_dir_fd=inside)
        (folder / "empty").mkdir()
        (folder / "empty").rmdir()
        with (folder / "in" / "copied").open("wb") as file:
            file.write(b"again")

    assert left(work)   # the fixture compares the model with the folder


@pytest.mark.parametrize(("found", "word"), [
    ({"view": VIEW}, "before"), ({"view": LATER}, "after"),
    ({"view": {**VIEW, "means": {"ant": [1.0 + 1e-9, 2.0]}}}, "before"),
    ({"view": {**VIEW, "means": {"ant": [1.1, 2.0]}}}, "other"), ({"view": {}}, "other"),
    ({"view": {**LATER, "damage": ["x"]}}, "alarm"), ({"view": VIEW, "wrong": ["too large"]}, "wrong"),
    ({"view": VIEW, "seen": {**VIEW, "answers": []}}, "other to a reader"),
    ({"view": VIEW, "seen": {"refused": "in the middle of a change"}}, "before"),
    ({"refused": "damaged"}, "refused"), ({"crashed": "Traceback"}, "traceback")])
def test_a_view_is_compared_with_those_before_and_after_the_step(found, word):
    from powerloss import judge

    if "view" in found:
        found = {"seen": found["view"], "wrong": [], **found}
    assert judge(found, [VIEW, LATER])[0] == word
