"""`edgecl classes`, `edgecl status` and `edgecl history`."""
from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from edgecl.commands import opened, percent, print_json, print_table
from edgecl.config import format_size


def classes(options: argparse.Namespace) -> None:
    """What the learner knows."""
    with opened(options) as learner:
        known = learner.classes()
    if options.json:
        print_json([asdict(each) for each in known])
        return
    print_table(f"{len(known)} classes", ["class", "samples", "exemplars", "held-back accuracy"],
                [[c.name, str(c.samples), str(c.exemplars), percent(c.held_back_accuracy)] for c in known])


def status(options: argparse.Namespace) -> None:
    """Where the state stands."""
    with opened(options) as learner:
        s = learner.status()
    if options.json:
        print_json(asdict(s))
        return
    bar = _bar(s.used_bytes / s.quota_bytes)
    rows = [
        ["bytes", f"{bar} {format_size(s.used_bytes)} of {format_size(s.quota_bytes)}"],
        ["", ", ".join(f"{name} {format_size(size)}" for name, size in s.purposes.items() if size)
         + f"; {format_size(s.reserved_bytes)} reserved on the disk"],
        ["exemplars", f"{_bar(s.exemplar_bytes / max(s.exemplar_limit_bytes, 1))} {format_size(s.exemplar_bytes)} of "
                      f"{format_size(s.exemplar_limit_bytes)}"],
        ["", f"{s.exemplars} samples, codec {s.codec}"],
        ["classes", f"{s.classes}" + ("" if s.exact else " (one was forgotten approximately)")],
        ["backbone", f"{s.backbone}" + (f", {s.precision}" if s.precision else ", waits for the first samples")],
        ["statistics", s.statistics or "-"],
        ["head", s.head or "-"],
        ["unknown", "told by distance" if s.unknown_threshold is not None else "not told: too few held-back samples"],
        ["generation", f"{s.generation}, can go back to {', '.join(map(str, s.restorable[:-1])) or 'none'}"]]
    for name, value in rows:
        print(f"{name:11} {value}")
    for warning in s.warnings:
        print(f"edgecl: note: {warning}", file=sys.stderr)


def _bar(share: float, width: int = 24) -> str:
    full = min(round(share * width), width)
    return "█" * full + "░" * (width - full)


def history(options: argparse.Namespace) -> None:
    """Every generation."""
    with opened(options) as learner:
        generations, restorable = learner.history(), learner.store.restorable()
        current = learner.store.current
    if options.json:
        print_json([{"generation": g.id, "created": g.created, "action": g.action, "current": g.id == current,
                     "restorable": g.id in restorable, "undone": g.undone, **g.detail} for g in generations])
        return
    rows = []
    for g in generations:
        about = g.detail
        what = about.get("class") or about.get("method") or (f"to {about['to']}" if "to" in about else "")
        mark = next(word for word, fits in (
            ("refused", "refused" in about), ("current", g.id == current), ("undone", g.undone),
            ("yes", g.id in restorable), ("no", True)) if fits)
        rows.append([f"{g.id:3} {g.action} {what}".rstrip(), str(about.get("samples", about.get("tuned_samples", ""))),
                     str(g.detail.get("classes", 0)), g.created[:19].replace("T", " "), mark])
    print_table("generations, the oldest first", ["what", "samples", "classes", "UTC", "restorable"], rows)
    for g in generations:
        for why in g.detail.get("refused", []):
            print(f"{g.id:3} was refused: {why}")
