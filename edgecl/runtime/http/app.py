"""The routes: each request becomes a call of the service, in one of a few threads."""
from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Route, Router

from edgecl.errors import BadInput
from edgecl.evaluation.pictures import picture
from edgecl.rounds.method import method_names
from edgecl.runtime.http import media, metrics
from edgecl.runtime.http.access import COOKIE
from edgecl.runtime.http.bodies import Turns, media_type, read_values
from edgecl.runtime.http.events import Broadcaster, EventReply
from edgecl.runtime.http.guards import Guard
from edgecl.runtime.http.parameters import flag, parameter, required
from edgecl.runtime.http.replies import HttpRefusal, reply
from edgecl.runtime.http.sample_routes import SampleRoutes

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import Receive, Scope, Send

    from edgecl.runtime.http.access import Access
    from edgecl.runtime.http.states import States
    from edgecl.runtime.service import Service

T = TypeVar("T")
Endpoint = Callable[["Request"], Awaitable[Response]]
READS = ("status", "classes", "history", "rounds", "review", "latest", "budget")   # methods of the service
MOST_CALLS = 4        # of the service at once
PAGE_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
COOKIE_SECONDS = 365 * 86400


class Application:
    """The ASGI application. Every route takes ?state=NAME, if the daemon has several states."""

    def __init__(self, states: States, access: Access) -> None:
        self._states, self._access = states, access
        self._broadcasters: dict[Service, Broadcaster] = {}
        self._turns, self._replies = Turns(), Counter[int]()
        self._threads: anyio.CapacityLimiter | None = None
        self._page = dict(_page())
        self._app = Guard(self._route, access, self._replies, self._page.keys())
        self._router = Router([Route(path, endpoint, methods=[method]) for method, path, endpoint in self._routes()],
                              redirect_slashes=False, default=_missing)

    def _routes(self) -> list[tuple[str, str, Endpoint]]:
        return [
            *(("GET", path, self._static) for path in self._page),
            *(("GET", f"/api/{name}", self._look) for name in READS),
            ("POST", "/api/login", self._login),
            ("GET", "/api/info", self._info),
            ("GET", "/api/events", self._events),
            ("GET", "/metrics", self._metrics),
            ("GET", "/api/exemplars", self._exemplars),
            ("GET", "/api/picture", self._picture),
            ("GET", "/api/sample/{id}", self._sample),
            ("DELETE", "/api/review", self._review_clear),
            ("GET", "/api/review/{number:int}", self._review_frames),
            ("POST", "/api/review/{number:int}", self._review_name),
            ("DELETE", "/api/review/{number:int}", self._review_drop),
            ("GET", "/api/review/frames/{number:int}", self._review_picture),
            ("DELETE", "/api/review/frames/{number:int}", self._review_drop_frame),
            ("POST", "/api/predict", self._predict),
            ("POST", "/api/learn", self._learn),
            ("POST", "/api/learn_last", self._learn_last),
            ("POST", "/api/forget", self._forget),
            ("POST", "/api/rollback", self._rollback),
            ("POST", "/api/round", self._round),
            *SampleRoutes(self._call, self._service).routes(),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        await self._app(scope, receive, send)

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._router({**scope, "app": self}, receive, send)
        except HTTPException as error:
            what = {404: f"there is no {scope['path'][:80]!r}", 405: f"{scope['path']} does not take {scope['method']}"}
            raise HttpRefusal(error.status_code, what.get(error.status_code, error.detail),
                              "see README.md for the routes", **dict(error.headers or {})) from error
        except ClientDisconnect:
            pass

    def close(self) -> None:
        """End the event streams."""
        for broadcaster in list(self._broadcasters.values()):
            broadcaster.close()

    async def _call(self, call: Callable[..., T], *values: Any) -> T:
        """A call of the service in another thread; at most MOST_CALLS at once."""
        if self._threads is None:
            self._threads = anyio.CapacityLimiter(MOST_CALLS)
        return await anyio.to_thread.run_sync(partial(call, *values), limiter=self._threads)

    def _service(self, request: Request) -> Service:
        return self._states.pick(request.query_params.get("state"))

    # looking ------------------------------------------------------------------------------------

    async def _static(self, request: Request) -> Response:
        content, kind = self._page[request.url.path]
        return Response(content, media_type=kind)

    async def _look(self, request: Request) -> Response:
        return reply(await self._call(getattr(self._service(request), request.url.path.rpartition("/")[2])))

    async def _info(self, request: Request) -> Response:
        """`Service.info`, and the names of all states."""
        named, service = self._states.named(), self._service(request)
        own = next(name for name, each in named.items() if each is service)
        return reply({**await self._call(service.info), "state": own, "states": list(named)})

    async def _metrics(self, _: Request) -> Response:
        found = await self._call(lambda: [metrics.ServiceValues(name, each.info(), each.budget(), each.counters())
                                          for name, each in self._states.named().items()])
        return Response(metrics.exposition(found, self._replies), headers={"Content-Type": metrics.CONTENT_TYPE})

    async def _events(self, request: Request) -> Response:
        service = self._service(request)
        return EventReply(self._broadcasters.setdefault(service, Broadcaster(service)))

    async def _exemplars(self, request: Request) -> Response:
        """?class=NAME: up to four stored samples of a class, as pictures."""
        service, label = self._service(request), parameter(request, "class")
        return reply(await self._call(lambda: [picture(each) for each in service.exemplars(label, 4)]))

    async def _picture(self, request: Request) -> Response:
        """?source=NAME: the last sample of a source."""
        source = parameter(request, "source")

        def look() -> dict[str, Any]:
            sample = self._service(request).latest_sample(source)
            if sample is None:
                raise HttpRefusal(404, f"the source {source!r} has shown nothing yet", "wait for its first sample")
            return picture(sample)
        return reply(await self._call(look))

    async def _sample(self, request: Request) -> Response:
        """The picture of a stored sample. Raises HttpRefusal (404) if none is stored."""
        service, number = self._service(request), request.path_params["id"]

        def look() -> dict[str, Any]:
            sample = _found(lambda: service.sample(number))
            if sample is None:
                raise HttpRefusal(404, f"of the sample {number} only the feature is stored",
                                  "create the state with --codec jpeg, raw or delta16 to keep pictures")
            return picture(sample)
        return reply(await self._call(look))

    async def _review_frames(self, request: Request) -> Response:
        service, number = self._service(request), request.path_params["number"]
        return reply(await self._call(_found, lambda: service.review_frames(number)))

    async def _review_picture(self, request: Request) -> Response:
        service, number = self._service(request), request.path_params["number"]
        return reply(await self._call(lambda: picture(_found(lambda: service.review_sample(number)))))

    # changing -----------------------------------------------------------------------------------

    async def _login(self, request: Request) -> Response:
        values = await read_values(request, {"token": str})
        if not self._access.open and not self._access.is_token(values.get("token") or ""):
            raise HttpRefusal(401, "that is not the token", "it is in the file that http_token_file names")
        answer = reply({"ok": True})
        if not self._access.open:
            answer.set_cookie(COOKIE, self._access.cookie, max_age=COOKIE_SECONDS, httponly=True, samesite="strict",
                              secure=request.headers.get("origin", "").startswith("https:"))
        return answer

    async def _predict(self, request: Request) -> Response:
        """?why=1: with what `Why` says."""
        why = flag(request, "why")
        async with self._turns.upload(request) as body:
            return reply(await self._call(lambda: self._service(request).predict(self._batch(request, body), why)))

    async def _learn(self, request: Request) -> Response:
        """?class=NAME&file=NAME&again=1&distinct=1."""
        label, name = parameter(request, "class"), request.query_params.get("file") or "http"
        again, distinct = flag(request, "again"), flag(request, "distinct")
        async with self._turns.upload(request) as body:
            return reply(await self._call(
                lambda: self._service(request).learn(label, self._batch(request, body), name, again, distinct)))

    def _batch(self, request: Request, body: bytes) -> Any:
        info = self._service(request).info()
        return media.batch_of(body, media_type(request), info["kind"], info["input_shape"])

    async def _learn_last(self, request: Request) -> Response:
        values = await read_values(request, {"class": str, "seconds": float, "source": str, "again": bool,
                                             "distinct": bool})
        label, seconds = required(values, "class"), required(values, "seconds")
        return reply(await self._call(self._service(request).learn_last, label, float(seconds), values.get("source"),
                                      "", values.get("again") or flag(request, "again"), bool(values.get("distinct"))))

    async def _review_name(self, request: Request) -> Response:
        service, number = self._service(request), request.path_params["number"]
        values = await read_values(request, {"class": str, "frames": list, "distinct": bool})
        label = required(values, "class")
        await self._call(_found, lambda: service.review_frames(number))
        return reply(await self._call(service.review_name, number, label, values.get("frames"),
                                      bool(values.get("distinct"))))

    async def _review_drop(self, request: Request) -> Response:
        service, number = self._service(request), request.path_params["number"]
        return reply(await self._call(_found, lambda: service.review_drop(number)))

    async def _review_drop_frame(self, request: Request) -> Response:
        service, number = self._service(request), request.path_params["number"]
        return reply(await self._call(_found, lambda: service.review_drop_frames([number])))

    async def _review_clear(self, request: Request) -> Response:
        return reply(await self._call(self._service(request).review_clear))

    async def _forget(self, request: Request) -> Response:
        label = required(await read_values(request, {"class": str}), "class")
        return reply(await self._call(self._service(request).forget, label))

    async def _rollback(self, request: Request) -> Response:
        values = await read_values(request, {"generation": int})
        return reply(await self._call(self._service(request).rollback, values.get("generation")))

    async def _round(self, request: Request) -> Response:
        values = await read_values(request, {"method": str, "time": float, "memory": int})
        if (method := values.get("method")) is not None and method not in method_names():
            raise BadInput(f"no method is called {method[:40]!r}", f"give one of {', '.join(method_names())}")
        return reply(await self._call(self._service(request).start_round, values.get("method"), values.get("time"),
                                      values.get("memory")), 202)


def _page() -> Iterator[tuple[str, tuple[bytes, str]]]:
    """Each path of the page, its content and media type."""
    for file in (files("edgecl.runtime") / "page").iterdir():
        kind = PAGE_TYPES.get("." + file.name.rpartition(".")[2])
        if kind:
            yield "/" if file.name == "index.html" else f"/{file.name}", (file.read_bytes(), kind)


async def _missing(scope: Scope, receive: Receive, send: Send) -> None:
    raise HTTPException(404)


def _found(look: Callable[[], T]) -> T:
    """What a call finds that raises BadInput if there is nothing. Raises HttpRefusal (404) instead."""
    try:
        return look()
    except BadInput as error:
        raise HttpRefusal(404, error.what, error.cure) from error
