"""The report of `edgecl evaluate`: an HTML page of what is taken for what, calibration, and pictures of wrong answers.
Needs no matplotlib."""
from __future__ import annotations

import heapq
import html
from typing import TYPE_CHECKING, Any

from edgecl.evaluation.pictures import picture
from edgecl.evaluation.report import heading, paragraph, table, write_report
from edgecl.settings import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import numpy as np

    from edgecl.results import Calibrated, Evaluation, WrongAnswer

MOST_PICTURES = 48          # of wrong answers, the surest ones
THUMBNAIL_SIDE = 144        # pixels
MOST_NAMED = 500            # wrong files
MOST_PAIRS = 20             # of classes that are confused
SIDE, MOST_CELL, LEAST_CELL = 700, 44, 4    # pixels of the table of confusions without names, and of one cell
NUMBERED_CELL, NAMED_CELL = 22, 8           # pixels of a cell from which its number, and the names of its classes, fit
NAME_CHARACTERS = 22                        # of class names beside that table
STYLE = """
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .9rem; }
.card { border: 1px solid var(--line); border-radius: 6px; padding: .5rem; font-size: .85rem; line-height: 1.35;
        overflow-wrap: anywhere; }
.card img, .card svg { width: 100%; height: auto; display: block; border-radius: 4px; margin-bottom: .4rem; }
.card svg { aspect-ratio: 3 / 2; background: color-mix(in srgb, var(--quiet) 12%, transparent); }
.card .file { color: var(--quiet); display: block; margin-top: .2rem; }
svg.chart { display: block; max-width: 100%; height: auto; color: var(--ink); font: 12px system-ui, sans-serif; }
svg.chart text { fill: currentColor; } svg.chart .quiet { fill: var(--quiet); }
.right { fill: #0b6e4f; } .wrong { fill: #c2571a; } .frame { fill: none; stroke: var(--line); }
.ideal { stroke: var(--quiet); stroke-dasharray: 4 4; }
svg.chart text.on { fill: #ffffff; }
td:first-child, th:first-child, td:last-child { white-space: normal; overflow-wrap: anywhere; min-width: 9rem; }
.wide + .wide, svg.chart + .wide { margin-top: 1rem; }
@media (prefers-color-scheme: dark) { .right { fill: #2fa37c; } .wrong { fill: #e0793c; } }
"""
LINES = "#0b6e4f", "#b3541e", "#3d5a98", "#8e3b8e", "#a88300", "#1f8a9e"


class WrongPictures:
    """Pictures of the surest wrong answers, as they come."""

    def __init__(self) -> None:
        self._kept: list[tuple[float, int, WrongAnswer, dict[str, Any]]] = []
        self._seen = 0

    def __call__(self, answer: WrongAnswer, sample: np.ndarray) -> None:
        """Take a wrong answer and its sample, uint8 [h, w, 3] or float32."""
        self._seen += 1
        if len(self._kept) < MOST_PICTURES or answer.confidence > self._kept[0][0]:
            entry = answer.confidence, -self._seen, answer, picture(sample, THUMBNAIL_SIDE)
            (heapq.heappushpop if len(self._kept) == MOST_PICTURES else heapq.heappush)(self._kept, entry)

    def surest_first(self) -> list[tuple[WrongAnswer, dict[str, Any]]]:
        """Wrong answers and their pictures."""
        order = sorted(self._kept, key=lambda entry: entry[:2], reverse=True)
        return [(answer, shown) for _, _, answer, shown in order]


def write_evaluation(path: Path, found: Evaluation, headline: Sequence[str], pictures: WrongPictures,
                     refused: int) -> None:
    """Write the page. headline: its first sentences; refused: samples that could not be read."""
    parts = [f"<style>{STYLE}</style>", *map(paragraph, headline[1:])]
    if refused:
        parts.append(paragraph(f"{counted(refused, 'sample')} could not be read and does not count." if refused == 1
                               else f"{refused} samples could not be read and do not count."))
    parts += [heading("What is taken for what"), *_confusion(found), heading("Classes"), table(*class_rows(found))]
    parts += [heading("Confidence"), *_calibration(found.calibration)]
    parts += [heading("Wrong answers"), *_wrong(found, pictures)]
    write_report(path, "edgecl evaluate", headline[0], parts)


def class_rows(found: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table of all classes."""
    rows = [[label, _share(found.confusion[label].get(label, 0), found.samples[label]),
             _share(found.called_unknown[label], found.samples[label]), taken_for(found.confusion[label], label)]
            for label in found.per_class]
    rows += [[f"{label} (never taught)", "-", _share(found.called_unknown[label], found.samples[label]),
              taken_for(found.taken_for[label], "")] for label in found.untaught]
    return ["class", "right", "called unknown", "taken for"], rows


def taken_for(answers: dict[str, int], right: str) -> str:
    """What samples of a class are taken for by mistake, the most frequent three."""
    wrong = [(label, count) for label, count in answers.items() if label != right]
    return ", ".join(f"{label} ({count})" for label, count in wrong[:3]) + (" …" if len(wrong) > 3 else "") or "-"


def _share(count: int, of: int) -> str:
    return f"{100 * count / of:.1f} % ({count} of {of})"


def _confusion(found: Evaluation) -> list[str]:
    parts = [_cells(found)]
    if found.pairs:
        rows = [[truth, label, _share(count, found.samples[truth])] for truth, label, count in found.pairs[:MOST_PAIRS]]
        more = len(found.pairs) - len(rows)
        parts += [table(["class", "taken for", "of its samples"], rows)]
        parts += [paragraph(f"And {counted(more, 'pair')} more.")] if more else []
    else:
        parts.append(paragraph("No class is taken for another one."))
    return parts


def _cells(found: Evaluation) -> str:
    """The table of confusions as SVG: a row per class, a column per answer; a darker cell has more of its row."""
    rows = list(found.confusion)
    columns = sorted({*rows, *(label for answers in found.confusion.values() for label in answers)})
    cell = max(min(SIDE // len(columns), MOST_CELL), LEAST_CELL)
    size = max(min(cell * 0.62, 12), 6)
    longest = min(max(map(len, columns)), NAME_CHARACTERS)
    named, margin = cell >= NAMED_CELL, round(longest * size * 0.62) + 12 if cell >= NAMED_CELL else 10
    width, height = margin + cell * len(columns) + 1, margin + cell * len(rows) + 1
    marks = [f'<rect class="frame" x="{margin}" y="{margin}" width="{cell * len(columns)}" '
             f'height="{cell * len(rows)}"/>']
    for place, label in enumerate(rows if named else []):
        marks.append(_name(label, margin - 6, margin + (place + 0.5) * cell, size, ' text-anchor="end"'))
    for place, label in enumerate(columns if named else []):
        x, y = margin + (place + 0.5) * cell, margin - 6
        marks.append(_name(label, x, y, size, f' transform="rotate(-90 {x:.1f} {y})"'))
    place_of = {label: place for place, label in enumerate(columns)}
    for row, truth in enumerate(rows):
        for label, count in found.confusion[truth].items():
            share = count / found.samples[truth]
            x, y = margin + place_of[label] * cell, margin + row * cell
            text = f"{truth}: {count} of {found.samples[truth]} taken for {label}" if label != truth else \
                f"{truth}: {count} of {found.samples[truth]} right"
            marks.append(f'<rect class="{"right" if label == truth else "wrong"}" x="{x + 0.5}" y="{y + 0.5}" '
                         f'width="{cell - 1}" height="{cell - 1}" fill-opacity="{0.25 + 0.75 * share:.2f}">'
                         f"<title>{html.escape(text)}</title></rect>")
            if cell >= NUMBERED_CELL:
                on = ' class="on"' if share > 0.5 else ""
                marks.append(f'<text{on} x="{x + cell / 2}" y="{y + cell / 2}" text-anchor="middle" '
                             f'dominant-baseline="central" pointer-events="none">{count}</text>')
    what = "Rows: the class of a sample; columns: what it is taken for; on the diagonal: right answers."
    return (f'<p>{what}</p><div class="wide"><svg class="chart" role="img" aria-label="Table of confusions. {what}" '
            f'viewBox="0 0 {width} {height}" width="{width}">{"".join(marks)}</svg></div>')


def _name(label: str, x: float, y: float, size: float, more: str) -> str:
    """A class name at a place; the whole one shows when it is pointed at. more: attributes."""
    short = label if len(label) <= NAME_CHARACTERS else label[:NAME_CHARACTERS - 1] + "…"
    return (f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:.1f}" dominant-baseline="central"{more}>'
            f"{html.escape(short)}<title>{html.escape(label)}</title></text>")


def calibration_text(found: Calibrated) -> str:
    """The calibration error in a sentence."""
    if found.ece is None:
        return "no answer has a confidence"
    confidence, right = (sum(each.n * value for each, value in zip(found.bins, values)) / found.n
                         for values in zip(*((each.confidence, each.accuracy) for each in found.bins)))
    return (f"calibration error {100 * found.ece:.1f} % over {counted(found.n, 'answer')}: confidence "
            f"{100 * confidence:.1f} % on average, right {100 * right:.1f} %")


def _calibration(found: Calibrated) -> list[str]:
    text = calibration_text(found)
    if found.ece is None:
        return [paragraph(text[0].upper() + text[1:] + ".")]
    side, left, top = 260, 44, 10
    marks = [f'<rect class="frame" x="{left}" y="{top}" width="{side}" height="{side}"/>',
             f'<line class="ideal" x1="{left}" y1="{top + side}" x2="{left + side}" y2="{top}"/>']
    for each in found.bins:
        x, tall = left + each.low * side, each.accuracy * side
        tip = f"confidence {each.low:.1f} to {each.high:.1f}: {each.accuracy:.3f} of {each.n} are right"
        marks.append(f'<rect class="right" x="{x + 2:.1f}" y="{top + side - tall:.1f}" width="{side / 10 - 4:.1f}" '
                     f'height="{max(tall, 1):.1f}" fill-opacity="0.75"><title>{tip}</title></rect>')
    for value in (0, 0.5, 1):
        marks.append(f'<text class="quiet" x="{left + value * side}" y="{top + side + 16}" text-anchor="middle">'
                     f'{value:g}</text><text class="quiet" x="{left - 6}" y="{top + (1 - value) * side + 4}" '
                     f'text-anchor="end">{value:g}</text>')
    marks.append(f'<text class="quiet" x="{left + side / 2}" y="{top + side + 34}" text-anchor="middle">confidence'
                 f'</text><text class="quiet" x="14" y="{top + side / 2}" text-anchor="middle" '
                 f'transform="rotate(-90 14 {top + side / 2})">share that is right</text>')
    svg = (f'<svg class="chart" role="img" aria-label="Reliability of confidence" width="{left + side + 10}" '
           f'viewBox="0 0 {left + side + 10} {top + side + 44}">{"".join(marks)}</svg>')
    rows = [[f"{each.low:.1f} to {each.high:.1f}", str(each.n), f"{100 * each.confidence:.1f} %",
             f"{100 * each.accuracy:.1f} %"] for each in found.bins]
    return [paragraph(text[0].upper() + text[1:] + "."),
            paragraph("On the dashed line, confidence is right as often as it says."), svg,
            table(["confidence", "answers", "mean confidence", "right"], rows)]


def _wrong(found: Evaluation, pictures: WrongPictures) -> list[str]:
    if not found.wrong:
        return [paragraph("None.")]
    shown, count = pictures.surest_first(), len(found.wrong)
    which = f"The {len(shown)} surest of {count}." if count > len(shown) else f"{count}, the surest first."
    cards = "".join(_card(answer, drawn) for answer, drawn in shown)
    names = "".join(f"<tr><td>{html.escape(each.source)}</td><td>{html.escape(each.truth)}</td>"
                    f"<td>{html.escape(answer_text(each))}</td></tr>" for each in found.wrong[:MOST_NAMED])
    more = paragraph(f"And {count - MOST_NAMED} more; `--json` has them all.") if count > MOST_NAMED else ""
    return [paragraph(which), f'<div class="cards">{cards}</div>',
            f'<details><summary>All by name</summary><div class="wide"><table><thead><tr><th>file</th><th>class</th>'
            f"<th>answer</th></tr></thead><tbody>{names}</tbody></table></div>{more}</details>"]


def answer_text(wrong: WrongAnswer) -> str:
    """A wrong answer in words."""
    said = f"{wrong.label or 'nothing'} ({wrong.confidence:.2f})"
    return f"{said}, called unknown" if wrong.unknown and wrong.taught else said


def _card(answer: WrongAnswer, drawn: dict[str, Any]) -> str:
    picture_of = f'<img src="{drawn["image"]}" alt="">' if "image" in drawn else _curves(drawn["curves"])
    taught = "" if answer.taught else " (never taught)"
    return (f'<div class="card">{picture_of}<b>{html.escape(answer.truth)}</b>{taught} → '
            f'{html.escape(answer_text(answer))}<span class="file">{html.escape(answer.source)}</span></div>')


def _curves(curves: list[list[float]]) -> str:
    """Channels as lines, all to one scale."""
    low = min(map(min, curves))
    span = max(map(max, curves)) - low or 1.0

    def points(values: Iterable[float], count: int) -> str:
        return " ".join(f"{2 + 146 * place / max(count - 1, 1):.1f},{96 - 92 * (value - low) / span:.1f}"
                        for place, value in enumerate(values))

    lines = "".join(f'<polyline points="{points(values, len(values))}" fill="none" stroke="{LINES[k % len(LINES)]}"/>'
                    for k, values in enumerate(curves))
    return f'<svg viewBox="0 0 150 100" preserveAspectRatio="none" aria-hidden="true">{lines}</svg>'
