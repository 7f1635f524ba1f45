#!/usr/bin/env python3
"""Kills edgecl at its system calls, and checks that the state opens as it was before or after the command.

    tools/crash.py [--kills 400] [--command forget] [--jobs 2]

Each kill uses one fork of this process, which has imported everything; strace attaches to it and sends SIGKILL at the
N-th openat, pwrite64, fdatasync ... of the command. Needs strace (`apt-get install strace`) and permission to trace its
own children. Prints a table; exits with 1 if a state opened as neither.
"""
from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"

import onnx.helper  # noqa: E402, F401
from crash_commands import COMMANDS, Command, prepare, restore_to  # noqa: E402
from vector_states import tree  # noqa: E402

from edgecl.backbones import graph, onnx_runtime  # noqa: E402, F401  (before the forks; children open the sessions)

CALLS = ("openat", "write", "pwrite64", "fsync", "fdatasync", "rename", "renameat", "renameat2", "unlink", "unlinkat",
         "ftruncate", "mkdir", "close", "lseek", "fcntl")
CHANGING = CALLS[:-3]  # these change the disk, `openat` only if it creates; others fill up the number


def child(work: Callable[[], object], traced: bool = False) -> tuple[int, int]:
    """A fork that does the work: its pid, and the end of a pipe that lets it start after strace has attached."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(reader)
        if not traced:
            os.close(writer)
        return pid, writer
    code = 1
    try:
        os.close(writer)
        os.read(reader, 1)
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 2)
        work()
        code = 0
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    """The exit code of a child, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def trace(work: Callable[[], object], *options: str) -> int:
    """Run the work in a fork under strace; returns its exit code."""
    pid, start = child(work, traced=True)
    with subprocess.Popen(["strace", "-qq", "-f", "-p", str(pid), *options], stderr=subprocess.PIPE) as strace:
        try:
            for _ in range(2000):
                if "TracerPid:\t0" not in Path(f"/proc/{pid}/status").read_text():
                    break
                if strace.poll() is not None:
                    os.kill(pid, signal.SIGKILL)
                    raise SystemExit(f"strace can't attach: {strace.stderr.read().decode().strip()}")
                time.sleep(0.001)
            os.write(start, b"x")
        finally:
            os.close(start)
            code = wait(pid)
    return code


def look(folder: Path, command: Command) -> str:
    """The fingerprints of what a command may change, each taken by a fork; "absent" for what is not there; "broken" if
    one can't be opened, or has another fingerprint when it is opened again."""
    seen = [look_at(folder / name, command.by) for name in command.looks]
    return "broken" if "broken" in seen else " ".join(seen)


def look_at(state: Path, by: Callable[[Path], str]) -> str:
    if not state.exists():
        return "absent"
    answer = state.with_name("fingerprint")
    answer.unlink(missing_ok=True)
    if state.is_file():
        unpacked = state.with_name("unpacked")
        if wait(child(lambda: restore_to(unpacked, state))[0]):
            return "broken"
        state = unpacked
    wait(child(lambda: answer.write_text(f"{by(state)} {by(state)}"))[0])
    first, _, second = answer.read_text().partition(" ") if answer.exists() else ("", "", "-")
    return first if first == second else "broken"


def content(path: Path) -> object:
    """Every byte at a path."""
    return tree(path) if path.is_dir() else path.read_bytes() if path.exists() else None


def measure(name: str, command: Command, origin: Path, folder: Path) -> None:
    """The state before and after the command, and how often it makes each call."""
    shutil.copytree(origin, folder)
    state, log = folder / "state", folder / "log"
    if command.first and wait(child(lambda: command.first(state))[0]) != 0:
        raise SystemExit(f"{name}: its state could not be made")
    start = folder.with_name(f"{folder.name}-start")
    shutil.copytree(folder, start)
    command.before = look(start, command)
    shutil.rmtree(start)
    shutil.copytree(folder, folder.with_name(f"{folder.name}-origin"))
    if trace(lambda: command.run(state), "-o", str(log), "-e", f"trace={','.join(CALLS)}") != 0:
        raise SystemExit(f"{name}: the command failed without a kill")
    for line in log.read_text().splitlines():
        words = line.split(None, 1)
        if len(words) == 2 and "(" in words[1] and "resumed" not in words[1]:
            call = words[1].partition("(")[0]
            command.calls[call] += 1
            if call == "openat" and "O_CREAT" not in words[1] and "O_TRUNC" not in words[1]:
                command.harmless.add((call, command.calls[call]))
    command.after = look(folder, command)
    if "broken" in (command.before, command.after):
        raise SystemExit(f"{name}: the state is not the same when it is opened again, without a kill")


def kill(command: Command, origin: Path, folder: Path, call: str, number: int) -> str:
    """Kill a command at the `number`-th of one call: before | after | broken | other | missed."""
    shutil.copytree(origin, folder)
    try:
        code = trace(lambda: command.run(folder / "state"), "-o", "/dev/null", "-e", f"trace={call}",
                     "-e", f"inject={call}:signal=SIGKILL:when={number}")
        if code != -signal.SIGKILL:
            return "missed"
        same = all(content(folder / name) == content(origin / name) for name in command.looks)   # as `measure` saw
        seen = command.before if same else look(folder, command)
        if seen in (command.before, command.after):
            return "before" if seen == command.before else "after"
        return "broken" if seen == "broken" else "other"
    finally:
        shutil.rmtree(folder)


def thinned(items: list[tuple[str, str, int]], count: int) -> list[tuple[str, str, int]]:
    """That many of them at most, evenly spread."""
    count = min(count, len(items))
    return [items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count)]


def plan(kills: int, commands: dict[str, Command]) -> list[tuple[str, str, int]]:
    """(command, call, number): as many for each command, first of the calls that change something, then of the others,
    at which a kill leaves what a kill at the next change leaves."""
    tasks, share = list[tuple[str, str, int]](), -(-kills // len(commands))
    for name, command in commands.items():
        every, more = list[tuple[str, str, int]](), list[tuple[str, str, int]]()
        for call in CALLS:
            for number in range(1, command.calls[call] + 1):
                changes = call in CHANGING and (call, number) not in command.harmless
                (every if changes else more).append((name, call, number))
        chosen = thinned(every, share)
        tasks += chosen + thinned(more, share - len(chosen))
    return tasks


def campaign(kills: int, names: list[str], jobs: int, report: Callable[[str], object] = print) -> dict[str, Command]:
    """All kills, spread over `jobs` processes; returns each command with its calls and outcomes."""
    commands = {name: COMMANDS[name] for name in names}
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as temporary:
        root = Path(temporary)
        if wait(child(lambda: prepare(root / "prepared"))[0]) != 0:
            raise SystemExit("the initial states could not be created")
        for number, (name, command) in enumerate(commands.items()):
            measure(name, command, root / "prepared", root / str(number))
        tasks = plan(kills, commands)

        def share(job: int) -> None:
            outcomes = []
            gc.freeze()  # else a collection in a fork copies every page of this process
            for name, call, number in tasks[job::jobs]:
                origin = root / f"{list(commands).index(name)}-origin"
                outcomes.append((name, call, number, kill(commands[name], origin, root / f"kill{job}", call, number)))
            (root / f"outcomes{job}").write_text(json.dumps(outcomes))

        workers = [child(lambda job=job: share(job))[0] for job in range(jobs)]
        codes = [wait(worker) for worker in workers]
        if any(codes):
            raise SystemExit("a worker failed")
        for job in range(jobs):
            for name, call, number, outcome in json.loads((root / f"outcomes{job}").read_text()):
                commands[name].outcomes[outcome] += 1
                if outcome in ("broken", "other"):
                    report(f"{name}: killed at {call} {number}: {outcome}")
    return commands


def main() -> int:
    """Run the campaign and print its table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=400, metavar="N")
    options.add_argument("--command", action="append", choices=list(COMMANDS), help="only this one; may be repeated")
    options.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N")
    given = options.parse_args()
    if shutil.which("strace") is None:
        print("crash: strace is missing; install it with `apt-get install strace`", file=sys.stderr)
        return 1
    started = time.monotonic()
    commands = campaign(given.kills, given.command or list(COMMANDS), given.jobs)
    print(f"{'command':34}{'calls':>7}{'kills':>7}{'before':>8}{'after':>7}{'broken':>8}{'missed':>8}")
    for name, command in commands.items():
        o = command.outcomes
        print(f"{name:34}{sum(command.calls.values()):7}{o.total() - o['missed']:7}{o['before']:8}{o['after']:7}"
              f"{o['broken'] + o['other']:8}{o['missed']:8}")
    total = sum((command.outcomes for command in commands.values()), Counter[str]())
    print(f"{total.total() - total['missed']} kills in {time.monotonic() - started:.0f} s")
    return 1 if total["broken"] + total["other"] else 0


if __name__ == "__main__":
    sys.exit(main())
