"""Checks before every route: number of requests, Host, Origin, token; and headers of every reply."""
from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders

from edgecl.errors import EdgeclError
from edgecl.runtime.http.replies import HEADERS, HttpRefusal, refuse

if TYPE_CHECKING:
    from collections.abc import Collection

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from edgecl.runtime.http.access import Access

MOST_REQUESTS = 128  # being processed or waiting for their turn; past these 503
LOGIN = "/api/login"
log = logging.getLogger("edgecl")


class Guard:
    """ASGI middleware. replies: counts replies by status, for /metrics; page: paths that anybody may read, since they
    hold nothing of the state."""

    def __init__(self, app: ASGIApp, access: Access, replies: Counter[int], page: Collection[str]) -> None:
        self._app, self._access, self._replies, self._page, self._active = app, access, replies, page, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request or pass it on; errors behind it become JSON replies."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def dressed(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self._replies[message["status"]] += 1
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        self._active += 1
        try:
            self._check(scope)
            await self._app(scope, receive, dressed)
        except (HttpRefusal, EdgeclError) as error:
            error.__traceback__ = None  # its frames hold the body, in a cycle that only the collector would free
            if not begun:
                await refuse(error)(scope, receive, dressed)
        except Exception as error:  # the outermost place of a request: the server goes on
            log.exception("%s %s failed", scope["method"], scope["path"])
            error.__traceback__ = None
            if not begun:
                await refuse(HttpRefusal(500, "the daemon has failed at this", "see its log"))(
                    scope, receive, dressed)
        finally:
            self._active -= 1

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        if self._active > MOST_REQUESTS:
            raise HttpRefusal(503, f"{MOST_REQUESTS} requests are being processed", "try again in a second",
                              Retry_After="1")
        host, origin, site = headers.get("host", ""), headers.get("origin"), headers.get("sec-fetch-site")
        if not self._access.knows_host(host):
            raise HttpRefusal(403, f"the Host {host[:80]!r} is not this machine",
                              "use its address, its name or localhost")
        if origin is not None and not self._access.knows_origin(origin, host):
            raise HttpRefusal(403, f"a page of {origin[:80]!r} may not send requests here",
                              "open the page that this daemon serves")
        if scope["path"] not in self._page and site not in (None, "same-origin", "none"):
            raise HttpRefusal(403, "a page of another site may not send requests here",
                              "open the page that this daemon serves")
        shown = headers.get("authorization", ""), headers.get("cookie", "")
        if scope["path"] not in (*self._page, LOGIN) and not self._access.accepts(*shown):
            raise HttpRefusal(401, "the token is missing or wrong",
                          "send Authorization: Bearer TOKEN, or log in on the page", WWW_Authenticate="Bearer")
