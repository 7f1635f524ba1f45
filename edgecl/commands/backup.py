"""`edgecl backup` and `edgecl restore`."""
from __future__ import annotations

import argparse
import contextlib
import os
import sys
from typing import TYPE_CHECKING, Any, BinaryIO

from edgecl.commands import ProgressBar, print_json, socket_path, state_path
from edgecl.errors import BadInput, StateError
from edgecl.settings import counted, format_size, short_names
from edgecl.state.backup import check_new, into, save
from edgecl.state.backup_tar import tar_of
from edgecl.state.frozen import Copied, frozen
from edgecl.state.restore import parts_of
from edgecl.state.restore import restore as restored

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgecl.runtime.client import Client

STREAM = "-"


def backup(options: argparse.Namespace) -> int:
    """Copy a state to a folder, a .tar or stdout; 1 if a file of it is damaged, which is then copied as it is."""
    path, out = state_path(options), options.out
    to_stdout = str(out) == STREAM
    stdout = _stdout(options) if to_stdout else None
    if not to_stdout:
        check_new(out, path)
    with _tar(options, path) as found, ByteBar("backup", found.size) as bar:
        if stdout is not None:
            _pour(found.blocks, stdout, bar)
        else:
            save(found.blocks, found.size, out, bar)
        copied = found.copied()
    text = f"copied generation {copied.generation}: {counted(copied.files, 'file')}, {format_size(copied.bytes)}"
    if to_stdout:
        print(f"edgecl: {text}", file=sys.stderr)
    elif options.json:
        print_json({"out": str(out), **copied._asdict()})
    else:
        print(f"{text}, to {out}")
    for line in copied.damaged:
        print(f"edgecl: {short_names(line)}", file=sys.stderr)
    if copied.damaged:
        print("edgecl: what is damaged was copied as it is; `edgecl check` says what can be restored", file=sys.stderr)
    return int(bool(copied.damaged))


def restore(options: argparse.Namespace) -> None:
    """Make a new state from a backup."""
    source, path = options.backup, state_path(options)
    stream = None
    if str(source) == STREAM:
        if sys.stdin is None or sys.stdin.isatty():
            raise BadInput("there is no backup on stdin", "`edgecl restore - < FILE.tar`, or name the file")
        stream = sys.stdin.buffer
    with parts_of(source, stream) as parts, ByteBar("restore") as bar:
        made = restored(parts, str(source), path, bar)
    if options.json:
        print_json({"state": str(path), **made._asdict()})
    else:
        print(f"restored generation {made.generation} to {path}: {counted(made.files, 'file')}, "
              f"{format_size(made.bytes)}")
    if made.unreserved:
        print(f"edgecl: note: {format_size(made.unreserved)} of the quota could not be reserved on this disk; once it "
              "is full, nothing more can be learned", file=sys.stderr)


class _Found:
    """The tar of a state, to be read once. size: bytes of the files in it; copied: what was copied, afterwards."""

    def __init__(self, size: int, blocks: Iterator[bytes], copied: Any) -> None:
        self.size, self.blocks, self.copied = size, blocks, copied


@contextlib.contextmanager
def _tar(options: argparse.Namespace, path: Path) -> Iterator[_Found]:
    """The tar of a state, by way of the daemon that serves it if this user may not read the folder."""
    if readable(path):
        with frozen(path) as state:
            yield _Found(state.size, tar_of(state), state.copied)
        return
    with daemon_that_reads(path, options) as client:
        about = client.ask("backup")
        yield _Found(about["size"], client.blocks(about["tar_bytes"]), lambda: Copied(**client.result()))


def daemon_that_reads(path: Path, options: argparse.Namespace) -> Client:
    """The daemon that serves a state which this user may not read. Raises StateError if there is none."""
    from edgecl.runtime.client import Client, NoDaemon

    try:
        return Client(socket_path(options))
    except NoDaemon:
        raise StateError(f"{path} can't be read by this user", "run it as the owner of the state, or start the daemon "
                         "and name this user in control_users") from None


def readable(path: Path) -> bool:
    """Whether this user may read what is at a path, or there is nothing."""
    try:
        return not path.exists() or os.access(path, os.R_OK | os.X_OK)
    except PermissionError:
        return False


def _stdout(options: argparse.Namespace) -> BinaryIO:
    """Where the tar is to go. Raises BadInput if that is a terminal, or nothing."""
    if options.json:
        raise BadInput("--json and a tar can't both go to stdout", "leave out --json, or name a file")
    if sys.stdout is None:
        raise BadInput("stdout is closed", "`edgecl backup - > FILE.tar`, or name the file")
    if sys.stdout.isatty():
        raise BadInput("a tar on a terminal is of no use", "`edgecl backup - > FILE.tar`, or name the file")
    return sys.stdout.buffer


def _pour(blocks: Iterator[bytes], stdout: BinaryIO, bar: ProgressBar) -> None:
    """Write blocks to stdout. Raises BudgetError, StateError if that fails: what was written is not a whole tar."""
    try:
        with into("stdout"):
            for block in blocks:
                stdout.write(block)
                bar(len(block))
            stdout.flush()
    except StateError as error:
        if isinstance(error.__cause__, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())    # for what is still buffered
            raise StateError("the reader of stdout has stopped: the backup is not whole", "make it again") from None
        raise


class ByteBar(ProgressBar):
    """A progress bar that counts bytes."""

    def columns(self) -> list[Any]:
        """What rich shows."""
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn

        return [TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn()]
