"""What this process takes of the machine."""
from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def bytes_written() -> int | None:
    """Bytes that this process has sent to the disk; None where the kernel does not count them."""
    with suppress(OSError):
        found = re.search(r"^write_bytes: ([0-9]+)$", Path("/proc/self/io").read_text(), re.MULTILINE)
        return int(found[1]) if found else None
    return None
