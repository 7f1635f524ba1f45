"""`edgecl remove`, `edgecl move` and `edgecl rename`."""
from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from edgecl.commands import asked, print_json
from edgecl.settings import counted

if TYPE_CHECKING:
    from edgecl.learner import Learner
    from edgecl.results import Corrected


def remove(options: argparse.Namespace) -> None:
    """Remove samples."""
    done = _corrected(options, "remove", lambda learner: learner.remove(options.ids, options.erase), ids=options.ids,
                      erase=options.erase)
    if options.json:
        return
    word = "erased" if options.erase else "removed"
    print(f"{word} {counted(done['samples'], 'sample')} {_how(done, 'as if never taught')}; generation "
          f"{done['generation']}" + ("" if options.erase else f", and `edgecl rollback` brings {_them(done)} back"))
    _gone(done)
    if count := done["discarded"]:
        print(f"deleted {count} damaged file{'s that were' if count > 1 else ' that was'} set aside, since "
              f"{'they' if count > 1 else 'it'} may have held {_them(done)}")


def move(options: argparse.Namespace) -> None:
    """Move samples to another class."""
    done = _corrected(options, "move", lambda learner: learner.move(options.ids, options.label), ids=options.ids,
                      label=options.label)
    if options.json:
        return
    print(f"moved {counted(done['samples'], 'sample')} to {'the new class ' if done['new'] else ''}{done['label']} "
          f"{_how(done, 'as if taught so')}; generation {done['generation']}")
    for before, now in done["ids"].items():
        print(f"{before} is {now} now" if now else f"{before} is not stored any more: the exemplar buffer is full")
    _twice(done)
    _gone(done)


def rename(options: argparse.Namespace) -> None:
    """Rename a class."""
    done = _corrected(options, "rename", lambda learner: learner.rename(options.old, options.new, options.into),
                      old=options.old, new=options.new, into=options.into)
    if options.json:
        return
    print(f"{done['gone'][0]} is {'called' if done['new'] else 'part of'} {done['label']} now, "
          f"{counted(done['samples'], 'sample')}; generation {done['generation']}")
    _twice(done)
    now = [each for each in done["ids"].values() if each]
    if now:
        print(f"{counted(len(now), 'stored sample')} with new ids: {now[0]}" + (f" to {now[-1]}" if now[1:] else ""))


def _corrected(options: argparse.Namespace, command: str, directly: Callable[[Learner], Corrected],
               **values: Any) -> dict[str, Any]:
    """The result of a correction as a dict, printed if JSON is wanted."""
    done: dict[str, Any] = asked(options, command, lambda learner: asdict(directly(learner)), **values)
    if options.json:
        print_json(done)
    return done


def _how(done: dict[str, Any], exactly: str) -> str:
    return f"exactly, {exactly}" if done["exact"] else f"approximately: {done['why']}"


def _them(done: dict[str, Any]) -> str:
    return "it" if done["samples"] == 1 else "them"


def _twice(done: dict[str, Any]) -> None:
    if count := done["twice"]:
        print(f"{counted(count, 'sample')} {'was' if count == 1 else 'were'} in {done['label']} already, and "
              f"{'counts' if count == 1 else 'count'} twice now; see `edgecl samples --class`, and `edgecl remove`")


def _gone(done: dict[str, Any]) -> None:
    for label in done["gone"]:
        print(f"that was the last sample of {label}: the class is gone")
