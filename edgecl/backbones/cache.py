"""A per-user cache of built backbones. File names contain a SHA-256; a damaged file is built again."""
from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from edgecl import __version__
from edgecl.files.atomic import write_atomically

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
        write_atomically(folder / _name(key, content), content, mode=0o600, sync=False)
    return content


def cached_by_hash(digest: str) -> bytes | None:
    """The cached backbone, of any version of edgecl, whose content has this SHA-256 in hexadecimal, or None."""
    with suppress(OSError):
        for path in cache_folder().glob(f"backbones-*/*.{digest}.onnx"):
            with suppress(OSError):
                content = path.read_bytes()
                if hashlib.sha256(content).hexdigest() == digest:
                    return content
    return None


def _name(key: str, content: bytes) -> str:
    return f"{key}.{hashlib.sha256(content).hexdigest()}.onnx"
