"""The reliable channel, host side, without I/O: numbered commands, a window, and each executed exactly once."""
from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from firmware_bridge.framing import OVERHEAD, encoded_most
from firmware_bridge.messages import STATUS, Malformed
from firmware_bridge.schema import SCHEMA

RTO_FIRST, RTO_LEAST, RTO_MOST = 0.2, 0.02, 1.0  # seconds before a command is sent again (RFC 6298)
RESULT = SCHEMA.layouts["RESULT"]


@dataclass
class Pending:
    """A command on its way. status: "ok", "unknown", "refused", "interrupted" (a reset while it ran), "lost" (the
    device lost its memory; it ran or not), or "" while it is open; data: of the result."""

    payload: bytes
    sequence: int = -1
    status: str = ""
    data: bytes = b""
    sent: float | None = None
    times: int = 0
    held: bool = False   # the device has it and waits for an earlier one


class Commands:
    """At most SCHEMA.WINDOW commands between the oldest open one and the newest sent, and never more bytes than the
    device said it can take. Times in seconds."""

    def __init__(self) -> None:
        self.open: deque[Pending] = deque()      # sent at least once, in order
        self.queue: deque[Pending] = deque()     # not yet
        self.receive_window = SCHEMA.FRAME_LEAST
        self.retransmitted = 0
        self.next = 0
        self._srtt: float | None = None
        self._rttvar = 0.0
        self._rto = RTO_FIRST

    def submit(self, command: int, arguments: bytes) -> Pending:
        """Queue a command; its `status` is filled in once the result is here."""
        if len(arguments) > SCHEMA.ARGUMENT_LIMIT:
            raise ValueError(f"{len(arguments)} bytes of arguments, at most {SCHEMA.ARGUMENT_LIMIT}")
        self.queue.append(Pending(bytes([command]) + arguments))
        return self.queue[-1]

    def due(self, now: float) -> list[Pending]:
        """What is to be sent now: commands whose time is up, then new ones as far as the window allows."""
        send = [p for p in self.open if p.sent is None or now - p.sent >= self._rto * (4 if p.held else 1)]
        if any(p.sent is not None and not p.held for p in send):
            self._rto = min(2 * self._rto, RTO_MOST)
        flying = sum(_bytes(p) for p in self.open)
        while self.queue and self._in_window() and (
                not self.open or flying + _bytes(self.queue[0]) <= self.receive_window):
            fresh = self.queue.popleft()
            fresh.sequence, self.next = self.next, self.next + 1 & 0xFFFF
            flying += _bytes(fresh)
            self.open.append(fresh)
            send.append(fresh)
        for p in send:
            self.retransmitted += p.times > 0
            p.sent, p.times = now, p.times + 1
        return send

    def _in_window(self) -> bool:
        return not self.open or (self.next - self.open[0].sequence & 0xFFFF) < SCHEMA.WINDOW

    def deadline(self, now: float) -> float | None:
        """When `due` has something to say again."""
        if self.queue and self._in_window():
            return now
        return min(((p.sent or now) + self._rto * (4 if p.held else 1) for p in self.open), default=None)

    def acknowledged(self, expected: int, held: int) -> None:
        """The device expects this command next and holds those of the bit mask behind it."""
        for p in self.open:
            ahead = p.sequence - expected & 0xFFFF
            p.held = 1 <= ahead <= 8 and bool(held >> ahead - 1 & 1)

    def result(self, sequence: int, payload: bytes, now: float) -> None:
        """A result has come; one that came before is ignored. Raises Malformed."""
        if not RESULT.size <= len(payload) <= RESULT.size + SCHEMA.DATA_LIMIT:
            raise Malformed(f"RESULT of {len(payload)} bytes")
        fields = RESULT.unpack(payload)
        self.acknowledged(fields.next, fields.held)
        for p in self.open:
            if p.sequence == sequence:
                p.status = STATUS.get(fields.status, str(fields.status))
                p.data = payload[RESULT.size:]
                if p.times == 1 and p.sent is not None:  # Karn: of one sent again it is not known which was answered
                    self._measured(now - p.sent)
                self.open.remove(p)
                return

    def _measured(self, seconds: float) -> None:
        if self._srtt is None:
            self._srtt, self._rttvar = seconds, seconds / 2
        else:
            self._rttvar += (abs(self._srtt - seconds) - self._rttvar) / 4
            self._srtt += (seconds - self._srtt) / 8
        self._rto = min(max(self._srtt + 4 * self._rttvar, RTO_LEAST), RTO_MOST)

    def resume(self) -> None:
        """Another wire, or the device was reset: send what is open again at once."""
        self._rto, self._srtt = RTO_FIRST, None
        for p in self.open:
            p.sent, p.held = None, False

    def forgotten(self) -> None:
        """The device has no memory of this session: what was sent may have run or not, and is not sent again."""
        for p in self.open:
            p.status = "lost"
        self.open.clear()
        self.next = 0


def _bytes(pending: Pending) -> int:
    return encoded_most(OVERHEAD + len(pending.payload)) + 1
