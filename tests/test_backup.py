"""Backups: consistent beside a writer, whole or not at all, and equal when restored."""
from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tarfile
import time
from contextlib import suppress
from pathlib import Path

import pytest
from candidates import candidate, matrix, world
from helpers_backup import back, quiet
from helpers_recorded import NAMES as RECORDED
from helpers_recorded import unpack
from helpers_state import answers, create, directory_bytes, fingerprint, flip, knowledge, refused, tree, vectors

from edgecl.cli import main
from edgecl.errors import BadInput, StateError
from edgecl.learner import Learner
from edgecl.rounds import gate
from edgecl.rounds.candidate import take_in
from edgecl.settings import short_names
from edgecl.state.backup import backup
from edgecl.state.backup_tar import tar_of
from edgecl.state.frozen import frozen

OPERATIONS = int(os.environ.get("EDGECL_OPERATIONS", 60))
NAMES = ("ant", "bee", "cat", "dog", "elk")


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
        learner.learn(vectors("ant", 25, number), "ant")


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

            def learn(learner, seen, each=(name, count, number + 1)):
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
        assert victim.name in told and short_names(victim.name) in err
        assert ("is not in the copy" in told) == (not victim.exists())
        assert short_names(victim.name) in refused(capsys, "restore", tmp_path / out, "--state", tmp_path / "restored")
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

    monkeypatch.setattr(os, "pread", broken)
    copied = backup(taught, tmp_path / "out.tar", quiet)
    assert copied.damaged and all("Input/output error" in line for line in copied.damaged)
    with tarfile.open(tmp_path / "out.tar") as file:
        assert file.extractfile(file.getmembers()[-1]).read().strip(b"\0") == b""
