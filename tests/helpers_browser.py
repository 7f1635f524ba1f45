"""Tests that need the browser of tools/browser.py."""
from __future__ import annotations

from browser import browser as browser
from helpers_needs import need


def need_browser() -> None:
    """A browser and its driver."""
    need("chromium", "chromium")
    need("chromedriver", "chromium-driver")
