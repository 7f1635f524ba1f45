"""`edgecl evaluate`: how good the answers to labelled samples are, and which are wrong."""
from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edgecl.commands import (
    Intake,
    ProgressBar,
    opened,
    percent,
    print_json,
    print_table,
    report_damage,
    say_left_out,
)
from edgecl.errors import BadInput
from edgecl.evaluation.answers_report import WrongPictures, answer_text, calibration_text, class_rows, write_evaluation
from edgecl.samples import NOTHING
from edgecl.settings import counted

if TYPE_CHECKING:
    from edgecl.results import Evaluation

MOST_COLUMNS, MOST_WIDTH = 10, 14       # of a table of all confusions: answers, and characters of their names
MOST_PAIRS = 15                         # of classes that are listed with more answers
MOST_FILES = 20                         # wrong ones


def evaluate(options: argparse.Namespace) -> None:
    """Accuracy on a labelled folder or .npz file: what is taken for what, the wrong files, calibration."""
    from edgecl.commands.direct_or_daemon import Direct
    from edgecl.learning.export import check_target
    from edgecl.sources import read_labelled

    pictures = WrongPictures() if options.report else None
    with opened(options) as learner, ProgressBar("evaluating") as bar:
        if options.report:
            check_target(options.report, learner.store.path)
            if not options.report.parent.is_dir():
                raise BadInput(f"{options.report.parent} is not a folder", "make it first, or name another file")
        one = Direct(learner)
        intake = Intake(one.shape, read_labelled(options.folder, one.spec(), told=say_left_out), bar)
        found = learner.evaluate(intake, pictures)
        report_damage(learner.damage)
        intake.report()
    if pictures is not None:
        _write(options.report, found, pictures, len(intake.refused))
    if options.json:
        print_json({**found.to_json(), "refused": len(intake.refused)})
    else:
        _print(found)
        if options.report:
            print(f"wrote {options.report}")


def headline(found: Evaluation) -> list[str]:
    """What was measured, in sentences; samples of known classes and of others are counted separately."""
    named = [label for label in found.per_class if label != NOTHING]
    called = sum(found.called_unknown[label] for label in named)
    lines = [f"accuracy {percent(found.accuracy)}: {found.right} of {counted(found.n, 'sample')} of "
             f"{counted(len(found.per_class), 'known class')}; {called} called unknown"]
    if NOTHING in found.per_class:
        lines[0] += f", and {found.called_unknown[NOTHING]} of {found.samples[NOTHING]} of {NOTHING!r}, which is right"
    unknown, of = found.strange
    if of:
        lines.append(f"never taught: {unknown} of {counted(of, 'sample')} of {counted(len(found.untaught), 'class')} "
                     f"called unknown ({percent(unknown / of)})")
    if found.untold:
        lines.append(found.untold)
    return [*lines, calibration_text(found.calibration)]


def _write(path: Path, found: Evaluation, pictures: WrongPictures, refused: int) -> None:
    sentences = [line[0].upper() + line[1:] + "." for line in headline(found)]
    try:
        write_evaluation(path, found, sentences, pictures, refused)
    except OSError as error:
        raise BadInput(f"can't write {path} ({error.strerror})", "name a file that can be written") from error


def _print(found: Evaluation) -> None:
    columns, rows = class_rows(found)
    *first, last = headline(found)
    print_table("\n".join([*first, last]), columns[:-1], [row[:-1] for row in rows])
    _print_confusion(found)
    strange = [f"{label} taken for {answer}: {count} of {found.samples[label]}"
               for label, answers in found.taken_for.items() for answer, count in answers.items() if answer]
    _print_some("never taught, and not called unknown:", strange, MOST_PAIRS, "pair")
    files = [f"{each.source or '-'}: {each.truth}{'' if each.taught else ' (never taught)'}, answered "
             f"{answer_text(each)}" for each in found.wrong]
    _print_some("wrong:", files, MOST_FILES, "sample")


def _print_confusion(found: Evaluation) -> None:
    """All confusions if they are of few classes, else the most frequent ones."""
    if not found.pairs:
        return
    answers = sorted({*found.confusion, *(label for each in found.confusion.values() for label in each)})
    if len(answers) <= MOST_COLUMNS and max(map(len, answers)) <= MOST_WIDTH:
        rows = [[truth, *(str(of.get(label, "")) for label in answers)] for truth, of in found.confusion.items()]
        print_table("class, and what it is taken for", ["", *answers], rows)
        return
    pairs = [f"{truth} taken for {label}: {count} of {found.samples[truth]}" for truth, label, count in found.pairs]
    _print_some("most often confused:", pairs, MOST_PAIRS, "pair")


def _print_some(title: str, lines: list[str], most: int, what: str) -> None:
    """A list, if it has any lines, and how many more there are."""
    if lines:
        print("\n  ".join([title, *lines[:most]]))
    if len(lines) > most:
        print(f"  and {counted(len(lines) - most, what)} more; --json has all")
