"""Frames: one table of vectors and one stream of damaged frames, through the C and the Python decoder."""
from __future__ import annotations

import json
import os
import random
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from bridge_reference import SEEDS, crc32, document
from bridge_reference import frame as reference
from helpers_bridge import SANITIZED, c_decode, harness

import firmware_bridge
from firmware_bridge.framing import REJECTIONS, Decoder, Frame, encode, max_encoded_size
from firmware_bridge.schema import HEADER_FILE, SCHEMA, Schema

FOLDER = Path(firmware_bridge.__file__).parent
VECTORS = json.loads((FOLDER / "vectors.json").read_text())
FUZZ = int(os.environ.get("EDGECL_FUZZ_FRAMES", "200000"))  # a million by hand
CORRUPTED = int(os.environ.get("EDGECL_CORRUPTED_FRAMES", "10000000"))


def expected(vector):
    frames = [Frame(f["channel"], f["flags"], f["sequence"], f["time"], bytes.fromhex(f["payload"]))
              for f in vector["frames"]]
    return frames, {"accepted": len(frames), **dict.fromkeys(REJECTIONS, 0), **vector["rejected"]}


def py_decode(chunks, seeds, limit):
    decoder = Decoder(dict(enumerate(seeds)), limit)
    return [frame for chunk in chunks for frame in decoder.feed(chunk)], decoder.counts


DECODERS = {"python": py_decode, "c": c_decode}


def test_the_vectors_are_what_the_reference_makes():
    assert document() == VECTORS


@pytest.mark.parametrize("decode", DECODERS.values(), ids=DECODERS)
@pytest.mark.parametrize("split", ["whole", "in bytes"])
@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda v: v["name"])
def test_a_vector_gives_its_frames(vector, split, decode):
    wire = bytes.fromhex(vector["wire"])
    chunks = [wire] if split == "whole" else [wire[i:i + 1] for i in range(len(wire))]
    assert decode(chunks, VECTORS["seeds"], VECTORS["limit"]) == expected(vector)


def test_a_vector_split_anywhere_gives_its_frames():
    for vector in VECTORS["vectors"]:
        wire = bytes.fromhex(vector["wire"])
        for at in range(0, len(wire) + 1, 1 if len(wire) < 1000 else 37):
            assert py_decode([wire[:at], wire[at:]], VECTORS["seeds"], VECTORS["limit"]) == expected(vector)


def test_vectors_one_after_another_on_one_wire_in_c():
    """A fresh decoder for each is not what a wire gives: all ended vectors in a row, split at random places."""
    ended = [v for v in VECTORS["vectors"] if v["wire"].endswith("00")]
    wire, rng = b"".join(bytes.fromhex(v["wire"]) for v in ended), random.Random(1)
    for _ in range(20):
        cuts = [0, *sorted(rng.sample(range(1, len(wire)), 200)), len(wire)]
        chunks = [wire[a:b] for a, b in pairwise(cuts)]
        for decode in DECODERS.values():
            frames, counts = decode(chunks, VECTORS["seeds"], VECTORS["limit"])
            assert frames == [frame for v in ended for frame in expected(v)[0]]
            assert counts["corrupt"] == sum(v["rejected"].get("corrupt", 0) for v in ended)


def test_both_sides_write_the_wire_of_the_reference():
    given, wires = b"", []
    for vector in VECTORS["vectors"]:
        for frame in expected(vector)[0]:
            if len(frame.payload) <= 244:  # what a device of 256 bytes a frame sends
                wires.append(reference(*frame, SEEDS[frame.channel]))
                assert encode(frame, SEEDS[frame.channel]) == wires[-1]
                given += struct.pack("<IBBHIH", SEEDS[frame.channel], frame.flags, frame.channel, frame.sequence,
                                     frame.time, len(frame.payload)) + frame.payload
    assert harness("encode", given=given) == b"".join(wires)


def test_the_reference_crc_is_the_well_known_one():
    assert crc32(b"123456789") == 0xCBF43926


def test_a_decoder_holds_no_more_than_one_frame():
    decoder = Decoder({0: 0}, 256)
    for _ in range(1000):
        decoder.feed(b"\x55" * 1000)
        assert len(decoder._rest) <= max_encoded_size(256)
    assert decoder.feed(b"\0" + reference(0, 0, 0, 0, b"x", 0)) == [Frame(0, 0, 0, 0, b"x")]
    assert decoder.counts["oversize"] == 1


# the schema --------------------------------------------------------------------------------------


def test_the_hash_in_the_header_is_that_of_the_header():
    assert SCHEMA.stated == SCHEMA.hash, "python -m firmware_bridge.schema --write"


@pytest.mark.parametrize(("old", "new", "same"), [
    ("#define BRIDGE_WINDOW 8 ", "#define BRIDGE_WINDOW 4 ", False),
    ("F(u8, channel) F(u16, limit)", "F(u16, limit) F(u8, channel)", False),
    ("MESSAGE_CREDIT 3", "MESSAGE_CREDIT 13", False),
    ("/* returns the arguments as data */", "/* echoes them */", True),
    ("#define BRIDGE_COMMAND_ECHO 1   /*", "#define BRIDGE_COMMAND_ECHO 1 /*", True)])
def test_the_hash_covers_numbers_and_layouts_and_no_comment(old, new, same):
    text = HEADER_FILE.read_text()
    assert old in text
    assert (Schema(text.replace(old, new)).hash == SCHEMA.hash) is same


def test_the_layout_of_the_header_is_the_text_of_the_protocol():
    assert SCHEMA.layouts["HEADER"].struct.format == "<BBHI"
    assert SCHEMA.layouts["TIME"].pack(message=6, asked=1, received=2, sent=3) == struct.pack("<BQII", 6, 1, 2, 3)


# damage ------------------------------------------------------------------------------------------


def damaged_stream(rng, frames):
    """That many frames of random content as one array of bytes, with a fault in about every third."""
    sizes = rng.integers(0, 48, frames)
    content = rng.integers(0, 256, int(sizes.sum()), np.uint8)
    content[rng.random(len(content)) < 0.2] = 0
    data, ends, headers = content.tobytes(), np.cumsum(sizes).tolist(), rng.integers(0, 2**32, (frames, 2)).tolist()
    wires = [encode(Frame(a % 4, a >> 2 & 15, a >> 16, time, data[end - size:end]), SEEDS[a % 4],
                    version=2 if time % 64 == 0 else 1)
             for (a, time), end, size in zip(headers, ends, sizes.tolist())]
    wire = np.frombuffer(b"".join(wires), np.uint8).copy()
    faults = rng.integers(0, len(wire), frames // 3)
    for places, damage in zip(np.array_split(faults, 3), (1, 0, -1)):
        wire[places] = {1: wire[places] ^ (1 << rng.integers(0, 8, len(places))).astype(np.uint8), 0: 0,
                        -1: rng.integers(0, 256, len(places), np.uint8)}[damage]
    lost = rng.integers(0, len(wire), frames // 30)
    wire = np.delete(wire, lost)
    return np.insert(wire, rng.integers(0, len(wire), frames // 30), rng.integers(0, 256, frames // 30, np.uint8))


@pytest.mark.slow
def test_c_and_python_agree_on_damaged_frames():
    rng, block = np.random.default_rng(20), 100_000
    for _ in range(-(-FUZZ // block)):
        wire = damaged_stream(rng, min(block, FUZZ)).tobytes()
        cuts = [0, *np.sort(rng.integers(0, len(wire), block // 40)).tolist(), len(wire)]
        chunks = [wire[a:b] for a, b in pairwise(cuts)]
        seeds = [SEEDS[i] for i in range(4)]
        ours, theirs = py_decode(chunks, seeds, 56), c_decode(chunks, seeds, 56)
        assert ours == theirs
        assert all(ours[1].values()), ours[1]  # every kind of rejection came up


@pytest.mark.slow
def test_no_damaged_frame_is_accepted():
    for count, flags in ((CORRUPTED, ("-O2",)), (CORRUPTED // 20, SANITIZED)):
        told = json.loads(harness("corrupt", count, 1, flags=flags))
        assert told["corrupted"] == count
        assert told["false_accepts"] == 0


@pytest.mark.slow
def test_a_fault_costs_one_frame_and_the_next_but_one_is_there_again():
    told = json.loads(harness("faults", 10_000, 2, flags=("-O2",)))  # other tests look for faults of the memory
    assert told.pop("longest_run") <= 2
    cut, faults = told.pop("cut"), told.pop("faults_each")
    assert faults == 10_000
    assert sum(told.values()) / len(told) <= 1.05
    assert max(told.values()) <= 1.06
    assert cut <= 2  # a frame's end and the delimiter lost: the next one goes with it


@pytest.mark.slow
def test_a_device_takes_any_frames_without_a_fault():
    told = json.loads(harness("device", 1_000_000, 3))
    assert told["executed"] > 0
