"""What a state consists of, and what of it is intact; nothing is changed by looking."""
from __future__ import annotations

from typing import TYPE_CHECKING

from edgecl.state.reader import EXEMPLARS, FEATURES, JOURNAL, KEPT_HEADS, PARTS

if TYPE_CHECKING:
    from edgecl.state.reader import StateReader

WHAT = {EXEMPLARS: "exemplars", JOURNAL: "samples", FEATURES: "features", PARTS: "memory of the method"}


def named_files(state: StateReader) -> dict[str, str]:
    """Every file in models/ that a state names, and what it is. To be called in `StateReader.reading`."""
    found: dict[str, str] = {}
    alive = state.alive()
    logged = [g.head for g in alive if g.logged and g.head][-KEPT_HEADS:]
    for g in alive:
        if g.backbone and not g.logged:
            found.setdefault(g.backbone, f"backbone since generation {g.id}")
        if g.snapshot:
            found[g.snapshot] = f"statistics of generation {g.id}"
        if g.head and (not g.logged or g.head in logged):
            found[g.head] = f"head of generation {g.id}"
    for kind, what in WHAT.items():
        for name, oldest, newest in state.files(kind):
            span = f"generation {oldest}" if oldest == newest else f"generations {oldest} to {newest}"
            found[name] = f"{what} of {span}"
    for name, classes in state.meta.get("codebooks", []):
        found[name] = f"codebook of {classes} classes"
    return found
