"""`edgecl sync`: the state follows a folder with a subfolder per class."""
from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecl.commands import (
    Intake,
    ProgressBar,
    asked,
    keep_memory_low,
    opened,
    print_json,
    report_refused,
    say_left_out,
    state_path,
)
from edgecl.errors import INTERRUPTED, BadInput
from edgecl.samples import Refusal, Sample, check_class_name, check_new_name
from edgecl.settings import counted

if TYPE_CHECKING:
    from edgecl.learning.sync import FolderClass, SyncPlan
    from edgecl.sources.folders import FolderContents
    from edgecl.sources.spec import Item, Spec

MOST_REMOVED = 0.5      # of what is known, without --delete-most


class SyncFolder:
    """A folder of classes as it was found. classes: what each holds, by the class; refused: what can't be read."""

    def __init__(self, path: Path, subfolders: bool) -> None:
        from edgecl.sources import class_folders, class_of
        from edgecl.sources.folders import check_layout, look

        self.path = Path(os.path.abspath(path))
        self.refused: list[Refusal] = []
        found = [look(each) for each in class_folders(self.path)]
        if not subfolders:
            check_layout(self.path, found)
        self.contents: dict[str, list[FolderContents]] = {}
        for each in found:
            self.contents.setdefault(check_class_name(class_of(each.path)), []).append(each)
        if not any(each.files for each in found):
            raise BadInput(f"{path} holds no photo or recording, so all that came from it would be removed",
                           "check that its disk is there; `edgecl forget` forgets classes")

    def items(self, label: str, spec: Spec, names: set[str] | None = None) -> Iterator[Item]:
        """The samples of a class, or those in some files, given by their names."""
        from edgecl.sources import read_files
        from edgecl.sources.spec import shown

        for each in self.contents[label]:
            if names:
                each = type(each)(each.path, [file for file in each.files if shown(file) in names], each.sizes)
            yield from read_files(each, spec, label)


def sync(options: argparse.Namespace) -> None:
    """Do to the state what was done to a folder."""
    from edgecl.commands.learn import create_state
    from edgecl.learning.sync import plan_sync

    keep_memory_low()
    folder, path = SyncFolder(options.folder, options.subfolders), state_path(options)
    for each in folder.contents.values():
        for one in each:
            say_left_out(one)
    if not path.exists():
        if options.dry_run:
            _tell_new(folder, options)
            return
        create_state(path, options)
    with opened(options) as learner:
        known = [each.name for each in learner.classes()] if learner.foundation else []
        classes = _read(folder, learner, options)
        plan = plan_sync(learner.repository, folder.path, classes)
    _check_names(plan, known, folder, options)
    report_refused(folder.refused)
    if options.dry_run or plan.empty:
        _finish(options, plan, [])
        return
    _ask(plan, options)
    done = list[str]()
    try:
        steps = _carry_out(options, folder, classes, plan, done)
    except KeyboardInterrupt:
        what = ", ".join(done) or "nothing yet"
        raise KeyboardInterrupt(f"{INTERRUPTED}: {what}; the same command goes on") from None
    _finish(options, plan, steps)


def _read(folder: SyncFolder, learner: Any, options: argparse.Namespace) -> list[FolderClass]:
    """What each class's folder holds, all files read."""
    from edgecl.learning.foundation import spec_for
    from edgecl.learning.sync import FolderClass

    foundation, found = learner.foundation, list[FolderClass]()
    spec = spec_for(learner.settings, foundation)
    shape = None if foundation is None or foundation.kind == "image" else foundation.input_shape
    with ProgressBar(f"reading {folder.path.name}") as bar:
        for label in sorted(folder.contents):
            intake = Intake(shape, folder.items(label, spec), bar)
            found.append(FolderClass.of(label, intake, foundation))
            folder.refused += intake.refused
    return found


def _check_names(plan: SyncPlan, known: list[str], folder: SyncFolder, options: argparse.Namespace) -> None:
    """Raises BadInput for a new class whose name is nearly that of another one."""
    if options.distinct:
        return
    stay = {*known, *folder.contents} - plan.rename.keys()
    for label in {*plan.learn, *plan.rename.values(), *(new for _, new in plan.move)} - {*known}:
        check_new_name(label, stay - {label})


def _ask(plan: SyncPlan, options: argparse.Namespace) -> None:
    """Show what is to be done, and ask for it. Raises BadInput if it may not be done."""
    most = plan.removed > MOST_REMOVED * plan.known
    lines = [*_steps(plan), *_notes(plan)]
    print("\n".join(lines), file=sys.stderr if options.json else sys.stdout, flush=True)
    if most and not options.delete_most:
        raise BadInput(f"{plan.removed} of the {counted(plan.known, 'sample')} that are known would be removed, more "
                       "than half", "check that the folder is whole; if it is, add --delete-most")
    if options.yes:
        return
    if options.json or sys.stdin is None or not sys.stdin.isatty():
        raise BadInput("nothing was changed: there is no terminal to ask on", "add --yes, or --dry-run to look only")
    try:
        answer = input("go on? [y/N] ")
    except EOFError:    # Ctrl-D
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise BadInput("nothing was changed", "answer y to go on")


def _carry_out(options: argparse.Namespace, folder: SyncFolder, classes: list[FolderClass], plan: SyncPlan,
               done: list[str]) -> list[dict[str, Any]]:
    """Do it, one generation after the other, each as the state is then: a correction may let go of samples that the
    buffer has no room for, so that they can't be taken out any more. done: what was done, in words."""
    from edgecl.commands.direct_or_daemon import direct_or_daemon
    from edgecl.learning.sync import plan_sync

    steps, tried = list[dict[str, Any]](), set[str]()
    while True:
        step = _correction(plan)
        if step is None:
            break
        command, values, words = step
        result = _corrected(options, command, values)
        steps.append(result)
        done.append(words)
        if not options.json:
            print(f"{words}; generation {result['generation']}" + ("" if result["exact"] else
                                                                  f"; approximately: {result['why']}"), flush=True)
        with opened(options) as learner:
            plan = plan_sync(learner.repository, folder.path, classes)
    from edgecl.commands.learned import tell

    for label, names in plan.learn.items():
        if label in tried:
            continue
        tried.add(label)
        with direct_or_daemon(options) as one, ProgressBar(f"learning {label}") as bar:
            intake = Intake(one.shape, _samples(folder.items(label, one.spec(), names)))
            learned = one.learn(intake, label, bar, distinct=options.distinct)
            done.append(f"learned {label}")
            if options.json:
                steps.append({"action": "learn", "class": label, "samples": learned.samples,
                              "generation": learned.generation})
            else:
                tell(options, learned, 0, one.quota)
    return steps


def _corrected(options: argparse.Namespace, command: str, values: dict[str, Any]) -> dict[str, Any]:
    """The result of a correction, by the daemon or the learner, as a dict."""
    def directly(learner: Any) -> dict[str, Any]:
        return asdict(getattr(learner, command)(**values))

    result: dict[str, Any] = asked(options, command, directly, **values)
    return result


def _samples(items: Iterable[Item]) -> Iterator[Item]:
    """Without what was refused before."""
    return (item for item in items if isinstance(item, Sample))


def _correction(plan: SyncPlan) -> tuple[str, dict[str, Any], str] | None:
    """The next correction of a plan: command, values, and in words; None if there is none left."""
    for old, new in plan.rename.items():
        return "rename", {"old": old, "new": new}, f"renamed {old} to {new}"
    for (old, new), ids in plan.move.items():
        return "move", {"ids": ids, "label": new}, f"moved {counted(len(ids), 'sample')} of {old} to {new}"
    for label, ids in plan.remove.items():
        return "remove", {"ids": ids}, f"removed {counted(len(ids), 'sample')} of {label}"
    return None


def _steps(plan: SyncPlan) -> list[str]:
    """What is to be done, in words."""
    return [*(f"rename {old} to {new}" for old, new in plan.rename.items()),
            *(f"move {counted(len(ids), 'sample')} of {old} to {new}" for (old, new), ids in plan.move.items()),
            *(f"remove {counted(len(ids), 'sample')} of {label}" for label, ids in plan.remove.items()),
            *(f"learn {counted(count, 'sample')} of {label}" for label, count in plan.new.items())]


def _notes(plan: SyncPlan) -> list[str]:
    """What can't be done, and what is left alone."""
    again = "; to be exact, `edgecl forget --class {0}`, and sync again"
    return [*(f"note: {counted(count, 'sample')} of {label} are not in its folder any more, and can't be taken out, "
              "since they are not stored as they were learned" + again.format(label)
              for label, count in plan.stuck.items()),
            *(f"note: {counted(count, 'sample')} of {label} are not stored any more and not in its folder: it can't be "
              "told whether they came from it" + again.format(label) for label, count in plan.untold.items()),
            *(f"note: {counted(count, 'sample')} of {label} came from elsewhere and are left alone"
              for label, count in plan.elsewhere.items()),
            *(f"note: {counted(count, 'sample')} of {label} stay, since their files are there, but were not read"
              for label, count in plan.unread.items())]


def _tell_new(folder: SyncFolder, options: argparse.Namespace) -> None:
    """What --dry-run says before there is a state."""
    files = {label: sum(len(each.files) for each in found) for label, found in sorted(folder.contents.items())}
    if options.json:
        print_json({"folder": str(options.folder), "dry_run": True, "files": files})
        return
    for label, count in files.items():
        print(f"learn {counted(count, 'file')} of {label}")
    print("nothing was changed (--dry-run)")


def _finish(options: argparse.Namespace, plan: SyncPlan, steps: list[dict[str, Any]]) -> None:
    """Say what was done, or would be."""
    if options.json:
        print_json({"folder": str(options.folder), "dry_run": options.dry_run, **plan.to_json(), "steps": steps})
        return
    if plan.empty or options.dry_run:
        for line in [*_steps(plan), *_notes(plan)]:
            print(line)
    if plan.empty:
        print(f"nothing to do: the state knows what is in {options.folder}")
    elif options.dry_run:
        print("nothing was changed (--dry-run)")
