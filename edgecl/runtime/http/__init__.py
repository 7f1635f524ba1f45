"""HTTP of the daemon (`[http]` extra): API, page, events, metrics. Loaded only where the configuration asks for it."""
from __future__ import annotations

from typing import TYPE_CHECKING

from edgecl.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgecl.runtime.http.server import ServerHandle
    from edgecl.runtime.service import Service
    from edgecl.runtime.settings import DaemonSettings

INSTALL = "pip install 'edgecl[http]'"


def start(services: Mapping[Path, Service], settings: DaemonSettings) -> ServerHandle:
    """Serve at `http_listen` in a thread of its own, until `Handle.close`. services: by the directories of their
    states, more may come; that of `settings.state` is meant where a request names none.

    Raises BadInput for an address or token file that won't do, or without the extra; LinkError for a busy port.
    """
    try:
        from edgecl.runtime.http.server import serve
        from edgecl.runtime.http.states import States
    except ImportError as error:
        raise BadInput(f"http_listen is set and {error.name} is missing", INSTALL) from error
    return serve(States(services, settings.state), settings.http_listen, settings.http_token_file)
