"""The host's state of one incoming channel: sequence, credit, clock, and the object assembled from its fragments."""
from __future__ import annotations

from zlib import crc32

from firmware_bridge.clock import Unroller
from firmware_bridge.framing import Frame
from firmware_bridge.messages import Channel, Malformed
from firmware_bridge.schema import SCHEMA


class StreamState:
    """next: the expected sequence number; used: frames since credit was last granted; granted_at: when, seconds."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.next = self.used = 0
        self.started = False
        self.granted_at = float("-inf")
        self.unroll = Unroller()
        self._object: bytearray | None = None

    def collect(self, frame: Frame, missed: int) -> bytes | None:
        """The object that this fragment completes, or None. missed: frames lost before it. Raises Malformed if an
        object is broken."""
        more, continued = frame.flags & SCHEMA.FLAG_MORE, frame.flags & SCHEMA.FLAG_CONTINUED
        unfinished, self._object = self._object, None
        if not continued:
            if more:
                self._object = bytearray(frame.payload)
            if unfinished is not None:
                raise Malformed("a new object started before the last one ended")
            return None if more else frame.payload
        if unfinished is None or missed:
            if unfinished is None and not missed:
                return None  # the rest of a broken object that was already counted
            raise Malformed("a fragment is missing")
        unfinished += frame.payload
        if len(unfinished) > SCHEMA.OBJECT_LIMIT + 4:
            raise Malformed("an object over the limit")
        if more:
            self._object = unfinished
            return None
        return checked(unfinished)


def checked(object_and_crc: bytearray) -> bytes:
    """The object without its CRC. Raises Malformed if the CRC differs."""
    data = bytes(object_and_crc[:-4])
    if len(object_and_crc) < 4 or crc32(data).to_bytes(4, "little") != object_and_crc[-4:]:
        raise Malformed("the CRC of an object differs")
    return data
