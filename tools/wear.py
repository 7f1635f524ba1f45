#!/usr/bin/env python3
"""Measures flash wear: bytes written to disk while 10,000 samples are learned in small commits, each synced.

Compares the kernel's count (write_bytes in /proc/self/io: whole pages) with the bytes of the float32 features. The
target is a ratio of at most 3; exits with 1 if it is missed. `--commits 1` shows where durability itself costs more,
since every sync writes at least a page.
"""
from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from edgecl import Learner
from edgecl.settings import Settings

GOAL = 3.0
CASES = {  # length of a feature, samples per commit, classes, codec
    "photos (Lite0)": (1280, 10, 40, "auto"),
    "photos, 20 per commit": (1280, 20, 40, "auto"),
    "windows (rocket)": (1344, 20, 7, "auto"),
    "vectors, raw": (512, 10, 20, "raw"),
    "short vectors": (64, 20, 10, "raw"),
    "short vectors, int8": (64, 20, 10, "auto"),
}


def written() -> int:
    """Bytes that this process has written to storage."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["write_bytes"])


def measure(folder: Path, dimension: int, size: int, classes: int, codec: str, samples: int) -> dict[str, float]:
    """Learn in commits of `size` samples; returns the figures."""
    learner = Learner.create(folder / "state", Settings(backbone="identity", codec=codec, head="slda"))
    rng = np.random.default_rng(0)
    centres = 2 * rng.standard_normal((classes, dimension))
    before, started = written(), time.perf_counter()
    for number in range(samples // size):
        label = number % classes
        learner.learn((centres[label] + rng.standard_normal((size, dimension))).astype(np.float32), f"class {label}")
    learner.close()
    features = 4 * dimension * samples
    return {"features": features, "written": written() - before, "ratio": (written() - before) / features,
            "milliseconds_a_commit": 1000 * (time.perf_counter() - started) / (samples // size)}


def main() -> int:
    """Print the table; returns 1 if a ratio is over the target."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--samples", type=int, default=10_000)
    arguments.add_argument("--commits", type=int, help="samples per commit, for every case")
    arguments.add_argument("--folder", type=Path, help="on the disk to measure (default: the working directory)")
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    missed = False
    for name, (dimension, size, classes, codec) in CASES.items():
        with tempfile.TemporaryDirectory(prefix="edgecl-wear-", dir=options.folder or Path.cwd()) as folder:
            found = measure(Path(folder), dimension, options.commits or size, classes, codec, options.samples)
        missed |= found["ratio"] > GOAL
        if options.json:
            print(json.dumps({"case": name, **found}), flush=True)
        else:
            print(f"{name:22} {options.commits or size:3} per commit  features {found['features'] / 1e6:6.1f} MB  "
                  f"written {found['written'] / 1e6:6.1f} MB  ratio {found['ratio']:5.2f}  "
                  f"{found['milliseconds_a_commit']:6.1f} ms per commit", flush=True)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
