"""HTTP of the daemon (`[http]` extra): API, page, events, metrics. Loaded only if the settings ask for it."""
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
    """Serve at `http_listen` in a thread of its own, until `ServerHandle.close`. services: by state directory; more may
    be added; requests that name none get that of `settings.state`.

    Raises BadInput for an invalid address or token file, or without the extra; LinkError for a busy port.
    """
    try:
        from edgecl.runtime.http.server import serve
        from edgecl.runtime.http.states import States
    except ImportError as error:
        raise BadInput(f"http_listen is set and {error.name} is missing", INSTALL) from error
    return serve(States(services, settings.state), settings.http_listen, settings.http_token_file)
