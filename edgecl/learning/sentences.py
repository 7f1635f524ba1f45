"""What advice says to people: plain sentences, each with its numbers."""
from __future__ import annotations

from typing import TYPE_CHECKING

from edgecl.learning.judges import MIN_JUDGED
from edgecl.settings import short_names

if TYPE_CHECKING:
    from edgecl.results import TeachingAdvice

TEXTS = {"more": "more samples will help",
         "other": "more samples like these will hardly help, different ones or a learning round may"}
MOST = 5                # named in a sentence


def sentences(found: TeachingAdvice) -> list[str]:
    """The advice for people, each sentence with its numbers."""
    said = []
    for each in found.confused[:MOST]:
        back = f", {each.back_wrong} of {each.back_of} the other way round" if each.back_wrong else ""
        source = f"; {each.from_source} of the {each.wrong} are from {short_names(each.source)}" if each.source else ""
        said.append(f"{each.label!r} is taken for {each.taken_for!r}: {each.wrong} of {each.of} judged samples{back}"
                    f"{source}")
    said += [f"and {len(found.confused) - MOST} more pairs"] if len(found.confused) > MOST else []
    for verdict, text in TEXTS.items():
        mine = [each for each in found.classes if each.verdict == verdict]
        said += [f"{each.label!r}: {text} ({percent(each.right_with_half)} of {each.judged} judged samples are right "
                 f"with half of its {each.stored} samples, {percent(each.right / each.judged)} with all)"
                 for each in mine[:MOST]]
        said += [f"and {len(mine) - MOST} more classes"] if len(mine) > MOST else []
    enough = [f"{each.label!r} ({percent(each.right / each.judged)} of {each.judged})" for each in found.classes
              if each.verdict == "enough"]
    if enough:
        more = f" and {len(enough) - MOST} more" if len(enough) > MOST else ""
        said.append(f"enough samples, right alike with half of them: {', '.join(enough[:MOST])}{more}")
    few = [f"{each.label!r} ({each.taught})" for each in found.classes if each.taught < MIN_JUDGED]
    if few:
        more = f" and {len(few) - MOST} more" if len(few) > MOST else ""
        said.append(f"too few samples to tell, teach {MIN_JUDGED} or more: {', '.join(few[:MOST])}{more}")
    if found.all_need is not None:
        said.append(f"{percent(found.right_with_half)} of {found.judged} judged samples are right with half of the "
                    f"stored samples, {percent(found.right_with_three_quarters)} with three quarters, "
                    f"{percent(found.right)} with all: " + (
                        "more samples will help" if found.all_need == "more" else
                        "more samples of these classes will hardly help"))
    return said or [f"nothing that {found.judged} judged samples of {len(found.classes)} classes can tell: "
                    f"{percent(found.right)} of them are right"]


def percent(share: float | None) -> str:
    """`86.2 %`."""
    return f"{100 * (share or 0):.1f} %"
