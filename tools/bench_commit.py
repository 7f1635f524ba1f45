#!/usr/bin/env python3
"""What a commit costs: one `learn` of 10 samples by size of the state, corrections of one sample, a burst to a daemon.

    python tools/bench_commit.py [learn] [corrections] [daemon] [--quick] [--json] [--folder FOLDER]

learn: for each length of features D and number of classes C, milliseconds of the commit alone, and with the first
answer, for which the head is solved; beside them, in turns, a bare Cholesky factorisation D x D and a product C x D by
D x D; the peak memory of a process that opens the state, answers, learns and answers, and of it before it learns.
corrections: one sample per commit, the learner kept open: commits per second by clock and by processor; milliseconds of
`learn`, of opening the state, of the first `status`, which reads every file, of another one, and of the first `learn`
afterwards; bytes written per commit. daemon: 100 corrections over the control socket from 1 and from 16 clients. One
thread. FOLDER: where the states lie; on a disk, the syncs count. Default: a folder in memory, if there is one.
"""
from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
os.environ.update(THREADS)

import numpy as np  # noqa: E402  (the threads must be set before)

from edgecl.commands.direct_or_daemon import Parcel  # noqa: E402
from edgecl.learner import Learner  # noqa: E402
from edgecl.runtime.client import Client  # noqa: E402
from edgecl.runtime.control import Control  # noqa: E402
from edgecl.runtime.service import Service  # noqa: E402
from edgecl.runtime.settings import DaemonSettings  # noqa: E402
from edgecl.settings import Settings  # noqa: E402

SIZES = ((256, 10), (256, 1_000), (256, 3_000), (256, 10_000), (1280, 10), (1280, 300), (1280, 1_000))
COMMITS = (100, 1_000, 10_000)
AT_ONCE, REPEATS, LOOKS = 10, 5, 9
BURST, CLIENTS = 100, 16
QUOTA = 2 * 10**9


def samples(label: int, count: int, dimension: int, seed: int = 0) -> np.ndarray:
    """Features [count, dimension] of a class."""
    centre = np.random.default_rng(label).normal(size=dimension) * 2
    return (centre + np.random.default_rng([label, seed]).normal(size=(count, dimension))).astype(np.float32)


def clock(action: Any, *values: Any) -> float:
    """Milliseconds that a call takes."""
    started = time.perf_counter()
    action(*values)
    return 1000 * (time.perf_counter() - started)


def peak() -> float:
    """The most memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def build(path: Path, dimension: int, classes: int) -> None:
    """A state that knows so many classes."""
    learner = Learner.create(path, Settings(backbone="identity", quota=QUOTA, exemplars=4 * 10**6, head="auto"))
    each = max(20_000 // classes, 3) if classes < 3_000 else 4
    for label in range(classes):
        learner.learn(samples(label, min(each, 60), dimension), f"class {label:05d}")
    learner.close()


def learn_case(path: Path, dimension: int, classes: int) -> dict[str, Any]:
    """The figures of `learn` for a state that is built; in a process of its own."""
    learner, probe = Learner.open(path), samples(0, 1, dimension, 9)
    learner.predict(probe)
    start = peak()
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(dimension, 2 * dimension))
    factor = factor @ factor.T
    means = rng.normal(size=(classes, dimension))
    found: dict[str, list[float]] = {"commit": [], "with answer": [], "cholesky": [], "product": []}
    for number in range(REPEATS):
        new = samples(number, AT_ONCE, dimension, 100 + number)
        commit = clock(learner.learn, new, f"class {number:05d}")
        found["commit"].append(commit)
        found["with answer"].append(commit + clock(learner.predict, probe))
        found["cholesky"].append(clock(np.linalg.cholesky, factor))
        found["product"].append(clock(np.matmul, means, factor))
    most = peak()
    learner.close()
    return {"D": dimension, "C": classes, **{name: round(median(times), 2) for name, times in found.items()},
            "peak_mb": round(most, 1), "before_mb": round(start, 1)}


def correction_case(path: Path, dimension: int, commits: list[int]) -> list[dict[str, Any]]:
    """The figures of corrections of one sample after each of some numbers of commits."""
    learner = Learner.create(path, Settings(backbone="identity", quota=QUOTA, exemplars=4 * 10**6, head="auto"))
    for label in range(10):
        learner.learn(samples(label, 40, dimension), f"class {label:05d}")
    rows, done = [], 0
    pool = [samples(label, 1_000, dimension, 7) for label in range(10)]
    for until in commits:
        begun, computed, written, count = time.perf_counter(), time.process_time(), _written(), until - done
        each = []
        for number in range(done, until):
            new = pool[number % 10][number // 10 % 1_000][None]
            each.append(clock(learner.learn, new, f"class {number % 10:05d}"))
        took, computed, written = time.perf_counter() - begun, time.process_time() - computed, _written() - written
        done = until
        learner.close()
        opened, status, again = [], [], []
        for _ in range(LOOKS):
            opened.append(clock(_opened, path))
            looking = Learner.open(path)
            status.append(clock(looking.status))
            again.append(clock(looking.status))
            looking.store.close()
        learner = Learner.open(path)
        first = clock(learner.learn, samples(0, 1, dimension, 10 + until), "class 00000")
        rows.append({"D": dimension, "commits": until, "per_second": round(count / took, 1),
                     "per_cpu_second": round(count / computed, 1), "learn": round(median(each[-100:]), 2),
                     "open": round(median(opened), 2), "status": round(median(status), 2),
                     "again": round(median(again), 2), "first_learn": round(first, 2),
                     "written_bytes": round(written / count)})
    learner.close()
    return rows


def _written() -> int:
    """Bytes that this process has handed to write()."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("wchar"))


def daemon_case(path: Path, dimension: int) -> list[dict[str, Any]]:
    """Corrections over the control socket of a daemon in this process."""
    learner = Learner.create(path, Settings(backbone="identity", quota=QUOTA, exemplars=4 * 10**6, head="auto"))
    for label in range(10):
        learner.learn(samples(label, 40, dimension), f"class {label:05d}")
    service = Service(learner, DaemonSettings(path, rounds="off"))
    service.start()
    door = Control(path / "control.sock", service, ())
    door.start()
    rows = []
    try:
        for clients in (1, CLIENTS):
            share = [[clients * BURST + each for each in range(BURST)[number::clients]] for number in range(clients)]
            took = clock(_teach_at_once, path / "control.sock", dimension, share)
            rows.append({"D": dimension, "clients": clients, "corrections": BURST,
                         "per_second": round(1000 * BURST / took, 1)})
    finally:
        door.stop()
        service.stop(10)
    return rows


def _opened(path: Path) -> None:
    Learner.open(path).store.close()


def _teach_at_once(socket: Path, dimension: int, shares: list[list[int]]) -> None:
    teachers = [threading.Thread(target=_teach, args=(socket, dimension, mine)) for mine in shares]
    for each in teachers:
        each.start()
    for each in teachers:
        each.join()


def _teach(socket: Path, dimension: int, numbers: list[int]) -> None:
    with Client(socket) as client:
        for number in numbers:
            with Parcel() as parcel:
                parcel.add(samples(number % 10, 1, dimension, 1_000 + number)[0])
                client.ask("learn", parcel.seal(), label=f"class {number % 10:05d}", groups=parcel.groups)


def in_process(kind: str, path: Path, *values: int) -> Any:
    """The result of a case in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--case", kind, str(path), *map(str, values)], check=True,
                          stdout=subprocess.PIPE, env={**os.environ, **THREADS})
    return json.loads(done.stdout or "null")


def case(kind: str, path: Path, values: list[int]) -> Any:
    """What `in_process` runs."""
    if kind == "build":
        return build(path, *values)
    if kind == "learn":
        return learn_case(path, *values)
    if kind == "corrections":
        return correction_case(path, values[0], values[1:])
    return daemon_case(path, *values)


def table(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows under their names."""
    print(f"\n{title}")
    names = list(rows[0])
    cells = [names, *([f"{row[name]:,}" if isinstance(row[name], int) else str(row[name]) for name in names]
                      for row in rows)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(names))]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help="learn, corrections, daemon; default: all")
    parser.add_argument("--quick", action="store_true", help="small states and few commits")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("/dev/shm") if Path("/dev/shm").is_dir() else None)
    parser.add_argument("--case", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        kind, path, *values = options.case
        print(json.dumps(case(kind, Path(path), [*map(int, values)])))
        return
    what = options.what or ["learn", "corrections", "daemon"]
    if unknown := set(what) - {"learn", "corrections", "daemon"}:
        parser.error(f"{', '.join(sorted(unknown))}: choose from learn, corrections, daemon")
    sizes = SIZES[:2] if options.quick else SIZES
    commits = COMMITS[:2] if options.quick else COMMITS
    found: dict[str, list[dict[str, Any]]] = {}
    folder = Path(tempfile.mkdtemp(prefix="edgecl-bench-", dir=options.folder))
    try:
        if "learn" in what:
            found["learn"] = []
            for dimension, classes in sizes:
                path = folder / f"{dimension}-{classes}"
                in_process("build", path, dimension, classes)
                found["learn"].append(in_process("learn", path, dimension, classes))
                shutil.rmtree(path)
        if "corrections" in what:
            found["corrections"] = [row for dimension in (256, 1280) for row in in_process(
                "corrections", folder / f"one-{dimension}", dimension, *commits)]
        if "daemon" in what:
            found["daemon"] = [row for dimension in (256, 1280) for row in in_process(
                "daemon", folder / f"daemon-{dimension}", dimension)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if options.json:
        print(json.dumps(found))
        return
    titles = {"learn": f"One `learn` of {AT_ONCE} samples, milliseconds, and MB at most",
              "corrections": "Corrections of one sample, 10 classes; milliseconds, bytes per commit",
              "daemon": "Corrections over the control socket, 10 classes"}
    for name, rows in found.items():
        table(titles[name], rows)


if __name__ == "__main__":
    main()
