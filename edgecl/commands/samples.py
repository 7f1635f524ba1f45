"""`edgecl samples`: the stored samples, one by one."""
from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from edgecl.commands import opened, print_json, socket_path
from edgecl.settings import counted

MOST_NAMED = 12     # classes in a line
ATTEMPTS = 5        # to read all pages of one generation


def samples(options: argparse.Namespace) -> None:
    """List the stored samples, or the suspicious ones."""
    found = _asked(options)
    if options.json:
        print_json(found)
        return
    show([title(found, options), *table(found["samples"], options.suspicious), *footer(found)])


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    """`SampleList.to_json`, from the daemon in pages, or else from the state itself."""
    from edgecl.runtime.client import Client, NoDaemon

    values = {"label": options.label, "suspicious": options.suspicious}
    try:
        with Client(socket_path(options)) as client:
            for _ in range(ATTEMPTS):
                found: dict[str, Any] = client.ask("samples", **values)
                page = found
                while len(found["samples"]) < found["total"] and page["samples"]:
                    page = client.ask("samples", **values, start=len(found["samples"]))
                    if page["generation"] != found["generation"]:
                        break
                    found["samples"] += page["samples"]
                if page["generation"] == found["generation"]:
                    break
            del found["total"]
            return found
    except NoDaemon:
        with opened(options) as learner:
            return learner.samples(options.label, options.suspicious).to_json()


def title(found: dict[str, Any], options: argparse.Namespace) -> str:
    """The line above the table."""
    of = "" if options.label is None else f" of {options.label!r}"
    if options.suspicious:
        return f"{counted(len(found['samples']), 'suspicious sample')} of {found['stored']} stored{of}, worst first"
    return f"{counted(found['stored'], 'stored sample')}{of} of {found['taught']} taught"


def footer(found: dict[str, Any]) -> list[str]:
    """What is said below the table."""
    gone = found["not_stored"]
    if not gone:
        return []
    named = ", ".join(f"{label} {count}" for label, count in [*gone.items()][:MOST_NAMED])
    more = f" and {len(gone) - MOST_NAMED} more classes" if len(gone) > MOST_NAMED else ""
    return [f"{sum(gone.values())} taught samples are not stored: {named}{more}"]


def table(rows: Sequence[dict[str, Any]], suspicious: bool) -> list[str]:
    """The samples as lines of aligned columns, the source last, since it may be long."""
    if not rows:
        return []
    if suspicious:
        head = ["id", "class", "margin", "reason", "source"]
        cells = [[row["id"], row["class"], "-" if row["margin"] is None else f"{row['margin']:.2f}", row["reason"],
                  row["source"] or "-"] for row in rows]
    else:
        head = ["id", "class", "taught (UTC)", "kept", "session", "source"]
        cells = [[row["id"], row["class"], (row["taught"] or "-")[:19].replace("T", " "),
                  row["kept"] + ", with input" * row["picture"] + ", near-duplicate" * row["near_duplicate"],
                  row["session"] or "-", row["source"] or "-"] for row in rows]
    return aligned([head, *cells])


def aligned(rows: list[list[str]]) -> list[str]:
    """Rows of cells as lines, columns two spaces apart."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in zip(*rows)]
    return ["  ".join(cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths)).rstrip()
            for row in rows]


def show(lines: list[str]) -> None:
    """Print lines; through the user's pager if they are more than the terminal has."""
    text = "\n".join(lines) + "\n"
    if sys.stdout.isatty() and sys.stdin.isatty() and len(lines) >= os.get_terminal_size().lines:
        import pydoc

        pydoc.pager(text)
    else:
        sys.stdout.write(text)
        sys.stdout.flush()
