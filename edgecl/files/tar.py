"""A strict tar (POSIX ustar): regular files only, written and read as a stream, with no size or name taken on trust."""
from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from edgecl.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

BLOCK = tarfile.BLOCKSIZE          # 512: headers are one block, contents are filled up to whole ones
CHUNK = 1 << 16                    # bytes of a content that are passed on at once
END = bytes(2 * BLOCK)             # what a whole archive ends with
KINDS = {tarfile.LNKTYPE: "a link", tarfile.SYMTYPE: "a link", tarfile.CHRTYPE: "a device", tarfile.BLKTYPE: "a device",
         tarfile.FIFOTYPE: "a FIFO"}
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Member(NamedTuple):
    """A file of an archive. blocks: its content, which is read once, before the next member."""

    name: str
    size: int
    blocks: Iterator[bytes]


def header(name: str, size: int, when: int) -> bytes:
    """What comes before the content of a file. when: seconds since 1970."""
    about = tarfile.TarInfo(name)
    about.size, about.mtime, about.mode = size, when, 0o600
    return about.tobuf(tarfile.USTAR_FORMAT)


def padding(size: int) -> bytes:
    """What comes after the content of a file."""
    return bytes(-size % BLOCK)


def length(sizes: Iterable[int]) -> int:
    """Bytes of an archive of files of these sizes."""
    return sum(BLOCK + size + len(padding(size)) for size in sizes) + len(END)


def members(read: Callable[[int], bytes], name: str) -> Iterator[Member]:
    """The files of an archive, in their order. read: up to so many bytes of it; name: of the archive, for errors.

    Raises BadInput if it is not a whole tar, or holds links, devices or names that lead out of it; OSError.
    """
    first = True
    while True:
        block = _exactly(read, BLOCK, name)
        if not any(block):
            return
        kind = next((kind for magic, kind in COMPRESSED.items() if first and block.startswith(magic)), None)
        if kind is not None:
            raise BadInput(f"{name} is compressed with {kind}", "decompress it first, or into `edgecl restore -`")
        try:
            about = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeError, ValueError) as error:
            raise BadInput(f"{name} is not a tar, or is damaged ({error})", "give what `edgecl backup` wrote") from None
        shown = repr(about.name[:100])
        if about.type == tarfile.DIRTYPE:
            about.size = 0
        elif about.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise BadInput(f"{name} holds {shown}, which is {KINDS.get(about.type, 'not a regular file')}",
                           "give what `edgecl backup` wrote")
        if about.size < 0 or "\0" in about.name or about.name.startswith("/") or ".." in about.name.split("/"):
            raise BadInput(f"{name} holds {shown}, of {about.size} bytes", "give what `edgecl backup` wrote")
        blocks = _content(read, about.size, name)
        if about.type != tarfile.DIRTYPE:
            yield Member(about.name, about.size, blocks)
        for _ in blocks:        # what was not read
            pass
        first = False


def _content(read: Callable[[int], bytes], size: int, name: str) -> Iterator[bytes]:
    left = size
    while left:
        block = _exactly(read, min(left, CHUNK), name)
        left -= len(block)
        yield block
    _exactly(read, len(padding(size)), name)


def _exactly(read: Callable[[int], bytes], size: int, name: str) -> bytes:
    found = bytearray()
    while len(found) < size:
        block = read(size - len(found))
        if not block:
            raise BadInput(f"{name} ends too early: it was cut off", "copy it again, or give another backup")
        found += block
    return bytes(found)
