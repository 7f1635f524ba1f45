"""Every error that a user can cause, in one tree.

    EdgeclError               what happened + the values + the cure; exit 1, nothing stored has changed
    ├── BadInput              a photo, recording, table, name or number that can't be used
    ├── BackboneError         a model file or its weights: missing, altered, or of the wrong shape
    ├── StateError            the state directory: missing, locked, read-only, damaged, or of a newer version
    │   ├── ChangedMeanwhile  by another process, in the middle of a change
    │   └── FoundedMeanwhile  by another process, while the first samples were prepared
    ├── BudgetError           not enough bytes, memory, time or disk space
    └── LinkError             a device on a wire: missing, busy, silent, or speaking another protocol
"""
from __future__ import annotations

INTERRUPTED = "interrupted; what was finished before is kept, see `edgecl history`"     # by Ctrl-C


def in_utf8(text: str) -> str:
    r"""The text with bytes that are not UTF-8, which names of files may have, written like \xff."""
    try:
        return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:      # a surrogate that no byte of a name makes
        return text.encode("utf-8", "backslashreplace").decode()


class EdgeclError(Exception):
    """what: what happened, with its values; cure: what to do about it. One line each."""

    def __init__(self, what: str, cure: str) -> None:
        what, cure = in_utf8(what), in_utf8(cure)
        super().__init__(f"{what}; {cure}")
        self.what = what
        self.cure = cure


class BadInput(EdgeclError):
    """A photo, recording, table, name or number that can't be used."""


class BackboneError(EdgeclError):
    """A model file or its weights: missing, altered, or of the wrong shape."""


class StateError(EdgeclError):
    """The state directory: missing, locked, read-only, damaged, or of a newer version."""


class ChangedMeanwhile(StateError):
    """Another process changed the state in the middle of a change, of which nothing was kept: it can be done again."""


class FoundedMeanwhile(StateError):
    """Another process gave the state its backbone first, a different one: the samples must be prepared for that."""


class BudgetError(EdgeclError):
    """Not enough bytes, memory, time or disk space."""


class LinkError(EdgeclError):
    """A device on a wire: missing, busy, silent, or speaking another protocol."""
