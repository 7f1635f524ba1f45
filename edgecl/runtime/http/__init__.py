"""HTTP of the daemon: the API, the page, events and metrics (`[http]` extra). Loaded only where the configuration asks for it."""
from __future__ import annotations

from typing import TYPE_CHECKING

from edgecl.errors import BadInput

if TYPE_CHECKING:
    from edgecl.runtime.http.server import Handle
    from edgecl.runtime.service import Service
    from edgecl.runtime.settings import DaemonSettings

INSTALL = "pip install 'edgecl[http]'"


def start(service: Service, settings: DaemonSettings) -> Handle:
    """Serve at `http_listen` in a thread of its own, until `Handle.close`.

    Raises BadInput for an address or token file that won't do, or where the extra is missing; LinkError for a busy port.
    """
    try:
        from edgecl.runtime.http.server import serve
    except ImportError as error:
        raise BadInput(f"http_listen is set and {error.name} is missing", INSTALL) from error
    return serve(service, settings.http_listen, settings.http_token_file)
