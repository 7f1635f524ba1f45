"""`edgecl check`: what of a state is damaged, and what can be restored."""
from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from edgecl.commands import asked, opened, print_json, socket_path, state_path
from edgecl.errors import BadInput
from edgecl.settings import counted, format_size, short_names
from edgecl.state.integrity import ASIDE, BAD, FOREIGN, INTACT, LEFT_OVER, NOTED, CheckedFile

if TYPE_CHECKING:
    from edgecl.learner import Learner


def check(options: argparse.Namespace) -> int:
    """Read everything, repair or discard if asked to; 1 if something is damaged. Or check a certificate; 1 if the state
    contradicts it."""
    if options.certificate is not None:
        return _check_certificate(options)
    discarded = asked(options, "discard", _discard) if options.discard else None
    if options.repair:
        report = asked(options, "repair", _repair)
    elif options.discard:
        report = None
    else:
        report = _checked(options)
    if options.json:
        print_json({**(report or {}), **({"discarded": discarded} if discarded is not None else {})})
    else:
        if discarded is not None:
            print(f"{counted(discarded, 'damaged file')} deleted")
        if report is not None:
            _show(report)
    return int(report is not None and not report["intact"])


def _check_certificate(options: argparse.Namespace) -> int:
    from edgecl.learning.certificate import read_certificate

    if options.repair or options.discard:
        raise BadInput("--certificate goes with neither --repair nor --discard", "give one of them at a time")
    certificate = read_certificate(options.certificate)
    with opened(options) as learner:
        found = learner.check_certificate(certificate).to_json()
    if options.json:
        print_json(found)
        return int(not found["valid"])
    removed = certificate["removed"]
    how = "exactly" if certificate["exact"] else f"approximately: {'; '.join(certificate['remains'])}"
    print(short_names(f"{options.certificate}: {counted(removed['samples'], 'sample')} of {removed['class']!r} "
                      f"forgotten, {certificate['time']}, {how}"))
    for each in found["findings"]:
        print(short_names(f"{'✓' if each['ok'] else '✗' if each['ok'] is False else '·'} {each['text']}"))
    print("valid: nothing in the state contradicts it" if found["valid"] else
          "NOT valid: the state contradicts it")
    for line in (*found["proves"], *found["does_not_prove"]):
        print(line)
    return int(not found["valid"])


def _checked(options: argparse.Namespace) -> dict[str, Any]:
    from edgecl.learning.repair import check as checked
    from edgecl.runtime.client import Client, NoDaemon

    try:
        with Client(socket_path(options)) as client:
            found: dict[str, Any] = client.ask("check")
            return found
    except NoDaemon:    # and no learner: opening one would change the state
        return checked(state_path(options)).to_json()


def _repair(learner: Learner) -> dict[str, Any]:
    from edgecl.learning.repair import repair

    return repair(learner.repository).to_json()


def _discard(learner: Learner) -> int:
    from edgecl.learning.repair import discard

    return discard(learner.store)


def _show(report: dict[str, Any]) -> None:
    findings = [CheckedFile(**each) for each in report["files"]]
    for line in report["done"]:
        print(f"done: {short_names(line)}")
    for f in findings:
        name = short_names(f.file)
        mark = "✗" if f.verdict in BAD else "·" if f.verdict in (ASIDE, LEFT_OVER, FOREIGN) or f.problem else "✓"
        if f.verdict == NOTED:
            print(short_names(f"{mark} {f.what}: {f.problem}"))
            continue
        told = "" if f.verdict in (INTACT, FOREIGN) else f.verdict.upper() if f.verdict in BAD else f.verdict
        about = short_names("; ".join(filter(None, (f.what, told, f.problem))))
        print(f"{mark} {name:32} {format_size(f.bytes):>9}  {about}")
        if f.cure:
            print(f"{'':46}-> {short_names(f.cure)}")
        if f.lost:
            print(f"{'':46}lost: {short_names(f.lost)}")
    bad = [f for f in findings if f.verdict in BAD]
    files = [f for f in findings if f.verdict != NOTED]
    print(f"{counted(len(files), 'file')}, {format_size(sum(f.bytes for f in files))}: "
          + ("intact" if not bad else f"{len(bad)} damaged, missing or noted"))
    if bad and report["generation"] and not report["done"]:     # 0: without rows there is nothing to repair from
        print("edgecl: `edgecl check --repair` restores what can be restored; it deletes nothing", file=sys.stderr)
    if any(f.verdict == ASIDE for f in findings):
        print("edgecl: `edgecl check --discard` deletes what is set aside", file=sys.stderr)
