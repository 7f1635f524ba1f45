"""Where states that thousands of commands change can lie, and what they take there; without edgecl."""
from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

IN_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}


def fast_folder(room: int = 200_000_000) -> str | None:
    """A file system in memory for states that thousands of commands change, if it and the machine have `room` bytes;
    else None, for the default. What a disk makes of them is for the tests that take the fixture `disk`."""
    memory = "/dev/shm"
    if not os.access(memory, os.W_OK):
        return None
    available = 1024 * int(re.findall(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[0])
    return memory if min(shutil.disk_usage(memory).free, available) >= room else None


def file_system(folder: Path) -> str:
    """The kind of file system that holds a folder."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    real = folder.resolve()
    places = [(len(place), number, kind) for number, (_, place, kind, *_) in enumerate(mounts)
              if real.is_relative_to(place.encode().decode("unicode_escape"))]
    return max(places)[2]


def on_a_disk(places: Iterable[Path]) -> Path | None:
    """The first of some folders that can be written and is on a disk: memory gives out each inode number once, so it
    can't show what a disk does."""
    return next((place for place in places if os.access(place, os.W_OK) and file_system(place) not in IN_MEMORY), None)


def directory_bytes(path: Path, reserve: bool = True) -> int:
    """Bytes of all that is in a directory, itself and temporaries included, in whole pages; counted without edgecl."""
    seen: set[int] = set()
    total, folders = 0, [str(path)]
    while folders:
        folder = folders.pop()
        total += max(-(-os.stat(folder).st_size // 4096) * 4096, 4096)
        for entry in os.scandir(folder):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
                continue
            try:
                about = os.stat(entry.path)
            except FileNotFoundError:  # a temporary that is gone already
                continue
            if about.st_ino not in seen and (reserve or entry.name != "reserved"):
                seen.add(about.st_ino)
                total += -(-about.st_size // 4096) * 4096
    return total
