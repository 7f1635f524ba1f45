"""`edgecl forget`, `edgecl rollback` and `edgecl merge`."""
from __future__ import annotations

import argparse

from edgecl.commands import opened, print_json


def forget(options: argparse.Namespace) -> None:
    """Forget a class."""
    with opened(options) as learner:
        answer = learner.forget(options.label)
    if options.json:
        print_json(answer)
        return
    how = "exactly, as if it had never been taught" if answer["exact"] else \
        "approximately: its samples and its mean are gone, its scatter stays, without a name, in the shared covariance"
    print(f"forgot {answer['class']} {how}; generation {answer['generation']}")


def rollback(options: argparse.Namespace) -> None:
    """Go back."""
    with opened(options) as learner:
        generation = learner.rollback(options.generation)
        detail = learner.store.newest.detail
    if options.json:
        print_json({"generation": generation, "restored": detail["to"], "classes": detail["classes"]})
    else:
        print(f"back to generation {detail['to']} with {detail['classes']} classes; this is generation {generation}")


def merge(options: argparse.Namespace) -> None:
    """Add what other states know."""
    with opened(options) as learner:
        generation = learner.merge(options.others)
        known = learner.classes()
    samples = sum(each.samples for each in known)
    if options.json:
        print_json({"generation": generation, "classes": len(known), "samples": samples})
    else:
        print(f"merged {len(options.others)} states: {len(known)} classes, {samples} samples; generation {generation}")
