"""`edgecl predict` on a stream: one answer per window as it comes, debounced."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edgecl.commands import print_json, report_damage
from edgecl.errors import BadInput
from edgecl.runtime.debounce import DEBOUNCE, Debounce, evidence_of
from edgecl.samples import Refusal
from edgecl.settings import counted

if TYPE_CHECKING:
    from edgecl.learner import Learner


def predict_stream(learner: Learner, source: Path, options: argparse.Namespace) -> None:
    """Print an answer when a new label is stable, see `Debounce`; with 0, every answer."""
    from edgecl.learning.foundation import spec_for
    from edgecl.sources import read

    times = DEBOUNCE if options.debounce is None else options.debounce
    if times < 0:
        raise BadInput(f"--debounce is {times}", "give a number of windows, or 0 to print every window")
    changed, windows = Debounce(times), 0
    try:
        for item in read(source, spec_for(learner.settings, learner.foundation, options.seconds)):
            if isinstance(item, Refusal):
                print(f"edgecl: {item.source}: {item.reason}", file=sys.stderr)
                continue
            windows += 1
            answer = learner.predict(item.data[None], options.why)[0]
            if windows == 1:
                report_damage(learner.damage)
            if changed(*evidence_of(answer)):
                print_json({**answer.to_json(), "source": item.source})
    except KeyboardInterrupt:
        print(f"edgecl: stopped after {counted(windows, 'window')}", file=sys.stderr)
        return
    if not windows:
        raise BadInput(f"{source} gave no whole window", "let it run longer, or use a state with a shorter --window")
