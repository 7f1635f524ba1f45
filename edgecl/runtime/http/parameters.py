"""Values of a request, from its address or its body. All raise BadInput with what is missing or wrong."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgecl.errors import BadInput

if TYPE_CHECKING:
    from starlette.requests import Request


def parameter(request: Request, name: str) -> str:
    """A parameter of the address, which must be there."""
    value = request.query_params.get(name)
    if not value:
        raise BadInput(f"?{name}= is missing", f"ask for {request.url.path}?{name}=NAME")
    return value


def flag(request: Request, name: str) -> bool:
    """Whether a parameter of the address is 1; it may be 0 or missing."""
    value = request.query_params.get(name, "0")
    if value not in ("0", "1"):
        raise BadInput(f"?{name}={value[:40]}", f"give ?{name}=1, or leave it out")
    return value == "1"


def whole(request: Request, name: str, default: int, most: int) -> int:
    """A parameter of the address that is a whole number from 0 to `most`."""
    value = request.query_params.get(name)
    if value is None:
        return default
    if not (value.isascii() and value.isdigit() and len(value) < 10 and int(value) <= most):
        raise BadInput(f"?{name}={value[:40]}", f"give a whole number from 0 to {most}")
    return int(value)


def required(values: dict[str, Any], name: str) -> Any:
    """A value of a body, which must be there."""
    if values.get(name) is None:
        raise BadInput(f"{name} is missing", f'send {{"{name}": ...}}')
    return values[name]
