"""Tests that need the browser of tools/browser.py."""
from __future__ import annotations

import os
import shutil

import pytest
from browser import browser as browser

INSTALL = "apt-get install chromium chromium-driver"


def need_browser() -> None:
    """Skip the test where there is no browser; with CI=true, fail it."""
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            if os.environ.get("CI") == "true":
                pytest.fail(f"{program} is missing: `{INSTALL}`")
            pytest.skip(f"{program} is missing: `{INSTALL}`")
