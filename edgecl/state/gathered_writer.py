"""Writing STATE/edgecl.gathered: whole, under the state's lock, inside the quota."""
from __future__ import annotations

from typing import TYPE_CHECKING

from edgecl.files.atomic import write_atomically
from edgecl.state.gathered_file import GATHERED_FILE, discard_gathered, sealed

if TYPE_CHECKING:
    from edgecl.state.store import Store


def write_gathered(store: Store, content: bytes, patience: int | None = None) -> None:
    """Write the file; b"": delete it. patience: milliseconds to wait for another process. Raises BudgetError if the
    quota or the disk has no room for it, and then there is no file, StateError."""
    if not content:
        discard_gathered(store.path)
        return
    data = sealed(content)
    with store.exclusive(patience):
        ledger = store.ledger
        used = ledger.usage().total
        if used + len(data) > ledger.quota:     # no room for the new one beside the old one
            discard_gathered(store.path)
            used = ledger.usage().total
        ledger.check(used, len(data), GATHERED_FILE)
        ledger.release(len(data), used)
        write_atomically(store.path / GATHERED_FILE, data, scratch=store.blobs.folder, mode=0o600)
