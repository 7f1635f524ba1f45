"""Bases of generations: the statistics that a generation's knowledge is computed from, with the samples since; or the
samples alone, if they are all stored."""
from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from edgecl.errors import StateError
from edgecl.exemplars.stored import unpack
from edgecl.files.regular import read_regular
from edgecl.state.reader import JOURNAL
from edgecl.statistics.class_statistics import ClassStatistics

if TYPE_CHECKING:
    from edgecl.exemplars.stored import StoredSample
    from edgecl.learning.knowledge import Knowledge
    from edgecl.state.generations import Generation
    from edgecl.state.store import Store


def base_of(store: Store, generation: int) -> Generation | None:
    """The latest generation up to this one whose statistics are kept."""
    return next((g for g in reversed(store.alive()) if g.snapshot and g.id <= generation), None)


def intact_base(store: Store, base: Generation, generation: int, rows: list[StoredSample]) -> Generation:
    """The base of a generation or, if its statistics are damaged, an older one since which every sample is among
    `rows` as it was learned. Raises StateError if there is none."""
    assert base.snapshot is not None
    try:
        store.blob_path(base.snapshot)
        return base
    except StateError as error:
        damage = error
    for older in reversed([g for g in store.alive() if g.snapshot and g.id < base.id]):
        if older.snapshot and store.blobs.intact(older.snapshot):
            if _complete(store, older.id, generation, rows):
                return older
            break
    raise StateError(f"{damage.what}, and the statistics can't be computed again exactly",
                     "`edgecl check` says what `--repair` makes of what is stored; or go back with `edgecl rollback N` "
                     "or to a backup with `edgecl restore`")


def _complete(store: Store, since: int, until: int, rows: list[StoredSample]) -> bool:
    """Whether `rows` hold all that has changed the statistics in the generations after `since`, up to `until`."""
    stored = Counter(row.generation for row in rows if not row.coded)
    taught: dict[int, int | None] = {}
    for name, *_ in store.files(JOURNAL):
        with suppress(OSError):     # of a file that is missing or damaged; its samples are not among the rows either
            taught |= {record.about["id"]: record.about["detail"].get("samples")
                       for _, _, record in unpack(read_regular(store.blobs.folder / name), store.codec)
                       if record.about.get("action") == "learn"}
    for g in store.generations():   # which names fewer of the old ones
        taught[g.id] = (0 if g.undone or g.action == "rollback" else
                        g.detail.get("samples") if g.action == "learn" else None)
    return all(taught.get(number) == stored[number] for number in range(since + 1, until + 1))


def all_stored(store: Store, generation: int, rows: list[StoredSample]) -> bool:
    """Whether `rows` are all samples that a generation knows, each as it was learned."""
    counts: Counter[str] = Counter()
    since: list[Generation] = []
    for g in reversed([g for g in store.alive() if g.id <= generation]):
        if "known" in g.detail:
            counts.update({label: samples for label, (samples, _) in g.detail["known"].items()})
            break
        since.append(g)
    else:
        return False
    for g in since:
        if g.action != "learn":
            return False
        counts[g.detail["class"]] += g.detail["samples"]
    return counts == Counter(row.label for row in rows) and not any(row.coded for row in rows)


def from_samples(knowledge: Knowledge, rows: list[StoredSample]) -> Knowledge:
    """What is known if nothing but these samples was ever taught."""
    features = np.stack([row.feature for row in rows])
    for transform in knowledge.transforms:
        knowledge.statistics[transform] = ClassStatistics(transform(features).mean(0, np.float64),
                                                          knowledge.form.second_moment)
    knowledge.load(None, rows, rows)
    return knowledge
