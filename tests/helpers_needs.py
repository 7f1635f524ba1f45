"""What a test needs beside Python's packages: without it the test is skipped, or fails where CI runs."""
from __future__ import annotations

import importlib.util
import os
import shutil
from typing import NoReturn

import pytest

SYSTEM = os.pathsep.join(("/usr/sbin", "/usr/local/sbin"))    # where daemons lie, on the search path of root alone


def need(program: str, package: str) -> str:
    """The path of a program that Debian's `package` brings."""
    found = shutil.which(program, path=os.pathsep.join((os.environ.get("PATH", os.defpath), SYSTEM)))
    return found or lacking(program, f"apt-get install {package}")


def need_module(name: str, extra: str) -> None:
    """A Python package that an extra of edgecl brings."""
    if importlib.util.find_spec(name) is None:
        lacking(name, f"pip install 'edgecl[{extra}]'")


def lacking(what: str, cure: str) -> NoReturn:
    """Skip the test with the reason and the cure; with CI=true, which has to have everything, fail it."""
    reason = f"{what} is missing: `{cure}`"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
