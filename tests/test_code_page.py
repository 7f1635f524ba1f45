"""docs/code.md: its tree is the folder as it stands, and what its prose names exists."""
from __future__ import annotations

import re
from pathlib import Path

import code_page
import pytest

ROOT = Path(__file__).resolve().parents[1]
PROSE = code_page.PAGE.read_text("utf-8").split(code_page.BEGIN)[0]


def test_the_tree_is_the_folder():
    assert code_page.PAGE.read_text("utf-8") == code_page.page(), "run tools/code_page.py"


def test_every_file_has_its_line():
    named = len(re.findall(r"\.py\b\s", code_page.tree()))
    files = [path for package in ("edgecl", "firmware_bridge") for path in (ROOT / package).rglob("*.py")]
    assert named == len([path for path in files if path.name != "__init__.py" or path.parent.name == "edgecl"])


@pytest.mark.parametrize("name", sorted(
    set(re.findall(r"`((?:\w+/)*\w+\.(?:py|toml|md))`", PROSE)) - {"methods/NAME.toml"}))
def test_a_file_that_the_prose_names_exists(name):
    assert (ROOT / name).exists() or (ROOT / "edgecl" / name).exists()


@pytest.mark.parametrize(("file", "name"), sorted(set(
    re.findall(r"`((?:\w+/)*\w+\.py)`\s+\(`(?:\w+\.)?(\w+)`\)", PROSE))))
def test_a_name_that_the_prose_gives_a_file_is_defined_in_it(file, name):
    assert re.search(rf"^\s*(?:class |def )?{name}\b", (ROOT / "edgecl" / file).read_text("utf-8"), re.M)
