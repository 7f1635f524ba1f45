"""Backups: consistent beside a writer, whole or not at all, and equal when restored."""
from __future__ import annotations

import hashlib
import io
import json
import os
import pty
import random
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from candidates import candidate, matrix, world
from helpers_daemon import serving, until
from helpers_recorded import NAMES as RECORDED
from helpers_recorded import unpack
from helpers_state import answers, create, directory_bytes, fingerprint, flip, knowledge, refused, tree, vectors

from edgecl.cli import main
from edgecl.errors import BadInput, BudgetError, StateError
from edgecl.learner import Learner
from edgecl.rounds import gate
from edgecl.rounds.candidate import take_in
from edgecl.runtime import control
from edgecl.runtime.client import Client
from edgecl.runtime.protocol import Refused
from edgecl.state import backup as backups
from edgecl.state.backup import backup, frozen, parts_of, restore, tar_of

OPERATIONS = int(os.environ.get("EDGECL_OPERATIONS", 60))
NAMES = ("ant", "bee", "cat", "dog", "elk")


def quiet(_):
    pass


def back(source, state):
    with parts_of(source) as parts:
        return restore(parts, str(source), state, quiet)


@pytest.fixture
def taught(learner):
    """A state with a forgotten class, exemplars, and a class in the log."""
    learner.forget("wasp")
    learner.learn(vectors("dog", 25), "dog")
    learner.close()
    return learner.store.path


@pytest.fixture
def archive(taught, tmp_path):
    backup(taught, tmp_path / "made.tar", quiet)
    return tmp_path / "made.tar"


def left_behind(folder, before):
    return {path.name for path in folder.iterdir()} - before


@pytest.mark.parametrize("out", ["copy", "copy.tar"])
def test_a_restored_state_is_equal_and_learns_on(taught, tmp_path, out):
    before = tree(taught)
    copied = backup(taught, tmp_path / out, quiet)
    assert tree(taught) == before
    made = back(tmp_path / out, tmp_path / "restored")
    assert (copied.damaged, made.generation, made.unreserved) == ([], copied.generation, 0)
    assert fingerprint(tmp_path / "restored") == fingerprint(taught)
    one, two = Learner.open(taught), Learner.open(tmp_path / "restored")
    assert two.store.restorable() == one.store.restorable()
    assert two.status().used_bytes <= two.status().quota_bytes
    for each in (one, two):
        each.learn(vectors("elk", 25), "elk")
        each.forget("cat")
        each.close()
    assert fingerprint(tmp_path / "restored") == fingerprint(taught)


def test_a_folder_is_a_state_as_it_is(taught, tmp_path):
    backup(taught, tmp_path / "copy", quiet)
    assert fingerprint(tmp_path / "copy") == fingerprint(taught)


def test_another_tar_program_unpacks_a_state(archive, taught, tmp_path):
    with tarfile.open(archive) as file:
        assert {member.mode for member in file} == {0o600}
        file.extractall(tmp_path / "out", filter="data")
    assert fingerprint(tmp_path / "out" / "edgecl-state") == fingerprint(taught)


def test_a_state_that_somebody_packed_is_restored_without_its_reserve(taught, tmp_path):
    with tarfile.open(tmp_path / "by-hand.tar", "w", format=tarfile.GNU_FORMAT) as file:
        file.add(taught, "./some/folder")
    back(tmp_path / "by-hand.tar", tmp_path / "restored")
    assert fingerprint(tmp_path / "restored") == fingerprint(taught)


def test_a_new_state_and_one_of_a_first_class_are_copied(tmp_path):
    learner = create(tmp_path / "state")
    for number in range(2):
        backup(tmp_path / "state", tmp_path / f"{number}.tar", quiet)
        back(tmp_path / f"{number}.tar", tmp_path / f"restored{number}")
        assert fingerprint(tmp_path / f"restored{number}") == fingerprint(tmp_path / "state")
        learner.learn(vectors("ant", 25), "ant")


@pytest.mark.parametrize("name", RECORDED)
def test_a_state_of_format_2_is_copied_as_it_is_and_restored(name, tmp_path):
    state = Path(unpack(name, tmp_path)["state"])
    before = tree(state)
    copied = backup(state, tmp_path / "old.tar", quiet)
    assert tree(state) == before and copied.damaged == []
    made = back(tmp_path / "old.tar", tmp_path / "restored")
    assert made.generation == copied.generation
    one, two = Learner.open(state), Learner.open(tmp_path / "restored")
    assert knowledge(one) == knowledge(two)
    assert one.store.restorable() == two.store.restorable() and not two.damage


# beside a writer ----------------------------------------------------------------------------------


def commands(seed):
    """The same commands again and again: each changes the state by one generation or more."""
    choose, known = random.Random(seed), []
    for number in range(OPERATIONS):
        action = choose.choices(("learn", "forget", "rollback", "round"), (6, 1, 1, 1))[0]
        if action == "forget" and len(known) > 2:
            name = known.pop(choose.randrange(len(known)))
            yield lambda learner, seen, name=name: learner.forget(name)
        elif action == "rollback" and number:
            yield lambda learner, seen: learner.rollback(max(learner.store.restorable() - {learner.store.current}))
            known = []      # not known here any more: nothing is forgotten until more was taught
        elif action == "round" and len(known) > 2:
            yield lambda learner, seen, number=number: take_in(
                learner.repository, candidate(learner, seen, matrix(number)), gate.BOUNDS)
        else:
            name, count = choose.choice(NAMES), choose.choice((5, 20, 400))
            known = sorted({*known, name})

            def learn(learner, seen, each=(name, count, number)):
                seen |= world(each)
                learner.learn(vectors(*each), each[0])

            yield learn


def summed(learner):
    """A digest of all statistics: what does not depend on when samples could be evicted."""
    return hashlib.sha256(repr(knowledge(learner)[0]).encode()).hexdigest()


def changed(path, seed, notes):
    """Run the commands on a state; what it knows at each generation goes to the file `notes`."""
    gate.check_accuracy = lambda *_: []
    learner, seen = Learner.open(path), {}
    with notes.open("w") as file:
        for command in commands(seed):
            with suppress(BadInput, StateError, ValueError, KeyError):  # nothing to go back to, or to forget
                command(learner, seen)
            print(learner.store.current, summed(learner), file=file)
    learner.close()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_backup_beside_a_writer_is_the_state_at_one_generation(fast_path, seed):
    learner = create(fast_path / "state", quota=400_000, exemplars=8_000)
    learner.learn(vectors("ant", 20), "ant")
    expected = {learner.store.current: summed(learner)}
    learner.close()
    writer = os.fork()
    if writer == 0:
        code = 1
        try:
            changed(fast_path / "state", seed, fast_path / "notes")
            code = 0
        finally:
            os._exit(code)
    made = []
    while (ended := os.waitpid(writer, os.WNOHANG))[0] == 0:
        out = fast_path / (f"{len(made)}.tar" if len(made) % 2 else f"folder {len(made)}")
        copied = backup(fast_path / "state", out, quiet)
        assert copied.damaged == []
        assert directory_bytes(fast_path / "state", reserve=False) <= 400_000
        made.append((copied.generation, out))
        time.sleep(0.01)
    assert ended[1] == 0
    notes = [line.split() for line in (fast_path / "notes").read_text().splitlines()]
    expected |= {int(number): digest for number, digest in notes}
    for generation, out in made:
        back(out, fast_path / "restored")
        restored = Learner.open(fast_path / "restored")
        assert restored.store.current == generation
        assert summed(restored) == expected[generation]
        assert restored.store.restorable() >= {generation}
        answers(restored)
        restored.close()
        shutil.rmtree(fast_path / "restored")
    assert len({generation for generation, _ in made}) > 3


def test_what_is_deleted_while_a_backup_is_read_is_in_it(taught, tmp_path):
    before = fingerprint(taught)
    with frozen(taught) as state:
        learner = Learner.open(taught)
        learner.forget("ant")
        learner.learn(vectors("bee", 2000), "bee")
        learner.close()
        content = b"".join(tar_of(state))
        assert state.damaged == []
    (tmp_path / "late.tar").write_bytes(content)
    back(tmp_path / "late.tar", tmp_path / "restored")
    assert fingerprint(tmp_path / "restored") == before


# damaged states -----------------------------------------------------------------------------------


@pytest.mark.parametrize("hurt", [flip, Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:100])],
                         ids=["flip", "gone", "short"])
def test_a_damaged_file_is_told_copied_as_it_is_and_not_restored(taught, tmp_path, capsys, hurt):
    [victim] = (taught / "models").glob("*.exemplars")
    hurt(victim)
    for out in ("out", "out.tar"):
        assert main(["backup", "--state", str(taught), "--json", str(tmp_path / out)]) == 1
        printed, err = capsys.readouterr()
        [told] = json.loads(printed)["damaged"]
        assert victim.name in told and victim.name in err
        assert ("is not in the copy" in told) == (not victim.exists())
        assert victim.name in refused(capsys, "restore", tmp_path / out, "--state", tmp_path / "restored")
        assert not (tmp_path / "restored").exists()
    assert victim.exists() == (tmp_path / "out" / "models" / victim.name).exists()
    if victim.exists():
        assert victim.read_bytes() == (tmp_path / "out" / "models" / victim.name).read_bytes()
    Learner.open(tmp_path / "out").close()


def test_what_is_no_backup_and_a_place_inside_a_state_are_refused(taught, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    err = refused(capsys, "restore", tmp_path / "photos", "--state", tmp_path / "restored")
    assert "is not a backup" in err and "edgecl init" not in err
    for inside in (taught / "inside", taught / "models" / "deep" / "er"):
        assert "is inside the state" in refused(capsys, "restore", taught, "--state", inside)
    assert not (taught / "inside").exists() and not (taught / "models" / "deep").exists()


def test_what_the_disk_does_not_give_back_is_zeros(taught, tmp_path, monkeypatch):
    read = os.pread

    def broken(file, count, place):
        if "/models/" in os.readlink(f"/proc/self/fd/{file}"):
            raise OSError(5, "Input/output error")
        return read(file, count, place)

    monkeypatch.setattr(backups.os, "pread", broken)
    copied = backup(taught, tmp_path / "out.tar", quiet)
    assert copied.damaged and all("Input/output error" in line for line in copied.damaged)
    with tarfile.open(tmp_path / "out.tar") as file:
        assert file.extractfile(file.getmembers()[-1]).read().strip(b"\0") == b""


# refusals -----------------------------------------------------------------------------------------


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
    monkeypatch.setattr(backups.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 5000, 5000))
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
    "symbolic link": (with_member("edgecl-state/models/l", tarfile.SYMTYPE, linkname="/etc/passwd"), "not a regular"),
    "hard link": (with_member("edgecl-state/models/link", tarfile.LNKTYPE, linkname="edgecl.db"), "not a regular"),
    "device": (with_member("edgecl-state/null", tarfile.CHRTYPE, devmajor=1, devminor=3), "not a regular"),
    "block device": (with_member("edgecl-state/disk", tarfile.BLKTYPE), "not a regular"),
    "fifo": (with_member("edgecl-state/pipe", tarfile.FIFOTYPE), "not a regular"),
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
    monkeypatch.setattr(backups, "MOST_FILES", 3)
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


# streams ------------------------------------------------------------------------------------------


def edgecl(*arguments, **more):
    command = [sys.executable, "-m", "edgecl", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, **more)


def test_a_tar_goes_through_a_pipe(taught, tmp_path):
    made = edgecl("backup", "--state", taught, "-")
    assert made.returncode == 0
    assert b"copied generation 6" in made.stderr and b"\r" not in made.stderr    # no bar
    done = edgecl("restore", "--json", "--state", tmp_path / "restored", "-", input=made.stdout)
    assert done.returncode == 0 and done.stderr == b""
    assert json.loads(done.stdout)["generation"] == 6
    assert fingerprint(tmp_path / "restored") == fingerprint(taught)
    cut = edgecl("restore", "--state", tmp_path / "cut", "-", input=made.stdout[:5000])
    assert cut.returncode == 1 and b"ends too early" in cut.stderr


def test_a_reader_that_stops_is_told_without_a_traceback(taught):
    with subprocess.Popen([sys.executable, "-m", "edgecl", "backup", "--state", str(taught), "-"],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        err = process.stderr.read().decode()
    assert process.returncode == 1
    assert "not whole" in err and err.count("\n") == 1


def test_stdout_that_is_closed_full_or_a_terminal_is_refused(taught):
    command = [sys.executable, "-m", "edgecl", "backup", "--state", str(taught), "-"]
    closed = subprocess.run(["sh", "-c", '"$@" >&-', "sh", *command], stderr=subprocess.PIPE, text=True, check=False)
    assert closed.returncode == 1 and "stdout is closed" in closed.stderr and closed.stderr.count("\n") == 1
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1 and "is full" in done.stderr and done.stderr.count("\n") == 1
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True, check=False)
        assert done.returncode == 1 and "terminal" in done.stderr and done.stderr.count("\n") == 1
        done = subprocess.run([*command[:3], "restore", "--state", str(taught) + "2", "-"], stdin=theirs,
                              capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "no backup on stdin" in done.stderr
    finally:
        os.close(ours)
        os.close(theirs)
    both = edgecl("backup", "--json", "--state", taught, "-")
    assert both.returncode == 1 and both.stdout == b""


# through the daemon -------------------------------------------------------------------------------


@pytest.fixture
def daemon(tmp_path, monkeypatch):
    """A daemon whose folder this user may not read."""
    with serving(tmp_path / "state", control=(240.0, 240.0)) as (service, _, _):
        monkeypatch.setattr("edgecl.commands.backup.readable", lambda path: False)
        yield service


@pytest.mark.parametrize("out", ["out", "out.tar"])
def test_a_user_that_may_not_read_the_folder_gets_a_backup_from_the_daemon(daemon, tmp_path, capsys, out):
    assert main(["backup", "--json", "--state", str(tmp_path / "state"), str(tmp_path / out)]) == 0
    assert json.loads(capsys.readouterr().out)["generation"] == daemon.status()["generation"]
    back(tmp_path / out, tmp_path / "restored")
    restored = Learner.open(tmp_path / "restored")
    assert {each.name for each in restored.classes()} == {"ant", "wasp"}
    assert [each.label for each in restored.predict(vectors("ant", 3))] == ["ant"] * 3


def test_the_daemon_tells_what_is_damaged(daemon, tmp_path, capsys):
    victim = sorted((tmp_path / "state/models").iterdir())[0]
    flip(victim)
    assert main(["backup", "--state", str(tmp_path / "state"), str(tmp_path / "out.tar")]) == 1
    assert victim.name in capsys.readouterr().err


def test_a_backup_is_for_those_who_may_change_the_state(daemon, tmp_path, monkeypatch):
    monkeypatch.setattr(control.control_clients, "user_of", lambda _: 12345)
    with Client(tmp_path / "state/control.sock") as client:
        with pytest.raises(Exception, match="user 12345 may not copy this state"):
            client.ask("backup")
        assert client.ask("status")["classes"] == 2


def test_one_backup_at_a_time_and_one_that_is_left_ends(daemon, tmp_path):
    path = tmp_path / "state/control.sock"
    with Client(path) as first:
        about = first.ask("backup")
        assert about["tar_bytes"] % 512 == 0
        blocks = first.blocks(about["tar_bytes"])
        next(blocks)
        whole = 1 + sum(1 for _ in blocks)
        assert whole and first.result()["generation"] == daemon.status()["generation"]
        assert first.ask("status")["classes"] == 2     # the connection goes on
    with socket.socket(socket.AF_UNIX) as rude:
        rude.connect(str(path))
        rude.sendall(b'{"command":"backup"}\n')
    with Client(path) as after:
        assert until(lambda: _size(after)) == about["size"]     # once the daemon has seen that the rude one has left


def _size(client):
    try:
        return client.ask("backup")["size"]
    except Refused:
        return None


def test_a_daemon_that_stops_in_the_middle_is_told_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    begun, go = threading.Event(), threading.Event()

    def slow(state):
        yield from list(tar_of(state))[:3]
        begun.set()
        go.wait(240)
        raise OSError("the disk has gone")

    monkeypatch.setattr("edgecl.runtime.commands.tar_of", slow)
    monkeypatch.setattr("edgecl.commands.backup.readable", lambda path: False)
    with serving(tmp_path / "state", control=(240.0, 240.0)):
        with Client(tmp_path / "state/control.sock") as other:
            threading.Thread(target=lambda: (begun.wait(240), _busy(other), go.set())).start()
            line = refused(capsys, "backup", "--state", tmp_path / "state", tmp_path / "out.tar")
        assert "did not answer" in line
    assert {path.name for path in tmp_path.iterdir()} == {"state"}


def _busy(client):
    with pytest.raises(Exception, match="another client reads a backup"):
        client.ask("backup")


def test_learning_goes_on_in_the_daemon_while_a_slow_client_reads(daemon, tmp_path):
    with Client(tmp_path / "state/control.sock") as client:
        about = client.ask("backup")
        daemon.learn("bee", vectors("bee", 30))
        daemon.forget("ant")
        (tmp_path / "out.tar").write_bytes(b"".join(client.blocks(about["tar_bytes"])))
        assert client.result()["damaged"] == []
    back(tmp_path / "out.tar", tmp_path / "restored")
    assert {each.name for each in Learner.open(tmp_path / "restored").classes()} == {"ant", "wasp"}


def test_answers_of_a_restored_state_are_those_of_the_daemon(daemon, tmp_path):
    probe = np.concatenate([vectors(name, 5, seed=3) for name in ("ant", "wasp", "bee")])
    main(["backup", "--state", str(tmp_path / "state"), str(tmp_path / "out")])
    there = answers(Learner.open(tmp_path / "out"), probe)
    assert there == [(each["label"], each["confidence"], each["unknown"]) for each in daemon.predict(probe)]
