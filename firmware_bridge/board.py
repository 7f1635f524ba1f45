"""The compiled firmware as a process, in place of a board: it can be reset and lose power."""
from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from firmware_bridge.build import build


class Board:
    """The firmware as a process. The memory that survives a reset is a file in `folder`."""

    def __init__(self, folder: Path, options: Sequence[str], csv: Sequence[Path]) -> None:
        self._program = build("app.c", "host/firmware.c", libraries=("-lm",))
        self._options = [*options, "--retained", str(folder / "retained"), *map(str, csv)]
        self._retained = folder / "retained"
        self.boot = random.SystemRandom().randrange(2**31)
        self.baud = 0
        self.start()

    def start(self) -> None:
        """Boot the firmware."""
        self.boot += 1
        baud_read, baud_write = os.pipe()
        os.set_blocking(baud_read, False)

        def open_fd_3() -> None:  # the firmware reports its baud rate there
            os.dup2(baud_write, 3)

        self.process = subprocess.Popen([str(self._program), "--boot", str(self.boot), *self._options],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=open_fd_3,
                                        pass_fds=(3, baud_write))
        os.close(baud_write)
        self._baud_pipe = baud_read
        assert self.process.stdin is not None and self.process.stdout is not None
        self.input, self.output = self.process.stdin.fileno(), self.process.stdout.fileno()
        for fd in (self.input, self.output):
            os.set_blocking(fd, False)
        fcntl.fcntl(self.output, fcntl.F_SETPIPE_SZ, 4096)

    def rate(self) -> int:
        """The baud rate that the firmware has set."""
        with contextlib.suppress(BlockingIOError):
            self.baud = int(os.read(self._baud_pipe, 4096).split()[-1])
        return self.baud

    def reset(self, power: bool = False) -> None:
        """Kill the firmware wherever it is and boot it again. power: its retained memory is lost as well."""
        self.stop()
        if power:
            self._retained.unlink(missing_ok=True)
        self.start()

    def stop(self) -> None:
        """Kill the firmware."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()
        os.close(self._baud_pipe)
