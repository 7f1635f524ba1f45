"""Code of the user's own, imported by a worker: never by the process that serves, or by reading a method."""
from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from edgecl.errors import BadInput


def first_line(error: Exception) -> str:
    """Of its message."""
    return (str(error).splitlines() or [""])[0]


def imported(where: str, folder: Path = Path()) -> Any:
    """What `package.module:name` names; its module is looked for in `folder` last. Raises BadInput if there is none."""
    module, _, name = where.partition(":")
    sys.path.append(str(folder))     # and it stays there: the module may import others late
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise BadInput(f"{where} needs a module {error.name!r}", "install it") from error
        raise BadInput(f"there is no module {error.name!r} for {where}",
                       f"install it, or put it into {folder} or the folder that edgecl runs in") from error
    except Exception as error:
        raise BadInput(f"importing {module} failed: {type(error).__name__}: {first_line(error)}",
                       "fix the module") from error
    if not hasattr(found, name):
        raise BadInput(f"{module} has no {name!r}", f"name what {found.__file__} defines")
    return getattr(found, name)
