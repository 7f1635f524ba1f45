#!/usr/bin/env python3
"""Memory and bytes per class, first forecast, then measured: four states, one table.

    python tools/check_forecast.py [--json]

Each state is forecast from its graph, its shapes, and the figures of a tiny state of the same kind. Then processes that
run `edgecl predict` and `edgecl learn` on it are measured, and so is the growth of its files when it learns 20 more
classes. Exits with 1 if a forecast is off by more than 5 %.
"""
from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1"))

from edgecl.learner import Learner
from edgecl.profiling import forecast, measure, sandbox
from edgecl.settings import Settings

MAX_ERROR = 0.05
MORE = 20
STATES = {  # name -> settings, kind and shape of samples, classes learned
    "photos, lite0 fp32": (Settings(backbone="efficientnet-lite0"), "image", (224, 224, 3), 10),
    "windows, rocket": (Settings(backbone="rocket", quota=16_000_000, exemplars=1_000_000, rate=50.0, window=3.0),
                        "window", (150, 6), 10),
    "vectors, 512 numbers": (Settings(backbone="identity"), "feature", (512,), 50),
    "photos, lite0 int8": (Settings(backbone="efficientnet-lite0", precision="int8"), "image", (224, 224, 3), 10),
}


def check(name: str, folder: Path) -> list[dict[str, object]]:
    settings, kind, shape, classes = STATES[name]
    calibration = sandbox.samples(kind, shape, 8, 5) if settings.precision == "int8" else None
    learner = Learner.create(folder / "state", settings, calibration)
    for number in range(classes):
        learner.learn(sandbox.samples(kind, shape, sandbox.EACH, number), f"class {number:02}")
    rows = [{"state": name, "what": f"memory, {r.what}", "forecast": r.forecast, "measured": r.measured}
            for r in measure.measure_memory(learner, folder)]
    rewrite(learner)
    head, known = learner.store.newest.detail["head"], learner.status().classes
    foundation = learner.foundation
    assert foundation is not None
    told = [sum(forecast.class_bytes(head, foundation.dimension, known + n, foundation.form, len("class 00")))
            for n in range(MORE)]
    before = kept(learner)
    for number in range(MORE):
        learner.learn(sandbox.samples(kind, shape, 6, 500 + number), f"class {known + number:02}")
    rewrite(learner)
    rows.append({"state": name, "what": f"bytes per class, {learner.store.newest.detail['head']}",
                 "forecast": round(sum(told) / MORE), "measured": round((kept(learner) - before) / MORE)})
    learner.close()
    return rows


def rewrite(learner: Learner) -> None:
    """Have statistics and head written again, and drop all older generations."""
    kind, shape = sandbox.shape_of(learner)
    name = sandbox.free_name(learner)
    learner.learn(sandbox.samples(kind, shape, 2, 999), name)
    learner.forget(name)
    for spare in [c.name for c in learner.classes() if c.name.startswith("profile")]:
        learner.forget(spare)


def kept(learner: Learner) -> int:
    """Bytes of statistics and head on the disk."""
    newest = learner.store.newest
    assert newest.head is not None and newest.snapshot is not None
    return learner.store.blobs.bytes(newest.head) + learner.store.blobs.bytes(newest.snapshot)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object per figure")
    options, good = parser.parse_args(), True
    for name in STATES:
        with tempfile.TemporaryDirectory() as folder:
            for row in check(name, Path(folder)):
                ratio = float(row["forecast"]) / float(row["measured"])  # type: ignore[arg-type]
                kept_promise = abs(ratio - 1) <= MAX_ERROR
                good &= kept_promise
                if options.json:
                    print(json.dumps({**row, "ratio": round(ratio, 4), "kept": kept_promise}), flush=True)
                else:
                    print(f"{name:22} {row['what']:26} forecast {row['forecast']:>12,}  measured {row['measured']:>12,}"
                          f"  ratio {ratio:.3f}  {'kept' if kept_promise else 'MISSED'}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
