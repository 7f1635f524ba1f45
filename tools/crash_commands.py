"""The commands that tools/crash.py kills, and the states that they start from."""
from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from candidates import candidate, matrix, world
from vector_states import PROBE, create, fingerprint, vectors

from edgecl.learner import Learner
from edgecl.learning.repair import check, repair
from edgecl.rounds import gate
from edgecl.rounds.candidate import take_in
from edgecl.state import journals, store
from edgecl.state.backup import backup
from edgecl.state.reader import EXEMPLARS
from edgecl.state.restore import parts_of, restore
from edgecl.state.store import Store
from edgecl.state.write_ahead_log import LOG_FILE

RECORDED = Path(__file__).resolve().parents[1] / "tests/recorded/states"


def prepare(folder: Path) -> None:
    """A state with a history, partly rolled back, and another one to merge."""
    learner = create(folder / "state", quota=600_000, exemplars=8_000)
    for name in ("ant", "bee", "cat"):
        learner.learn(vectors(name, 25), name)
    learner.forget("bee")
    learner.learn(vectors("dog", 25), "dog")
    learner.rollback()
    learner.learn(vectors("elk", 25), "elk")
    other = create(folder / "other", quota=600_000, exemplars=8_000)
    for name in ("cat", "fox"):
        other.learn(vectors(name, 20, seed=5), name)


def half_forgotten(state: Path) -> None:
    """Leave the state as a power cut right after the commit of a `forget` would."""
    learner = Learner.open(state)
    Store.tidy = lambda *_, **__: os._exit(0)
    learner.forget("cat")


def damaged_log(state: Path) -> None:
    """Damage a record of the log that whole ones follow, so that the log is set aside and another one begins."""
    learner = Learner.open(state)
    for name in ("elk", "gnu", "hen"):
        learner.learn(vectors(name, 12, seed=3), name)
    learner.close()
    content = bytearray((state / LOG_FILE).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (state / LOG_FILE).write_bytes(content)


def nearly_full(state: Path) -> None:
    """Make a state on a tight quota that is about to make its second codebook."""
    shutil.rmtree(state)
    learner = create(state, quota=264_000, exemplars=10_000, codec="auto")
    for number in range(15):
        learner.learn(vectors(f"class {number}", 40, dimension=64), f"class {number}")


@contextmanager
def often_merged() -> Iterator[None]:
    """Have the log move with each generation, and its file be merged with the one before."""
    before = store.MOST_LOGGED, journals.FAN
    store.MOST_LOGGED, journals.FAN = 1, 2
    try:
        yield
    finally:
        store.MOST_LOGGED, journals.FAN = before


def merged_journal(state: Path) -> None:
    """Learn two classes, whose samples lie in one file that was merged."""
    with often_merged(), closing(Learner.open(state)) as learner:
        for name in ("fox", "gnu"):
            learner.learn(vectors(name, 25), name)


def merge_journals(state: Path) -> None:
    """Learn a class, and merge the file of its samples with the one before."""
    with often_merged():
        Learner.open(state).learn(vectors("hen", 50), "hen")


def learn_codebook(state: Path) -> None:
    """Learn the class with which the second codebook is made."""
    learner = Learner.open(state)
    first = learner.store.codebook
    learner.learn(vectors("class 15", 40, dimension=64), "class 15")
    if first is None or learner.store.codebook == first:
        raise SystemExit("no second codebook was made")


def ids(learner: Learner, label: str, count: int) -> list[int]:
    """Ids of the first stored samples of a class."""
    return [row.id for row in learner.repository.known().stored if row.label == label and row.id is not None][:count]


def remove_some(state: Path, erase: bool = False, count: int = 5) -> None:
    """Remove samples of a class."""
    with closing(Learner.open(state)) as learner:
        learner.remove(ids(learner, "cat", count), erase)


def rename_class(state: Path) -> None:
    """Rename a class that is stored."""
    with closing(Learner.open(state)) as learner:
        learner.rename("cat", "gnu")


def corrected(state: Path) -> None:
    """Correct a state twice, so that the next change deletes what no way back needs any more."""
    remove_some(state)
    rename_class(state)


def back_across_corrections(state: Path) -> None:
    """Roll back to before the last correction."""
    with closing(Learner.open(state)) as learner:
        learner.rollback(max(g for g in learner.store.restorable() if g < learner.store.current))


def learn_and_close(state: Path) -> None:
    """Learn, and close, which writes the head if it was left for later."""
    learner = Learner.open(state)
    learner.learn(vectors("gnu", 25), "gnu")
    learner.close()


def take_round(state: Path) -> None:
    """Accept a tuned backbone, whose accuracy is assumed to be better."""
    gate.check_accuracy = lambda *_: []
    learner = Learner.open(state)
    seen = world(*((name, 25, 0) for name in ("ant", "cat", "elk")))
    if take_in(learner.repository, candidate(learner, seen, matrix(1)), gate.BOUNDS).generation is None:
        raise SystemExit("the round was refused")


def refuse_round(state: Path) -> None:
    """Have the gate refuse a tuned backbone."""
    gate.check_accuracy = lambda *_: [gate.Check("accuracy", "worse by assumption", False)]
    learner = Learner.open(state)
    seen = world(*((name, 25, 0) for name in ("ant", "cat", "elk")))
    take_in(learner.repository, candidate(learner, seen, matrix(1)), gate.BOUNDS)


def after_round(state: Path) -> None:
    """A round, then a new class."""
    take_round(state)
    Learner.open(state).learn(vectors("fox", 25), "fox")


def back_across(state: Path) -> None:
    """Roll back to before the last round."""
    learner = Learner.open(state)
    learner.rollback(max(g for g in learner.store.restorable() if g < learner.store.tuned()))


def back_up(name: str) -> Callable[[Path], object]:
    """A command that copies the state to a folder or a .tar beside it."""
    return lambda state: backup(state, state.with_name(name), lambda _: None)


def restore_to(path: Path, source: Path) -> None:
    """Make a state from a backup."""
    with parts_of(source) as parts:
        restore(parts, source.name, path, lambda _: None)


def damaged_files(state: Path) -> None:
    """Flip a bit in the newest head and statistics, and in all exemplars."""
    with closing(Learner.open(state)) as learner:
        learner.learn(vectors("gnu", 1500), "gnu")
        learner.predict(PROBE)
        names = [learner.store.newest.head, learner.store.newest.snapshot, *(
            name for name, *_ in learner.store.files(EXEMPLARS))]
    for name in names:
        path = state / "models" / str(name)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)


def repair_state(state: Path) -> None:
    """Repair a state."""
    with closing(Learner.open(state)) as learner:
        repair(learner.repository)


def repaired(state: Path) -> str:
    """The digest of what a state answers and knows once it is repaired, however far a repair had come before: but for
    roundings, which another repair may add to."""
    repair_state(state)
    with closing(Learner.open(state)) as learner:
        known = learner.repository.known()
        shown = [[(each.label, each.unknown) for each in learner.predict(PROBE)], known.plain.counts,
                 known.plain.residual, sorted((row.label, row.key) for row in known.exemplars()), check(state).intact]
    return hashlib.sha256(repr(shown).encode()).hexdigest()


def but_for_ways_back(state: Path) -> str:
    """The fingerprint for a command that makes room by commits of its own, in which only ways back are lost."""
    return fingerprint(state, older=False)


def but_for_damage(state: Path) -> str:
    """The fingerprint for a command whose words about damage depend on how far an earlier one came."""
    return fingerprint(state, damage=False)


@dataclass
class Command:
    """One command on a copy of the prepared folder; `first` creates the state that it starts from; looks: the states in
    the folder that it may change, each of which must be as before or after; by: the digest of a state that tells this.
    """

    run: Callable[[Path], object]
    first: Callable[[Path], object] | None = None
    by: Callable[[Path], str] = fingerprint
    looks: tuple[str, ...] = ("state",)
    calls: Counter[str] = field(default_factory=Counter)
    harmless: set[tuple[str, int]] = field(default_factory=set)     # calls that open what is there
    outcomes: Counter[str] = field(default_factory=Counter)
    before: str = ""
    after: str = ""


def recorded(name: str) -> Callable[[Path], None]:
    """Put a recorded state of format 2 in the place of the prepared one."""
    def unpack(state: Path) -> None:
        shutil.rmtree(state)
        with tarfile.open(RECORDED / f"{name}.tar.xz") as archive:
            members = [each for each in archive if each.name == "state" or each.name.startswith("state/")]
            if hasattr(tarfile, "data_filter"):
                archive.extractall(state.parent, members, filter="data")
            else:
                archive.extractall(state.parent, members)
    return unpack


def damaged_database(state: Path) -> None:
    """Zero the header of the database."""
    with (state / "edgecl.db").open("r+b") as file:
        file.write(bytes(100))


COMMANDS: dict[str, Command] = {
    "init": Command(lambda state: create(state), lambda state: shutil.rmtree(state)),
    "learn": Command(lambda state: Learner.open(state).learn(vectors("gnu", 25), "gnu")),
    "learn, then close": Command(learn_and_close),
    "learn, statistics rewritten": Command(lambda state: Learner.open(state).learn(vectors("gnu", 1500), "gnu")),
    "learn, journals merged": Command(merge_journals, merged_journal),
    "learn, log damaged": Command(lambda state: Learner.open(state).learn(vectors("gnu", 25), "gnu"), damaged_log),
    "learn, second codebook": Command(learn_codebook, nearly_full, but_for_ways_back),
    "forget": Command(lambda state: Learner.open(state).forget("cat")),
    "rollback": Command(lambda state: Learner.open(state).rollback()),
    "rollback into a merged journal": Command(lambda state: Learner.open(state).rollback(), merged_journal),
    "remove": Command(remove_some),
    "remove, erased": Command(lambda state: remove_some(state, erase=True)),
    "rename": Command(rename_class),
    "rollback across corrections": Command(back_across_corrections, corrected),
    "forget, after corrections": Command(lambda state: Learner.open(state).forget("gnu"), corrected),
    "merge": Command(lambda state: Learner.open(state).merge([state.parent / "other"])),
    "round": Command(take_round),
    "round, refused": Command(refuse_round),
    "round, then statistics rewritten": Command(
        lambda state: Learner.open(state).learn(vectors("gnu", 1500), "gnu"), after_round),
    "round, then forget": Command(lambda state: Learner.open(state).forget("cat"), after_round),
    "round, then rollback": Command(back_across, after_round),
    "open, of format 2": Command(lambda state: Learner.open(state), recorded("vectors")),
    "open, database damaged": Command(lambda state: Learner.open(state), damaged_database, but_for_damage),
    "check --repair": Command(repair_state, damaged_files, repaired),
    "backup": Command(back_up("copy"), looks=("state", "copy")),
    "backup, tar": Command(back_up("copy.tar"), looks=("state", "copy.tar")),
    "restore": Command(lambda state: restore_to(state.with_name("restored"), state.with_name("copy.tar")),
                       back_up("copy.tar"), looks=("state", "restored")),
    "open after a killed forget": Command(lambda state: Learner.open(state), half_forgotten),
}
