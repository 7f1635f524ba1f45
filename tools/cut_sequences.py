"""The sequences of commands that tools/powerloss.py and tools/real_cuts.py cut off.

Each works on a copy of one prepared folder (see `crash.prepare`), and tells as soon as a step is acknowledged.
"""
from __future__ import annotations

import contextlib
import io
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crash_commands import (
    after_round,
    back_across,
    back_across_corrections,
    corrected,
    damaged_database,
    damaged_files,
    damaged_log,
    half_forgotten,
    ids,
    learn_codebook,
    merged_journal,
    nearly_full,
    often_merged,
    recorded,
    refuse_round,
    repair_state,
    take_round,
)
from state_view import samples
from vector_states import create, vectors

from edgecl.cli import main
from edgecl.learner import Learner

Acknowledge = Callable[..., None]   # the name of a step, then the classes that must have left no trace


@dataclass(frozen=True)
class Sequence:
    """Steps on the state at `place` in a folder; `first` makes the state that they start from. tight: the quota may
    have no room for one more class; unpack: makes a state of what is at `place`, which is not one itself; repeats: by
    doing again what the sequence does, so that the history may name it twice."""

    run: Callable[[Path, Acknowledge], object]
    first: Callable[[Path], object] | None = None
    place: str = "state"
    tight: bool = False
    unpack: Callable[[Path], Path] = lambda path: path
    repeats: bool = False


def one(change: Callable[[Learner], Any], *gone: str) -> Callable[[Path, Acknowledge], None]:
    """A sequence of opening a state and one change, by which some classes are gone."""
    def run(state: Path, acknowledge: Acknowledge) -> None:
        learner = Learner.open(state)
        acknowledge("open")
        change(learner)
        acknowledge("change", *gone)
        learner.close()
        acknowledge("close", *gone)
    return run


def whole(work: Callable[[Path], object]) -> Callable[[Path, Acknowledge], None]:
    """A sequence of one function on the state's path."""
    def run(state: Path, acknowledge: Acknowledge) -> None:
        work(state)
        acknowledge("done")
    return run


def init_and_learn(state: Path, acknowledge: Acknowledge) -> None:
    """A new state below folders that do not exist yet, and two classes."""
    learner = create(state)
    acknowledge("init")
    for name in ("ant", "bee"):
        learner.learn(vectors(name, 20), name)
        acknowledge(f"learn {name}")
    learner.close()
    acknowledge("close")


def three_learns(state: Path, acknowledge: Acknowledge, count: int = 12) -> None:
    """A daemon that is taught three times."""
    learner = Learner.open(state)
    acknowledge("open")
    for number, name in enumerate(("gnu", "hen", "gnu")):
        learner.learn(vectors(name, count, seed=number), name)
        acknowledge(f"learn {number}")
    learner.close()
    acknowledge("close")


def learns_merged(state: Path, acknowledge: Acknowledge) -> None:
    """A daemon that is taught three times, and merges the files of samples each time."""
    with often_merged():
        three_learns(state, acknowledge)


def learns_and_answers(state: Path, acknowledge: Acknowledge) -> None:
    """A daemon that answers between two learns, so that heads are written."""
    learner = Learner.open(state)
    acknowledge("open")
    for number, name in enumerate(("gnu", "hen")):
        learner.learn(vectors(name, 25, seed=number), name)
        acknowledge(f"learn {name}")
        learner.predict(vectors(name, 2))
        learner.classes()
        acknowledge(f"answers {name}")
    learner.close()
    acknowledge("close")


def long_life(state: Path, acknowledge: Acknowledge) -> None:
    """Five changes by one process."""
    learner = Learner.open(state)
    learner.learn(vectors("gnu", 25), "gnu")
    acknowledge("learn gnu")
    learner.forget("gnu")
    acknowledge("forget gnu", "gnu")
    learner.learn(vectors("hen", 25), "hen")
    acknowledge("learn hen", "gnu")
    learner.rollback()
    acknowledge("rollback", "gnu")
    learner.forget("cat")
    acknowledge("forget cat", "gnu", "cat")
    learner.close()
    acknowledge("close", "gnu", "cat")


def two_processes(state: Path, acknowledge: Acknowledge) -> None:
    """Two open learners that take turns, the second of which moves the log."""
    one, other = Learner.open(state), Learner.open(state)
    one.learn(vectors("gnu", 12), "gnu")
    acknowledge("learn by one")
    other.learn(vectors("hen", 1500), "hen")
    acknowledge("rewrite by the other")
    one.learn(vectors("ibis", 12), "ibis")
    acknowledge("learn by one again")
    other.forget("gnu")
    acknowledge("forget by the other", "gnu")
    one.close()
    other.close()
    acknowledge("close", "gnu")


def corrections(state: Path, acknowledge: Acknowledge) -> None:
    """A correction of each kind, and the way back across the last one."""
    learner = Learner.open(state)
    learner.remove(ids(learner, "cat", 3))
    acknowledge("remove")
    learner.move(ids(learner, "cat", 2), "ant")
    acknowledge("move")
    learner.rename("cat", "gnu")
    acknowledge("rename")
    learner.rollback()
    acknowledge("rollback")
    learner.remove(ids(learner, "elk", 25), erase=True)
    acknowledge("erase elk", "elk")
    learner.close()
    acknowledge("close", "elk")


def forget_renamed(state: Path, acknowledge: Acknowledge) -> None:
    """Forget a class that had another name before."""
    learner = Learner.open(state)
    learner.rename("cat", "gnu")
    acknowledge("rename")
    learner.forget("gnu")
    acknowledge("forget", "gnu", "cat")
    learner.close()
    acknowledge("close", "gnu", "cat")


def open_old(state: Path, acknowledge: Acknowledge) -> None:
    """Open a state of an older format, then teach it."""
    learner = Learner.open(state)
    acknowledge("open")
    learner.learn(samples(learner, "gnu", 12), "gnu")
    acknowledge("learn")
    learner.close()
    acknowledge("close")


def cut_log(state: Path) -> None:
    """Cut the log in the middle, as no power cut does."""
    Learner.open(state).close()
    log = state / "learned.log"
    os.truncate(log, log.stat().st_size * 2 // 3)


def zero_record(state: Path) -> None:
    """Leave a record of which only the first block came to the disk."""
    Learner.open(state).close()
    log, acknowledged = state / "learned.log", state / "acknowledged"
    before, known = log.stat().st_size, acknowledged.read_bytes()
    Learner.open(state).learn(vectors("gnu", 60), "gnu")
    acknowledged.write_bytes(known)
    zero(log, before + 512)


def damage_record(state: Path) -> None:
    """Damage the last record of the log, which was acknowledged."""
    Learner.open(state).close()
    zero(state / "learned.log", (state / "learned.log").stat().st_size - 600)


def zero(path: Path, start: int) -> None:
    """Overwrite a file with zeros from a place on."""
    with path.open("r+b") as file:
        file.seek(start)
        file.write(bytes(path.stat().st_size - start))


def big(learner: Learner) -> None:
    """A class that is too large for the log."""
    learner.learn(vectors("gnu", 1500), "gnu")


def command(*words: object) -> None:
    """A command line that must not be refused."""
    with contextlib.redirect_stdout(io.StringIO()):
        code = main([str(word) for word in words])
    if code != 0:
        raise SystemExit(f"{words[0]} was refused")


def packed(state: Path) -> None:
    """Put a backup of the prepared state, as a tar, in its place."""
    command("backup", "--state", state, state.with_suffix(".tar"))
    shutil.rmtree(state)


def unpacked(tar: Path) -> Path:
    """The state in a tar; a path where nothing is if there is no tar."""
    if tar.exists():
        command("restore", tar, "--state", tar.with_suffix(".restored"))
    return tar.with_suffix(".restored")


def repaired(state: Path) -> Path:
    """A state, repaired however far a repair had come before."""
    repair_state(state)
    return state


def nothing(state: Path) -> None:
    """Start from the prepared folder as it is."""


SEQUENCES: dict[str, Sequence] = {
    "init, two learns": Sequence(init_and_learn, nothing, "deep/er/state"),
    "three learns": Sequence(three_learns),
    "three learns of 150": Sequence(lambda state, told: three_learns(state, told, 150)),
    "three learns, journals merged": Sequence(learns_merged, merged_journal),
    "forget, journals merged": Sequence(one(lambda learner: learner.forget("fox"), "fox"), merged_journal),
    "rollback into a merged journal": Sequence(one(lambda learner: learner.rollback()), merged_journal),
    "learns and answers": Sequence(learns_and_answers),
    "learn, statistics rewritten": Sequence(one(big)),
    "learn, second codebook": Sequence(whole(learn_codebook), nearly_full, tight=True),
    "forget": Sequence(one(lambda learner: learner.forget("cat"), "cat")),
    "rollback": Sequence(one(lambda learner: learner.rollback())),
    "learn, forget, learn, rollback, forget": Sequence(long_life),
    "remove, move, rename, rollback, erase": Sequence(corrections),
    "rename, forget": Sequence(forget_renamed),
    "correct what was corrected": Sequence(one(lambda learner: learner.move(ids(learner, "gnu", 4), "ant")), corrected),
    "rollback across corrections": Sequence(whole(back_across_corrections), corrected),
    "round, then remove": Sequence(one(lambda learner: learner.remove(ids(learner, "cat", 4))), after_round),
    "two processes": Sequence(two_processes),
    "merge": Sequence(one(lambda learner: learner.merge([learner.store.path.parent / "other"]))),
    "round": Sequence(whole(take_round)),
    "round, refused": Sequence(whole(refuse_round)),
    "round, then statistics rewritten": Sequence(one(big), after_round),
    "round, then forget": Sequence(one(lambda learner: learner.forget("cat"), "cat"), after_round),
    "round, then rollback": Sequence(whole(back_across), after_round),
    "open after a killed forget": Sequence(one(lambda learner: None), half_forgotten),
    "open after a cut learn": Sequence(three_learns, zero_record),
    "learn on a log damaged at its end": Sequence(three_learns, damage_record),
    "learn on a log damaged inside": Sequence(three_learns, damaged_log),
    "learn on a damaged database": Sequence(three_learns, damaged_database),
    "check --repair": Sequence(whole(repair_state), damaged_files, unpack=repaired, repeats=True),
    "learn on a log that was cut": Sequence(three_learns, cut_log),
    "backup": Sequence(whole(lambda copy: command("backup", "--state", copy.parent / "state", copy)), nothing, "copy"),
    "backup to a tar": Sequence(whole(lambda tar: command("backup", "--state", tar.parent / "state", tar)), nothing,
                                "copy.tar", unpack=unpacked),
    "restore": Sequence(whole(lambda state: command("restore", state.with_suffix(".tar"), "--state", state)), packed),
    **{f"open a state of format 2, {name}": Sequence(open_old, recorded(name))
       for name in ("vectors", "statistics", "windows", "round")},
}
