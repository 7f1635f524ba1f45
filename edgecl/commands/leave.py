"""`edgecl export-samples`, and `edgecl learn --from` an export."""
from __future__ import annotations

import argparse
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from edgecl.commands import opened, print_json, state_path
from edgecl.commands.backup import daemon_that_reads, readable
from edgecl.commands.learned import tell
from edgecl.errors import BadInput
from edgecl.learning.sample_export import check_folder, write_folder
from edgecl.samples import check_new_name
from edgecl.settings import counted, format_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from edgecl.learning.sample_archive import SampleArchive
    from edgecl.learning.sample_export import ExportFile
    from edgecl.learning.sample_import import ArchiveNotes
    from edgecl.results import Learned

MOST_NAMED = 12     # classes in a line


def export_samples(options: argparse.Namespace) -> None:
    """Write all stored samples to a folder."""
    check_folder(options.out, state_path(options))
    with _export(options) as (about, files):
        write_folder(files, options.out)
    if options.json:
        print_json({"out": str(options.out), **about})
        return
    print(f"exported {counted(about['samples'], 'sample')} of {counted(len(about['per_class']), 'class')} to "
          f"{options.out}: {counted(about['files'], 'file')}, {format_size(about['bytes'])}; `edgecl learn --from` "
          "reads it back")
    if only := about["samples"] - about["inputs"]:
        print(f"{only} of them as features only, since the state does not store the samples themselves")
    if about["coded"]:
        print(f"{about['coded']} of them as product codes have kept them, which is not what was learned: they can't be "
              "learned from the export")
    if gone := about["not_stored"]:
        print(f"not exported, since they are not stored any more: {counted(sum(gone.values()), 'sample')} "
              f"({_per_class(gone)})")


def _per_class(counts: dict[str, int]) -> str:
    more = f" and {len(counts) - MOST_NAMED} more classes" if len(counts) > MOST_NAMED else ""
    return ", ".join(f"{count} of {label}" for label, count in [*counts.items()][:MOST_NAMED]) + more


@contextmanager
def _export(options: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Iterable[ExportFile]]]:
    """What is exported, and its files, by way of the daemon that serves the state if this user may not read it."""
    from dataclasses import asdict

    from edgecl.learning.sample_export import export_samples

    path = state_path(options)
    if readable(path):
        with opened(options) as learner:
            about, files = export_samples(learner.repository, options.label)
            yield asdict(about), files
        return
    with daemon_that_reads(path, options) as client:
        found = client.ask("export_samples", label=options.label)
        yield found["about"], _files(client.blocks(found["tar_bytes"]))


def _files(blocks: Iterator[bytes]) -> Iterator[ExportFile]:
    """The files in a tar that comes in blocks."""
    from edgecl.files import tar
    from edgecl.learning.sample_export import ExportFile
    from edgecl.state.backup_tar import reader_of

    for member in tar.members(reader_of(blocks), "the daemon's answer"):
        yield ExportFile(member.name, b"".join(member.blocks))


def show_export(options: argparse.Namespace) -> None:
    """Print what an export holds; nothing is learned."""
    from collections import Counter

    from edgecl.learning.sample_archive import SampleArchive

    archive = SampleArchive(options.folder)
    archive.check()
    counts = {label: Counter(line["kept"] for line in archive.samples(label)) for label in archive.labels}
    if options.json:
        print_json({"dry_run": True, "export": str(options.folder), "not_stored": archive.not_stored,
                    "classes": [{"class": label, **count} for label, count in counts.items()]})
        return
    print(f"nothing was learned (--dry-run): {options.folder} is an export of "
          f"{counted(sum(map(Counter.total, counts.values())), 'sample')} of {counted(len(counts), 'class')}")
    for label, count in counts.items():
        coded = f", {count['coded']} of them product codes, which are left out" if count["coded"] else ""
        print(f"{label}: {counted(count.total(), 'sample')}{coded}")


def learn_export(options: argparse.Namespace) -> list[Learned]:
    """Learn an export, one generation per class. The state is changed beside a running daemon, which follows it."""
    from edgecl.learning.sample_archive import SampleArchive
    from edgecl.learning.sample_import import ArchiveNotes

    for name in ("session", "seconds"):
        if getattr(options, name):
            raise BadInput(f"{options.folder} is an export, whose samples have sessions and lengths of their own",
                           f"leave out --{name}")
    archive, learned = SampleArchive(options.folder), []
    if not archive.labels:
        raise BadInput(f"{options.folder} is an export without a sample", "name another folder")
    archive.check()
    with opened(options) as learner:
        known = [each.name for each in learner.classes()] if learner.foundation else []
        for label in archive.labels:
            if not options.distinct and label not in known:
                check_new_name(label, known)
        for label in archive.labels:
            one, notes = learner.learn_export(archive, label, options.again)
            if one is not None:
                learned.append(one)
                tell(options, one, 0, learner.settings.quota)
            elif options.json:
                print_json({"class": label, "samples": 0, "generation": learner.store.current,
                            "left_out": dict(notes.left_out)})
            _say(label, archive, notes)
    for label in sorted(archive.not_stored.keys() - {*archive.labels}):
        _say(label, archive, ArchiveNotes())
    return learned


def _say(label: str, archive: SampleArchive, notes: ArchiveNotes) -> None:
    """Say on stderr what was not learned as it was stored."""
    import sys

    from edgecl.learning.sample_import import LEFT_OUT

    lines = [f"left out {counted(count, 'sample')} {LEFT_OUT[why]}" for why, count in notes.left_out.items()]
    if notes.changed:
        lines.append(f"{counted(notes.changed, 'sample')} learned as the files are now: they were changed since")
    if notes.computed:
        lines.append(f"{counted(notes.computed, 'sample')} went through the backbone of this state, which is another "
                     "one: what is learned may differ a little")
    if count := archive.not_stored.get(label):
        lines.append(f"{counted(count, 'sample')} that were taught there are not in the export, since they were not "
                     "stored any more")
    for line in lines:
        print(f"edgecl: note: {label}: {line}", file=sys.stderr)
