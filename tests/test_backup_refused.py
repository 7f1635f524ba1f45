"""Refused copies and restores, which leave nothing behind: places, full disks, hostile or damaged tars."""
from __future__ import annotations

import io
import os
import random
import shutil
import subprocess
import tarfile

import pytest
from helpers_backup import back, quiet
from helpers_state import fingerprint, refused, tree

from edgecl.cli import main
from edgecl.errors import BadInput, BudgetError, StateError
from edgecl.state import backup_tar
from edgecl.state.backup import backup


def left_behind(folder, before):
    return {path.name for path in folder.iterdir()} - before


def test_what_can_not_be_written_is_refused_before_anything_is(taught, tmp_path, capsys, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    (tmp_path / "file").touch()
    (tmp_path / "here.tar").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "state link").symlink_to(taught)
    before, inside = {path.name for path in tmp_path.iterdir()}, tree(taught)

    def told(out, *words, state=taught):
        line = refused(capsys, "backup", "--state", state, out)
        assert all(word in line for word in words), line
        assert left_behind(tmp_path, before) == set()
        assert tree(taught) == inside

    for out in ("full", "file", "here.tar", "link", "state", "state link"):
        told(tmp_path / out, "exists already")
    told(taught / "copy", "inside the state")
    told(taught / "models" / "copy.tar", "inside the state")
    told(tmp_path / "state link" / "models" / "copy", "inside the state")
    told(tmp_path / "out.tar.gz", "compressed", "gzip")
    told(tmp_path / "no" / "folder" / "out", "No such file")
    told(tmp_path / "file" / "out", "Not a directory")
    told(tmp_path / "out", "no edgecl state", state=tmp_path / "nothing")
    told(tmp_path / "out", "no edgecl state", state=tmp_path / "full")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000))
    told(tmp_path / "out", "has 5 KB free")
    told(tmp_path / "out.tar", "has 5 KB free")


@pytest.mark.parametrize("out", ["out", "out.tar"])
def test_a_disk_that_fills_up_leaves_nothing_behind(taught, tmp_path, out):
    def full(count):
        raise OSError(28, "No space left on device")

    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(BudgetError, match="is full"):
        backup(taught, tmp_path / out, full)
    assert left_behind(tmp_path, before) == set()


def test_what_killed_processes_left_is_deleted(taught, tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / f".out.{ended.pid}.new" / "models").mkdir(parents=True)
    (tmp_path / f".out.tar.{ended.pid}.new").write_bytes(b"half")
    (tmp_path / f".out.{os.getppid()}.new").mkdir()     # of a process that is still at work
    backup(taught, tmp_path / "out", quiet)
    backup(taught, tmp_path / "out.tar", quiet)
    assert {path.name for path in tmp_path.glob(".*")} == {f".out.{os.getppid()}.new"}


def altered(archive, change):
    """The members of a tar, changed by a function that takes and yields (about, content) pairs."""
    with tarfile.open(archive) as file:
        members = [(about, file.extractfile(about).read()) for about in file]
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for about, content in change(members):
            file.addfile(about, io.BytesIO(content))
    return made.getvalue()


def with_member(name, kind=tarfile.REGTYPE, content=b"", **more):
    def change(members):
        about = tarfile.TarInfo(name)
        about.type, about.size = kind, len(content)
        for key, value in more.items():
            setattr(about, key, value)
        return [*members, (about, content)]
    return change


def with_size(size):
    def change(data):
        about = tarfile.TarInfo("edgecl-state/models/" + "0" * 64 + ".npz")
        about.size = size
        return about.tobuf(tarfile.GNU_FORMAT) + data
    return change


HOSTILE = {
    "up": (with_member("../up", content=b"x"), "../up"),
    "up inside": (with_member("edgecl-state/../../models/up", content=b"x"), "../../models"),
    "absolute": (with_member("/tmp/absolute", content=b"x"), "/tmp/absolute"),
    "symbolic link": (with_member("edgecl-state/models/l", tarfile.SYMTYPE, linkname="/etc/passwd"), "which is a link"),
    "hard link": (with_member("edgecl-state/models/link", tarfile.LNKTYPE, linkname="edgecl.db"), "which is a link"),
    "device": (with_member("edgecl-state/null", tarfile.CHRTYPE, devmajor=1, devminor=3), "which is a device"),
    "block device": (with_member("edgecl-state/disk", tarfile.BLKTYPE), "which is a device"),
    "fifo": (with_member("edgecl-state/pipe", tarfile.FIFOTYPE), "which is a FIFO"),
    "twice": (with_member("edgecl-state/edgecl.db", content=b"x"), "twice"),
    "other prefix twice": (with_member("x/learned.log", content=b"x"), "twice"),
    "no database": (lambda members: [m for m in members if "edgecl.db" not in m[0].name], "no edgecl.db"),
    "database only": (lambda members: members[:1], "missing or damaged"),
    "a file less": (lambda members: members[:-1], "missing or damaged"),
    "nothing": (lambda members: [], "no edgecl.db"),
}
BYTES = {
    "flipped content": (lambda data: flipped(data, data.index(b"\x80", 3 * len(data) // 4)), ""),
    "flipped header": (lambda data: flipped(data, 10), "not a tar"),
    "empty": (lambda data: b"", "ends too early"),
    "text": (lambda data: b"This is not a tar at all. " * 100, "not a tar"),
    "gzip": (lambda data: b"\x1f\x8b\x08" + data[3:], "compressed with gzip"),
    "xz": (lambda data: b"\xfd7zXZ" + data[5:], "compressed with xz"),
    "more than the disk": (with_size(10**17), "free"),
    "negative": (with_size(-5), "bytes"),
    "pax header": (lambda data: tarfile.TarInfo("p" * 300).tobuf(tarfile.PAX_FORMAT) + data, "not a regular"),
}


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1:]


@pytest.mark.parametrize("what", [*HOSTILE, *BYTES])
def test_a_hostile_or_damaged_tar_is_refused_and_leaves_nothing(archive, tmp_path, capsys, what):
    data = altered(archive, HOSTILE[what][0]) if what in HOSTILE else BYTES[what][0](archive.read_bytes())
    (tmp_path / "bad.tar").write_bytes(data)
    before = tree(tmp_path)
    line = refused(capsys, "restore", "--state", tmp_path / "new" / "restored", tmp_path / "bad.tar")
    assert (HOSTILE | BYTES)[what][1] in line
    assert tree(tmp_path) == before
    assert [*(tmp_path / "new").iterdir()] == []


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97])
def test_a_tar_that_was_cut_off_is_refused(archive, tmp_path, capsys, share):
    data = archive.read_bytes()
    for length in {int(len(data) * share), int(len(data) * share) // 512 * 512}:
        (tmp_path / "cut.tar").write_bytes(data[:length])
        refused(capsys, "restore", "--state", tmp_path / "restored", tmp_path / "cut.tar")
        assert not (tmp_path / "restored").exists()


def test_no_flipped_byte_of_a_tar_is_restored_silently(archive, taught, fast_path):
    data, whole = archive.read_bytes(), fingerprint(taught)
    places = random.Random(3).sample(range(len(data)), int(os.environ.get("EDGECL_TIMES", 60)))
    for place in places:
        (fast_path / "flipped.tar").write_bytes(flipped(data, place))
        try:
            back(fast_path / "flipped.tar", fast_path / "restored")
        except (BadInput, StateError, BudgetError):
            assert not (fast_path / "restored").exists()
            continue
        assert fingerprint(fast_path / "restored") == whole, place
        shutil.rmtree(fast_path / "restored")


def test_a_tar_of_files_that_the_state_does_not_name_brings_none_of_them(archive, taught, tmp_path):
    (tmp_path / "more.tar").write_bytes(altered(archive, lambda members: [
        *with_member("edgecl-state/models/" + "0" * 64 + ".npz", content=b"x" * 5000)(members),
        *with_member("edgecl-state/models/foreign.py", content=b"x" * 5000)([]),
        *with_member("edgecl-state/reserved", content=b"x" * 5000)([])]))
    back(tmp_path / "more.tar", tmp_path / "restored")
    assert {path.name for path in (tmp_path / "restored/models").iterdir()} == {
        path.name for path in (taught / "models").iterdir()}
    assert fingerprint(tmp_path / "restored") == fingerprint(taught)


def test_a_tar_of_too_many_files_is_refused(archive, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(backup_tar, "MOST_FILES", 3)
    assert "more than 3 files" in refused(capsys, "restore", "--state", tmp_path / "new", archive)


def test_a_restore_never_touches_what_is_there(archive, taught, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "photo.jpg").write_bytes(b"mine")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"mine")
    before, state = tree(tmp_path), fingerprint(taught)
    for path in ("full", "file", taught.name):
        assert "exists already" in refused(capsys, "restore", archive, "--state", tmp_path / path)
    assert tree(tmp_path) == before
    for path in ("nothing.tar", "file", "full", "empty"):
        refused(capsys, "restore", tmp_path / path, "--state", tmp_path / "new")
        assert not (tmp_path / "new").exists()
    assert main(["restore", str(archive), "--state", str(tmp_path / "empty")]) == 0
    assert fingerprint(tmp_path / "empty") == state


def test_the_quota_that_can_not_be_reserved_is_told(archive, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert main(["restore", str(archive), "--state", str(tmp_path / "restored")]) == 0
    assert "could not be reserved" in capsys.readouterr().err
