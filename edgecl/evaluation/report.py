"""An HTML report in one file: text, tables, and plots as inline SVG, which need matplotlib (extra `report`)."""
from __future__ import annotations

import html
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgecl.errors import BadInput

COLOURS = ("#0b6e4f", "#b3541e", "#6c7a89", "#3d5a98", "#8e3b8e", "#a88300", "#1f8a9e", "#a3283c", "#5f9e2f", "#d9719a",
           "#7a5230", "#2f2f2f")
DASHES = ("-", "--", ":")      # line styles for the first, second and third use of a colour
STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --paper: #ffffff; --line: #d7dce1; --quiet: #5b6670; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --paper: #14181c; --line: #343c44; --quiet: #9aa6b1; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 56rem;
       margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.lead { color: var(--quiet); margin-top: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: var(--quiet); font-weight: 600; }
figure { margin: 1rem 0; background: #ffffff; border: 1px solid var(--line); border-radius: 6px; padding: .5rem; }
figure svg { width: 100%; height: auto; display: block; }
"""


def heading(text: str) -> str:
    """A section title."""
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{html.escape(text)}</p>"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text."""
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return (f'<div class="wide"><table><thead>{line(columns, "th")}</thead>'
            f'<tbody>{"".join(line(row, "td") for row in rows)}</tbody></table></div>')


def curves(x: Sequence[int], lines: Mapping[str, Sequence[float]], x_label: str, y_label: str) -> str:
    """A line plot as SVG: y in 0..1, one line per name, labelled at its end. Raises BadInput without matplotlib."""
    figure, axes = _figure(max(4.2, 0.32 * len(lines)))
    places = label_places([values[-1] for values in lines.values()], 0.23 / figure.get_figheight(), 1.0)
    for number, (place, (name, values)) in enumerate(zip(places, lines.items())):
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(x, values, DASHES[number // len(COLOURS) % len(DASHES)], color=colour, marker="o", markersize=4,
                  linewidth=2)
        axes.annotate(f"{name}  {values[-1]:.3f}", (x[-1], place), xytext=(8, 0), textcoords="offset points",
                      va="center", color=colour)
    axes.set(xlabel=x_label, ylabel=y_label, ylim=(0, 1.02), xticks=list(x)[::max(1, len(x) // 10)])
    return _svg(figure)


def scatter(points: dict[str, tuple[float, float]], x_label: str, y_label: str) -> str:
    """Labelled points as SVG: x >= 0 on a logarithmic axis, y in 0..1. Raises BadInput without matplotlib."""
    figure, axes = _figure(max(4.2, 0.32 * len(points)))
    smallest = min((x for x, _ in points.values() if x > 0), default=1.0)
    places = label_places([y for _, y in points.values()], 0.23 / figure.get_figheight(), 1.0)
    for number, (place, (name, (x, y))) in enumerate(zip(places, points.items())):
        colour = COLOURS[number % len(COLOURS)]
        axes.plot([x], [y], marker="o", markersize=8, color=colour)
        axes.annotate(name, (x, y), xytext=(1.04, place), textcoords=("axes fraction", "data"), va="center",
                      color=colour, arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.4, "shrinkB": 5})
    axes.set_xscale("symlog", linthresh=smallest / 2, linscale=0.5)     # shows 0 as well
    most = 2 * max(smallest, *(x for x, _ in points.values()))
    axes.set(xlabel=x_label, ylabel=y_label, xlim=(-smallest / 8, most), ylim=(0, 1.02),
             xticks=[0, *(10 ** power for power in range(16) if smallest / 2 <= 10 ** power <= most)])
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    return _svg(figure)


def label_places(values: Sequence[float], gap: float, most: float) -> list[float]:
    """Places for labels near their values: at least `gap` apart, at most `most`, in the order of the values."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    places = [values[i] for i in order]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    for i in range(len(places) - 1, -1, -1):
        places[i] = min(places[i], (places[i + 1] - gap) if i + 1 < len(places) else most)
    by_value = dict(zip(order, places))
    return [by_value[i] for i in range(len(values))]


def bars(names: Sequence[str], parts: dict[str, Sequence[float]], x_label: str, form: str = "{:.3g}") -> str:
    """Horizontal bars as SVG: one group per name, one bar per part, with its value at the end. form: of the values.
    Raises BadInput without matplotlib."""
    thick = 0.8 / len(parts)
    figure, axes = _figure(0.7 + 0.28 * len(names) * max(len(parts), 1.5))
    axes.grid(visible=False)
    most = max((value for values in parts.values() for value in values), default=0.0) or 1.0
    for number, (colour, (part, values)) in enumerate(zip(COLOURS, parts.items())):
        places = [place + (number - (len(parts) - 1) / 2) * thick for place in range(len(names))]
        axes.barh(places, values, 0.9 * thick, color=colour, label=part)
        for place, value in zip(places, values):
            axes.annotate(form.format(value), (value, place), xytext=(4, 0), textcoords="offset points", va="center",
                          color=colour, fontsize=9)
    axes.set(xlabel=x_label, xlim=(0, 1.15 * most), yticks=range(len(names)))
    axes.locator_params(axis="x", nbins=6)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    axes.set_yticklabels(names)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    if len(parts) > 1:
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.subplots_adjust(left=0.26, right=0.84, top=0.97, bottom=min(0.5 / figure.get_figheight(), 0.4))
    return _svg(figure)


def tasks_and_units(usage: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """For each layer, one row per task and one column per unit, as SVG: darker if the task uses more of the unit's
    inputs. usage: layer -> [tasks][units], shares in 0..1. Raises BadInput without matplotlib."""
    rows = len(next(iter(usage.values())))
    figure, _ = _figure(0.5 + len(usage) * (0.55 + 0.13 * rows))
    figure.clear()
    panels = figure.subplots(len(usage), 1, squeeze=False)[:, 0]
    for axes, (layer, shares) in zip(panels, usage.items()):
        image = axes.imshow(shares, aspect="auto", interpolation="nearest", cmap="YlGn", vmin=0)
        axes.set(yticks=range(rows), ylabel="task")
        axes.set_yticklabels(range(1, rows + 1), fontsize=7)
        axes.set_title(f"{layer}: {len(shares[0])} units", fontsize=9, loc="left")
        axes.tick_params(axis="both", length=0, labelsize=7)
        figure.colorbar(image, ax=axes, pad=0.01, format="%.2g").ax.tick_params(labelsize=7)
    figure.subplots_adjust(left=0.07, right=1.02, top=1 - 0.25 / figure.get_figheight(),
                           bottom=0.25 / figure.get_figheight(), hspace=0.6)
    return _svg(figure)


def _figure(height: float = 4.2) -> tuple[Any, Any]:
    try:
        import matplotlib
    except ImportError as error:
        raise BadInput("plots need matplotlib", "pip install 'edgecl[report]'") from error
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.fonttype"] = "none"
    matplotlib.rcParams["svg.hashsalt"] = "edgecl"
    matplotlib.rcParams["text.parse_math"] = False      # a $ in a name is a $
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8.4, height))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    figure.subplots_adjust(left=0.08, right=0.72, top=0.96, bottom=0.13)
    return figure, axes


def _svg(figure: Any) -> str:
    from matplotlib import pyplot

    text = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")    # browsers have it
        figure.savefig(text, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    drawing = text.getvalue()
    return f"<figure>{drawing[drawing.index('<svg'):]}</figure>"


def write_report(path: Path, title: str, lead: str, parts: Sequence[str]) -> None:
    """Write the page. parts: HTML from the functions above."""
    path.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f'<body><h1>{html.escape(title)}</h1><p class="lead">{html.escape(lead)}</p>{"".join(parts)}</body></html>',
        "utf-8", "backslashreplace")    # names of files may hold bytes that are not UTF-8
