"""A state's backbone file. It is the one file without a second copy, so if it is damaged it is had again by its hash:
from the cache of built backbones, or built once more from its package or the file that it came from."""
from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from edgecl.backbones import build_identity, build_image
from edgecl.backbones.cache import cached_by_hash
from edgecl.errors import BackboneError, BudgetError, StateError
from edgecl.state.quota import PAGE, pages

if TYPE_CHECKING:
    from edgecl.learning.foundation import Foundation
    from edgecl.state.store import Store


def backbone_file(store: Store, foundation: Foundation, name: str) -> Path | bytes:
    """The path of a backbone's file; its content if it is damaged, was had again, and could not be written back.

    It is written back unless a read transaction is open, the state is read-only, or there is no room; the damaged file
    is set aside. Raises StateError, with the cure, if it can't be had again.
    """
    try:
        return store.blob_path(name)
    except StateError as damage:
        content, source = had_again(foundation, name, damage)
    line = f"the backbone models/{name} was damaged or missing; it was had again from {source}"
    try:
        if store.writing:
            _write_back(store, content, line)
        elif store.writable and not store.connection.in_transaction:
            with store.exclusive():
                _write_back(store, content, line)
                store.commit_rows()
        else:
            return content
    except BudgetError:     # `damage` goes on telling it
        return content
    return store.blob_path(name)


def backbone_bytes(store: Store, foundation: Foundation, name: str) -> bytes:
    """The content of a backbone's file; see `backbone_file`."""
    found = backbone_file(store, foundation, name)
    return found if isinstance(found, bytes) else found.read_bytes()


def _write_back(store: Store, content: bytes, line: str) -> None:
    store.ledger.ask(pages(len(content)) + 4 * PAGE + store.journal_bytes(), "the backbone")
    store.blobs.write(content, "onnx")
    store.note_damage(line)


def had_again(foundation: Foundation, name: str, damage: StateError | None = None) -> tuple[bytes, str]:
    """A backbone's content by the hash in its file name, and where it came from. Raises StateError, with the cure, if
    it is not to be had. damage: what is wrong with the file."""
    digest = name.partition(".")[0]
    if (found := cached_by_hash(digest)) is not None:
        return found, "the cache"
    source = foundation.source or foundation.name
    why = "only a backup has it: it depends on the samples that it was made with"
    if foundation.name not in ("rocket",) and foundation.precision != "int8":
        try:
            for content in _built(foundation):
                if hashlib.sha256(content).hexdigest() == digest:
                    return content, source
            why = f"what {source} gives now is another one"
        except BackboneError as error:
            why = str(error)
    what = damage.what if damage else f"models/{name} is damaged or missing"
    raise StateError(f"{what}, and it can't be had again ({why})",
                     f"`edgecl restore` a backup, or copy models/{name} from a state that has a file of this name")


def _built(foundation: Foundation) -> list[bytes]:
    """The backbone in each form that its source gives. Raises BackboneError."""
    if foundation.name == "identity":
        return [build_identity(foundation.dimension)]
    if foundation.name.endswith(".onnx"):
        from edgecl.backbones.user_onnx import adopt

        model = adopt(Path(foundation.source or foundation.name))
    else:
        model = build_image(foundation.name, Path(foundation.source) if foundation.source else None)
    if foundation.precision != "fp16":
        return [model]
    from edgecl.backbones.quantise import store_fp16

    return [model, store_fp16(model)]
