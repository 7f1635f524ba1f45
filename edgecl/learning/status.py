"""Where a state stands: what `edgecl status` and `edgecl classes` show."""
from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from edgecl.errors import StateError
from edgecl.learning.solved_heads import figures_of
from edgecl.results import ClassSummary, Status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgecl.learning.repository import Repository


def status_of(repository: Repository) -> Status:
    """See `Learner.status`."""
    store, settings = repository.store, repository.settings
    summary = repository.heads.summary()
    head, threshold = summary.get("head"), summary.get("unknown_above")
    with store.reading():
        generations, foundation, current = store.generations(), repository.foundation, store.newest
        warnings, (exemplars, exemplar_bytes) = store.damage(), _intact_exemplars(repository, summary)
        restorable = sorted(store.restorable())
    form = None
    if foundation:
        form = foundation.form.describe(foundation.dimension)
        if not foundation.calibrated and foundation.name == "rocket":
            warnings.append("rocket's scales and biases come from the first thing taught; "
                            "`edgecl init --calibrate RECORDING` takes them from a mix")
    usage, codec = store.usage(), foundation.codec if foundation else settings.codec
    if foundation and codec in ("auto", "pq"):
        codec = "pq" if store.codebook else "int8-feature"
    return Status(current.id, foundation.name if foundation else settings.backbone, head,
                  summary.get("classes", 0), settings.quota, usage.total, exemplar_bytes,
                  settings.exemplars, exemplars, codec, usage._asdict(), store.ledger.reserved(),
                  foundation.precision if foundation else None, form,
                  foundation.calibrated if foundation else None,
                  all(g.detail.get("exact", True) for g in generations if not g.undone), threshold,
                  restorable, warnings, settings.memory, summary.get("unknown_needs"))


def classes_of(repository: Repository) -> list[ClassSummary]:
    """The known classes in alphabetical order."""
    if repository.foundation is None:
        return []
    summary = repository.heads.summary()
    figures = figures_of(summary)
    return [ClassSummary(label, samples, exemplars, figures.accuracy.get(label), *figures.judged.get(label, (0, 0)))
            for label, (samples, exemplars) in sorted(summary.get("known", {}).items())]


def known_are(labels: Sequence[str]) -> str:
    """Which classes are known, for the cure of an error that names another one."""
    return f"known are {', '.join(labels[:20])}{' ...' if len(labels) > 20 else ''}" if labels else "none is known yet"


def _intact_exemplars(repository: Repository, summary: dict[str, Any]) -> tuple[int, int]:
    """How many exemplars are intact, and their bytes: as the current generation counts them, or, if some are
    damaged, counted again."""
    if repository.store.samples_damaged():
        with suppress(StateError):
            knowledge = repository.known()
            columns = knowledge.kept().columns
            return len(columns.rows), knowledge.buffer.bytes_of(columns, knowledge.transforms[0].source)
    return summary.get("exemplars", 0), summary.get("exemplar_bytes", 0)
