"""The stored samples as people look at them: what each is, where it came from, and how it is kept."""
from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, NamedTuple

from edgecl.errors import BadInput
from edgecl.exemplars.sample_ids import sample_id
from edgecl.exemplars.selection import GROUP_SHIFT
from edgecl.learning.suspicious import Evidence, suspicions
from edgecl.results import SampleList, SampleSummary
from edgecl.samples import Place

if TYPE_CHECKING:
    from edgecl.exemplars.stored import StoredSample
    from edgecl.learning.repository import Repository


class StoredSamples(NamedTuple):
    """What was stored at a generation, to be looked at by any thread, without the state. rows: the samples; taught: how
    many of each class were taught; evidence: what tells which are suspicious, None if that was not asked for."""

    generation: int
    rows: list[StoredSample]
    taught: dict[str, int]
    evidence: Evidence | None = None

    @classmethod
    def of(cls, repository: Repository, suspicious: bool = False) -> StoredSamples:
        """What a state stores now. Raises StateError if it can't be read."""
        with repository.store.reading():
            generation = repository.store.current
            if repository.foundation is None:
                return cls(generation, [], {})
            if not suspicious:
                counts = sorted(repository.heads.summary().get("known", {}).items())
                return cls(generation, [*repository.stored()], {label: count for label, (count, _) in counts})
            known = repository.known()
            taught = {label: known.plain.counts[label] for label in known.labels}
            if known.gaussians is not None:     # what is stored then are pseudo-samples
                return cls(generation, [], taught)
            evidence = Evidence.of(known) if known.labels else None
            return cls(generation, [*known.stored], taught, evidence)

    def listed(self, label: str | None = None) -> SampleList:
        """All of them, or those of a class: in the order of their classes and then of their ids; if there is evidence,
        only the suspicious ones, worst first. Raises BadInput for an unknown class."""
        if label is not None and label not in self.taught:
            known = ", ".join([*self.taught][:20]) + (" ..." if len(self.taught) > 20 else "")
            raise BadInput(f"no class is called {label!r}", f"known are {known}" if known else "none is known yet")
        per_session = Counter(row.key >> GROUP_SHIFT for row in self.rows)
        chosen: list[SampleSummary] = []
        if self.evidence is not None:
            for found in suspicions(self.evidence):
                row = self.rows[found.place]
                chosen.append(replace(_summary(row, per_session[row.key >> GROUP_SHIFT] > 1), margin=found.margin,
                                      looks_like=found.looks_like, reason=found.reason))
            chosen = [each for each in chosen if label in (None, each.label)]
        elif self.rows:
            rows = [row for row in self.rows if label in (None, row.label)]
            rows.sort(key=lambda row: (row.label, row.id))
            chosen = [_summary(row, per_session[row.key >> GROUP_SHIFT] > 1) for row in rows]
        stored = Counter(row.label for row in self.rows)
        names = [*self.taught] if label is None else [label]
        return SampleList(self.generation, {name: self.taught[name] for name in names},
                          {name: stored[name] for name in names}, chosen)


def _summary(row: StoredSample, in_session: bool) -> SampleSummary:
    taught = datetime.fromtimestamp(row.taught, timezone.utc).isoformat() if row.taught else None
    return SampleSummary(sample_id(row), row.label, str(Place(row.source, row.at, row.origin.unit)), taught,
                         "coded" if row.coded else "exact", row.spare, bool(row.input),
                         f"{row.key >> GROUP_SHIFT:08x}" if in_session else None)
