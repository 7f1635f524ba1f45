"""Bytes of the quota, by arithmetic alone: what a change needs, and what could be dropped so that it fits.

A change that is refused must leave every byte as it was, so whether it fits is decided before anything is touched.
What is dropped first is what only a rollback needs (`prune`), then samples that no rollback needs and that are not
exemplars (`compact`). Every figure is an upper bound of what these steps leave.
"""
from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from edgecl.exemplars.stored import packed_bytes
from edgecl.state.compaction import Kept, needed_since, packed_database, replacements
from edgecl.state.database import DATABASE_FILE
from edgecl.state.exemplar_files import replacing_bytes, split
from edgecl.state.generations import Append, Rewrite
from edgecl.state.history import HISTORY
from edgecl.state.quota import PAGE, pages
from edgecl.state.reader import EXEMPLARS
from edgecl.state.transaction import journal_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgecl.exemplars.stored import StoredSample
    from edgecl.state.transaction import Transaction

ROW_BYTES = 400      # of a generation in the database beside its detail, at most


class Present(NamedTuple):
    """What is served now, which must survive when samples are dropped. head: None if it is written already; summary:
    what the history keeps of it."""

    exemplars: list[StoredSample]
    head: bytes | None
    summary: dict[str, Any]


class Space(NamedTuple):
    """Bytes that a state takes. used: of the quota, in whole pages, without what gives way;
    exemplars: of these, for exemplars; database: length of its file; logged: what moving the log into it would add to
    the state."""

    used: int
    exemplars: int
    database: int
    logged: int

    @classmethod
    def now(cls, state: Transaction) -> Space:
        """As it is."""
        usage = state.ledger.usage()
        moved = pages(state.log.length) + 2 * PAGE if state.log.damaged else 0  # a file beside the log, which stays
        logged = moved + sum(state.detail_bytes(entry.generation) + ROW_BYTES for entry in state.logged()[-HISTORY:])
        database = (state.path / DATABASE_FILE).stat().st_size
        return cls(usage.total - state.ledger.giving_way(), usage.exemplars, database, logged)

    @property
    def journal(self) -> int:
        """Bytes of SQLite's rollback journal, at most."""
        return journal_of(self.database)

    def transaction(self, text: int) -> int:
        """Bytes of a transaction that writes `text` bytes and moves the log into the database."""
        return growth(text + self.logged) + self.journal

    def packing(self, state: Transaction) -> int:
        """Bytes that it may take to bring all exemplars into their files."""
        if state.settings.memory == "statistics":
            return 2 * PAGE + self.journal
        missing = pages(state.settings.exemplars) - self.exemplars
        return max(missing, 0) + state.segment + 2 * PAGE + self.journal

    def needed(self, state: Transaction, change: Append | Rewrite) -> int:
        """Bytes that a change adds at its peak, and must leave free: its files, and what the database grows by."""
        if isinstance(change, Append):
            text = len(json.dumps(change.detail)) + ROW_BYTES
            samples = pages(packed_bytes([(change.rows, state.exact)], text)) + PAGE
            return samples + change.spare + self.transaction(PAGE) + self.packing(state)
        before, summary = change.way_back or (None, {})
        text = len(json.dumps([change.detail, change.meta, summary])) + ROW_BYTES
        samples = 0
        if change.rows:
            codec = state.exact_codec(change.meta.get("foundation"))
            samples = pages(packed_bytes([(change.rows, codec)], text)) + PAGE
        moved = sum(pages(packed_bytes(state.by_codec(part))) + PAGE for part in split(state, change.moved))
        files = _files(change.backbone, change.head, change.snapshot, change.codebook and change.codebook[0],
                       change.parts, before)
        grown = growth(text + self.logged)
        after, later = self._replace(database=self.database + grown, logged=0), 0
        if change.spare is not None:    # for packing the exemplars, and then for another rewrite
            later = change.spare + max(after.packing(state), after.transaction(text))
        return files + samples + moved + grown + max(self.journal, later)


def growth(text: int) -> int:
    """Bytes by which the database grows, at most, when `text` bytes are written into it."""
    return pages(text) + 5 * PAGE


def _files(*blobs: bytes | None) -> int:
    return sum(pages(len(blob)) for blob in blobs if blob)


def check_room(state: Transaction, change: Append | Rewrite, present: Callable[[], Present] | None) -> None:
    """Raise BudgetError if a change would not fit even when all that can be dropped is dropped; touches nothing.
    present: what is served now; None: no samples are to be dropped."""
    quota, best = state.ledger.quota, Space.now(state)
    if best.used + best.needed(state, change) > quota and (space := pruned(state, best)) is not None:
        best = space
        if present is not None and best.used + best.needed(state, change) > quota:
            best = compacted(state, best, present()) or best
    state.ledger.check(best.used, best.needed(state, change), f"`{change.action}`")


def pruned(state: Transaction, space: Space) -> Space | None:
    """What is left when `prune` has nothing left to drop; None if the quota has no room to get there."""
    database, packed = packed_database(state, pruned=True)
    used = space.used + database - space.database
    if space.logged:  # the file of the log becomes one of samples, and another log begins
        used += PAGE + (pages(state.log.length) + 2 * PAGE if state.log.damaged else 0)
    if used + journal_of(database) > state.ledger.quota:
        return None
    alive = state.alive()
    last = Kept.of(alive, 1, 1, state.blobs.intact)
    named = {name for g in alive for name in (g.backbone, g.head, g.snapshot) if name}
    dropped = named - {name for g in alive for name in last.files(g)}
    freed = sum(pages(state.blobs.bytes(name)) for name in dropped if state.blobs.intact(name))
    return Space(used - freed - (database - packed), space.exemplars,
                 packed, 0)


def compacted(state: Transaction, space: Space, present: Present) -> Space | None:
    """What `compact` leaves of what `pruned` has left; None if the quota has no room to get there."""
    since = max((g.id for g in state.alive() if g.snapshot), default=needed_since(state))
    steps = replacements(state, since, present.exemplars)
    rows = sum(len(step.parts) - len(step.names) for step in steps)  # of the table of files
    database = space.database + (2 * PAGE if rows > 0 else 0)
    if present.head is not None:
        if space.used + state.naming_bytes(present.head, present.summary) > state.ledger.quota:
            return None
        database += pages(len(json.dumps(present.summary))) + PAGE
    used, exemplars = space.used + database - space.database + _files(present.head), space.exemplars
    for step in steps:
        if used + replacing_bytes(state, step, journal_of(database)) > state.ledger.quota:
            return None
        added = sum(pages(len(state.packed(part, step.tuned))) for part in step.parts)
        freed = {name: pages(state.blobs.bytes(name)) for name in step.names if state.blobs.intact(name)}
        used += added - sum(freed.values())
        exemplars += added if step.kind == EXEMPLARS else 0
        exemplars -= sum(size for name, size in freed.items() if name.endswith(EXEMPLARS))
    return Space(used, exemplars, database, 0)
