"""Whether the file system of a state has the file locks that SQLite needs, and what to do if it has none."""
from __future__ import annotations

import errno
import fcntl
import os
from contextlib import suppress
from pathlib import Path

from edgecl.errors import StateError
from edgecl.files.regular import open_regular
from edgecl.state.write_ahead_log import LOG_FILE

REFUSALS = (errno.ENOLCK, errno.EACCES, errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
CURE = ("keep the state on a local disk, or mount with locks that are kept on this machine (NFS: option nolock, "
        "CIFS: option nobrl)")


def check_locks(folder: Path) -> None:
    """Raise StateError if the file system refuses locks.

    A shared lock on the log, which nobody else locks, is tried, never one on the database: to close a file lets go of
    all locks that this process has on it.
    """
    try:
        descriptor = open_regular(folder / LOG_FILE)
    except OSError:
        return
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in REFUSALS:
            kind, place = file_system(folder)
            raise StateError(f"{folder} is on a file system without file locks ({kind}, mounted on {place}: "
                             f"{error.strerror})", CURE) from error
    finally:
        os.close(descriptor)


def file_system(folder: Path) -> tuple[str, str]:
    """Kind and mount point of the file system that holds a folder; ("unknown", its path) if the kernel does not say."""
    with suppress(OSError, ValueError, IndexError):
        device = os.stat(folder).st_dev
        wanted, found = f"{os.major(device)}:{os.minor(device)}", []
        for line in Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines():
            before, _, after = line.partition(" - ")
            if before.split()[2] == wanted:
                found.append((after.split()[0], before.split()[4]))
        real = os.path.realpath(folder)
        inside = [each for each in found if os.path.commonpath([each[1], real]) == each[1]]
        if inside or found:
            return max(inside or found, key=lambda each: len(each[1]))
    return "unknown", str(folder)
