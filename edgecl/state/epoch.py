"""The epoch of a log: what tells the log that goes on from the database from those that have moved into it."""
from __future__ import annotations

import uuid
from typing import Any

from edgecl.exemplars.stored import pack

TAG = 12    # digits of an epoch that each record of its log carries


def first_record(epoch: str) -> bytes:
    """What a log begins with."""
    return pack([], {"epoch": epoch})


def new_epoch() -> str:
    """A name that no other epoch has."""
    return uuid.uuid4().hex


def tagged(epoch: str, about: dict[str, Any]) -> dict[str, Any]:
    """The JSON of a record in the log of that epoch."""
    return {**about, "log": epoch[:TAG]}
