"""The state directory: damage, erasing, going back, several processes, foreign files, full disks, read-only states."""
from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers_state import DIMENSION, PROBE, answers, create, fingerprint, knowledge, tree, vectors

from edgecl import upkeep
from edgecl.budget import state_bytes
from edgecl.cli import main
from edgecl.config import Settings
from edgecl.errors import BudgetError, EdgeclError, StateError
from edgecl.heads import forms
from edgecl.learner import Learner
from edgecl.records import Row, pack, packed_bytes, unpack

ROOT = os.geteuid() == 0


@pytest.fixture
def learner(tmp_path):
    """Three classes, the second one's statistics and samples journaled."""
    made = create(tmp_path / "state")
    for name in ("ant", "wasp", "cat"):
        made.learn(vectors(name, 25), name)
    yield made
    made.close()


@pytest.fixture
def state(learner):
    learner.close()
    return learner.store.path


@pytest.fixture
def photos(tmp_path):
    """Vectors to ask about, as a file for the command line."""
    labels = np.zeros(len(PROBE), np.int64)
    np.savez(tmp_path / "ask.npz", x_train=PROBE, y_train=labels, x_test=PROBE, y_test=labels)
    return tmp_path / "ask.npz"


def refused(capsys, *arguments):
    """The one line with which the command line refuses."""
    assert main([str(argument) for argument in arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("edgecl: ")
    assert err.count("\n") == 1
    assert "; " in err
    return err


def flip(path, place=-1):
    """Damage one byte."""
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


def error_of(work):
    """The error with which some work is refused, or None."""
    try:
        work()
    except EdgeclError as error:
        return error
    return None


def in_a_child(work):
    """The exit code of a fork that does the work; 1 and its error on stderr where that is refused."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            work()
            code = 0
        except EdgeclError as error:
            os.write(2, f"{error}\n".encode())
            code = 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# damage ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hurt", [flip, Path.unlink, lambda path: path.write_bytes(b"")], ids=["flip", "gone", "empty"])
def test_a_damaged_head_is_found_and_the_one_before_serves(state, hurt):
    learner = Learner.open(state)
    before = {g.id: g for g in learner.history()}
    newest = learner.store.newest
    hurt(state / "models" / newest.head)
    assert {answer.label for answer in learner.predict(vectors("ant", 5))} == {"ant"}
    assert len(learner.damage) == 1
    assert newest.head in learner.damage[0]
    assert newest.id not in learner.store.restorable()
    shown = answers(learner)
    learner.rollback()
    assert not learner.damage
    assert answers(learner) == shown
    assert [c.name for c in learner.classes()] == ["ant", "wasp"]
    assert before.keys() < {g.id for g in learner.history()}


def test_teaching_repairs_a_damaged_head(state):
    learner = Learner.open(state)
    flip(state / "models" / learner.store.newest.head)
    learner.learn(vectors("dog", 20), "dog")
    assert not learner.damage
    assert {answer.label for answer in learner.predict(vectors("cat", 5))} == {"cat"}


@pytest.mark.parametrize("hurt", [flip, Path.unlink], ids=["flip", "gone"])
def test_damaged_statistics_are_found_and_the_generation_before_them_can_be_restored(learner, hurt):
    learner.forget("wasp")
    shown, kept = answers(learner), learner.store.current
    learner.learn(vectors("dog", 2000), "dog")  # more than a journal takes
    state = learner.store.path
    snapshot = learner.store.newest.snapshot
    learner.close()
    assert snapshot is not None
    hurt(state / "models" / snapshot)
    learner = Learner.open(state)
    assert answers(learner) != shown
    with pytest.raises(StateError, match=r"damaged.*edgecl rollback|can't be read.*edgecl rollback"):
        learner.learn(vectors("elk", 20), "elk")
    assert kept in learner.store.restorable()
    assert max(learner.store.restorable()) == kept
    learner.rollback(kept)
    assert answers(learner) == shown
    learner.learn(vectors("elk", 20), "elk")


def test_damaged_samples_of_the_journal_are_found(learner):
    learner.close()
    state = learner.store.path
    names = [name for name, oldest, _ in Learner.open(state).store.files() if oldest == 4]
    flip(state / "models" / names[0])
    learner = Learner.open(state)
    assert learner.store.restorable() == {1, 2, 3}
    assert not learner.damage
    with pytest.raises(StateError, match="damaged"):
        learner.forget("ant")
    learner.rollback()
    assert [c.name for c in learner.classes()] == ["ant", "wasp"]


def test_damaged_exemplars_are_left_out(learner):
    learner.forget("wasp")  # writes the statistics, so that samples are only exemplars
    learner.close()
    state = learner.store.path
    shown = answers(Learner.open(state))
    flip(state / "models" / Learner.open(state).store.files()[0][0])
    learner = Learner.open(state)
    assert answers(learner) == shown
    learner.learn(vectors("dog", 20), "dog")
    assert {c.name: c.samples for c in learner.classes()} == {"ant": 25, "cat": 25, "dog": 20}


def test_a_damaged_backbone_is_named_with_its_cure(state, photos, capsys):
    flip(state / "models" / Learner.open(state).store.newest.backbone)
    assert "restore it from a copy" in refused(capsys, "predict", "--state", state, photos)


@pytest.mark.parametrize("place", range(100))
def test_a_flipped_byte_in_the_header_of_the_database_changes_nothing_silently(state, place):
    shown = answers(Learner.open(state))
    files = set(tree(state))
    flip(state / "edgecl.db", place)
    try:
        learner = Learner.open(state)
        assert answers(learner) == shown
        learner.learn(vectors("dog", 20), "dog")
        assert [c.name for c in learner.classes()] == ["ant", "cat", "dog", "wasp"]
    except StateError:
        assert set(tree(state)) == files


def test_a_flipped_byte_anywhere_never_ends_in_a_traceback_or_other_answers(state, tmp_path):
    learner = Learner.open(state)
    before = {repr(answers(learner))}
    learner.rollback(3)
    before.add(repr(answers(learner)))
    learner.rollback(2)
    before.add(repr(answers(learner)))
    learner.close()
    generator = np.random.default_rng(1)
    seen = set()
    for number in range(150):
        copy = tmp_path / "copy"
        shutil.copytree(state, copy)
        victims = sorted(path for path in copy.rglob("*") if path.is_file())
        victim = victims[int(generator.integers(len(victims)))]
        flip(victim, int(generator.integers(victim.stat().st_size)))
        try:
            hurt = Learner.open(copy)
            shown = repr(answers(hurt))
            seen.add(shown)
            assert shown in before | {"'StateError'"}, (number, victim)
            hurt.learn(vectors("dog", 20), "dog")
            hurt.close()
        except EdgeclError:
            pass
        shutil.rmtree(copy)
    assert len(seen) > 1


# erasing --------------------------------------------------------------------------------------------


def traces(state, features, names):
    """What of a class lies anywhere in a state's files: its names in any encoding, and its features' bytes."""
    found = []
    for file in state.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            found += [(file.name, name) for name in names
                      if any(name.encode(code) in data for code in ("utf-8", "utf-16-le", "utf-32-le"))
                      or json.dumps(name)[1:-1].encode() in data]
            found += [(file.name, number) for number, feature in enumerate(features) if feature[:3].tobytes() in data]
    return found


@pytest.mark.parametrize("head", ["slda", "nearest-mean", "auto"])
def test_forget_erases_names_and_features(tmp_path, head):
    learner = create(tmp_path / "state", head=head, exemplars=6_000)
    learner.learn(vectors("base", 30), "base")
    victims = {}
    for round_ in range(4):
        for number in range(6):
            name = f"Zaunkönig-{round_}-{number}"
            victims[name] = vectors(name, 12 + 7 * number, round_)
            learner.learn(victims[name], name)
        if round_ == 2:
            learner.rollback()
            rolled_back = victims.pop(name)
        name = f"Zaunkönig-{round_}-2"
        assert traces(learner.store.path, victims[name], [name])
        learner.forget(name)
        assert not traces(learner.store.path, victims.pop(name), [name])
    for name, features in victims.items():
        learner.forget(name)
        assert not traces(learner.store.path, features, [name])
    assert not traces(learner.store.path, rolled_back, [])
    assert [c.name for c in learner.classes()] == ["base"]


def test_what_a_killed_forget_left_is_erased_at_the_next_opening(learner, monkeypatch):
    state = learner.store.path
    monkeypatch.setattr(upkeep, "tidy", lambda *_, **__: os._exit(9))
    assert in_a_child(lambda: learner.forget("wasp")) == 9
    monkeypatch.undo()
    assert traces(state, vectors("wasp", 25), ["wasp"])
    learner.close()
    learner = Learner.open(state)
    assert not traces(state, vectors("wasp", 25), ["wasp"])
    assert [c.name for c in learner.classes()] == ["ant", "cat"]


def test_a_forgotten_class_can_be_learned_again(learner):
    learner.forget("wasp")
    learner.learn(vectors("wasp", 9, 1), "wasp")
    learner.learn(vectors("dog", 9, 1), "dog")
    learner.rollback()
    assert {c.name: c.samples for c in learner.classes()} == {"ant": 25, "wasp": 9, "cat": 25}
    assert learner.forget("wasp")["exact"]
    learner.learn(vectors("wasp", 4, 2), "wasp")
    learner.close()
    learner = Learner.open(learner.store.path)
    assert {c.name: c.samples for c in learner.classes()} == {"ant": 25, "wasp": 4, "cat": 25}


def test_forgetting_everything_leaves_a_state_that_learns(learner):
    for name in ("ant", "wasp", "cat"):
        learner.forget(name)
    with pytest.raises(StateError, match="learned nothing"):
        learner.predict(PROBE)
    learner.learn(vectors("dog", 20), "dog")
    assert learner.predict(PROBE)[0].label == "dog"


# going back and merging -----------------------------------------------------------------------------


def test_going_back_gives_the_same_answers_bit_for_bit(learner, tmp_path):
    other = create(tmp_path / "other")
    for name in ("cat", "fox"):
        other.learn(vectors(name, 40, 3), name)
    shown = {learner.store.current: answers(learner)}

    def learn(name, count, seed=0):
        return lambda: learner.learn(vectors(name, count, seed), name)

    steps = [learn("dog", 30), learner.rollback, lambda: learner.forget("ant"), learn("elk", 1500), learn("gnu", 3),
             lambda: learner.merge([tmp_path / "other"]), learner.rollback, learn("hen", 700), learn("hen", 7, 1)]
    for step in steps:
        step()
        shown[learner.store.current] = answers(learner)
        for wanted in learner.store.restorable() & shown.keys():
            copy = tmp_path / "copy"
            shutil.copytree(learner.store.path, copy)
            restored = Learner.open(copy)
            if wanted != restored.store.current:
                restored.rollback(wanted)
            assert answers(restored) == shown[wanted]
            restored.learn(vectors("ibis", 5), "ibis")
            restored.close()
            shutil.rmtree(copy)
    assert len(learner.store.restorable()) > 3


def test_the_step_before_can_always_be_gone_back_to(learner):
    for number in range(12):
        shown = answers(learner)
        learner.learn(vectors(f"class {number}", 200), f"class {number}")
        learner.rollback()
        assert answers(learner) == shown
        learner.learn(vectors(f"class {number}", 200), f"class {number}")


def test_going_back_to_the_empty_state(learner):
    learner.rollback(1)
    assert learner.classes() == []
    with pytest.raises(StateError, match="learned nothing"):
        learner.predict(PROBE)
    learner.learn(vectors("dog", 20), "dog")
    assert [c.name for c in learner.classes()] == ["dog"]


def test_history_and_files_stay_bounded(learner):
    for number in range(70):
        learner.learn(vectors("ant", 2, number), "ant")
        if number % 7 == 0:
            learner.rollback()
    assert len(learner.history()) <= upkeep.HISTORY + 2
    assert len(list((learner.store.path / "models").iterdir())) < 60
    assert learner.store.current == 84


def test_merging_twice_is_refused_also_by_detours(learner, tmp_path):
    b, c = create(tmp_path / "b"), create(tmp_path / "c")
    b.learn(vectors("bat", 20), "bat")
    c.learn(vectors("cow", 20), "cow")
    learner.merge([b.store.path])
    kept = fingerprint(learner.store.path)
    for others in ([b], [b, c], [c, c], [learner]):
        with pytest.raises(StateError, match=r"merged here before|this state itself"):
            learner.merge([other.store.path for other in others])
        assert fingerprint(learner.store.path) == kept
    c.merge([b.store.path])
    with pytest.raises(StateError, match="merged here before"):
        learner.merge([c.store.path])
    with pytest.raises(StateError, match="merged here before"):
        b.merge([learner.store.path])
    learner.learn(vectors("dog", 5), "dog")
    assert [each.name for each in learner.classes()] == ["ant", "bat", "cat", "dog", "wasp"]
    learner.rollback(4)
    learner.merge([c.store.path])
    assert [each.name for each in learner.classes()] == ["ant", "bat", "cat", "cow", "wasp"]


def test_what_failed_stays_out_of_memory(learner, monkeypatch):
    kept = knowledge(Learner.open(learner.store.path))
    monkeypatch.setattr(learner.store, "fits", lambda _: False)
    monkeypatch.setattr(learner.store, "quota", learner.store.used_bytes())
    with pytest.raises(BudgetError, match="bytes"):
        learner.learn(vectors("dog", 20), "dog")
    monkeypatch.undo()
    assert knowledge(learner) == kept
    learner.learn(vectors("elk", 20), "elk")
    assert [c.name for c in learner.classes()] == ["ant", "cat", "elk", "wasp"]


def test_samples_survive_their_file():
    rows = [Row(i, 7, label, 2 ** 62 + i, np.arange(5, dtype=np.float32) + i) for i, label in enumerate(("a", "Bär 2"))]
    file = pack(rows)
    assert len(file) <= packed_bytes(rows)
    for row, again in zip(rows, unpack(file)):
        assert row[:4] == again[:4]
        assert (row.feature == again.feature).all()


# quota ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["slda", "nearest-mean", "auto"])
def test_a_quota_too_small_is_refused_with_the_bytes_that_suffice(tmp_path, head):
    small = create(tmp_path / "small", quota=100_000, exemplars=8_000, head=head)
    with pytest.raises(BudgetError, match="give --quota") as refusal:
        small.learn(vectors("ant", 25), "ant")
    least = int(refusal.value.cure.split()[2])
    assert least == state_bytes(317, 8_000, DIMENSION, 2, forms(head, DIMENSION)[-1])
    enough = create(tmp_path / "enough", quota=least, exemplars=8_000, head=head)
    for _ in range(3):
        for name in ("ant", "wasp"):
            enough.learn(vectors(name, 60), name)
        enough.forget("ant")
    with pytest.raises(BudgetError, match="give --quota"):
        create(tmp_path / "short", quota=least - 1, exemplars=8_000, head=head).learn(vectors("ant", 25), "ant")
    with pytest.raises(BudgetError, match="needs"):
        create(tmp_path / "tiny", quota=5_000, exemplars=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["enough", "short", "small"]


# several processes ----------------------------------------------------------------------------------


def test_writers_and_readers_at_once(state):
    def write(kind):
        mine = Learner.open(state)
        for number in range(12):
            name = f"{kind}-{number % 5}"
            mine.learn(vectors(name, 40, number), name)
            if number % 4 == 3:
                mine.forget(name)

    def read():
        end = time.monotonic() + 20
        while not (state.parent / "done").exists() and time.monotonic() < end:
            mine = Learner.open(state)
            for _ in range(5):
                mine.predict(PROBE)
                mine.classes()
                mine.store.restorable()
                assert not mine.damage
            mine.close()

    pids = []
    for work in (lambda: write("left"), lambda: write("right"), read, read):
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                work()
                code = 0
            except BaseException:
                import traceback
                traceback.print_exc()
            finally:
                os._exit(code)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids[:2]]
    (state.parent / "done").touch()
    codes += [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids[2:]]
    assert codes == [0, 0, 0, 0]
    learner = Learner.open(state)
    samples = {c.name: c.samples for c in learner.classes()}
    wanted = {"ant": 25, "wasp": 25, "cat": 25}
    for kind in ("left", "right"):
        counts = {}
        for number in range(12):
            counts[f"{kind}-{number % 5}"] = counts.get(f"{kind}-{number % 5}", 0) + 40
            if number % 4 == 3:
                counts.pop(f"{kind}-{number % 5}")
        wanted |= counts
    assert samples == wanted
    assert not (state / "edgecl.db-journal").exists()


def test_another_writer_is_waited_for_and_then_named(state, monkeypatch, capsys):
    monkeypatch.setattr("edgecl.database.PATIENCE", 100)
    monkeypatch.setattr("edgecl.upkeep.PATIENCE", 100)
    other = Learner.open(state)
    with other.store.exclusive():
        assert "in use by another edgecl process" in refused(capsys, "forget", "--state", state, "--class", "wasp")
        assert answers(Learner.open(state)) == answers(other)
    assert main(["forget", "--state", str(state), "--class", "wasp"]) == 0


def test_two_processes_teach_an_empty_state(tmp_path):
    first, second = create(tmp_path / "state"), Learner.open(tmp_path / "state")
    assert second.foundation is None
    first.learn(vectors("ant", 20), "ant")
    learned = second.learn(vectors("wasp", 20), "wasp")
    assert learned.generation == 3
    third = create(tmp_path / "other")
    fourth = Learner.open(tmp_path / "other")
    with pytest.raises(StateError, match="try again"):
        race(third, fourth)
    fourth.learn(vectors("wasp", 20), "wasp")
    assert [c.name for c in fourth.classes()] == ["ant", "wasp"]


def race(first, second):
    """`first` teaches while `second` has already founded its own backbone."""
    found = second._founded

    def slowly(*arguments):
        answer = found(*arguments)
        first.learn(vectors("ant", 20), "ant")
        return answer

    second._founded = slowly
    try:
        second.learn(vectors("wasp", 20), "wasp")
    finally:
        second._founded = found


# what is no state -----------------------------------------------------------------------------------


def foreign(path):
    connection = sqlite3.connect(path)
    connection.executescript("CREATE TABLE notes (text TEXT); INSERT INTO notes VALUES ('mine');")
    connection.close()


def foreign_meta(path):
    connection = sqlite3.connect(path)
    connection.executescript("CREATE TABLE meta (name TEXT, amount REAL); INSERT INTO meta VALUES ('mine', 2);")
    connection.close()


DATABASES = {"empty": lambda path: path.write_bytes(b""), "text": lambda path: path.write_text("hello " * 999),
             "foreign": foreign, "foreign meta": foreign_meta, "folder": Path.mkdir}


@pytest.mark.parametrize("make", DATABASES.values(), ids=DATABASES)
@pytest.mark.parametrize("command", [["status"], ["predict", "ASK"], ["learn", "--class", "a", "ASK"],
                                     ["forget", "--class", "ant"], ["rollback"]], ids=lambda words: words[0])
def test_a_database_of_something_else_is_refused_and_left_alone(tmp_path, photos, capsys, make, command):
    state = tmp_path / "state"
    (state / "models").mkdir(parents=True)
    (state / "models" / "precious.onnx").write_bytes(b"mine")
    make(state / "edgecl.db")
    before = tree(state)
    refused(capsys, command[0], "--state", state, *(str(photos) if word == "ASK" else word for word in command[1:]))
    assert tree(state) == before


def test_a_state_of_a_newer_format_is_refused_and_left_alone(state, capsys):
    connection = sqlite3.connect(state / "edgecl.db")
    connection.executescript("UPDATE meta SET value = '2' WHERE key = 'format'; DROP TABLE files;")
    connection.close()
    (state / "models" / "new-kind.bin").write_bytes(b"x")
    before = tree(state)
    assert "upgrade edgecl" in refused(capsys, "forget", "--state", state, "--class", "wasp")
    assert tree(state) == before


@pytest.mark.parametrize("settings", [{"quota": "much"}, {}, {"quota": 10**6, "shiny": 1}, 7],
                         ids=["type", "missing", "unknown", "number"])
def test_settings_that_make_no_sense_are_damage(state, capsys, settings):
    connection = sqlite3.connect(state / "edgecl.db")
    connection.execute("UPDATE meta SET value = ? WHERE key = 'settings'", (json.dumps(settings),))
    connection.commit()
    connection.close()
    before = tree(state)
    assert "damaged" in refused(capsys, "status", "--state", state)
    assert tree(state) == before


def test_paths_that_are_no_state(tmp_path, photos, capsys):
    (tmp_path / "file").write_text("hello")
    (tmp_path / "folder").mkdir()
    for place in ("file", "folder", "nowhere", "file/below"):
        assert "no edgecl state" in refused(capsys, "predict", "--state", tmp_path / place, photos)
    (tmp_path / "folder" / "mine").write_text("hello")
    for place in ("file", "folder", "file/below"):
        refused(capsys, "init", "--backbone", "identity", "--state", tmp_path / place)
    assert (tmp_path / "file").read_text() == "hello"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ask.npz", "file", "folder"]


def test_init_clears_what_a_killed_init_left(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for name in (f".state.{dead.pid}.new", f".state.{os.getpid()}.new"):
        (tmp_path / name / "models").mkdir(parents=True)
        (tmp_path / name / "edgecl.db").write_bytes(b"half")
    kept = [".state.1.new", ".other.2.new", ".state.words.new"]
    for name in kept:
        (tmp_path / name).mkdir()
    create(tmp_path / "state").close()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, "state"])
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


# read-only ------------------------------------------------------------------------------------------


@contextmanager
def read_only(state):
    """The state, for a child that may not write it: by its user's id, or by its mode where this is no root."""
    for path in (state, *state.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    opened = []
    for parent in state.parents:
        if ROOT and parent.stat().st_mode & 0o005 != 0o005:
            opened.append((parent, parent.stat().st_mode))
            parent.chmod(0o755)
    try:
        yield lambda: ROOT and (os.setgid(65534), os.setuid(65534))
    finally:
        for parent, mode in opened:
            parent.chmod(mode)
        for path in (state, *state.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_read_only_state_answers_and_refuses_to_learn(state, capfd):
    before = tree(state)
    shown = answers(Learner.open(state))

    def ask():
        learner = Learner.open(state)
        assert answers(learner) == shown
        assert learner.store.restorable() == {1, 2, 3, 4}
        assert len(learner.classes()) == 3

    with read_only(state) as drop:
        assert in_a_child(lambda: (drop(), ask())) == 0
        for change in (lambda learner: learner.learn(vectors("dog", 9), "dog"), Learner.rollback,
                       lambda learner: learner.forget("ant")):
            assert in_a_child(lambda change=change: (drop(), change(Learner.open(state)))) == 1
            assert "is read-only; make it writable" in capfd.readouterr().err
    assert tree(state) == before


@pytest.mark.skipif(not ROOT, reason="takes a user that may not look into the folder")
def test_a_state_that_may_not_be_read(state, capfd):
    with read_only(state) as drop:
        state.chmod(0o700)
        assert in_a_child(lambda: (drop(), Learner.open(state))) == 1
        assert "Permission denied" in capfd.readouterr().err
        state.chmod(0o555)
        (state / "edgecl.db").chmod(0o600)
        assert in_a_child(lambda: (drop(), Learner.open(state))) == 1
        assert "; " in capfd.readouterr().err


def test_an_interrupted_change_on_a_read_only_state_is_told(state, capfd):
    strace("learn", state, "fdatasync", "signal=SIGKILL:when=3")
    if not (state / "edgecl.db-journal").exists():
        pytest.skip("the kill left no rollback journal")
    with read_only(state) as drop:
        code = in_a_child(lambda: (drop(), Learner.open(state)))
    if code:
        assert "left in the middle of a change" in capfd.readouterr().err
    assert [c.name for c in Learner.open(state).classes()] == ["ant", "cat", "wasp"]


# full disks -----------------------------------------------------------------------------------------


def strace(command, state, call, injection):
    """Run a change in a process whose system calls fail as told: exit code and stderr."""
    if shutil.which("strace") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("strace is missing: `apt-get install strace`")
        pytest.skip("strace is missing: `apt-get install strace`")
    here = Path(__file__).parent
    change = {"learn": "learn(vectors('dog', 25), 'dog')", "forget": "forget('wasp')"}[command]
    code = (f"import sys, onnxruntime; sys.path.insert(0, {str(here)!r})\n"
            "from pathlib import Path\nfrom helpers_state import vectors\nfrom edgecl.learner import Learner\n"
            "from edgecl.errors import EdgeclError\nimport edgecl.backbones.graph, onnx.helper, os\n"
            f"state = Path({str(state)!r})\n"
            "os.read(0, 1)\n"
            "try:\n"
            f"    Learner.open(state).{change}\n"
            "except EdgeclError as error:\n    print(f'{type(error).__name__}: {error}', file=sys.stderr)\n"
            "    raise SystemExit(1)\n")
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    tracer = None
    try:
        while f"/proc/{process.pid}" and "pipe_read" not in Path(f"/proc/{process.pid}/wchan").read_text() \
                and process.poll() is None:
            time.sleep(0.01)
        tracer = subprocess.Popen(["strace", "-qq", "-f", "-o", "/dev/null", "-p", str(process.pid), "-e",
                                   f"trace={call}", "-e", f"inject={call}:{injection}"])
        while "TracerPid:\t0" in Path(f"/proc/{process.pid}/status").read_text():
            time.sleep(0.002)
        _, err = process.communicate("x", timeout=60)
    finally:
        process.kill()
        if tracer is not None:
            tracer.wait()
    return process.returncode, err


@pytest.mark.slow
@pytest.mark.parametrize("command", ["learn", "forget"])
@pytest.mark.parametrize(("call", "when"), [("write", "1"), ("pwrite64", "1+"), ("pwrite64", "6"), ("fsync", "1+"),
                                            ("fdatasync", "2"), ("openat", "30+")])
def test_no_space_left(state, command, call, when):
    before, shown = fingerprint(state), answers(Learner.open(state))
    code, err = strace(command, state, call, f"error=ENOSPC:when={when}")
    after = fingerprint(state)
    if code == 0:
        assert after != before
        return
    assert code == 1
    assert err.count("\n") == 1
    assert "; " in err
    if call == "write":  # SQLite does not tell why its own call failed, and this disk is not full
        assert err.startswith("BudgetError: the disk that holds")
    if after != before:  # a forget that could not be erased any more: said so, and finished at the next opening
        assert command == "forget"
        assert "could not be erased yet" in err
        assert not traces(state, vectors("wasp", 25), ["wasp"])
    else:
        assert answers(Learner.open(state)) == shown


@pytest.mark.skipif(not ROOT, reason="mounting a small tmpfs takes root")
@pytest.mark.parametrize("free", [0, 1, 2, 3, 5, 8, 12])
def test_a_full_disk_is_named_and_the_old_generation_serves(tmp_path, state, free, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    need = sum(-(-path.stat().st_size // 4096) for path in state.rglob("*") if path.is_file())
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={4096 * (need + free)}", "edgecl-test", disk],
                      capture_output=True).returncode:
        pytest.skip("no right to mount a tmpfs")
    try:
        shutil.copytree(state, disk / "state")
        learner = Learner.open(disk / "state")
        shown, before = answers(learner), fingerprint(disk / "state")
        failed = []
        for change in (lambda: learner.learn(vectors("dog", 60), "dog"), lambda: learner.forget("wasp")):
            error = error_of(change)
            if error is not None and "could not be erased yet" not in error.what:
                failed.append(error.what)
                assert answers(learner) == shown
                assert answers(Learner.open(disk / "state")) == shown
                assert fingerprint(disk / "state") == before
            shown, before = answers(learner), fingerprint(disk / "state")
        assert all(f"the disk that holds {disk / 'state'} is full" == what for what in failed)
        assert len(failed) == 2 if free < 2 else True
        learner.close()
        if free == 0:
            assert "is full" in refused(capsys, "forget", "--state", disk / "state", "--class", "wasp")
            assert "is full" in refused(capsys, "init", "--backbone", "identity", "--state", disk / "more")
            assert sorted(path.name for path in disk.iterdir()) == ["state"]
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def tree_of(files, prefix):
    """The part of a `tree` below a folder."""
    return {name.removeprefix(prefix): digest for name, digest in files.items() if name.startswith(prefix)}


def test_a_signal_between_the_file_and_the_commit_leaves_nothing(learner, monkeypatch):
    state, before = learner.store.path, tree(learner.store.path)

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(upkeep, "retire", die)
    assert in_a_child(lambda: learner.learn(vectors("dog", 20), "dog")) == -signal.SIGKILL
    monkeypatch.undo()
    assert len(tree(state)) > len(before)
    learner.close()
    Learner.open(state).close()
    assert tree(state / "models") == tree_of(before, "models/")
    assert set(tree(state)) == set(before)


def test_an_interrupt_leaves_nothing(learner, monkeypatch):
    before = tree(learner.store.path)
    monkeypatch.setattr(upkeep, "retire", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        learner.learn(vectors("dog", 20), "dog")
    monkeypatch.undo()
    assert tree(learner.store.path) == before
    learner.learn(vectors("dog", 20), "dog")


def test_settings_are_kept(tmp_path):
    wanted = Settings(backbone="identity", quota=777_777, exemplars=9_999, head="cosine", seed=3)
    Learner.create(tmp_path / "state", wanted).close()
    assert Learner.open(tmp_path / "state").settings == wanted
