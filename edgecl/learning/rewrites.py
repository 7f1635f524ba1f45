"""The ways to commit what is known as a rewrite: with which codebook, and in which form of the statistics."""
from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from edgecl.exemplars.codebook import Codebook, codebook_sizes
from edgecl.heads.solvers import coarser
from edgecl.learning.bases import base_of
from edgecl.learning.foundation import Foundation
from edgecl.learning.solved_heads import about
from edgecl.state.generations import Append, Rewrite
from edgecl.state.quota import pages
from edgecl.state.reader import FEATURES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgecl.exemplars.buffer import Buffer
    from edgecl.exemplars.stored import StoredSample
    from edgecl.learning.knowledge import Knowledge
    from edgecl.settings import Settings
    from edgecl.state.store import Store
    from edgecl.statistics.form import Form


class PlannedRewrite(NamedTuple):
    """A rewrite that is ready to commit, and what the knowledge becomes by it."""

    change: Rewrite
    exemplars: list[StoredSample]
    stored: list[StoredSample]
    form: Form
    buffer: Buffer


def rewrites(store: Store, settings: Settings, foundation: Foundation | None, knowledge: Knowledge,
             change: Rewrite) -> Iterator[PlannedRewrite]:
    """The change as a rewrite of statistics and exemplars, the best first: with the codebook that is wanted or
    without; with the keys of samples or without; and the statistics in coarser and coarser forms. A round is judged
    already, in the one form it has."""
    sizes = wanted_codebook(store, foundation, knowledge, change)
    foundation = foundation or Foundation.from_meta(change.meta["foundation"])
    made = sizes and Codebook.make(knowledge.stored, sizes, foundation.power, len(knowledge.labels), settings.seed)
    choices = [(replace(knowledge.buffer, codebook=made[0]), (made[1], made[0].classes))] if made else []
    for buffer, codebook in [*choices, (knowledge.buffer, None)]:
        kept = knowledge.kept(buffer)
        exemplars = knowledge.exemplars(buffer, kept)
        detail = {**change.detail, **about(buffer, kept, knowledge)}
        others = [] if change.moved else coarser(knowledge.form, knowledge.transforms[0].dimension)
        without = (knowledge.form, *others) if knowledge.known.total else others
        for form, keys in ((knowledge.form, True), *((form, False) for form in without)):
            meta = change.meta if form == knowledge.form else {
                **change.meta, "foundation": replace(foundation, form=form).to_meta()}
            snapshot = knowledge.snapshot(form, keys)
            planned = replace(change, detail=detail, meta=meta, codebook=codebook, snapshot=snapshot,
                              rows=[row for row in exemplars if row.id is None],
                              spare=None if change.erase is not None else _spare(store, change.head, snapshot))
            yield PlannedRewrite(planned, exemplars, knowledge.stored, form, buffer)


def wanted_codebook(store: Store, foundation: Foundation | None, knowledge: Knowledge,
                    change: Append | Rewrite) -> tuple[int, int] | None:
    """Sizes of the codebook that is to be made; None if the buffer holds everything, or needs no other one."""
    buffer = knowledge.buffer
    if (foundation is None or not knowledge.labels or store.files(FEATURES)
            or knowledge.gaussians is not None or (isinstance(change, Rewrite) and change.moved)):
        return None
    sizes = codebook_sizes(foundation.codec, buffer.limit, foundation.dimension, len(knowledge.labels), buffer.codebook)
    if sizes is None:
        return None
    full = not knowledge.all_fit if buffer.codebook is None else \
        len(knowledge.kept().columns.rows) < len(knowledge.stored)
    return sizes if full else None


def _spare(store: Store, head: bytes | None, snapshot: bytes) -> int:
    """Room that new statistics and head must leave so that they can be written once more."""
    newest = store.newest
    base = base_of(store, newest.id)
    old = sum(pages(store.blobs.bytes(name)) for name in (newest.head, base.snapshot if base else None) if name)
    return max(pages(len(head or b"")) + pages(len(snapshot)) - old, 0)
