"""`edgecl replay`: a labelled recording, played into the daemon that serves a state; accuracy over time."""
from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgecl.commands import Intake, ProgressBar, percent, print_json, print_table
from edgecl.commands.direct_or_daemon import direct_or_daemon
from edgecl.errors import BadInput
from edgecl.evaluation.prequential import BatchResult, Pace, play, recording, shares, summary
from edgecl.settings import counted

if TYPE_CHECKING:
    from edgecl.sources.spec import Item, Spec


def replay(options: argparse.Namespace) -> None:
    """Play a recording; with --json one object per batch, and a last one for the total."""
    if not options.recording.exists():
        raise BadInput(f"{options.recording} does not exist", "name a FOLDER of classes, an .npz file, or a .csv "
                       "with a column `label`")
    heard: list[BatchResult] = []
    with direct_or_daemon(options) as learner, ProgressBar("replaying") as bar:
        spec, known = learner.spec(), learner.known
        intake = Intake(learner.shape, _counted(recording(options.recording, spec), bar))
        pace = Pace(period_of(spec, options.fps), options.speed, options.batch, options.teach)
        for one in play(intake, learner, pace, known):
            heard.append(one)
            if options.json:
                print_json(asdict(one))
        intake.report()
        total = {**shares(heard), "seconds": heard[-1].seconds, "classes": len(learner.known),
                 "refused": len(intake.refused), "late_seconds": max(one.late for one in heard)}
    if options.json:
        print_json(total)
        return
    late = f"; up to {total['late_seconds']:.1f} s behind" if total["late_seconds"] > 1 else ""
    print_table(f"{counted(total['samples'], 'sample')}, {percent(total['accuracy'])} right before they were taught, "
                f"{percent(total['accuracy_known'])} on known classes; "
                f"{counted(total['classes'], 'class')} known now{late}",
                ["seconds", "samples", "right", "on known", "unknown", "first taught"],
                [_row(row) for row in summary(heard)])


def period_of(spec: Spec, frames: float) -> float:
    """Seconds in a recording from one sample to the next."""
    if spec.window is not None and spec.rate is not None:
        return spec.hop or spec.window / 2
    if not 0 < frames <= 1e6:
        raise BadInput(f"--fps is {frames:g}", "give photos per second, above 0")
    return 1 / frames


def _counted(items: Iterable[Item], bar: ProgressBar) -> Iterator[Item]:
    for item in items:
        bar(1)
        yield item


def _row(row: dict[str, Any]) -> list[str]:
    new = row["new"]
    return [f"{row['seconds']:.0f}", str(row["samples"]), percent(row["accuracy"]), percent(row["accuracy_known"]),
            percent(row["unknown_rate"]),
            ", ".join(new[:4]) + (f" and {len(new) - 4} more" if len(new) > 4 else "")]
