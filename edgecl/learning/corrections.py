"""Corrections of what was taught: samples are removed or moved to another class, a class gets another name.

Statistics are sums, so a sample that is stored as it was learned can be taken out of them exactly. Each correction is
one generation, of all the samples that are named or of none. What it takes out stays in its files for a rollback, see
`edgecl.state.corrections`; moved and renamed samples are stored again, with new ids.
"""
from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecl.errors import BadInput, StateError
from edgecl.exemplars.sample_ids import NUMBER_BITS, parse_sample_id, sample_id
from edgecl.exemplars.selection import GROUP_SHIFT, near_duplicates
from edgecl.learning.status import known_are
from edgecl.results import Corrected
from edgecl.samples import check_class_name
from edgecl.settings import counted
from edgecl.state.corrections import DROPPED, GONE, REMOVED, RENAMED, SPARE, Runs, ids_of, runs_of
from edgecl.state.generations import Rewrite

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from edgecl.exemplars.stored import StoredSample
    from edgecl.learning.knowledge import Knowledge
    from edgecl.learning.repository import Repository

SHOWN = 5       # ids in a message
AGAIN = "forget their class with `edgecl forget` and teach it again without them"
LIST = "list the stored samples with `edgecl samples`"


def remove_samples(repository: Repository, ids: Iterable[int | str], erase: bool = False) -> Corrected:
    """See `Learner.remove`. To be called in `exclusively`."""
    knowledge = repository.known()
    rows = _named(repository, knowledge, ids)
    before, kept = set(knowledge.labels), knowledge.kept_ids()
    knowledge.remove(rows)
    if erase:
        knowledge.about_its_mean()
    gone = sorted(before - set(knowledge.labels))
    detail: dict[str, Any] = {"samples": len(rows), **_taken_out(knowledge, rows, kept)}
    if erase:
        detail |= {"erasing": True, **({GONE: gone} if gone else {})}
    discarded = len(repository.store.set_aside.files()) if erase else 0
    change = Rewrite("remove", detail, erase=frozenset(gone) if erase else None)
    return replace(_commit(repository, knowledge, change, rows, gone), discarded=discarded)


def move_samples(repository: Repository, ids: Iterable[int | str], label: str) -> Corrected:
    """See `Learner.move`. To be called in `exclusively`."""
    label, knowledge = check_class_name(label), repository.known()
    rows = _named(repository, knowledge, ids)
    there = [row for row in rows if row.label == label]
    if there:
        raise BadInput(f"{_written(there)}: in class {label!r} already", "leave them out, or name another class")
    before, kept = set(knowledge.labels), knowledge.kept_ids()
    knowledge.remove(rows)
    detail = {"class": label, "samples": len(rows), **_taken_out(knowledge, rows, kept)}
    twice = _known(knowledge, label, rows)
    fresh = [row._replace(id=None, generation=None, label=label) for row in rows]
    knowledge.take_in(_as_taught(fresh, knowledge.buffer.kind))
    gone = sorted(before - set(knowledge.labels))
    done = _commit(repository, knowledge, Rewrite("move", detail), rows, gone, label)
    return replace(done, new=label not in before, twice=twice)


def rename_class(repository: Repository, old: str, new: str, into: bool = False) -> Corrected:
    """See `Learner.rename`. To be called in `exclusively`."""
    new, knowledge = check_class_name(new), repository.known()
    for name in (old, *([new] if into else [])):
        if name not in knowledge.labels:
            raise BadInput(f"no class is called {name!r}", known_are(knowledge.labels))
    if old == new:
        raise BadInput(f"class {old!r} has that name already", "name another one")
    if not into and new in knowledge.labels:
        raise BadInput(f"there is a class {new!r} already", "give --into to make the two one class, or another name")
    count, kept = knowledge.plain.counts[old], knowledge.kept_ids()
    dropped = knowledge.let_go(kept)
    noted = {RENAMED: True, **({DROPPED: _runs(dropped)} if dropped else {})}
    twice = _known(knowledge, new, [row for row in knowledge.stored if row.label == old])
    rows = knowledge.rename(old, new)
    knowledge.take_in(_as_taught([row._replace(id=None, generation=None, label=new) for row in rows],
                                 knowledge.buffer.kind), learned=True)
    change = Rewrite("rename", {"class": new, "from": old, "samples": count, **noted})
    return replace(_commit(repository, knowledge, change, rows, [old], new), samples=count, new=not into, twice=twice)


def _known(knowledge: Knowledge, label: str, rows: Sequence[StoredSample]) -> int:
    """How many samples of other classes a class knows already."""
    if label not in knowledge.labels or not rows:
        return 0
    known = knowledge.recognise(label, [row.key for row in rows], np.stack([row.feature for row in rows])).known
    return int(np.count_nonzero(known))


def _commit(repository: Repository, knowledge: Knowledge, change: Rewrite, rows: Sequence[StoredSample],
            gone: list[str], label: str | None = None) -> Corrected:
    """Commit a correction of some stored samples, as they were before. gone: classes that lose their last sample, so
    that another one may have that name later."""
    why = knowledge.remains
    if gone:
        change = replace(change, parts=b"")
    if change.action != "rename" and any(row.trained for row in rows):
        why = why or "the backbone was tuned on them in a learning round, and stays as it is"
    if why:
        change = replace(change, detail={**change.detail, "exact": False})
    generation = repository.commit(knowledge, change)
    now = {sample_id(old): None if new is None else sample_id(new)
           for old, new in zip(rows, _stored_again(rows, knowledge.stored, generation, label))}
    return Corrected(change.action, generation, len(rows), label, False, now, gone, not why, why)


def _named(repository: Repository, knowledge: Knowledge, ids: Iterable[int | str]) -> list[StoredSample]:
    """The stored samples with these ids, in the order in which they came. Raises BadInput if one is not there or named
    twice, StateError if one can't be taken out of the statistics exactly."""
    numbers = [each if isinstance(each, int) and not isinstance(each, bool) else parse_sample_id(str(each))
               for each in ids]
    if not numbers:
        raise BadInput("no sample was named", f"give ids; {LIST}")
    twice = sorted(each for each, times in Counter(numbers).items() if times > 1)
    if twice:
        raise BadInput(f"{_written(twice)}: named twice", "name each sample once")
    if knowledge.gaussians is not None:
        raise StateError("this state keeps no samples, so none can be taken out of its statistics", AGAIN)
    wanted = set(numbers)
    rows = [row for row in knowledge.stored if row.id in wanted]
    if len(rows) < len(wanted):
        raise BadInput(*_why_not_there(repository, sorted(wanted - {row.id for row in rows})))
    if knowledge.form.rank is not None or any(each.diagonal is not None for each in knowledge.statistics.values()):
        raise StateError("the statistics are kept in a low-rank form, from which single samples can't be subtracted",
                         f"{AGAIN}; or create a state with a larger --quota")
    coded = [row for row in rows if row.coded]
    if coded:
        raise StateError(f"{_written(coded)}: kept as product codes only, which can't be subtracted exactly",
                         f"{AGAIN}; or create a state with more --exemplars")
    return rows


def _why_not_there(repository: Repository, ids: list[int]) -> tuple[str, str]:
    """Why samples are not stored, from the first of them, and what can be done."""
    first, every = ids[0], repository.store.generations()
    number = first >> NUMBER_BITS
    own = next((g for g in every if g.id == number), None)
    later = next((g for g in every if not g.undone and first in ids_of(g.detail.get(REMOVED, ()))), None)
    if own is not None and own.undone and own.action not in ("round", "rollback"):
        return f"{_written(ids)}: generation {number} was rolled back", LIST
    if later is not None:
        what = "moved" if later.action == "move" else "removed"
        return f"{_written(ids)}: {what} by generation {later.id}", f"{LIST}, or `edgecl rollback` to before it"
    return (f"{_written(ids)}: no such sample is stored",
            f"{LIST}; one that the exemplar buffer had no room for can only go with its class, see `edgecl forget`")


def _written(samples: Sequence[StoredSample | int]) -> str:
    """Ids as people write them, of the first few samples."""
    shown = ", ".join(map(sample_id, samples[:SHOWN]))
    return shown if len(samples) <= SHOWN else f"{shown} ... ({counted(len(samples), 'sample')})"


def _taken_out(knowledge: Knowledge, rows: Sequence[StoredSample], kept: set[int]) -> dict[str, Any]:
    """What the history notes of samples that are taken out; what is left of their recordings is marked as if they had
    never been taught. kept: ids of the exemplars before."""
    noted: dict[str, Any] = {REMOVED: _runs(rows)}
    if dropped := knowledge.let_go(kept):
        noted[DROPPED] = _runs(dropped)
    first: dict[tuple[str, int, int], int] = {}     # that is gone of each recording: what came before it stays as it is
    for row in reversed(rows):
        first[_recording(row)] = row.id or 0
    groups: dict[tuple[str, int, int], list[StoredSample]] = {}
    for row in knowledge.stored:
        if _recording(row) in first:
            groups.setdefault(_recording(row), []).append(row)
    again = {row.id: row for place, mine in groups.items()
             for before, row in zip(mine, _as_taught(mine, knowledge.buffer.kind))
             if row.spare != before.spare and (row.id or 0) > first[place]}
    if again:
        knowledge.stored = [again.get(row.id, row) for row in knowledge.stored]
        noted[SPARE] = [_runs([row for row in again.values() if row.spare == spare]) for spare in (True, False)]
    return noted


def _runs(rows: Sequence[StoredSample]) -> Runs:
    return runs_of(row.id for row in rows if row.id is not None)


def _recording(row: StoredSample) -> tuple[str, int, int]:
    """What tells the samples of one recording that were taught together."""
    return row.label, row.generation or 0, row.key >> GROUP_SHIFT


def _as_taught(rows: Sequence[StoredSample], kind: str) -> list[StoredSample]:
    """The same samples, near-duplicates or not as if these had been taught together."""
    if not rows:
        return []
    spare = near_duplicates(np.stack([row.feature for row in rows]),
                            np.array([row.key >> GROUP_SHIFT for row in rows], np.int64), kind)
    return [row._replace(spare=near) for row, near in zip(rows, spare.tolist())]


def _stored_again(rows: Sequence[StoredSample], stored: Sequence[StoredSample], generation: int,
                  label: str | None) -> list[int | None]:
    """The new id of each sample, None for one that is not stored any more: those of the generation are in the order of
    `rows`, but the buffer may have had no room for some."""
    new = iter([row for row in stored if row.generation == generation and row.label == label])
    found, each = list[int | None](), next(new, None)
    for row in rows:
        same = each is not None and (each.key, each.origin, each.tick, each.input) == (
            row.key, row.origin, row.tick, row.input)
        found.append(each.id if same and each is not None else None)
        each = next(new, None) if same else each
    return found
