"""The states of a daemon, by the names that requests may use."""
from __future__ import annotations

from typing import TYPE_CHECKING

from edgecl.runtime.http.replies import HttpRefusal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgecl.runtime.service import Service


class States:
    """services: by directory; more may be added; main: the state of requests that name none."""

    def __init__(self, services: Mapping[Path, Service], main: Path) -> None:
        self._services, self._main = services, main

    def named(self) -> dict[str, Service]:
        """Services by directory name, the main one first; a repeated name gets a number."""
        found: dict[str, Service] = {}
        for path, service in sorted(self._services.items(), key=lambda pair: pair[0] != self._main):
            name, number = path.resolve().name, 1
            while name in found:
                number += 1
                name = f"{path.resolve().name}-{number}"
            found[name] = service
        return found

    def pick(self, name: str | None) -> Service:
        """The service of that name. Raises HttpRefusal (404)."""
        if name is None:
            return self._services[self._main]
        found = self.named()
        if name not in found:
            raise HttpRefusal(404, f"no state is called {name[:64]!r}", f"there are: {', '.join(found)}")
        return found[name]
