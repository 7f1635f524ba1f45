"""`edgecl forget`, `edgecl rollback` and `edgecl merge`."""
from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecl.commands import asked, opened, print_json, state_path
from edgecl.errors import BadInput, StateError
from edgecl.files.atomic import write_atomically
from edgecl.samples import NOTHING
from edgecl.settings import counted

if TYPE_CHECKING:
    from edgecl.learner import Learner


def forget(options: argparse.Namespace) -> None:
    """Forget a class."""
    file = options.certificate
    if file is not None:
        check_certificate_file(file, state_path(options))
    answer = asked(options, "forget", lambda learner: learner.forget(options.label, file is not None),
                   label=options.label, certify=file is not None or None)
    if file is not None:
        _write(file, answer["certificate"])
    if options.json:
        print_json(answer)
        return
    how = "exactly, as if it had never been learned"
    if not answer["exact"]:
        from edgecl.learning.forgetting import REMAINS

        how = f"approximately: {answer.get('remains', REMAINS)}"
    print(f"forgot {answer['class']} {how}; generation {answer['generation']}")
    if count := answer["discarded"]:
        print(f"deleted {count} damaged file{'s that were' if count > 1 else ' that was'} set aside, since "
              f"{'they' if count > 1 else 'it'} may have held the class")
    if answer.get("gathered"):
        print("threw away the frames that were gathered for review, since they may show it")
    if file is not None:
        print(f"wrote {file}, which names the class and hashes of its samples: keep it outside the state; "
              f"`edgecl check --certificate {file}` checks it")


def check_certificate_file(file: Path, state: Path) -> None:
    """Raises BadInput unless a certificate can be written to a file: nothing of the class may come into the state."""
    if file.is_symlink() or file.exists():
        raise BadInput(f"{file} exists already", "name a new file for the certificate")
    if state.resolve() in file.resolve().parents:
        raise BadInput(f"{file} is inside the state, which must keep nothing of the class", "name a file outside")
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK | os.X_OK):
        raise BadInput(f"{file.parent} is not a folder that can be written to", "name a file in one")


def _write(file: Path, certificate: dict[str, Any]) -> None:
    """Write a certificate, which there is no second time: if that fails, it is printed."""
    text = json.dumps(certificate, indent=1, ensure_ascii=False) + "\n"
    try:
        write_atomically(file, text.encode(), mode=0o600)
    except OSError as error:
        print(text, end="")
        raise StateError(f"the class was forgotten, but {file} can't be written ({error.strerror})",
                         "the certificate was printed instead: keep that") from error


def rollback(options: argparse.Namespace) -> None:
    """Restore an earlier generation."""
    def directly(learner: Learner) -> dict[str, Any]:
        from edgecl.runtime.state_view import rolled_back

        return rolled_back(learner, options.generation)

    answer = asked(options, "rollback", directly, generation=options.generation)
    if options.json:
        print_json(answer)
    else:
        print(f"restored generation {answer['restored']} with {counted(answer['classes'], 'class')} as generation "
              f"{answer['generation']}")


def merge(options: argparse.Namespace) -> None:
    """Merge other states' statistics."""
    with opened(options) as learner:
        generation = learner.merge(options.others, options.nothing)
        known, detail = learner.classes(), learner.store.newest.detail
    counts = {name: detail[name] for name in ("left_out", "already_known", "counted_twice", "in_two_classes")
              if name in detail}
    samples = sum(each.samples for each in known)
    if options.json:
        print_json({"generation": generation, "classes": len(known), "samples": samples,
                    **counts})
    else:
        print(f"merged {counted(len(options.others), 'state')}: {counted(len(known), 'class')}, "
              f"{counted(samples, 'sample')}; generation {generation}")
        if count := counts.get("already_known"):
            print(f"left out: {counted(count, 'sample')} already known here")
        if count := counts.get("counted_twice"):
            print(f"counted twice: {counted(count, 'sample')} known here and there, since no copy is stored as it was "
                  "learned")
        if count := counts.get("in_two_classes"):
            print(f"{counted(count, 'sample')} of theirs are known here as another class")
        if left_out := counts.get("left_out"):
            print(f"left out: {counted(left_out, 'sample')} of their class `{NOTHING}`, since what is nothing there "
                  "may be something here; --nothing merges it too")
