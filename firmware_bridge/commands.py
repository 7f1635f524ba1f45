"""The reliable channel, host side, without I/O: numbered commands in a window, each executed exactly once."""
from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from firmware_bridge.framing import OVERHEAD, max_encoded_size
from firmware_bridge.messages import STATUS, Malformed
from firmware_bridge.schema import SCHEMA

RTO_INITIAL, RTO_MIN, RTO_MAX = 0.2, 0.02, 1.0  # seconds before a command is sent again (RFC 6298)
RESULT = SCHEMA.layouts["RESULT"]


@dataclass
class Pending:
    """A command in progress. status: "ok", "unknown", "refused", "interrupted" (by a reset), "lost" (the device lost
    its memory, so the command may have run or not), or "" while it is open; data: of the result."""

    payload: bytes
    sequence: int = -1
    status: str = ""
    data: bytes = b""
    sent: float | None = None
    times: int = 0
    held: bool = False   # the device has it and waits for an earlier one


class Commands:
    """At most SCHEMA.WINDOW commands from the oldest open one to the newest sent, and no more bytes in flight than the
    device can take. Times in seconds."""

    def __init__(self) -> None:
        self.open: deque[Pending] = deque()      # sent at least once, in order
        self.queue: deque[Pending] = deque()     # not sent yet
        self.receive_window = SCHEMA.FRAME_LEAST
        self.retransmitted = 0
        self.next = 0
        self._srtt: float | None = None
        self._rttvar = 0.0
        self._rto = RTO_INITIAL

    def submit(self, command: int, arguments: bytes) -> Pending:
        """Queue a command; its `status` is set when the result arrives. Raises ValueError for too many arguments."""
        if len(arguments) > SCHEMA.ARGUMENT_LIMIT:
            raise ValueError(f"{len(arguments)} bytes of arguments, but at most {SCHEMA.ARGUMENT_LIMIT} are allowed")
        self.queue.append(Pending(bytes([command]) + arguments))
        return self.queue[-1]

    def due(self, now: float) -> list[Pending]:
        """The commands to send now: those that have timed out, then new ones as far as the window allows."""
        send = [p for p in self.open if p.sent is None or now - p.sent >= self._rto * (4 if p.held else 1)]
        if any(p.sent is not None and not p.held for p in send):
            self._rto = min(2 * self._rto, RTO_MAX)
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
        """When `due` will next have commands to send; None if nothing is open."""
        if self.queue and self._in_window():
            return now
        return min(((p.sent or now) + self._rto * (4 if p.held else 1) for p in self.open), default=None)

    def acknowledged(self, expected: int, held: int) -> None:
        """Note that the device expects command `expected` next and holds the later ones in the bit mask `held`."""
        for p in self.open:
            ahead = p.sequence - expected & 0xFFFF
            p.held = 1 <= ahead <= 8 and bool(held >> ahead - 1 & 1)

    def result(self, sequence: int, payload: bytes, now: float) -> None:
        """Process a result; repeated ones are ignored. Raises Malformed if its length can't be right."""
        if not RESULT.size <= len(payload) <= RESULT.size + SCHEMA.DATA_LIMIT:
            raise Malformed(f"RESULT of {len(payload)} bytes")
        fields = RESULT.unpack(payload)
        self.acknowledged(fields.next, fields.held)
        for p in self.open:
            if p.sequence == sequence:
                p.status = STATUS.get(fields.status, str(fields.status))
                p.data = payload[RESULT.size:]
                if p.times == 1 and p.sent is not None:  # Karn: if sent again, either copy may have been answered
                    self._measured(now - p.sent)
                self.open.remove(p)
                return

    def _measured(self, seconds: float) -> None:
        if self._srtt is None:
            self._srtt, self._rttvar = seconds, seconds / 2
        else:
            self._rttvar += (abs(self._srtt - seconds) - self._rttvar) / 4
            self._srtt += (seconds - self._srtt) / 8
        self._rto = min(max(self._srtt + 4 * self._rttvar, RTO_MIN), RTO_MAX)

    def resume(self) -> None:
        """Send all open commands again at once: there is another wire, or the device was reset."""
        self._rto, self._srtt = RTO_INITIAL, None
        for p in self.open:
            p.sent, p.held = None, False

    def forgotten(self) -> None:
        """Give up all open commands: the device has forgotten the session, so they may have run or not."""
        for p in self.open:
            p.status = "lost"
        self.open.clear()
        self.next = 0


def _bytes(pending: Pending) -> int:
    return max_encoded_size(OVERHEAD + len(pending.payload)) + 1
