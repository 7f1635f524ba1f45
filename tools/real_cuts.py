#!/usr/bin/env python3
"""Cuts off a real file system under edgecl, and checks that the state opens as it was before or after a step.

    sudo tools/real_cuts.py [--cuts 100] [--system ext4] [--mount data=writeback] [--seed 0]

A process works on a state in an image that is mounted; at a random moment the file system is shut down by its own
ioctl, which drops all that it has not written, its journal included. The image is mounted again, so that the file
system recovers, and the state is opened, compared, taught and told to forget. Prints how often it was as before and
after the step that was cut; exits with 1 if it ever was neither. Needs root, mkfs.ext4 or mkfs.xfs, and loop devices.
"""
from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import crash
from crash_commands import prepare
from powerloss import examine, judge
from state_view import View, in_fork, view_of
from vector_states import vectors

from edgecl.learner import Learner

SHUTDOWN, NO_FLUSH = 0x8004587D, 2      # the ioctl GOINGDOWN of xfs, which ext4 has too; without writing the journal
SIZES = {"ext4": "48M", "xfs": "320M"}  # the smallest that these can be, and hold two states
STEPS = 20
PAUSES = (0.02, 0.1, 0.3)               # seconds at most until the cut, from an acknowledgement on


def step(learner: Learner, number: int) -> None:
    """One of many changes: small and large classes, forgetting and going back."""
    name = ("gnu", "hen", "ibis")[number % 3]
    if number % 7 == 6:
        learner.forget(name if name in [each.name for each in learner.classes()] else "gnu")
    elif number % 11 == 10:
        learner.rollback()
    else:
        learner.learn(vectors(name, 300 if number % 5 == 4 else 12, seed=number), name)


def references(prepared: Path, folder: Path) -> list[View]:
    """Copies of a state before each step and after the last one, in folders with its number, and what each shows."""
    def work() -> None:
        shutil.copytree(prepared, folder / "0")
        for number in range(STEPS):
            shutil.copytree(folder / str(number), folder / str(number + 1))
            learner = Learner.open(folder / str(number + 1) / "state")
            step(learner, number)
            learner.close()

    if crash.wait(crash.child(work)[0]) != 0:
        raise SystemExit("the states to compare with could not be made")
    views = []
    for number in range(STEPS + 1):
        shutil.copytree(folder / str(number), folder / "copy")
        views.append(in_fork(lambda: view_of(folder / "copy" / "state"), folder / "answer"))
        shutil.rmtree(folder / "copy")
    return views


@dataclass
class FileSystem:
    """A file system in an image. options: of mount."""

    system: str
    image: Path
    place: Path
    options: str

    def make(self) -> None:
        """Create it."""
        run("truncate", "-s", SIZES[self.system], self.image)
        run(f"mkfs.{self.system}", "-q", self.image)
        self.place.mkdir()

    def mount(self) -> None:
        """Mount it; it recovers from a cut."""
        run("mount", "-o", ",".join(filter(None, ("loop", self.options))), self.image, self.place)

    def unmount(self) -> None:
        """Unmount it, as soon as nothing uses it."""
        for _ in range(100):
            if subprocess.run(["umount", self.place], capture_output=True).returncode == 0:
                return
            time.sleep(0.05)
        raise SystemExit(f"{self.place} can't be unmounted")

    def cut(self) -> None:
        """Shut it down; nothing is written any more."""
        folder = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, SHUTDOWN, struct.pack("I", NO_FLUSH))
        finally:
            os.close(folder)


def run(*command: object) -> None:
    """Run a program that must not fail."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr.strip()}")


def cut_once(disk: FileSystem, origin: Path, first: int, rng: random.Random) -> int:
    """Copy a state to a mounted file system, take its steps from `first` on, and cut; how many were acknowledged."""
    work = disk.place / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(origin, work)
    run("sync", "-f", disk.place)
    reader, writer = os.pipe()

    def steps() -> None:
        learner = Learner.open(work / "state")
        os.write(writer, b"o")
        for number in range(first, STEPS):
            step(learner, number)
            os.write(writer, b"a")

    pid, _ = crash.child(steps)
    os.close(writer)
    told = os.read(reader, 1)
    for _ in range(rng.randrange(3)):
        told += os.read(reader, 1)
    time.sleep(rng.random() * rng.choice(PAUSES))
    os.kill(pid, signal.SIGSTOP)    # else a step may be acknowledged between the reading and the cut
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "TZ":
        time.sleep(0.001)
    os.set_blocking(reader, False)
    try:
        while more := os.read(reader, 100):
            told += more
    except BlockingIOError:
        pass
    os.close(reader)
    disk.cut()
    os.kill(pid, signal.SIGKILL)
    crash.wait(pid)
    return told.count(b"a")


def campaign(cuts: int, system: str, options: str = "", seed: int = 0,
             report: Callable[[str], object] = print) -> Counter[str]:
    """So many cuts of one file system; how often the state was as before the step, after it, or neither."""
    rng, found = random.Random(f"{seed} {system}"), Counter[str]()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        if crash.wait(crash.child(lambda: prepare(root / "prepared"))[0]) != 0:
            raise SystemExit("the initial states could not be created")
        views = references(root / "prepared", root)
        disk = FileSystem(system, root / "image", root / "mounted", options)
        disk.make()
        for number in range(cuts):
            disk.mount()
            try:
                first = rng.randrange(STEPS - 2)
                passed = first + cut_once(disk, root / str(first), first, rng)
                disk.unmount()
                disk.mount()
                seen = in_fork(lambda: examine(disk.place / "work" / "state", [], False), root / "answer")
                word, detail = judge(seen, views[passed:passed + 2])
                found[word] += 1
                if word not in ("before", "after"):
                    report(f"{system}, cut {number}, after step {passed}: {word}: {detail}")
            finally:
                disk.unmount()
    return found


def main() -> int:
    """Run the campaign on each file system."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cuts", type=int, default=100, metavar="N")
    options.add_argument("--system", action="append", choices=list(SIZES), help="may be repeated; default: both")
    options.add_argument("--mount", default="", metavar="OPTIONS")
    options.add_argument("--seed", type=int, default=0, metavar="N")
    given = options.parse_args()
    if os.geteuid() != 0:
        print("real_cuts: only root may mount file systems and cut them off", file=sys.stderr)
        return 1
    wrong = 0
    for system in given.system or list(SIZES):
        if shutil.which(f"mkfs.{system}") is None:
            print(f"real_cuts: mkfs.{system} is missing", file=sys.stderr)
            return 1
        found = campaign(given.cuts, system, given.mount, given.seed)
        wrong += found.total() - found["before"] - found["after"]
        print(f"{system}: {found.total()} cuts, {json.dumps(found)}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
