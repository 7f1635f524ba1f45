"""What the bridge's tests share: the compiled C, and programs that a machine may lack."""
from __future__ import annotations

import struct
import subprocess

import numpy as np
from helpers_needs import need

from firmware_bridge.build import build
from firmware_bridge.framing import OVERHEAD, REJECTIONS, Frame
from firmware_bridge.link import Link
from firmware_bridge.schema import SCHEMA
from firmware_bridge.wires import SerialWire

SANITIZED = ("-O2", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def harness(*arguments, given=b"", flags=SANITIZED):
    """What the C harness prints, under ASan and UBSan unless `flags` say otherwise; it must end with 0."""
    need("gcc", "gcc")
    program = build("host/harness.c", flags=flags)
    done = subprocess.run([program, *map(str, arguments)], input=given, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[:2000]
    return done.stdout


def c_decode(chunks, seeds, limit):
    """Frames and counts of the C decoder for chunks fed one after another."""
    head = struct.pack(f"<HB{len(seeds)}I", limit, len(seeds), *seeds)
    out = harness("decode", given=head + b"".join(struct.pack("<I", len(chunk)) + chunk for chunk in chunks))
    frames, at, end = [], 0, len(out) - 4 * (1 + len(REJECTIONS))
    while at < end:
        size = int.from_bytes(out[at:at + 2], "little")
        raw = out[at + 2:at + 2 + size]
        frames.append(Frame(raw[1], raw[0] & 15, *struct.unpack_from("<HI", raw, 2), raw[OVERHEAD - 4:-4]))
        at += 2 + size
    return frames, dict(zip(("accepted", *REJECTIONS), struct.unpack_from("<7I", out, end)))


APP_COUNT, APP_OBJECT, APP_RESET = (SCHEMA.COMMAND_FIRST + i for i in range(3))  # of c/app.h


def u32(number):
    """A command's argument."""
    return number.to_bytes(4, "little")


def pattern(size):
    """The object that the example firmware sends."""
    return bytes(i * 7 % 251 for i in range(size))


def ramp(path, rows=1000):
    """A recording in which sample i is i/1000 times 1 to 6, as the firmware in QEMU makes it."""
    np.savetxt(path, np.arange(rows)[:, None] * np.arange(1, 7) / 1000, fmt="%.3f", delimiter=",")


def link_to(simulator, baud=921600, wanted=None):
    """A link to a simulated board."""
    return Link(lambda: SerialWire(str(simulator.port), baud), wanted)
