"""The frame format once more, slowly and from the text of PROTOCOL.md: what both implementations are held against.

    python tests/bridge_reference.py > firmware_bridge/vectors.json
"""
from __future__ import annotations

import json
import random


def crc32(data, seed=0):
    """CRC-32 (reflected 0xEDB88320), a bit at a time, going on from the CRC `seed`."""
    register = seed ^ 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0xEDB88320 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


def cobs(data):
    """Blocks of up to 254 bytes without a zero, each after its length + 1; a shorter one stands for a zero after it."""
    out, block = bytearray(), bytearray()
    pending = True  # a block is open that has to be written even if nothing is in it
    for byte in data:
        if byte:
            block.append(byte)
            pending = True
            if len(block) == 254:
                out += bytes([255]) + block
                block.clear()
                pending = False
        else:
            out += bytes([len(block) + 1]) + block
            block.clear()
            pending = True
    return bytes(out + (bytes([len(block) + 1]) + block if pending else b""))


def frame(channel, flags, sequence, time, payload, seed, version=1):
    """A frame on the wire."""
    raw = bytes([version << 4 | flags, channel]) + sequence.to_bytes(2, "little") + time.to_bytes(4, "little") + payload
    return cobs(raw + crc32(raw, seed).to_bytes(4, "little")) + b"\0"


SEEDS = {0: 0, 1: 0x12345678, 2: 0xDEADBEEF, 3: 0xFFFFFFFF}
LIMIT = 300


def vectors():
    """Every vector: name, wire (hex), the frames that must come out, and what must be counted as rejected."""
    rng = random.Random(5)
    out = []

    def add(name, wire, *frames, **rejected):
        out.append({"name": name, "wire": wire.hex(), "rejected": rejected,
                    "frames": [dict(zip(("channel", "flags", "sequence", "time", "payload"), (*f[:4], f[4].hex())))
                               for f in frames]})

    def good(name, *f):
        add(name, frame(*f, SEEDS[f[0]]), f)

    good("no payload", 0, 0, 0, 0, b"")
    good("all ones", 3, 15, 0xFFFF, 0xFFFFFFFF, b"\xff" * 8)
    good("all zeros", 2, 0, 0, 0, bytes(40))
    good("text", 1, 0, 7, 1_000_000, b"\x01hello")
    for size in (241, 242, 243, 244, 245, 246, 247, 288):  # about the 254 bytes of a COBS block, and the limit
        good(f"{size} bytes without a zero", 2, 1, size, size, bytes(rng.randrange(1, 256) for _ in range(size)))
    good("zero at the end of a block", 2, 0, 1, 1, bytes(rng.randrange(1, 256) for _ in range(245)) + b"\0\0")
    one, two = (2, 0, 1, 20_000, b"abc\0def"), (2, 0, 2, 40_000, b"\0\0\0")
    a, b = frame(*one, SEEDS[2]), frame(*two, SEEDS[2])
    add("two frames", a + b, one, two)
    add("delimiters between frames", b"\0\0" + a + b"\0\0\0" + b, one, two)
    add("garbage in front", b"\x55\xaa\x55\0" + a, one, malformed=1)
    add("garbage runs into a frame", b"\x03\x55\xaa" + a + b, two, channel=1)
    add("start in the middle", a[5:] + b, two, malformed=1)
    add("unfinished at the end", a + b[:-1], one)
    add("a delimiter lost", a[:-1] + b + a, one, corrupt=1)
    add("a flipped bit", bytes([*a[:6], a[6] ^ 4, *a[7:]]) + b, two, corrupt=1)
    add("a byte that became zero", a[:6] + b"\0" + a[7:] + b, two, malformed=1, channel=1)
    add("the other channel's seed", frame(2, 0, 0, 0, b"x", SEEDS[1]) + b, two, corrupt=1)
    add("another schema", frame(1, 0, 0, 0, b"x", 0x12345679) + b, two, corrupt=1)
    add("an unknown channel", frame(9, 0, 0, 0, b"x", 0) + b, two, channel=1)
    add("version 0", frame(0, 0, 0, 0, b"x", 0, version=0) + b, two, version=1)
    add("version 2", frame(0, 0, 0, 0, b"x", 0, version=2) + b, two, version=1)
    add("shorter than a header", cobs(b"abc") + b"\0" + cobs(b"\0" * 11) + b"\0" + a, one, too_short=2)
    add("one byte over the limit", frame(2, 0, 0, 0, b"x" * 289, SEEDS[2]) + b, two, oversize=1)
    add("far over the limit", b"\x55" * 5000 + b"\0" + b, two, oversize=1)
    add("over the limit and never ended", b"\x55" * 5000)
    add("a length past the end", b"\x20abc\0" + a, one, malformed=1)
    return out


def document():
    """What vectors.json holds."""
    return {"about": "Frames of PROTOCOL.md; made by tests/bridge_reference.py. seeds: of the channels; limit: bytes "
                     "of a frame before COBS.",
            "limit": LIMIT, "seeds": [SEEDS[i] for i in range(4)], "vectors": vectors()}


if __name__ == "__main__":
    print(json.dumps(document(), indent=1))
