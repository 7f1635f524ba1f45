"""What this process takes of the machine."""
from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from edgecl.rounds.board import Readings
    from edgecl.rounds.limits import Limits, Verdict


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(psutil.Process().memory_info().rss)


def bytes_written() -> int | None:
    """Bytes that this process has sent to storage; None if the kernel does not count them."""
    with suppress(psutil.Error, AttributeError):  # without /proc/self/io there is no such method
        return int(psutil.Process().io_counters().write_bytes)
    return None


def room(readings: Readings, limits: Limits, verdict: Verdict) -> dict[str, Any]:
    """The machine's part of `Service.budget`. verdict: of `limits.may_run`."""
    zone = max(readings.zones, key=lambda zone: zone.degrees - limits.below(zone), default=None)
    return {"rss_bytes": resident_bytes(), "heat_celsius": zone.degrees if zone else None,
            "heat_limit": limits.below(zone) if zone else None, "battery": readings.battery,
            "may_run": {"ok": bool(verdict), "reason": "; ".join(map(str, verdict.reasons)) or None}}
