"""A per-user cache of built backbones. File names contain a SHA-256; a damaged file is built again."""
from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from edgecl import __version__

if TYPE_CHECKING:
    from collections.abc import Callable


def cache_folder() -> Path:
    """$EDGECL_CACHE, else `edgecl` in $XDG_CACHE_HOME, else in ~/.cache. The folder may not exist yet."""
    if chosen := os.environ.get("EDGECL_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgecl"


def cached(key: str, build: Callable[[], bytes]) -> bytes:
    """The last result of `build` for this key and this version of edgecl, or a new one.

    key: letters, digits, `_` and `-`. A cache that can't be read or written is not an error.
    """
    folder = cache_folder() / f"backbones-{__version__}"
    with suppress(OSError):
        for path in folder.glob(f"{key}.*.onnx"):
            content = path.read_bytes()
            if path.name == _name(key, content):
                return content
            path.unlink()
    content = build()
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / _name(key, content), content)
    return content


def _name(key: str, content: bytes) -> str:
    return f"{key}.{hashlib.sha256(content).hexdigest()}.onnx"


def _write(path: Path, content: bytes) -> None:
    """Write atomically: another process never sees part of the file."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
