"""edgecl: an embedded on-device continual learner.

`edgecl.Learner` is the Python API; it is imported on first use, so that `import edgecl` costs nothing.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecl.errors import EdgeclError as EdgeclError
    from edgecl.learner import Learner as Learner

__version__ = "0.1.0"
__all__ = ["EdgeclError", "Learner", "__version__"]

_HOME = {"Learner": "edgecl.learner", "EdgeclError": "edgecl.errors"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edgecl' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
