"""`edgecl classes`, `edgecl status` and `edgecl history`."""
from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from typing import Any

from edgecl.commands import asked, opened, percent, print_json, print_table, socket_path
from edgecl.results import ClassSummary, Status, history_rows, untold
from edgecl.settings import counted, format_size, short_names


def classes(options: argparse.Namespace) -> None:
    """List the known classes."""
    known = asked(options, "classes", lambda learner: [asdict(each) for each in learner.classes()])
    if options.json:
        print_json(known)
        return
    print_table(counted(len(known), "class"), ["class", "samples", "exemplars", "accuracy"],
                [[c.name, str(c.samples), str(c.exemplars), percent(c.accuracy)
                  + (f" ({c.right} of {c.judged})" if c.accuracy is not None else "")]
                 for c in (ClassSummary(**each) for each in known)])


def status(options: argparse.Namespace) -> None:
    """Show the state: bytes, backbone, head, generation, and the daemon that serves it."""
    from edgecl.runtime.client import Client, NoDaemon

    info: dict[str, Any] | None = None
    try:
        with Client(socket_path(options)) as client:
            found, info = client.ask("status"), client.ask("info")
    except NoDaemon:
        with opened(options) as learner:
            found = asdict(learner.status())
    if options.json:
        print_json(found)
        return
    s = Status(**found)
    older = [number for number in s.restorable if number != s.generation]
    bar = _bar(s.used_bytes / s.quota_bytes)
    rows = [
        ["bytes", f"{bar} {format_size(s.used_bytes)} of {format_size(s.quota_bytes)}"],
        ["", ", ".join(f"{name.replace('_', ' ')} {format_size(size)}" for name, size in s.purposes.items() if size)
         + f"; {format_size(s.reserved_bytes)} reserved on the disk"],
        *([["memory", "statistics only, no samples kept"]] if s.memory == "statistics" else [
            ["exemplars", f"{_bar(s.exemplar_bytes / max(s.exemplar_limit_bytes, 1))} {format_size(s.exemplar_bytes)} "
                          f"of {format_size(s.exemplar_limit_bytes)}"],
            ["", f"{counted(s.exemplars, 'sample')}, codec {s.codec}"]]),
        ["classes", f"{s.classes}" + ("" if s.exact else " (approximate, see `edgecl history`)")],
        ["backbone", f"{s.backbone}" + (f", {s.precision}" if s.precision else ", waiting for the first samples")],
        ["statistics", s.statistics or "-"],
        ["head", s.head or "-"],
        ["unknown", "told" if s.unknown_threshold is not None else untold(s.unknown_needs) if s.classes else "-"],
        ["generation", f"{s.generation}, rollback can restore {', '.join(map(str, older)) or 'none'}"]]
    if info is not None:
        rows.append(["daemon", f"up {info['uptime_seconds']:.0f} s; rounds: {info['round_plan']}"])
        for source in info["sources"]:
            how = f"{source['fps']:g} per second" if source["alive"] else source["error"] or "ended"
            rows.append(["source", f"{source['name']} ({source['uri']}): {how}"])
    for name, value in rows:
        print(f"{name:11} {value}")
    for warning in s.warnings:
        print(f"edgecl: note: {short_names(warning)}", file=sys.stderr)


def _bar(share: float, width: int = 24) -> str:
    full = min(round(share * width), width)
    return "█" * full + "░" * (width - full)


def history(options: argparse.Namespace) -> None:
    """List every generation."""
    rows = asked(options, "history", lambda learner: history_rows(learner.history(), learner.store.restorable(),
                                                                  learner.store.current))
    if options.json:
        print_json(rows)
        return
    table = []
    for g in rows:
        what = g.get("class") or g.get("method") or (f"to {g['to']}" if "to" in g else "")
        if "from" in g:
            what = f"{g['from']} to {what}"
        if "known_samples" in g:
            what = f"from {g['known_samples']} of {g['taught_samples']}"
        mark = next(word for word, fits in (
            ("refused", "refused" in g), ("current", g["current"]), ("undone", g["undone"]),
            ("yes", g["restorable"]), ("no", True)) if fits)
        table.append([f"{g['generation']:3} {g['action']} {what}".rstrip(),
                      str(g.get("samples", g.get("tuned_samples", ""))), str(g.get("classes", 0)),
                      g["created"][:19].replace("T", " "), mark])
    print_table("generations, oldest first", ["what", "samples", "classes", "UTC", "restorable"], table)
    if any("judged_on" in g for g in rows):
        print("judged on pseudo-samples drawn from the statistics, since no samples are kept")
    for g in rows:
        for why in g.get("refused", []):
            print(f"{g['generation']:3} was refused: {why}")
