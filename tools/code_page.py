#!/usr/bin/env python3
"""Writes the tree in docs/code.md: one line per file, taken from the first sentence of each file's own docstring."""
from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/code.md"
BEGIN, END = "<!-- tree: tools/code_page.py writes it -->\n", "<!-- end of tree -->\n"
ROOMS = ("", "files", "sources", "backbones", "statistics", "heads", "exemplars", "state", "results", "learning",
         "rounds", "profiling", "training", "runtime", "evaluation", "commands")   # the way of a frame


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s", text)[0]


def lines_of(folder: Path, depth: int) -> list[str]:
    """The lines of a folder's files, then of its subfolders."""
    pad = "    " * depth
    files = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
    found = [f"{pad}{path.name:<{34 - len(pad)}} {first_sentence(path)}" for path in files]
    for inner in sorted(path for path in folder.iterdir() if (path / "__init__.py").exists()):
        found += ["", f"{pad}{f'{inner.name}/':<{34 - len(pad)}} {first_sentence(inner / '__init__.py')}",
                  *lines_of(inner, depth + 1)]
    return found


def tree() -> str:
    """The tree of both packages, as shown on the page."""
    parts = []
    package = ROOT / "edgecl"
    rooms = [path.name for path in package.iterdir() if (path / "__init__.py").exists()]
    missing = sorted({*rooms} - {*ROOMS})
    assert not missing, f"give {missing} a place in ROOMS"
    for room in ROOMS:
        folder = package / room
        if room:
            parts.append([f"edgecl/{room}/", f"    {first_sentence(folder / '__init__.py')}", "", *lines_of(folder, 1)])
        else:
            files = sorted(package.glob("*.py"))
            parts.append(["edgecl/", *(f"    {path.name:<30} {first_sentence(path)}" for path in files)])
    bridge = ROOT / "firmware_bridge"
    parts.append(["firmware_bridge/", f"    {first_sentence(bridge / '__init__.py')}", "", *lines_of(bridge, 1)])
    return "\n\n".join("```\n" + "\n".join(part) + "\n```" for part in parts) + "\n"


def page() -> str:
    """The whole page with its current tree."""
    text = PAGE.read_text("utf-8")
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    return text[:begin] + "\n" + tree() + "\n" + text[end:]


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
