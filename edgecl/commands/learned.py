"""What `edgecl learn` says of what it learned."""
from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from edgecl.commands import percent, print_json
from edgecl.samples import NOTHING
from edgecl.settings import counted, format_size, short_names

if TYPE_CHECKING:
    from edgecl.results import Learned

MIN_JUDGED = 4              # samples of a class before and after a `learn`, so that they are compared
STANDARD_ERRORS = 2         # by which they must differ
MOST_NAMED = 12             # classes in a line
MOST_SOURCES = 5            # samples in a line
TO_TEACH = {"window": "windows of rest and of other things halve false alarms",  # as `nothing`
            "image": "with photos of the background and of other things there are fewer false alarms"}


def tell(options: argparse.Namespace, learned: Learned, refused: int, quota: int,
         unreadable: Mapping[str, int] = MappingProxyType({})) -> None:
    """Report a `learn`. unreadable: suffix -> files of a kind that can't be read."""
    if options.json:
        print_json({"class": learned.label, "samples": learned.samples, "refused": refused,
                    **{name: count for name in ("known", "also_in", "unrecognised", "left_out", "blank", "blurred")
                       if (count := getattr(learned, name))},
                    **({"unreadable": dict(unreadable)} if unreadable else {}),
                    "seconds": round(learned.milliseconds * learned.given / 1000, 4),
                    "generation": learned.generation, "used_bytes": learned.used_bytes,
                    "accuracy": {name: list(pair) for name, pair in learned.accuracy.items()}})
    else:
        print(summary(learned, refused, quota))


def summary(learned: Learned, refused: int, quota: int) -> str:
    """The report of a `learn` for people: what was learned, how accurate it is, and which other classes it changed."""
    if not learned.samples:
        return (f"{learned.label}: nothing learned: {counted(learned.known, 'sample')} already known, left out "
                f"(--again counts them); generation {learned.generation}")
    lines = [f"{learned.label}: {counted(learned.samples, 'sample')} learned"
             + (f", {refused} refused" if refused else "")
             + f", {learned.milliseconds:.1f} ms each; {format_size(learned.used_bytes)} of {format_size(quota)} used"
             f" ({100 * learned.used_bytes / quota:.0f} %); generation {learned.generation}"]
    if learned.known:
        lines.append(f"  {learned.known} already known, left out (--again counts them)")
    lines += [f"  {len(sources)} {'is' if len(sources) == 1 else 'are'} also in {other!r}: {named(sources)}"
              for other, sources in learned.also_in.items()]
    if learned.unrecognised:
        lines.append(f"  {counted(learned.unrecognised, 'earlier sample')} can't be recognised: taught again, they "
                     "would count twice")
    if learned.left_out:
        lines.append(f"  left out: {learned.left_out} that show nothing (of one colour, or constant)")
    if learned.blank:
        lines.append(f"  {learned.blank} of them show nothing (of one colour, or constant)"
                     + ("" if learned.label == NOTHING else f": answered as {learned.label} from now on"))
    if learned.blurred:
        few = f": {named(learned.blurred)}" if 2 * len(learned.blurred) < learned.samples else " or are very small"
        lines.append(f"  {len(learned.blurred)} {'looks' if len(learned.blurred) == 1 else 'look'} blurred{few}")
    new = learned.accuracy.get(learned.label, (None, None))[1]
    right = learned.judged.get(learned.label, (None, None))[1]
    lines.append(f"  {learned.label}: {percent(new)} ({right[0]} of {right[1]}) right on {learned.judged_on}"
                 if new is not None and right is not None else
                 f"  {learned.label}: too few samples to tell its accuracy yet")
    return "\n".join(lines + changes(learned))


def named(sources: list[str]) -> str:
    """Some sources as a list."""
    most = f" and {len(sources) - MOST_SOURCES} more" if len(sources) > MOST_SOURCES else ""
    return ", ".join(short_names(each or "no name") for each in sources[:MOST_SOURCES]) + most


def changes(learned: Learned) -> list[str]:
    """One line about the other classes: whose accuracy has changed beyond noise; none if nothing can be compared."""
    told = {name: pair for name, pair in learned.judged.items() if name != learned.label and enough(*pair)}
    if not told:
        return []
    moved = [f"{name} {percent(before[0] / before[1])} -> {percent(after[0] / after[1])} ({after[0]} of {after[1]})"
             for name, (before, after) in told.items() if beyond_noise(before, after)]
    most = f" and {len(moved) - MOST_NAMED} more" if len(moved) > MOST_NAMED else ""
    others = f"the other {len(told)} classes" if len(told) > 1 else next(iter(told))
    return [f"  changed: {', '.join(moved[:MOST_NAMED])}{most}" if moved else f"  no change beyond noise: {others}"]


def enough(before: Sequence[int] | None, after: Sequence[int] | None) -> bool:
    """Whether two counts (right, of) can be compared."""
    return before is not None and after is not None and min(before[1], after[1]) >= MIN_JUDGED


def beyond_noise(before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether two shares, each as (right, of), differ by more than two standard errors of their difference."""
    pooled = (before[0] + after[0]) / (before[1] + after[1])
    error = math.sqrt(pooled * (1 - pooled) * (1 / before[1] + 1 / after[1]))
    return abs(after[0] / after[1] - before[0] / before[1]) > STANDARD_ERRORS * error


def suggest_nothing(options: argparse.Namespace, learned: list[Learned], kind: str | None) -> None:
    """A line for people once the second class is known, if `nothing` is not among them."""
    known = set(learned[-1].accuracy) if learned else set()
    before = len(known) - sum(each.new for each in learned)
    if not options.json and kind in TO_TEACH and before < 2 <= len(known) and NOTHING not in known:
        print(f"teach `{NOTHING}` too: {TO_TEACH[kind]}")
