"""Files of the samples learned since the newest statistics: small ones are merged, so that they stay few.

The log moves into a file of its own again and again. As in a log-structured merge tree, files of much the same length
are put together into a longer one, so their number grows like the logarithm of what was learned, and each sample is
written again a few times only. Records are copied as they are: each keeps its own digests.
"""
from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from edgecl.errors import StateError
from edgecl.state.quota import PAGE, pages
from edgecl.state.reader import JOURNAL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgecl.state.transaction import Transaction

FAN = 4     # files of much the same length that become one


def add_journal(state: Transaction, content: bytes, oldest: int, newest: int, room: int) -> None:
    """Write samples as a file and name it, with the files before it that it is to be merged with; these are no longer
    named. oldest, newest: the generations in it; room: bytes of the quota that merging may take. Raises OSError."""
    merged = _mergeable(state, len(content), room)
    taken = sum(len(each) for _, _, each in merged)
    if merged:
        state.ledger.release(pages(taken))
    state.connection.executemany("DELETE FROM files WHERE name = ?", [(name,) for name, *_ in merged])
    state.add_file(b"".join([*(each for *_, each in merged), content]), JOURNAL,
                   min([oldest, *(first for _, first, _ in merged)]), newest)


def _mergeable(state: Transaction, length: int, room: int) -> list[tuple[str, int, bytes]]:
    """The files that a new one of `length` bytes is to be merged with, in order: name, oldest generation and content.

    None of them holds samples from before statistics that are kept, since those go when the statistics do; nor is one
    longer than what a commit leaves room for, since erasing a sample rewrites its file.
    """
    base = max((g for g in state.generations() if g.snapshot), default=None, key=lambda g: g.id)
    if base is None or base.snapshot is None:
        return []
    files = state.query("SELECT name, oldest FROM files WHERE name LIKE ? AND oldest > ? AND origin IS NULL "
                        "ORDER BY oldest, newest", f"%.{JOURNAL}", base.id)
    limit = min(max(state.segment, state.blobs.bytes(base.snapshot)), length + room - PAGE)
    count = merged_count([state.blobs.bytes(name) for name, _ in files], length, limit)
    found: list[tuple[str, int, bytes]] = []
    with suppress(StateError):      # a damaged one stays as it is, and so do those before it
        for name, oldest in reversed(files[len(files) - count:]):
            found.insert(0, (name, oldest, state.blobs.content(name)))
    return found


def merged_count(lengths: Sequence[int], new: int, limit: int) -> int:
    """How many of the last files a new one is to be merged with. lengths: in bytes, in order; limit: of the file that
    comes of it."""
    count, total = 0, new
    while True:
        same, full, length = 0, False, total
        for each in reversed(lengths[:len(lengths) - count]):
            if each > 2 * total or (full := length + each > limit):
                break
            same, length = same + 1, length + each
        if same < FAN - 1 and not (same and full and 2 * length > limit):
            return count
        count, total = count + same, length
