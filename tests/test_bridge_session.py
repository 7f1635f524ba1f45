"""The session, the commands and the clock without a wire: made-up devices, honest, broken and hostile."""
from __future__ import annotations

import contextlib
import random
from zlib import crc32

import numpy as np
import pytest

from edgecl.errors import LinkError
from firmware_bridge.clock import WRAP, Clock, Unroller
from firmware_bridge.commands import Commands
from firmware_bridge.framing import Frame, encode
from firmware_bridge.messages import Malformed, pack, read_hello
from firmware_bridge.schema import SCHEMA
from firmware_bridge.session import Bytes, Connected, Session

# the session against made-up devices -------------------------------------------------------------

ROW = SCHEMA.layouts["CHANNEL"]


def row(name=b"imu", unit=b"g", type=SCHEMA.TYPE_I16, elements=3, millihertz=50_000, scale=0.5, **sizes):
    return ROW.pack(type=type, elements=elements, millihertz=millihertz, scale=scale,
                    **{"name_size": len(name), "unit_size": len(unit), **sizes}) + name + unit


IMU = row()


def hello(session, rows=(IMU,), **changes):
    fields = {"version_least": 1, "version_most": 1, "schema": SCHEMA.hash, "device": 5, "boot": 1, "firmware": 0x10203,
              "frame_most": 256, "receive_window": 256, "nonce": session._nonce, "session": session.session,
              "session_boot": 1, "next": 0, "channels": len(rows), **changes}
    return pack("HELLO", **fields) + b"".join(rows)


def link_frame(message, sequence=0, flags=0):
    return encode(Frame(0, flags, sequence, 0, message), 0)


def greeted(rows=(IMU,), wanted=None):
    session = Session(77, wanted)
    session.connect(0.0)
    events = session.receive(link_frame(hello(session, rows)), 0.0)
    assert [type(event) for event in events] == [Connected]
    return session


def test_a_hello_tells_who_it_is():
    session = greeted([row(), row(b"log", b"", SCHEMA.TYPE_OBJECT, 1, 0, 1.0)])
    assert session.hello.firmware == "1.2.3"
    assert [(c.number, c.name, c.unit, c.rate, c.dtype) for c in session.hello.channels] == [
        (2, "imu", "g", 50.0, "<i2"), (3, "log", "", 0.0, None)]


@pytest.mark.parametrize("bad", [
    [row(name=b"")], [row(name=b"x" * 17)], [row(unit=b"x" * 13)], [row(elements=0)], [row(elements=65)], [row(type=9)],
    [row(scale=float("nan"))], [row(scale=0.0)], [row(scale=float("inf"))], [row(name=b"\xff")], [row(name=b"a\n")],
    [row(), row()], [row()] * 15, [row(name_size=200)], [row() + b"x"], [row(millihertz=2_000_000_000)]])
def test_a_channel_table_over_a_limit_is_nonsense(bad):
    session = Session(77)
    session.connect(0.0)
    assert session.receive(link_frame(hello(session, bad)), 0.0) == []
    assert session.counts["nonsense"] == 1
    assert not session.greeted


def test_a_hello_in_fragments_is_put_together_and_a_damaged_one_is_not():
    session = Session(77)
    session.connect(0.0)
    whole = hello(session, [row(b"c%d" % i) for i in range(14)])
    whole += crc32(whole).to_bytes(4, "little")
    pieces = [whole[i:i + 84] for i in range(0, len(whole), 84)]
    frames = [link_frame(p, i, (2 if i else 0) | (1 if i < len(pieces) - 1 else 0)) for i, p in enumerate(pieces)]
    assert session.receive(b"".join(frames[:1] + frames[2:]), 0.0) == []
    assert not session.greeted
    assert len(session.receive(b"".join(frames), 0.0)[0].hello.channels) == 14


def test_samples_come_scaled_and_in_device_time_across_the_wrap():
    session = greeted()
    channel = session.hello.channels[0]
    events = []
    for number, stamp in enumerate((WRAP - 20_000, 0, 20_000)):
        payload = np.array([[2, 4, number]], "<i2").tobytes()
        events += session.receive(encode(Frame(2, 0, number, stamp, payload), channel.seed), 0.02 * number)
    assert [e.time - events[0].time for e in events] == [0, 20_000, 40_000]
    assert events[2].values.tolist() == [[1, 2, 1]]


def test_lost_frames_are_counted_and_old_ones_left_out():
    session = greeted()
    seed = session.hello.channels[0].seed
    events = []
    for number in (0, 1, 5, 4, 5, 6):
        events += session.receive(encode(Frame(2, 0, number, 0, bytes(6)), seed), 0.0)
    assert len(events) == 4
    assert (session.counts["lost"], session.counts["late"]) == (3, 2)


def test_only_wanted_channels_get_credit():
    session = greeted([row(), row(b"temperature")], {"temperature"})
    assert list(session._streams) == [3]


def test_an_object_with_a_missing_or_a_damaged_fragment_is_dropped_and_counted():
    session = greeted([row(b"log", b"", SCHEMA.TYPE_OBJECT, 1, 0, 1.0)])
    seed = session.hello.channels[0].seed
    whole = b"hello world!" + crc32(b"hello world!").to_bytes(4, "little")

    def sent(at, *pieces):
        return b"".join(encode(Frame(2, (1 if i < len(pieces) - 1 else 0) | (2 if i else 0), at + i, 0, p), seed)
                        for i, p in enumerate(pieces) if p is not None)

    assert session.receive(sent(0, whole[:5], whole[5:9], whole[9:]), 0.0) == [
        Bytes(session.hello.channels[0], b"hello world!")]
    assert session.receive(sent(3, whole[:5], None, whole[9:]), 0.0) == []
    assert session.receive(sent(6, whole[:5], b"X" + whole[6:]), 0.0) == []
    assert session.counts["broken_objects"] == 2
    assert session.receive(sent(8, b"short"), 0.0) == [Bytes(session.hello.channels[0], b"short")]


def test_a_device_cannot_make_the_host_hold_more_than_the_limits():
    session = greeted([row(b"log", b"", SCHEMA.TYPE_OBJECT, 1, 0, 1.0)])
    seed = session.hello.channels[0].seed
    for number in range(500):
        flags = 1 if number == 0 else 3
        session.receive(encode(Frame(2, flags, number, 0, bytes(1000)), seed), 0.0)
        session.receive(link_frame(bytes(1000), number, flags), 0.0)
    assert len(session._streams[2]._object or b"") <= SCHEMA.OBJECT_LIMIT + 4
    assert len(session._pieces) <= 3 * SCHEMA.FRAME_LIMIT


@pytest.mark.slow
def test_intact_frames_of_random_content_raise_nothing():
    rng = random.Random(3)
    for _ in range(20):
        session = greeted([row(), row(b"log", b"", SCHEMA.TYPE_OBJECT, 1, 0, 1.0)])
        seeds = {0: 0, 1: SCHEMA.hash, **{c.number: c.seed for c in session.hello.channels}}
        for number in range(1500):
            session.submit(1, b"") if number % 50 == 0 else None
            channel, message = rng.randrange(4), rng.randrange(12)
            known = [name for name, n in SCHEMA.numbers.items() if name.startswith("MESSAGE_") and n == message]
            size = SCHEMA.layouts[known[0][8:]].size if known and rng.random() < 0.7 else rng.randrange(60)
            payload = bytes([message, *rng.choices(range(256), k=max(0, size - 1))])
            if message == SCHEMA.MESSAGE_HELLO and rng.random() < 0.8:
                payload = hello(session, [rng.randbytes(rng.randrange(40)) for _ in range(rng.randrange(4))],
                                boot=rng.randrange(3), nonce=rng.choice([0, session._nonce]))
            sequence = rng.randrange(65536) if rng.random() < 0.1 else number
            with contextlib.suppress(LinkError):  # a HELLO of another schema
                session.receive(encode(Frame(channel, rng.randrange(4), sequence, rng.randrange(WRAP), payload),
                                       seeds[channel]), number / 100)
            session.poll(number / 100)
            session.output()
        session.clock.offset(0.0) if session.clock.synchronised else None


@pytest.mark.parametrize("size", [0, 1, 20])
def test_a_hello_that_is_cut_off_is_malformed(size):
    with pytest.raises(Malformed):
        read_hello(bytes([2]) * size)


# commands without a wire -------------------------------------------------------------------------


def result(next, status=0, data=b"", held=0):
    return SCHEMA.layouts["RESULT"].pack(next=next, held=held, status=status) + data


def test_a_window_of_commands_is_sent_and_the_next_when_the_oldest_is_answered():
    commands = Commands()
    commands.receive_window = 10_000
    pending = [commands.submit(1, b"") for _ in range(20)]
    assert [p.sequence for p in commands.due(0.0)] == list(range(8))
    commands.result(3, result(4), 0.01)
    assert commands.due(0.01) == []  # the window starts at the oldest open one
    commands.result(0, result(4), 0.01)
    assert [p.sequence for p in commands.due(0.01)] == [8]
    assert pending[3].status == "ok"


def test_no_more_bytes_are_on_the_way_than_the_device_can_take():
    commands = Commands()
    commands.receive_window = 100
    for _ in range(8):
        commands.submit(1, bytes(32))
    assert len(commands.due(0.0)) == 2  # of 47 bytes each


def test_what_the_device_holds_is_not_sent_again_soon():
    commands = Commands()
    commands.receive_window = 10_000
    for _ in range(4):
        commands.submit(1, b"")
    commands.due(0.0)
    commands.acknowledged(1, 0b101)  # 1 is missing; 2 and 4 (which was never sent) are there
    assert [p.sequence for p in commands.due(0.25)] == [0, 1, 3]


def test_the_timeout_follows_the_measured_round_trip():
    commands = Commands()
    now = 0.0
    for number in range(50):
        commands.submit(1, b"")
        commands.due(now)
        commands.result(number, result(number + 1), now + 0.03)
        now += 0.1
    commands.submit(1, b"")
    commands.due(now)
    assert commands.due(now + 0.029) == []
    assert len(commands.due(now + 0.05)) == 1


def test_a_result_that_comes_twice_counts_once():
    commands = Commands()
    first = commands.submit(1, b"")
    commands.due(0.0)
    commands.result(0, result(1, data=b"a"), 0.1)
    commands.result(0, result(1, data=b"b"), 0.2)
    assert first.data == b"a"


def test_what_a_device_without_memory_had_is_lost_and_not_sent_again():
    session = greeted()
    old = session.submit(1, b"old")
    session.send_commands(0.1)
    session.output()
    session.receive(link_frame(hello(session, boot=2, nonce=0)), 0.2)
    session.receive(link_frame(hello(session, boot=2, session_boot=2)), 0.2)
    assert old.status == "lost"
    fresh = session.submit(1, b"new")
    session.send_commands(0.3)
    assert fresh.sequence == 0


# time --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jitter", ["both ways", "one way", "long tail"])
def test_time_is_right_within_a_millisecond_at_5_ms_of_jitter_and_200_ppm(jitter):
    errors = []
    for seed in range(4):
        rng, drift = np.random.default_rng(seed), 200e-6 * (1 if seed % 2 else -1)

        def device(t, drift=drift):
            return WRAP - 30e6 + t * (1 + drift)  # the 32-bit clock wraps after 30 s

        def way(back, rng=rng):
            most = 0 if back and jitter == "one way" else 5000
            return 300 + (rng.exponential(most / 2.5) if jitter == "long tail" else rng.uniform(0, most))

        clock, now = Clock(), 0.0
        while now < 90e6:
            received = now + way(False)
            arrived = received + 100 + way(True)
            clock.add(now, int(device(received)) % WRAP, int(device(received + 100)) % WRAP, arrived)
            if now > 2e6:
                later = arrived + rng.uniform(0, 5e5)
                errors.append(clock.to_host(int(device(later)) % WRAP, later) - later)
            now = arrived + (1e5 if now < 1e7 else 5e5)
        assert clock.drift == pytest.approx(drift, abs=30e-6)
    assert np.percentile(np.abs(errors), 99) < 1000
    assert len(errors) > 500


def test_stamps_unroll_over_wraps_and_over_hours_of_silence():
    unroll = Unroller()
    assert unroll(WRAP - 10, 0.0) == WRAP - 10
    assert unroll(10, 20.0) == WRAP + 10
    three_hours = 3 * 3600e6
    assert unroll((WRAP + 10 + round(three_hours)) % WRAP, 20 + three_hours * 1.0001) == WRAP + 10 + round(three_hours)
