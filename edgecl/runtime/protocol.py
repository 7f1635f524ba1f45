"""The control socket's protocol, for both sides: one JSON object per line, and samples as a file beside it.

    -> {"command": "learn_last", "label": "mug", "seconds": 5}
    <- {"ok": true, "result": {...}}
    <- {"ok": false, "error": {"code": "BadInput", "what": ..., "cure": ...}}

Samples are passed as the file descriptor of an .npy in anonymous memory, so that lines stay short and nothing is copied
twice. Both sides check lengths and types; neither trusts the other with memory. Works without numpy.
"""
from __future__ import annotations

import json
from typing import Any

from edgecl import errors
from edgecl.errors import EdgeclError

SOCKET = "control.sock"      # in the state, unless the settings say otherwise
MOST_LINE = 64 * 1024        # bytes of a request, newline included: a command has a few hundred
MOST_ANSWER = 16 * 2 ** 20   # ... of an answer: a history of thousands of generations
CODES = {name: kind for name, kind in vars(errors).items()
         if isinstance(kind, type) and issubclass(kind, EdgeclError)}


class Refused(EdgeclError):
    """A request that the daemon refuses. code: bad-request, unknown-command, too-long, forbidden, busy, timeout,
    internal, or the name of an error in `edgecl.errors`."""

    def __init__(self, code: str, what: str, cure: str) -> None:
        super().__init__(what, cure)
        self.code = code


def parse(line: bytes) -> dict[str, Any]:
    """The object of a request. Raises Refused."""
    try:
        found = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Refused("bad-request", f"a request is not JSON ({str(error)[:80]})", "send one object per line") from None
    if not isinstance(found, dict) or not isinstance(found.get("command"), str):
        raise Refused("bad-request", "a request is not an object with a command", 'send {"command": "status"}')
    return found


def encode(value: dict[str, Any]) -> bytes:
    """A value as one line."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    except UnicodeEncodeError:      # bytes of a file name or an argument that are not UTF-8
        return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def refusal(error: EdgeclError) -> bytes:
    """The answer that carries an error."""
    code = error.code if isinstance(error, Refused) else type(error).__name__
    return encode({"ok": False, "error": {"code": code, "what": error.what, "cure": error.cure}})


def result_of(answer: dict[str, Any]) -> Any:
    """The result in an answer. Raises the error that the answer carries."""
    if answer.get("ok"):
        return answer.get("result")
    about = answer.get("error") or {}
    code, what, cure = (str(about.get(key, "-")) for key in ("code", "what", "cure"))
    raise CODES[code](what, cure) if code in CODES else Refused(code, what, cure)
