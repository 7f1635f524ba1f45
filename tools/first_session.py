#!/usr/bin/env python
"""Measures whether a learning round pays on real photos: learns classes, runs a round after the first ones, then more.

    python tools/first_session.py GROCERY [--first 20] [--time 10m] [--memory 800MB] [--rounds 1] [--exemplars 16MB]

GROCERY: the Grocery Store Dataset as {train,test}/CLASS/*.jpg. Each photo is read once, in the order of the class
names; accuracy is on the official test part, over all classes learned so far. For comparison, a second state learns the
same without any round.
"""
from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from edgecl.learner import Learner
from edgecl.rounds.run import RoundRequest
from edgecl.settings import Settings, format_size, parse_seconds, parse_size
from edgecl.sources import read
from edgecl.sources.spec import Spec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grocery", type=Path)
    parser.add_argument("--first", type=int, default=20, help="classes before the first round")
    parser.add_argument("--time", default="10m", help="of each round")
    parser.add_argument("--memory", default="800MB", help="of each round")
    parser.add_argument("--rounds", type=int, default=1, help="further rounds after all classes")
    parser.add_argument("--exemplars", default="16MB")
    parser.add_argument("--codec", default="jpeg")
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    request = RoundRequest(seconds=parse_seconds(options.time), memory=parse_size(options.memory),
                           epochs=options.epochs)
    names = sorted(folder.name for folder in (options.grocery / "train").iterdir())
    settings = Settings(backbone="efficientnet-lite0", quota=200 * 10**6, exemplars=parse_size(options.exemplars),
                        codec=options.codec)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        tuned, plain = (Learner.create(Path(folder, name), settings) for name in ("tuned", "plain"))
        for learner in (tuned, plain):
            teach(learner, options.grocery, names[:options.first])
        tell("first classes", tuned, options.grocery)
        run(tuned, request)
        tell("after a round on them", tuned, options.grocery)
        for learner in (tuned, plain):
            teach(learner, options.grocery, names[options.first:])
        tell("all classes, no round", plain, options.grocery)
        tell("all classes, tuned on the first", tuned, options.grocery)
        for number in range(options.rounds):
            run(tuned, request)
            tell(f"after further round {number + 1}", tuned, options.grocery)


def teach(learner: Learner, grocery: Path, names: list[str]) -> None:
    for name in names:
        learner.learn(read(grocery / "train" / name, Spec(), name), name)      # type: ignore[arg-type]


def run(learner: Learner, request: RoundRequest) -> None:
    begun = time.monotonic()
    done = learner.round(request)
    print(json.dumps({"round": done.method, "accepted": done.accepted, "samples": done.samples, "steps": done.steps,
                      "planned": done.planned_steps, "seconds": round(time.monotonic() - begun, 1),
                      "peak": format_size(done.peak_rss_bytes),
                      "checks": [f"{name}: {found}" for name, found, _ in done.checks[-2:]]}), flush=True)


def tell(what: str, learner: Learner, grocery: Path) -> None:
    known = [each.name for each in learner.classes()]
    found = learner.evaluate(sample for name in known for sample in read(grocery / "test" / name, Spec(), name))
    status = learner.status()
    print(json.dumps({"when": what, "classes": len(known), "accuracy": round(found.accuracy, 4), "head": status.head,
                      "exemplars": status.exemplars, "exemplar_bytes": status.exemplar_bytes,
                      "used_bytes": status.used_bytes}), flush=True)


if __name__ == "__main__":
    main()
