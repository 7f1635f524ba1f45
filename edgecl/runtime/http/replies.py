"""Replies: JSON for everything, one form of errors, one set of headers."""
from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from edgecl.errors import BackboneError, BadInput, BudgetError, EdgeclError, LinkError, StateError

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
                               "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
STATUS_CODES: dict[type[EdgeclError], int] = {BadInput: 400, BackboneError: 409, StateError: 409, BudgetError: 409,
                                       LinkError: 503}


class HttpRefusal(Exception):
    """A request that is refused with an HTTP status; what is wrong, and the cure."""

    def __init__(self, code: int, what: str, cure: str, **headers: str) -> None:
        super().__init__(what)
        self.code, self.what, self.cure = code, what, cure
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def refuse(error: HttpRefusal | EdgeclError) -> JSONResponse:
    """{"error", "cure"} with the status of an error."""
    code = error.code if isinstance(error, HttpRefusal) else STATUS_CODES.get(type(error), 400)
    headers = error.headers if isinstance(error, HttpRefusal) else None
    return reply({"error": error.what, "cure": error.cure}, code, headers)


def reply(value: Any, code: int = 200, headers: dict[str, str] | None = None) -> JSONResponse:
    """A value as JSON."""
    return JSONResponse(value, code, headers)
