"""The routes for what was taught: stored samples, their pictures, and corrections of them."""
from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from edgecl.errors import BadInput
from edgecl.evaluation.pictures import picture
from edgecl.runtime.http.bodies import read_values
from edgecl.runtime.http.parameters import flag, parameter, required, whole
from edgecl.runtime.http.replies import reply
from edgecl.runtime.service import PAGE

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from edgecl.runtime.service import Service

MOST_START = 10**9      # position in a list of samples
MOST_PICTURES = 64      # in one reply
MOST_IDS = 256 * 1024   # bytes of a body with ids of samples: about 20,000 of them

Endpoint = Callable[["Request"], Awaitable["Response"]]


class SampleRoutes:
    """call: runs a method of the service in another thread; service: that a request is for."""

    def __init__(self, call: Callable[..., Awaitable[Any]], service: Callable[[Request], Service]) -> None:
        self._call, self._service = call, service

    def routes(self) -> list[tuple[str, str, Endpoint]]:
        """Method, path and endpoint of each."""
        return [
            ("GET", "/api/samples", self._samples),
            ("GET", "/api/pictures", self._pictures),
            ("POST", "/api/remove", self._remove),
            ("POST", "/api/move", self._move),
            ("POST", "/api/rename", self._rename),
        ]

    async def _samples(self, request: Request) -> Response:
        """?class=NAME&suspicious=1&start=N&limit=N."""
        return reply(await self._call(self._service(request).samples, request.query_params.get("class") or None,
                                      flag(request, "suspicious"), whole(request, "start", 0, MOST_START),
                                      whole(request, "limit", PAGE, PAGE)))

    async def _pictures(self, request: Request) -> Response:
        """?ids=1-0,1-1: {id: picture | null}; null: not stored any more, or only its feature."""
        service, ids = self._service(request), parameter(request, "ids").split(",")
        if len(ids) > MOST_PICTURES:
            raise BadInput(f"{len(ids)} ids", f"ask for at most {MOST_PICTURES} at a time")

        def look() -> dict[str, Any]:
            return {name: None if sample is None else picture(sample) for name, sample in service.inputs(ids).items()}
        return reply(await self._call(look))

    async def _remove(self, request: Request) -> Response:
        values = await read_values(request, {"ids": list, "erase": bool}, MOST_IDS)
        return reply(await self._call(self._service(request).remove, _ids(values), bool(values.get("erase"))))

    async def _move(self, request: Request) -> Response:
        values = await read_values(request, {"ids": list, "class": str}, MOST_IDS)
        return reply(await self._call(self._service(request).move, _ids(values), required(values, "class")))

    async def _rename(self, request: Request) -> Response:
        values = await read_values(request, {"old": str, "new": str, "into": bool})
        return reply(await self._call(self._service(request).rename, required(values, "old"), required(values, "new"),
                                      bool(values.get("into"))))


def _ids(values: dict[str, Any]) -> list[str]:
    found = required(values, "ids")
    wrong = [each for each in found if not isinstance(each, str)]
    if wrong:
        raise BadInput(f"{wrong[0]!r:.40} is not the id of a sample", 'send {"ids": ["12-5", ...]}')
    return list(found)
