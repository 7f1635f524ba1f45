"""Reading bodies: limited in bytes, in time, and in how many are read at once."""
from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio

from edgecl.errors import BadInput
from edgecl.files.tables import Rule, read
from edgecl.runtime.commands import EXACT
from edgecl.runtime.http.media import most_bytes
from edgecl.runtime.http.replies import HttpRefusal

if TYPE_CHECKING:
    from starlette.requests import Request

MOST_COMMAND = 16 * 1024      # bytes of a body without samples
BODY_SECONDS = 30.0           # from its first to its last byte
MOST_DISCARDED = 64 * 2 ** 20   # bytes of a body that is too large: read, so that the client comes to read the refusal
MOST_UPLOADS = 3              # read or learned at once
TURN_SECONDS = 10.0           # that an upload waits for its turn


def media_type(request: Request) -> str:
    """The media type without parameters, "" for none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_body(request: Request, most: int) -> bytes:
    """The whole body. Raises HttpRefusal: 413 past `most` bytes, whatever its Content-Length says; 408 after
    BODY_SECONDS."""
    declared = request.headers.get("content-length", "")
    large = declared.isdigit() and int(declared) > most
    body, count = bytearray(), 0
    if not (large and (int(declared) > MOST_DISCARDED or "expect" in request.headers)):
        with anyio.move_on_after(BODY_SECONDS) as clock:
            async for part in request.stream():
                count += len(part)
                large = large or count > most
                if large:
                    body.clear()
                    if count > MOST_DISCARDED:
                        break
                else:
                    body += part
        if clock.cancelled_caught:
            raise HttpRefusal(408, f"the body took longer than {BODY_SECONDS:.0f} s",
                          "send less, or over a faster connection", Connection="close")
    if large:
        raise HttpRefusal(413, f"the body has more than {most} bytes",
                          "send fewer samples at a time, or a smaller photo",
                          Connection="close")
    return bytes(body)


async def read_values(request: Request, known: dict[str, type], most: int = MOST_COMMAND) -> dict[str, Any]:
    """The JSON object in a body of at most `most` bytes, {} if it is empty: only keys of `known`, of their types or
    null. Raises HttpRefusal."""
    cure = "send a JSON object with " + (", ".join(known) or "no keys")
    body = await read_body(request, most)
    if body and media_type(request) != "application/json":
        raise HttpRefusal(415, f"the media type {media_type(request)[:80]!r} can't be read", "send application/json")
    try:
        values = json.loads(body or b"{}")
    except (ValueError, RecursionError) as error:
        raise HttpRefusal(400, f"the body is not JSON ({str(error)[:80]})", cure) from error
    try:
        rules = {name: Rule(kind, -EXACT, EXACT, optional=True) for name, kind in known.items()}
        return read(rules, values, "the body")
    except BadInput as error:
        raise HttpRefusal(400, error.what, error.cure) from None


class Turns:
    """Uploads wait for their turn before they are read, so that memory is bounded."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(MOST_UPLOADS)

    @asynccontextmanager
    async def upload(self, request: Request) -> AsyncIterator[bytes]:
        """The body of an upload; the turn lasts as long as the block. Raises HttpRefusal (429) if it comes too late."""
        with anyio.move_on_after(TURN_SECONDS) as clock:
            await self._free.acquire()
        if clock.cancelled_caught:
            raise HttpRefusal(429, f"{MOST_UPLOADS} uploads are being processed, and others wait",
                          "send one after the other", Retry_After="5")
        try:
            yield await read_body(request, most_bytes(media_type(request)))
        finally:
            self._free.release()
