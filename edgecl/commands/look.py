"""What `edgecl learn` looks at before anything changes, and what `--dry-run` prints of it."""
from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecl.commands import Intake, print_json, print_table, report_refused, say_left_out
from edgecl.errors import BadInput
from edgecl.samples import Refusal, Sample, check_class_name, check_new_name
from edgecl.settings import counted, format_size
from edgecl.sources import check_file, class_folders, is_stream, read, read_files
from edgecl.sources.folders import FolderContents, check_layout, check_one_class, copies, look, skipped
from edgecl.sources.kinds import READABLE
from edgecl.sources.spec import PHOTOS, Spec, shown

if TYPE_CHECKING:
    import numpy as np

    from edgecl.sources.spec import Item

SHOWN = 3   # groups of copies, and names, in a line


@dataclass(frozen=True)
class Taker:
    """What is to learn. spec: how files become samples; known: names of its classes; kind, shape: of its samples, None
    if anything will do."""

    spec: Spec
    known: Sequence[str] = ()
    kind: str | None = None
    shape: tuple[int, ...] | None = None


@dataclass
class ClassSources:
    """What one class is to be learned from, in order: folders, and files and streams by their names. samples: of an
    .npz file, which was read."""

    label: str
    parts: list[FolderContents | Path] = field(default_factory=list)
    samples: int | None = None

    @property
    def folders(self) -> list[FolderContents]:
        """Those that are folders."""
        return [part for part in self.parts if isinstance(part, FolderContents)]

    @property
    def streams(self) -> bool:
        """Whether a stream is among them."""
        return any(is_stream(part) for part in self.parts if isinstance(part, Path))

    @property
    def kinds(self) -> Counter[str]:
        """Suffix -> files of a kind that can't be read."""
        return sum((each.kinds for each in self.folders), Counter())

    def items(self, spec: Spec) -> Iterator[Item]:
        """Its samples. A bad source among several is refused alone; if it is the only one, BadInput."""
        for part in self.parts:
            try:
                if isinstance(part, FolderContents):
                    if not part.files:
                        raise part.empty()
                    yield from read_files(part, spec, self.label)
                else:
                    yield from read(part, spec, self.label)
            except BadInput as error:
                if len(self.parts) == 1:
                    raise
                yield Refusal(shown(part.path if isinstance(part, FolderContents) else part), error.what)


@dataclass
class Looked:
    """All that a `learn` is to learn. loose: files beside the folders of classes, which belong to none; skipped: label
    -> why it is left out."""

    classes: list[ClassSources]
    loose: int = 0
    notes: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def look_at(options: argparse.Namespace) -> Looked:
    """Names, kinds and layout of what is to be learned. Raises BadInput."""
    looked = _one_class(options) if options.label is not None else _folder_of_classes(options.folder, options)
    for each in looked.classes:
        check_class_name(each.label)
    return looked


def _one_class(options: argparse.Namespace) -> Looked:
    found = ClassSources(check_class_name(options.label))
    for path in options.sources:
        if is_stream(path):
            found.parts.append(path)
        elif path.is_dir():
            found.parts.append(look(path))
        else:
            if not path.exists() or len(options.sources) == 1:
                check_file(path)
            found.parts.append(path)
    for each in found.folders:
        if not each.files and len(found.parts) == 1:
            raise each.empty()
        if not options.subfolders:
            check_one_class(each, found.label)
    return Looked([found])


def _folder_of_classes(folder: Path, options: argparse.Namespace) -> Looked:
    from edgecl.sources.arrays import load_part

    if folder.suffix == ".npz":
        counts = Counter(load_part(folder, "train").names)
        if not counts:
            raise BadInput(f"{folder} has no samples: x_train is empty", "give at least one sample of a class")
        return Looked([ClassSources(name, [folder], counts[name]) for name in sorted(counts)])
    paths = class_folders(folder)
    for path in paths:
        check_class_name(path.name)
    found = [look(path) for path in paths]
    if not options.subfolders:
        check_layout(folder, found)
    of_class: dict[str, ClassSources] = {}
    notes = []
    for each in found:
        label = check_class_name(each.path.name)
        one = of_class.setdefault(label, ClassSources(label))
        one.parts.append(each)
        if len(one.parts) == 2:
            notes.append(f"{' and '.join(repr(part.path.name) for part in one.folders)} are one class")
    beside = [each for each in folder.iterdir() if each.suffix.lower() in READABLE and each.is_file()
              and not skipped(each.name)]
    if beside:
        notes.append(f"{counted(len(beside), 'file')} beside the folders of {folder} belong to no class")
    return Looked([*of_class.values()], len(beside), notes)


def check(looked: Looked, taker: Taker, options: argparse.Namespace) -> None:
    """Check it against what is to learn: names, and one sample of each class; classes without one are taken out of it.
    Raises BadInput."""
    labels = [each.label for each in looked.classes]
    if not options.distinct:
        for label in labels:
            if label not in taker.known:
                check_new_name(label, {*taker.known, *labels} - {label})
    if options.label is not None:
        if not taker.known and not looked.classes[0].streams:
            _probe(looked.classes[0], taker)
        return
    for each in [*looked.classes]:
        if each.samples is not None:
            continue
        try:
            sample = _probe(each, taker)
        except BadInput as error:
            looked.skipped[each.label] = error.what
            looked.classes.remove(each)
            continue
        kind = _kind(sample.data)
        if taker.kind not in (None, kind):
            raise BadInput(f"{each.label}: {shown(Path(sample.name))} is a {KINDS[kind]}, and "
                           f"{'this state' if taker.known else 'the class before'} takes {KINDS[str(taker.kind)]}s",
                           "give samples of one kind; a state takes one")
        taker = Taker(taker.spec, taker.known, kind, None if kind == "image" else taker.shape or sample.data.shape)
    if looked.skipped and (not options.skip_empty or not looked.classes):
        raise BadInput("; ".join([*looked.skipped.values()][:SHOWN]) + (
            f"; and {len(looked.skipped) - SHOWN} more" if len(looked.skipped) > SHOWN else ""), (
            "nothing was learned; fill or remove " + ("them" if len(looked.skipped) > 1 else "it") + (
                ", or leave out what is empty with --skip-empty" if looked.classes else "")))


KINDS = {"image": "photo", "window": "recording", "feature": "vector"}


def _kind(data: np.ndarray) -> str:
    return "image" if data.dtype.kind == "u" and data.ndim == 3 else "window" if data.ndim == 2 else "feature"


def _probe(sources: ClassSources, taker: Taker) -> Sample:
    """The first sample of a class that can be used. Raises BadInput if there is none."""
    intake = Intake(taker.shape, sources.items(taker.spec))
    sample = next(iter(intake), None)
    if sample is None:
        raise intake.explain(sources.label)
    return sample


def say(looked: Looked) -> None:
    """Say on stderr what is left out."""
    for note in looked.notes:
        print(f"edgecl: note: {note}", file=sys.stderr)
    for each in looked.classes:
        for folder in each.folders:
            say_left_out(folder)
    for label, reason in looked.skipped.items():
        print(f"edgecl: left out class {label}: {reason}", file=sys.stderr)


# --dry-run ----------------------------------------------------------------------------------------


def show(looked: Looked, taker: Taker, as_json: bool) -> None:
    """Print what would be learned: the files of each class, their sizes, copies, and what can't be read."""
    groups = [*copies(each for one in looked.classes for each in one.folders)]
    later = {path for group in groups for path in group[1:]}
    of_class = {path: one.label for one in looked.classes for each in one.folders for path in each.files}
    several = [group for group in groups if len({of_class[path] for path in group}) > 1]
    rows = [_row(each, taker, later) for each in looked.classes]
    broken = [refusal for _, refusals in rows for refusal in refusals]
    if as_json:
        print_json({"dry_run": True, "classes": [row for row, _ in rows],
                    "copies": [[shown(path) for path in group] for group in groups],
                    "in_several_classes": [[shown(path) for path in group] for group in several],
                    "refused": [{"source": each.source, "reason": each.reason} for each in broken],
                    "left_out_classes": looked.skipped, "files_of_no_class": looked.loose, "notes": looked.notes})
        return
    if all("samples" in row for row, _ in rows):    # of one .npz file
        print_table(f"nothing was learned (--dry-run): {counted(len(rows), 'class')}, "
                    f"{counted(sum(row['samples'] for row, _ in rows), 'sample')}", ["class", "samples", ""],
                    [[row["class"], str(row["samples"]), "known" if row["known"] else "new"] for row, _ in rows])
        return
    print_table(f"nothing was learned (--dry-run): {counted(len(rows), 'class')}, "
                f"{counted(sum(row['files'] for row, _ in rows), 'file')}",
                ["class", "files", "size", "pixels", "copies", "unreadable", ""],
                [[row["class"], str(row["files"]), format_size(row["bytes"]), _pixels(row["pixels"]),
                  str(row["copies"]), str(sum(row["unreadable"].values()) + len(refusals)),
                  "known" if row["known"] else "new"]
                 for row, refusals in rows])
    for what, found in (("the same content", [each for each in groups if each not in several]),
                        ("the same content in several classes", several)):
        for group in found[:SHOWN]:
            print(f"{what}: {', '.join(map(shown, group[:SHOWN]))}"
                  + (f" and {len(group) - SHOWN} more" if len(group) > SHOWN else ""))
        if len(found) > SHOWN:
            print(f"{what}: {len(found) - SHOWN} more groups")
    report_refused(broken)
    say(looked)


def _pixels(sizes: list[list[int]]) -> str:
    return " to ".join(dict.fromkeys(f"{width} x {height}" for width, height in sizes)) or "-"


def _row(sources: ClassSources, taker: Taker, later: set[Path]) -> tuple[dict[str, Any], list[Refusal]]:
    """What `show` tells of a class, and its files whose headers can't be read. later: copies of files before them."""
    from edgecl.images import size_of

    files = [path for each in sources.folders for path in each.files]
    files += [part for part in sources.parts if isinstance(part, Path) and not is_stream(part)]
    sizes, refused = list[tuple[int, int]](), list[Refusal]()
    for path in files:
        if path.suffix.lower() in PHOTOS:
            try:
                sizes.append(size_of(path))
            except BadInput as error:
                refused.append(Refusal(shown(path), error.what))
    sizes.sort(key=lambda size: size[0] * size[1])
    row = {"class": sources.label, "known": sources.label in taker.known, "files": len(files),
           "bytes": sum(path.stat().st_size for path in files), "copies": sum(path in later for path in files),
           "unreadable": dict(sources.kinds), "pixels": [[*each] for each in dict.fromkeys([*sizes[:1], *sizes[-1:]])]}
    if sources.samples is not None:
        row["samples"] = sources.samples
    if sources.streams:
        row["streams"] = [str(part) for part in sources.parts if isinstance(part, Path) and is_stream(part)]
    return row, refused + [each for folder in sources.folders for each in folder.refused]
