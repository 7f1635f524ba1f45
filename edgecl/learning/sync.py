"""What a state must do to follow a folder of classes: new files are learned, gone ones removed, moved ones moved.

Samples are compared by their content. Which of the stored ones came from the folder tells their source; the others are
left alone. Of samples that are not stored any more only a hash is known, so they can't be taken out one by one, and it
can't be told where they came from.
"""
from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecl.errors import StateError
from edgecl.exemplars.origin import MOST_NAME, stored_name
from edgecl.exemplars.sample_ids import sample_id
from edgecl.exemplars.selection import OWN_BITS
from edgecl.samples import NOTHING, batches_of, blank, prepare, sample_keys

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgecl.exemplars.stored import StoredSample
    from edgecl.learning.foundation import Foundation
    from edgecl.learning.knowledge import Knowledge
    from edgecl.learning.repository import Repository
    from edgecl.samples import Sample


@dataclass
class FolderClass:
    """What a folder holds of one class. keys: of its samples -> the name of the file that the sample is in; shows:
    those of samples that show something; unknown: whether the keys can't be told, since the state has no backbone yet;
    samples: how many there are."""

    label: str
    keys: dict[int, str] = field(default_factory=dict)
    shows: set[int] = field(default_factory=set)
    unknown: bool = False
    samples: int = 0

    @classmethod
    def of(cls, label: str, samples: Iterable[Sample], foundation: Foundation | None) -> FolderClass:
        """Read samples, in the order in which they would be taught. Raises BadInput."""
        found, recordings = cls(label, unknown=foundation is None), dict[str, int]()
        for batch in batches_of(samples):
            found.samples += len(batch.data)
            if foundation is None:
                continue
            fitted = prepare(batch.data, foundation.kind, foundation.input_shape)
            keys = sample_keys(fitted, batch.groups, recordings, batch.sessions)
            for key, place, why in zip(keys, batch.places, blank(fitted, foundation.kind)):
                found.keys.setdefault(key, place.name)
                if not why:
                    found.shows.add(key)
        if label == NOTHING or 2 * len(found.shows) <= len(found.keys):     # they are what the class looks like
            found.shows = {*found.keys}
        return found


@dataclass
class SyncPlan:
    """What is to be done, in this order. rename: old -> new; move: class -> class -> ids; remove: class -> ids; learn:
    class -> names of the files with new samples; new: class -> how many these are. stuck: class -> samples that are not
    in its folder any more, but can't be taken out; untold: class -> samples that are neither stored nor in its folder,
    so that it can't be told whether they came from it; elsewhere: class -> stored samples that came from elsewhere;
    unread: class -> stored samples whose file is there but could not be read; known: samples that all classes were
    taught."""

    rename: dict[str, str] = field(default_factory=dict)
    move: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    remove: dict[str, list[str]] = field(default_factory=dict)
    learn: dict[str, set[str]] = field(default_factory=dict)
    new: Counter[str] = field(default_factory=Counter)
    stuck: Counter[str] = field(default_factory=Counter)
    untold: Counter[str] = field(default_factory=Counter)
    elsewhere: Counter[str] = field(default_factory=Counter)
    unread: Counter[str] = field(default_factory=Counter)
    known: int = 0

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.rename or self.move or self.remove or self.learn)

    @property
    def removed(self) -> int:
        """How many samples are to be removed."""
        return sum(map(len, self.remove.values()))

    def to_json(self) -> dict[str, Any]:
        """As a dict, with numbers of samples."""
        return {"learn": dict(self.new), "remove": {label: len(ids) for label, ids in self.remove.items()},
                "move": [{"from": old, "to": new, "samples": len(ids)} for (old, new), ids in self.move.items()],
                "rename": [{"from": old, "to": new} for old, new in self.rename.items()],
                "not_removable": dict(self.stuck), "not_stored": dict(self.untold),
                "from_elsewhere": dict(self.elsewhere), "not_read": dict(self.unread)}


class Within:
    """Tells which sources are in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folders = [*dict.fromkeys([os.path.abspath(folder), os.path.realpath(folder)])]

    def __call__(self, source: str) -> str | None:
        """The path of a source that is in the folder, None for another one. source: as it is stored: a path that is
        longer than that keeps its end only."""
        whole = os.path.abspath(source) if source else ""
        cut = len(source.encode()) > MOST_NAME - 4 and not source.startswith(os.sep)
        for folder in self.folders:
            if whole.startswith(folder + os.sep) and not cut:
                return whole
            if cut:
                for begin in range(1, folder.rfind(os.sep) + 2):
                    if source.startswith(folder[begin:] + os.sep):
                        return folder + source[len(folder) - begin:]
        return None


def plan_sync(repository: Repository, folder: Path, classes: list[FolderClass]) -> SyncPlan:
    """What the state must do to follow a folder. Raises StateError for a state that can't."""
    plan = SyncPlan()
    if repository.settings.memory == "statistics":
        raise StateError("this state keeps no samples, so it can't be told what it was taught",
                         "teach it with `edgecl learn`, and `edgecl forget` what is gone")
    if repository.foundation is None:
        for each in classes:
            if each.samples:
                plan.learn[each.label], plan.new[each.label] = set(), each.samples
        return plan
    with repository.store.reading():
        knowledge = repository.known()
    return _Comparison(knowledge, Within(folder), classes).plan()


class _Comparison:
    """What a state knows against what a folder holds."""

    def __init__(self, knowledge: Knowledge, within: Within, classes: list[FolderClass]) -> None:
        self.knowledge, self.within = knowledge, within
        self.here = {each.label: each for each in classes}
        self.own = {each.label: {key & OWN_BITS for key in each.keys} for each in classes}
        self.files = {stored_name(name) for each in classes for name in each.keys.values()}
        self.counts = dict(knowledge.plain.counts) if knowledge.statistics else {}
        self.known: dict[str, set[int]] = {label: set() for label in knowledge.labels}
        names, keys = knowledge.known.all()
        for label, key in zip(names, keys.tolist()):
            self.known.setdefault(label, set()).add(key)
        self.exact = knowledge.form.rank is None and not any(
            each.diagonal is not None for each in knowledge.statistics.values())
        self.rows: dict[str, list[StoredSample]] = {}
        for row in knowledge.stored:
            self.rows.setdefault(row.label, []).append(row)

    def plan(self) -> SyncPlan:
        """What is to be done."""
        plan = SyncPlan(known=sum(self.counts.values()), rename=self._renamed())
        for old, name in plan.rename.items():    # the rest is as if that had been done
            self.known[name], self.rows[name] = self.known.pop(old, set()), self.rows.pop(old, [])
        new = {label: self._new(each) for label, each in self.here.items()}
        for label in sorted({*self.known, *self.rows}):
            for row in self.rows.get(label, []):
                self._place(plan, label, row, new)
            self._not_stored(plan, label, new)
        for label, keys in sorted(new.items()):
            if keys:
                plan.new[label] = len(keys)
                plan.learn[label] = {self.here[label].keys[key] for key in keys}
        return plan

    def _renamed(self) -> dict[str, str]:
        """Classes whose folder has another name now: all that they know is in a folder of a class that is not known,
        and none of their stored samples came from elsewhere."""
        found: dict[str, str] = {}
        for old in self.knowledge.labels:
            keys = self.known[old]
            if (self.here.get(old) and self.here[old].keys) or not keys or self.counts[old] > len(keys):
                continue
            if any(self.within(row.source) is None for row in self.rows.get(old, [])):
                continue
            for new, each in sorted(self.here.items()):
                if new not in self.counts and new not in found.values() and keys <= each.keys.keys():
                    found[old] = new
                    break
        return found

    def _new(self, each: FolderClass) -> set[int]:
        """Keys of the samples of a class's folder that the class does not know."""
        new = each.shows - self.known.get(each.label, set())
        if not new:
            return new
        named = {(row.key & OWN_BITS, os.path.basename(row.source)) for row in self.rows.get(each.label, [])}
        return {key for key in new     # a sample of another session is known too if it is of a file of this name
                if (key & OWN_BITS, os.path.basename(stored_name(each.keys[key]))) not in named}

    def _place(self, plan: SyncPlan, label: str, row: StoredSample, new: dict[str, set[int]]) -> None:
        """What is to be done with a stored sample."""
        path = self.within(row.source)
        if path is None:
            plan.elsewhere[label] += 1
            return
        if row.key & OWN_BITS in self.own.get(label, ()):
            return
        target = next((other for other, keys in sorted(new.items()) if row.key in keys), None)
        if target is None and stored_name(path) not in self.files and row.source not in self.files \
                and os.path.lexists(path):
            plan.unread[label] += 1
        elif row.coded or not self.exact:
            plan.stuck[label] += 1
        elif target is None:
            plan.remove.setdefault(label, []).append(sample_id(row))
        else:
            new[target].discard(row.key)
            plan.move.setdefault((label, target), []).append(sample_id(row))

    def _not_stored(self, plan: SyncPlan, label: str, new: dict[str, set[int]]) -> None:
        """Count the samples of a class that are not stored any more and not in its folder either: those that are new
        in another class's folder have moved."""
        stored, own = {row.key for row in self.rows.get(label, [])}, self.own.get(label, set())
        for key in self.known.get(label, set()) - stored:
            if key & OWN_BITS not in own:
                moved = any(key in keys for keys in new.values())
                (plan.stuck if moved else plan.untold)[label] += 1
