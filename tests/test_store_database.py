"""edgecl.db under its digest, and edgecl.copy: damage is said, the newest intact rows serve, learning goes on."""
from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from helpers_needs import need
from helpers_recorded import unpack
from helpers_state import (
    answers,
    create,
    in_a_child,
    refused,
    traces,
    tree,
    vectors,
)

from edgecl.errors import EdgeclError, StateError
from edgecl.learner import Learner
from edgecl.state.open_database import OpenDatabase, read_copy
from edgecl.state.reader import StateReader
from edgecl.state.rows import rows_of_copy
from edgecl.state.store import Store

TRIALS = 40 * int(os.environ.get("EDGECL_TIMES", "1"))  # of each kind of state
ROOT = os.geteuid() == 0
NOTES = {"digest", "revision", "damage"}    # what a database that was built again has otherwise


def rows_of(store):
    """All rows but the notes about them."""
    rows = store.database.rows
    return ({key: value for key, value in rows.meta.items() if key not in NOTES}, sorted(rows.generations),
            sorted(rows.files), rows.last)


def shown(learner):
    """What a state answers and knows."""
    return answers(learner), [(c.name, c.samples) for c in learner.classes()], rows_of(learner.store)


def small_copy(state, to):
    """A copy of a state: files of models/ have a second name, since nothing writes into them."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(state, to, ignore=shutil.ignore_patterns("models", "reserved"))
    (to / "models").mkdir()
    for path in (state / "models").iterdir():
        os.link(path, to / "models" / path.name)
    return to


def noted(state):
    """Whether a state says that its database was damaged."""
    with_notes = StateReader(state)
    try:
        return bool(with_notes.found) or "edgecl.db" in str(with_notes.meta.get("damage", ""))
    finally:
        with_notes.close()


@pytest.fixture
def reading_only(monkeypatch):
    """Let this process take every state for read-only, as another user would."""
    access = os.access
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK and access(path, mode))
    return monkeypatch


# random damage ---------------------------------------------------------------------------------------


def flip_bit(data, chance):
    places = [i for i, value in enumerate(data) if value] if chance.random() < 0.7 else range(len(data))
    data[chance.choice(places)] ^= 1 << chance.randrange(8)


def cut(data, chance):
    del data[chance.randrange(len(data)):]


def blank(size, fill):
    def hurt(data, chance):
        start = chance.randrange(0, len(data), size)
        data[start:start + size] = fill(chance, len(data[start:start + size]))
    return hurt


def double(data, _):
    data += bytes(data)


HURTS = [*[flip_bit] * 8, cut, double, blank(512, lambda _, size: bytes(size)),
         blank(4096, lambda _, size: bytes(size)), blank(512, lambda chance, size: chance.randbytes(size)),
         "delete", "folder", "older"]


def damage(path, older, chance):
    """Damage a file somehow; how."""
    hurt = chance.choice(HURTS)
    if callable(hurt):
        data = bytearray(path.read_bytes())
        hurt(data, chance)
        path.write_bytes(data)
        return getattr(hurt, "__name__", "")
    path.unlink()
    if hurt == "folder":
        path.mkdir()
        (path / "note").write_text("mine")
    if hurt == "older":
        shutil.copy(older / path.name, path)
    return hurt


def long_history(folder):
    learner = create(folder / "state", quota=700_000, exemplars=10_000)
    for name in ("ant", "bee", "cat"):
        learner.learn(vectors(name, 25), name)
    learner.forget("bee")
    shutil.copytree(folder / "state", folder / "older")
    learner.learn(vectors("dog", 25), "dog")
    learner.rollback()
    learner.learn(vectors("fly", 1500), "fly")
    learner.learn(vectors("gnu", 25), "gnu")
    learner.close()
    return folder / "state", folder / "older"


def recorded_state(name):
    def make(folder):
        named = unpack(name, folder)
        state = Path(named["state"])
        Learner.open(state).close()
        shutil.copytree(state, folder / "older")
        store = Store(state)
        with store.exclusive():
            store.note("tried", {})
        store.close()
        return state, folder / "older"
    return make


KINDS = {"vectors": long_history, "windows": recorded_state("windows"), "statistics": recorded_state("statistics"),
         "codebook": recorded_state("vectors"), "round": recorded_state("round")}


def view(state):
    """Classes, rows, and whether damage is said, without answering: sessions of a backbone take long to open."""
    learner = Learner.open(state)
    try:
        return [(c.name, c.samples) for c in learner.classes()], rows_of(learner.store), noted(state)
    finally:
        learner.close()


@pytest.mark.parametrize("kind", KINDS)
def test_random_damage_of_the_database_or_its_copy_is_harmless_or_said(kind, fast_path, monkeypatch):
    (fast_path / "origin").mkdir()
    state, older = KINDS[kind](fast_path / "origin")
    wanted, chance, seen = view(state), random.Random(kind), Counter()
    access = os.access
    for number in range(TRIALS):
        hurt = small_copy(state, fast_path / "hurt")
        name = chance.choice(["edgecl.db", "edgecl.db", "edgecl.copy"])
        how = damage(hurt / name, older, chance)
        reader = chance.random() < 0.3
        before = tree(hurt)
        with monkeypatch.context() as patch:
            if reader:
                patch.setattr("os.access", lambda path, mode: mode != os.W_OK and access(path, mode))
            classes, rows, said = view(hurt)
        assert (classes, rows) == wanted[:2], (number, name, how, reader)
        assert not reader or tree(hurt) == before, (number, name, how)
        assert not said or name == "edgecl.db"
        seen[name, said] += 1
        learner = Learner.open(hurt)    # as a writer in any case
        assert not learner.store.found, (number, name, how)
        if kind == "vectors":
            learner.learn(vectors("new", 25), "new")
        with learner.store.exclusive():
            learner.store.note("tried", {"number": number})
        assert read_copy(hurt) == learner.store.database.rows
        if said:
            assert how == "delete" or (hurt / "set-aside" / "edgecl.db.1").exists()
            assert noted(hurt)
        learner.close()
    assert seen["edgecl.db", True] > TRIALS // 6, seen
    assert seen["edgecl.copy", False]


# the copy ---------------------------------------------------------------------------------------------


def test_the_copy_holds_the_rows_after_each_commit_and_no_forgotten_class(state):
    learner = Learner.open(state)
    other = create(state.parent / "other")
    other.learn(vectors("fox", 25), "fox")
    for change in (lambda: learner.learn(vectors("dog", 25), "dog"), lambda: learner.forget("wasp"),
                   lambda: learner.rollback(), lambda: learner.merge([state.parent / "other"]),
                   lambda: learner.learn(vectors("elk", 2000), "elk")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("edgecl.learner.clear_killed", lambda *_: None)
            try:
                change()
            except StateError:      # nothing to go back to, after a forget
                continue
        learner.store.refresh()
        assert read_copy(state) == learner.store.database.rows
    assert traces(state, vectors("wasp", 25), ["wasp"]) == []


def test_a_commit_that_only_appends_leaves_database_and_copy_alone(state):
    learner = Learner.open(state)
    learner.learn(vectors("dog", 5), "dog")
    before = {name: ((state / name).stat(), (state / name).read_bytes()) for name in ("edgecl.db", "edgecl.copy")}
    for number in range(3):
        learner.learn(vectors("dog", 5, number), "dog")
    for name, (about, content) in before.items():
        assert (state / name).stat().st_mtime_ns == about.st_mtime_ns
        assert (state / name).read_bytes() == content
    learner.close()


@pytest.mark.parametrize("hurt", [Path.unlink, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"{}"),
                                  lambda path: path.write_bytes(path.read_bytes()[:-9]),
                                  lambda path: path.write_bytes(path.read_bytes().replace(b"wasp", b"cake"))],
                         ids=["gone", "empty", "other", "cut", "changed"])
def test_a_lost_or_damaged_copy_is_written_again_without_a_word(state, hurt):
    learner = Learner.open(state)
    learner.learn(vectors("elk", 2000), "elk")  # so that names stand in the database
    learner.close()
    hurt(state / "edgecl.copy")
    assert not noted(state)
    learner = Learner.open(state)
    assert read_copy(state) == learner.store.database.rows
    assert not noted(state)


def test_a_flip_anywhere_in_the_copy_is_found(state):
    data = (state / "edgecl.copy").read_bytes()
    wanted = rows_of_copy(data)
    for place in range(len(data)):
        hurt = bytearray(data)
        hurt[place] ^= 1 << place % 8
        (state / "edgecl.copy").write_bytes(hurt)
        assert read_copy(state) in (None, wanted), place


def test_a_copy_without_room_in_the_quota_is_left_out(state):
    learner = Learner.open(state)
    wanted = shown(learner)
    learner.store.ledger.quota = learner.store.usage().total - 4096
    with learner.store.exclusive():
        learner.store.set_meta("note", "x")
        learner.store.step()
    assert not (state / "edgecl.copy").exists()
    assert learner.store.usage().total <= learner.store.ledger.quota
    with learner.store.exclusive():
        learner.store.connection.execute("DELETE FROM meta WHERE key = 'note'")
        learner.store.step()
    learner.close()
    again = Learner.open(state)
    assert shown(again) == wanted
    assert read_copy(state) == again.store.database.rows


def test_the_copy_gives_way_to_a_change_and_comes_back(state):
    learner = Learner.open(state)
    used = learner.store.usage().total
    learner.store.ledger.quota = used + 8192
    learner.store.ledger.ask(8192, "a change")
    assert (state / "edgecl.copy").exists()
    with pytest.raises(EdgeclError, match="needs 16384 bytes but only 12288"):
        learner.store.ledger.ask(16384, "a change")
    assert (state / "edgecl.copy").exists()
    learner.store.ledger.ask(12288, "a change")
    assert not (state / "edgecl.copy").exists()
    learner.close()
    Learner.open(state).close()
    assert (state / "edgecl.copy").exists()


# what counts -------------------------------------------------------------------------------------------


def test_a_database_older_than_its_copy_is_set_aside_and_the_newest_state_goes_on(state):
    shutil.copy(state / "edgecl.db", state.parent / "old.db")
    learner = Learner.open(state)
    learner.learn(vectors("elk", 2000), "elk")
    wanted = shown(learner)
    learner.close()
    files = set(tree(state / "models"))
    shutil.copy(state.parent / "old.db", state / "edgecl.db")
    again = Learner.open(state)
    assert shown(again) == wanted
    assert "older than edgecl.copy" in str(again.store.meta["damage"])
    assert set(tree(state / "models")) >= files
    assert (state / "set-aside" / "edgecl.db.1").read_bytes() == (state.parent / "old.db").read_bytes()
    again.learn(vectors("dog", 5), "dog")
    again.close()
    assert not Learner.open(state).store.found


def test_a_database_and_its_copy_whose_names_were_exchanged(state):
    wanted = shown(Learner.open(state))
    database, copy = (state / "edgecl.db").read_bytes(), (state / "edgecl.copy").read_bytes()
    (state / "edgecl.db").write_bytes(copy)
    (state / "edgecl.copy").write_bytes(database)
    again = Learner.open(state)
    assert shown(again) == wanted
    assert again.damage
    again.learn(vectors("dog", 5), "dog")
    again.close()
    assert read_copy(state) is not None
    assert "dog" in {each.name for each in Learner.open(state).classes()}


def test_a_database_of_another_state_does_not_win(state, tmp_path):
    wanted = shown(Learner.open(state))
    other = create(tmp_path / "another")
    for name in ("one", "two", "three"):
        other.learn(vectors(name, 2000), name)
    other.close()
    files = set(tree(state / "models"))
    shutil.copy(tmp_path / "another" / "edgecl.db", state / "edgecl.db")
    again = Learner.open(state)
    assert shown(again) == wanted
    assert set(tree(state / "models")) >= files
    assert "of another state" in str(again.store.meta["damage"])


def test_ids_are_not_given_out_twice_by_a_database_that_was_built_again(state):
    learner = Learner.open(state)
    learner.learn(vectors("elk", 2000), "elk")
    learner.rollback()
    last = learner.store.current
    with learner.store.exclusive():
        learner.store.connection.execute("UPDATE sqlite_sequence SET seq = ?", (last + 5,))
        learner.store.step()
    learner.close()
    (state / "edgecl.db").unlink()
    again = Learner.open(state)
    assert again.learn(vectors("dog", 5), "dog").generation == last + 6


@pytest.mark.parametrize("hurt", [lambda path: path.write_bytes(b"hello " * 999), Path.unlink,
                                  lambda path: path.write_bytes(b"")], ids=["text", "gone", "empty"])
def test_without_an_intact_copy_the_error_names_the_cure_and_nothing_is_touched(state, photos, capsys, hurt):
    hurt(state / "edgecl.db")
    (state / "edgecl.copy").write_bytes(b"also damaged")
    before = tree(state)
    for command in (("status",), ("predict", photos), ("learn", "--class", "a", photos), ("rollback",)):
        error = refused(capsys, command[0], "--state", state, *command[1:])
        assert "edgecl restore" in error or not (state / "edgecl.db").exists()
    assert tree(state) == before


def test_a_reader_serves_from_the_copy_and_writes_nothing(state, reading_only):
    wanted = shown(Learner.open(state))
    (state / "edgecl.db").write_bytes(b"not a database" * 999)
    before = tree(state)
    learner = Learner.open(state)
    assert shown(learner) == wanted
    assert "edgecl.copy serves in its place" in learner.store.found[0]
    with pytest.raises(StateError, match="read-only"):
        learner.learn(vectors("dog", 5), "dog")
    assert tree(state) == before
    reading_only.undo()
    Learner.open(state).close()     # a writer builds it again,
    assert shown(learner) == wanted  # which the reader notices
    assert not learner.store.found


def test_a_damaged_database_that_another_process_holds_is_not_replaced(state, monkeypatch):
    monkeypatch.setattr("edgecl.state.database.LOCK_TIMEOUT", 100)
    holder = Learner.open(state)
    wanted = shown(holder)
    connection = sqlite3.connect(state / "edgecl.db", isolation_level=None)     # a row changed behind its digest
    connection.execute("UPDATE generations SET action = 'lexrn' WHERE id = 2")
    connection.execute("BEGIN IMMEDIATE")
    learner = Learner.open(state)
    assert shown(learner) == wanted
    assert learner.store.found
    with pytest.raises(StateError, match="in use by another edgecl process"):
        learner.learn(vectors("dog", 5), "dog")
    assert not (state / "set-aside").exists()
    connection.execute("ROLLBACK")
    connection.close()
    assert learner.learn(vectors("dog", 5), "dog").generation == 5
    assert [c.name for c in holder.classes()] == ["ant", "cat", "dog", "wasp"]


def test_a_process_that_has_the_old_file_open_goes_on_with_the_new_one(state):
    first = Learner.open(state)
    data = bytearray((state / "edgecl.db").read_bytes())
    data[data.index(b"settings") + 20] ^= 1
    (state / "edgecl.db").write_bytes(data)
    second = Learner.open(state)
    assert "damaged" in str(second.store.meta["damage"])
    second.learn(vectors("dog", 5), "dog")
    first.learn(vectors("elk", 5), "elk")
    first.learn(vectors("fly", 2000), "fly")
    second.learn(vectors("gnu", 5), "gnu")
    names = ["ant", "cat", "dog", "elk", "fly", "gnu", "wasp"]
    for learner in (first, second, Learner.open(state)):
        assert [c.name for c in learner.classes()] == names
    numbers = [g.id for g in second.history()]
    assert len(numbers) == len(set(numbers))


def test_a_database_that_is_damaged_while_it_is_open_is_built_again(state):
    learner = Learner.open(state)
    wanted = shown(learner)
    connection = sqlite3.connect(state / "edgecl.db", isolation_level=None)
    connection.execute("UPDATE generations SET detail = '{' WHERE id = 2")
    connection.close()
    assert answers(learner) == wanted[0]
    learner.learn(vectors("dog", 5), "dog")
    assert [c.name for c in learner.classes()] == ["ant", "cat", "dog", "wasp"]
    assert "edgecl.db" in str(learner.store.meta["damage"])
    assert rows_of(Learner.open(state).store)[1] == wanted[2][1]


def test_no_room_to_build_it_again(state):
    wanted = shown(Learner.open(state))
    data = bytearray((state / "edgecl.db").read_bytes())
    data[20] ^= 4
    (state / "edgecl.db").write_bytes(data)
    (state / "models" / "big.onnx").write_bytes(bytes(1_000_000))
    before = {name: digest for name, digest in tree(state).items() if name != "reserved"}
    learner = Learner.open(state)
    assert shown(learner) == wanted
    with pytest.raises(EdgeclError, match="quota"):
        learner.learn(vectors("dog", 5), "dog")
    assert {name: digest for name, digest in tree(state).items() if name != "reserved"} == before


@pytest.mark.slow
def test_a_kill_while_the_database_is_built_again_leaves_the_state_as_it_was(state):
    need("strace", "strace")
    wanted, copies = shown(Learner.open(state)), state.parent / "copies"
    shutil.copytree(state, copies)
    damaged = bytes(100) + (copies / "edgecl.db").read_bytes()[100:]
    (copies / "edgecl.db").write_bytes(damaged)
    import crash

    calls = ("openat", "write", "pwrite64", "fsync", "rename", "unlink", "mkdir", "ftruncate")
    for call in calls:
        for number in range(1, 60):
            target = state.parent / "killed"
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(copies, target)
            code = crash.trace(lambda target=target: Learner.open(target), "-o", "/dev/null", "-e", f"trace={call}",
                               "-e", f"inject={call}:signal=SIGKILL:when={number}")
            if code == 0:
                break
            learner = Learner.open(target)
            assert shown(learner) == wanted, (call, number)
            assert noted(target), (call, number)
            aside = {path.read_bytes() for path in (target / "set-aside").glob("edgecl.db.*")}
            assert aside == {damaged}, (call, number)
            learner.close()


# locks, owners, a directory that is gone -----------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_named(state, photos, monkeypatch, capsys, number):
    def lockf(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    before = tree(state)
    for command in (("predict", photos), ("learn", "--class", "dog", photos), ("status",)):
        error = refused(capsys, command[0], "--state", state, *command[1:])
        assert "without file locks" in error
        assert os.strerror(number) in error
        assert "mounted on /" in error
        assert "local disk" in error
        assert "another edgecl process" not in error
    assert tree(state) == before


def test_the_probe_of_locks_leaves_those_of_the_database_alone(state, monkeypatch):
    monkeypatch.setattr("edgecl.state.database.LOCK_TIMEOUT", 100)
    holder = Learner.open(state)
    with holder.store.exclusive():
        Learner.open(state).close()
        code = in_a_child(lambda: Learner.open(state).learn(vectors("dog", 5), "dog"))
        assert code == 1, "the lock was lost"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ENOLCK", "EACCES", "EOPNOTSUPP"])
@pytest.mark.parametrize("command", ["learn", "forget"])
def test_locks_that_the_kernel_refuses(state, command, name):
    from helpers_state import strace

    before = tree(state)
    code, err = strace(command, state, "fcntl", f"error={name}")
    assert code == 1
    assert "without file locks" in err
    assert tree(state) == before


def test_a_directory_that_is_gone_is_said(state, tmp_path):
    learner = Learner.open(state)
    state.rename(tmp_path / "away")
    for look in (learner.status, learner.store.used_bytes, lambda: learner.learn(vectors("dog", 5), "dog"),
                 lambda: Learner.open(state)):
        with pytest.raises(StateError):
            look()
    (tmp_path / "away").rename(state)
    assert learner.status().classes == 3
    learner.learn(vectors("dog", 5), "dog")


@pytest.mark.skipif(not ROOT, reason="takes root, who writes a state of another user")
def test_what_root_writes_belongs_to_the_owner_of_the_state(state):
    for path in (state, *state.rglob("*")):
        os.chown(path, 65534, 65533)
    (state / "reserved").unlink()
    (state / "edgecl.copy").unlink()
    learner = Learner.open(state)
    learner.learn(vectors("dog", 2000), "dog")
    learner.forget("ant")
    learner.learn(vectors("elk", 5), "elk")
    learner.close()
    data = bytearray((state / "edgecl.db").read_bytes())
    data[20] ^= 4
    (state / "edgecl.db").write_bytes(data)
    Learner.open(state).close()
    owners = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in state.rglob("*")}
    assert set(owners.values()) == {(65534, 65533)}, owners
    assert "edgecl.copy" in owners
    assert any(name.startswith("edgecl.db.") for name in owners)


def test_the_owner_is_not_given_through_another_name(tmp_path):
    """A file with a second name, or a link, in a folder of another user may be one of root's own."""
    from edgecl.files.atomic import write_atomically

    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / f".file.{os.getpid()}.tmp").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic"):
        write_atomically(tmp_path / "file", b"x")
    assert (tmp_path / "secret").read_bytes() == b"secret"


def test_old_and_new_connections_are_not_mixed(state):
    """Opening the database once more in the same process keeps the lock of the first."""
    holder = Store(state)
    with holder.exclusive():
        OpenDatabase(state).close()
        script = ("import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)\n"
                  "try:\n    c.execute('BEGIN IMMEDIATE')\nexcept sqlite3.OperationalError:\n    raise SystemExit(3)\n")
        assert subprocess.run([sys.executable, "-c", script, str(state / "edgecl.db")]).returncode == 3
    holder.close()
