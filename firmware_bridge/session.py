"""A session with one device, without I/O: bytes in, events and bytes to send out, and when to call again."""
from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Union

import numpy as np

from edgecl.errors import LinkError
from firmware_bridge.clock import Clock
from firmware_bridge.commands import Commands, Pending
from firmware_bridge.framing import Decoder, Frame, encode
from firmware_bridge.incoming import StreamState, checked
from firmware_bridge.messages import MESSAGES, Channel, Hello, Malformed, pack, read_hello, unpack
from firmware_bridge.schema import SCHEMA

ASK_EVERY = 0.2       # seconds between HELLO_ASKs: opening a port resets many boards, which then take a second to boot
ASK_AGAIN = 0.05      # minimum seconds between them, whatever a device announces
QUIET_TIMEOUT = 1.0   # seconds without a frame after which the device is asked again
CREDIT_FRAMES = 64    # in flight at most: 0.15 s of line at 921600 baud
CREDIT_EVERY = 0.25   # seconds; sooner if half is used up
SYNC_FAST, SYNC_SLOW, SYNC_SETTLES = 0.1, 0.5, 10.0  # seconds between time exchanges, and until the slower pace


class Connected(NamedTuple):
    """The device has said hello. restarted: it was already known, under another boot."""

    hello: Hello
    restarted: bool


class Samples(NamedTuple):
    """Successive samples float32 [n, elements]. time: of the first, device microseconds, unrolled."""

    channel: Channel
    time: int
    values: np.ndarray


class Bytes(NamedTuple):
    """A complete object."""

    channel: Channel
    data: bytes


Event = Union[Connected, Samples, Bytes]


class Session:
    """The host's side of a session. No input can make it do more than answer, count and pass on samples.

    wanted: names of the channels to stream, None for all; counts: frames lost and late, objects broken, messages that
    made no sense, and restarts, besides the decoder's counts. Times are monotonic seconds.
    """

    def __init__(self, session: int, wanted: set[str] | None = None) -> None:
        self.session = session
        self.wanted = wanted
        self.hello: Hello | None = None
        self.commands = Commands()
        self.clock = Clock()
        self.stats: dict[str, int] | None = None
        self.decoder = Decoder({SCHEMA.CHANNEL_LINK: 0})
        self.counts = dict.fromkeys(("lost", "late", "broken_objects", "nonsense", "restarts"), 0)
        self.greeted = False
        self._stamp_open = False
        self._out = bytearray()
        self._nonce = self._link_sequence = 0
        self._asked = self._heard = self._synced = self._greeted_at = float("-inf")
        self._streams: dict[int, StreamState] = {}
        self._pieces = bytearray()  # of a HELLO in fragments
        self._pieces_next = -1

    # out ----------------------------------------------------------------------------------------

    def connect(self, now: float) -> None:
        """Start over on another wire: everything in flight is lost."""
        self.decoder.reset()
        self._out.clear()
        self.greeted = False
        self.commands.resume()
        self._ask(now)

    def output(self) -> bytes:
        """The bytes to send, returned once."""
        out = bytes(self._out)
        self._out.clear()
        return out

    def poll(self, now: float) -> None:
        """Queue everything that is due: requests, credit, time exchanges, commands."""
        if not self.greeted or now - self._heard > QUIET_TIMEOUT:
            if now - self._asked >= ASK_EVERY:
                self._ask(now)
            return
        for stream in self._streams.values():
            if now - stream.granted_at >= CREDIT_EVERY:
                self._grant(stream, now)
        pace = SYNC_FAST if now - self._greeted_at < SYNC_SETTLES else SYNC_SLOW
        if now - self._synced >= pace:
            self._synced, self._stamp_open = now, True
            self._link(pack("TIME_ASK", asked=round(now * 1e6)))
        self.send_commands(now)

    def send_commands(self, now: float) -> None:
        """Queue the commands that are due for sending."""
        if self.greeted:
            for p in self.commands.due(now):
                frame = Frame(SCHEMA.CHANNEL_COMMAND, 0, p.sequence, 0, p.payload)
                self._out += encode(frame, SCHEMA.hash)

    def wait(self, now: float) -> float:
        """Seconds until `poll` has something to do, at most 0.1."""
        due = self.commands.deadline(now) if self.greeted else None
        return min(0.1, max(0.0, due - now)) if due is not None else 0.1

    @property
    def awaited(self) -> bool:
        """Whether an answer is expected whose time of arrival matters."""
        return self._stamp_open or bool(self.commands.open) or not self.greeted

    def silent(self, now: float) -> float:
        """Seconds since the last intact frame."""
        return now - self._heard

    def ask_stats(self) -> None:
        """Ask for the device's counters; they arrive in `stats`."""
        self._link(pack("STATS_ASK"))

    def submit(self, command: int, arguments: bytes = b"") -> Pending:
        """Queue a command for the device."""
        return self.commands.submit(command, arguments)

    def _ask(self, now: float) -> None:
        self._asked = now
        self._nonce = self._nonce + 1 & 0xFFFFFFFF or 1
        self._link(pack("HELLO_ASK", version_least=SCHEMA.VERSION_LEAST, version_most=SCHEMA.VERSION_MOST,
                        nonce=self._nonce, session=self.session, frame_most=SCHEMA.FRAME_LIMIT), b"\0")

    def _link(self, message: bytes, before: bytes = b"") -> None:
        self._out += before + encode(Frame(SCHEMA.CHANNEL_LINK, 0, self._link_sequence, 0, message), 0)
        self._link_sequence = self._link_sequence + 1 & 0xFFFF

    def _grant(self, stream: StreamState, now: float) -> None:
        stream.granted_at, stream.used = now, 0
        self._link(pack("CREDIT", channel=stream.channel.number, limit=stream.next + CREDIT_FRAMES & 0xFFFF))

    # in -----------------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> list[Event]:
        """The events that these bytes complete, in order. Raises LinkError if the device speaks another protocol."""
        events: list[Event] = []
        for frame in self.decoder.feed(data):
            self._heard = now
            try:
                if frame.channel == SCHEMA.CHANNEL_LINK:
                    events += self._on_link(frame, now)
                elif frame.channel == SCHEMA.CHANNEL_COMMAND:
                    self.commands.result(frame.sequence, frame.payload, now)
                elif frame.channel in self._streams:
                    events += self._on_stream(self._streams[frame.channel], frame, now)
            except Malformed:
                self.counts["nonsense"] += 1
        return events

    def _on_link(self, frame: Frame, now: float) -> list[Event]:
        payload = self._whole(frame)
        if not payload:
            return []
        name = MESSAGES.get(payload[0], "")
        if name == "HELLO":
            return self._on_hello(read_hello(payload), now)
        if not self.greeted:
            return []
        if name == "TIME":
            m = unpack(name, payload)
            self._stamp_open = False
            self.clock.add(m.asked, m.received, m.sent, now * 1e6)
        elif name == "CREDIT_ASK":
            m = unpack(name, payload)
            if m.channel in self._streams:
                stream = self._streams[m.channel]
                ahead = m.next - stream.next & 0xFFFF
                if ahead < 0x8000:
                    self.counts["lost"] += ahead
                    stream.next = m.next
                self._grant(stream, now)
        elif name == "ACK":
            m = unpack(name, payload)
            self.commands.acknowledged(m.next, m.held)
        elif name == "STATS":
            self.stats = unpack(name, payload)._asdict()
            del self.stats["message"]
        else:
            raise Malformed(f"message {payload[0]}")
        return []

    def _whole(self, frame: Frame) -> bytes:
        """The payload, or the object that this fragment completes; b"" if it is incomplete. Raises Malformed."""
        more, continued = frame.flags & SCHEMA.FLAG_MORE, frame.flags & SCHEMA.FLAG_CONTINUED
        if not more and not continued:
            return frame.payload
        if not continued:
            self._pieces.clear()
        elif frame.sequence != self._pieces_next:
            self._pieces_next = -1
            return b""
        self._pieces_next = frame.sequence + 1 & 0xFFFF
        self._pieces += frame.payload
        if more:
            if len(self._pieces) > SCHEMA.FRAME_LIMIT:
                self._pieces_next = -1
            return b""
        return checked(self._pieces)

    def _on_hello(self, hello: Hello, now: float) -> list[Event]:
        if not hello.compatible:
            raise LinkError(
                f"the device {hello.device:016x} speaks versions {hello.version_least} to {hello.version_most} of the "
                f"bridge protocol with schema {hello.schema:08x}, this host {SCHEMA.VERSION_LEAST} to "
                f"{SCHEMA.VERSION_MOST} with {SCHEMA.hash:08x}",
                f"flash firmware built with the firmware_bridge/c of this edgecl (it has {hello.firmware}), or install "
                f"the edgecl that it was built with")
        before = self.hello
        if hello.nonce != self._nonce or hello.session != self.session:  # unasked, or the answer to an older request
            if hello.nonce == 0 and (before is None or hello.boot != before.boot or not self.greeted):
                self.greeted = False
                if now - self._asked > ASK_AGAIN:
                    self._ask(now)
            return []
        restarted = before is not None and (before.boot, before.device) != (hello.boot, hello.device)
        again = self.greeted and not restarted
        self.hello, self.greeted, self._greeted_at = hello, True, self._greeted_at if again else now
        if again:
            return []
        self.commands.receive_window = hello.receive_window
        if before is not None and (before.session_boot, before.device) != (hello.session_boot, hello.device):
            self.commands.forgotten()
        self.commands.resume()
        if restarted or before is None:
            self.clock = Clock()
            self.counts["restarts"] += restarted
        kept = {} if restarted else self._streams
        self._streams = {c.number: kept.get(c.number) or StreamState(c) for c in hello.channels
                         if self.wanted is None or c.name in self.wanted}
        self.decoder.seeds = {SCHEMA.CHANNEL_LINK: 0, SCHEMA.CHANNEL_COMMAND: SCHEMA.hash,
                              **{c.number: c.seed for c in hello.channels}}
        for stream in self._streams.values():
            self._grant(stream, now)
        self.send_commands(now)
        return [Connected(hello, restarted)]

    def _on_stream(self, stream: StreamState, frame: Frame, now: float) -> Iterator[Event]:
        ahead = frame.sequence - stream.next & 0xFFFF
        if ahead >= 0x8000:
            self.counts["late"] += 1
            return
        self.counts["lost"] += ahead if stream.started else 0
        stream.next, stream.started = frame.sequence + 1 & 0xFFFF, True
        stream.used += 1 + ahead
        if stream.used >= CREDIT_FRAMES // 2:
            self._grant(stream, now)
        if stream.channel.dtype is not None:
            yield Samples(stream.channel, stream.unroll(frame.time, now * 1e6), stream.channel.values(frame.payload))
            return
        try:
            data = stream.collect(frame, ahead)
        except Malformed:
            self.counts["broken_objects"] += 1
            return
        if data is not None:
            yield Bytes(stream.channel, data)
