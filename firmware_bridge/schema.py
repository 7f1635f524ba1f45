"""The schema, parsed from the C header: constants, layouts and hash.

After a change of the header: python -m firmware_bridge.schema --write
"""
from __future__ import annotations

import hashlib
import re
import struct
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

HEADER_FILE = Path(__file__).parent / "c" / "bridge_schema.h"
HASH_LINE = re.compile(r"(#define BRIDGE_SCHEMA_HASH )(0x[0-9A-Fa-f]{8})")
FORMATS = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "f32": "f"}


class Layout:
    """One unpadded little-endian layout: `unpack(bytes, offset)` returns a named tuple, `pack(**fields)` bytes."""

    def __init__(self, name: str, fields: list[tuple[str, str]]) -> None:
        self.struct = struct.Struct("<" + "".join(FORMATS[kind] for kind, _ in fields))
        self.size = self.struct.size
        self.type: Any = namedtuple(name, [field for _, field in fields])  # type: ignore[misc]

    def unpack(self, data: bytes, offset: int = 0) -> Any:
        """The fields at `offset`. Raises struct.error if the data are too short."""
        return self.type._make(self.struct.unpack_from(data, offset))

    def pack(self, **fields: float) -> bytes:
        """The fields as bytes."""
        return self.struct.pack(*self.type(**fields))


class Schema:
    """A parsed header. numbers: constants, without BRIDGE_; layouts: by the name after BRIDGE_FIELDS_; hash: 32 bits of
    the SHA-256 of all definitions except the hash itself, without comments and spacing; stated: the hash in the header.
    """

    def __init__(self, text: str) -> None:
        stated = HASH_LINE.search(text)
        self.stated = int(stated[2], 16) if stated else 0
        plain = re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL).replace("\\\n", " ")
        lines = [" ".join(line.split()) for line in plain.splitlines() if line.startswith("#define BRIDGE_")]
        lines = [line for line in lines if "BRIDGE_SCHEMA_H" not in line]
        self.hash = int.from_bytes(hashlib.sha256("\n".join(lines).encode()).digest()[:4], "big")
        self.numbers = {m[1]: int(m[2], 0) for line in lines
                        if (m := re.fullmatch(r"#define BRIDGE_(\w+) (\w+)", line))}
        self.layouts = {m[1]: Layout(m[1], re.findall(r"F\((\w+), (\w+)\)", m[2])) for line in lines
                        if (m := re.fullmatch(r"#define BRIDGE_FIELDS_(\w+)\(F\) (.*)", line))}

    def __getattr__(self, name: str) -> int:
        """A constant, as in `SCHEMA.FRAME_LIMIT`."""
        try:
            return self.numbers[name]
        except KeyError:
            raise AttributeError(name) from None


SCHEMA = Schema(HEADER_FILE.read_text("utf-8"))


def main() -> int:
    """Print the hash; with --write, write it into the header. Returns 1 if the header states another hash."""
    if "--write" in sys.argv:
        text = HEADER_FILE.read_text("utf-8")
        HEADER_FILE.write_text(HASH_LINE.sub(lambda m: f"{m[1]}0x{SCHEMA.hash:08X}", text), "utf-8")
    print(f"0x{SCHEMA.hash:08X}")
    return int("--write" not in sys.argv and SCHEMA.stated != SCHEMA.hash)


if __name__ == "__main__":
    sys.exit(main())
