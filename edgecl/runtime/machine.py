"""What this process takes of the machine."""
from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecl.rounds.board import Readings
    from edgecl.rounds.limits import Limits, Verdict


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def bytes_written() -> int | None:
    """Bytes that this process has sent to the disk; None where the kernel does not count them."""
    with suppress(OSError):
        found = re.search(r"^write_bytes: ([0-9]+)$", Path("/proc/self/io").read_text(), re.MULTILINE)
        return int(found[1]) if found else None
    return None


def room(readings: Readings, limits: Limits, verdict: Verdict) -> dict[str, Any]:
    """What of `Service.budget` is of the machine. verdict: of `limits.may_run`."""
    zone = max(readings.zones, key=lambda zone: zone.degrees - limits.below(zone), default=None)
    return {"rss_bytes": resident_bytes(), "heat_celsius": zone.degrees if zone else None,
            "heat_limit": limits.below(zone) if zone else None, "battery": readings.battery,
            "may_run": {"ok": bool(verdict), "reason": "; ".join(map(str, verdict.reasons)) or None}}
