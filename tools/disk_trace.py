"""From the system calls of a process, as strace wrote them, to operations on the inodes of a folder."""
from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from disk_model import ROOT, Disk, Link, Operation, Rename, Sync, Truncate, Unlink, Write

CALLS = ("open", "openat", "close", "read", "write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile",
         "copy_file_range", "lseek", "dup", "dup2", "dup3", "fcntl", "fsync", "fdatasync", "ftruncate", "truncate",
         "fallocate", "rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "rmdir", "mkdir",
         "mkdirat", "ioctl")
OPTIONS = ("-xx", "-s", "99999999", "-e", f"trace={','.join(CALLS)}")    # every byte, as hexadecimal digits
ACKNOWLEDGED = b"acknowledged "  # how a write to any descriptor outside the folder begins that marks a step as done
LINE = re.compile(r"^(\w+)\((.*)\)\s+= (-?\d+|0x[0-9a-f]+)")
BETWEEN = re.compile(r", (?![^\[{]*[\]}])")     # commas outside brackets
CLONE = 0x40049409                              # ioctl FICLONE


@dataclass
class Opened:
    """An open file: its inode and position."""

    inode: int
    position: int = 0
    append: bool = False


@dataclass
class Tracer:
    """Follows the calls of one process. root: the folder; disk: its inodes, brought along; marks: number of operations
    before an acknowledgement, and its name."""

    root: str
    disk: Disk
    operations: list[Operation] = field(default_factory=list)
    marks: list[tuple[int, str]] = field(default_factory=list)
    opened: dict[int, Opened] = field(default_factory=dict)

    def follow(self, log: Path) -> None:
        """Take all calls of a log of strace -f."""
        for name, arguments, result in read_calls(log):
            if result >= 0:
                getattr(self, f"on_{ALIASES.get(name, name)}")(arguments, result)

    def place(self, path: bytes, descriptor: str = "AT_FDCWD") -> tuple[int, str] | None:
        """Where a path leads: the inode of its folder, and the last name; None if that is outside the root."""
        text, start = os.fsdecode(path), ROOT
        if not text.startswith("/"):
            folder = self.opened.get(number(descriptor)) if descriptor[:1].isdigit() else None
            if folder is None:
                return None     # relative to the working folder, which no command changes
            start = folder.inode
        else:
            text = os.path.normpath(text)
            if text != self.root and not text.startswith(f"{self.root}/"):
                return None
            text = text[len(self.root):]
        above, _, name = text.rpartition("/")
        inside = self.disk.find(above, start)
        return None if inside is None else (inside, name)

    def found(self, place: tuple[int, str] | None) -> int | None:
        """The inode at a place."""
        return None if place is None else self.disk.find(place[1], place[0])

    def do(self, operation: Operation) -> None:
        """Record an operation, and apply it."""
        self.operations.append(operation)
        if isinstance(operation, Write):
            content, end = self.disk.content(operation.inode), operation.offset + len(operation.data)
            content = content.ljust(operation.offset, b"\0")
            self.disk.inodes[operation.inode] = content[:operation.offset] + operation.data + content[end:]
        elif isinstance(operation, Truncate):
            content = self.disk.content(operation.inode)
            self.disk.inodes[operation.inode] = content[:operation.length].ljust(operation.length, b"\0")
        elif not isinstance(operation, Sync):
            self.disk.rename(operation)

    # calls: `on_NAME` takes the arguments as strace prints them, and the result ------------------------------------

    def on_openat(self, given: list[str], result: int) -> None:
        self.opened.pop(result, None)
        place, flags = self.place(text_of(given[1]), given[0]), given[2]
        if place is None:
            return
        inode = self.found(place)
        if inode is None:
            inode = self.disk.add(b"")
            self.do(Link(*place, inode))
        elif "O_TRUNC" in flags and self.disk.content(inode):
            self.do(Truncate(inode, 0))
        self.opened[result] = Opened(inode, append="O_APPEND" in flags)

    def on_open(self, given: list[str], result: int) -> None:
        self.on_openat(["AT_FDCWD", *given], result)

    def on_close(self, given: list[str], _: int) -> None:
        self.opened.pop(number(given[0]), None)

    def on_dup(self, given: list[str], result: int) -> None:
        self.opened.pop(result, None)
        if number(given[0]) in self.opened:
            self.opened[result] = self.opened[number(given[0])]

    def on_fcntl(self, given: list[str], result: int) -> None:
        if given[1].startswith("F_DUPFD"):
            self.on_dup(given, result)

    def on_ioctl(self, given: list[str], _: int) -> None:
        if number(given[0]) in self.opened and given[1].startswith(("FICLONE", hex(CLONE))):
            raise SystemExit("disk_trace: a file was cloned by ioctl, which the model does not know")

    def on_lseek(self, given: list[str], result: int) -> None:
        if file := self.opened.get(number(given[0])):
            file.position = result

    def on_read(self, given: list[str], result: int) -> None:
        if file := self.opened.get(number(given[0])):
            file.position += result

    def on_write(self, given: list[str], result: int) -> None:
        file, data = self.opened.get(number(given[0])), text_of(given[1])[:result]
        if file is None:
            if data.startswith(ACKNOWLEDGED):
                self.marks.append((len(self.operations), data[len(ACKNOWLEDGED):].decode()))
            return
        self.put(file, data)

    def put(self, file: Opened, data: bytes) -> None:
        """Write at the position of an open file."""
        if file.append:
            file.position = len(self.disk.content(file.inode))
        self.do(Write(file.inode, file.position, data))
        file.position += len(data)

    def on_pwrite64(self, given: list[str], result: int) -> None:
        if file := self.opened.get(number(given[0])):
            self.do(Write(file.inode, int(given[3], 0), text_of(given[1])[:result]))

    def on_writev(self, given: list[str], _: int) -> None:
        if number(given[0]) in self.opened:
            raise SystemExit("disk_trace: a vectored write, which the model does not know")

    def on_sendfile(self, given: list[str], result: int) -> None:
        target, source = self.opened.get(number(given[0])), self.opened.get(number(given[1]))
        self.copy(source, target, given[2], result)

    def on_copy_file_range(self, given: list[str], result: int) -> None:
        source, target = self.opened.get(number(given[0])), self.opened.get(number(given[2]))
        if target and given[3] != "NULL":
            raise SystemExit("disk_trace: copy_file_range to an offset, which the model does not know")
        self.copy(source, target, given[1], result)

    def copy(self, source: Opened | None, target: Opened | None, offset: str, count: int) -> None:
        """Write what the kernel copied from one file to another. offset: as strace prints it, "NULL" or "[from]"."""
        if target is None:
            return
        if source is None:
            raise SystemExit("disk_trace: a copy from outside the folder, which the model can't see")
        at = source.position if offset == "NULL" else int(offset.strip("[]").partition(" ")[0], 0)
        self.put(target, self.disk.content(source.inode)[at:at + count])
        if offset == "NULL":
            source.position += count

    def on_fsync(self, given: list[str], _: int) -> None:
        if file := self.opened.get(number(given[0])):
            self.do(Sync(file.inode))

    def on_ftruncate(self, given: list[str], _: int) -> None:
        if file := self.opened.get(number(given[0])):
            self.resize(file.inode, int(given[1], 0))

    def on_truncate(self, given: list[str], _: int) -> None:
        inode = self.found(self.place(text_of(given[0])))
        if inode is not None:
            self.resize(inode, int(given[1], 0))

    def on_fallocate(self, given: list[str], _: int) -> None:
        if file := self.opened.get(number(given[0])):
            if given[1] != "0":
                raise SystemExit(f"disk_trace: fallocate with mode {given[1]}, which the model does not know")
            end = int(given[2], 0) + int(given[3], 0)
            self.resize(file.inode, max(end, len(self.disk.content(file.inode))))

    def resize(self, inode: int, length: int) -> None:
        """Set the length of a file."""
        if len(self.disk.content(inode)) != length:
            self.do(Truncate(inode, length))

    def on_renameat(self, given: list[str], _: int) -> None:
        source, target = self.place(text_of(given[1]), given[0]), self.place(text_of(given[3]), given[2])
        inode = self.found(source)
        if source and target and inode is not None:
            self.do(Rename(*target, *source, inode))

    def on_rename(self, given: list[str], result: int) -> None:
        self.on_renameat(["AT_FDCWD", given[0], "AT_FDCWD", given[1]], result)

    def on_linkat(self, given: list[str], _: int) -> None:
        inode, target = self.found(self.place(text_of(given[1]), given[0])), self.place(text_of(given[3]), given[2])
        if inode is not None and target:
            self.do(Link(*target, inode))

    def on_link(self, given: list[str], result: int) -> None:
        self.on_linkat(["AT_FDCWD", given[0], "AT_FDCWD", given[1]], result)

    def on_unlinkat(self, given: list[str], _: int) -> None:
        if place := self.place(text_of(given[1]), given[0]):
            self.do(Unlink(*place))

    def on_unlink(self, given: list[str], result: int) -> None:
        self.on_unlinkat(["AT_FDCWD", given[0]], result)

    def on_mkdirat(self, given: list[str], _: int) -> None:
        if place := self.place(text_of(given[1]), given[0]):
            self.do(Link(*place, self.disk.add({}), folder=True))

    def on_mkdir(self, given: list[str], result: int) -> None:
        self.on_mkdirat(["AT_FDCWD", given[0]], result)


ALIASES = {"fdatasync": "fsync", "rmdir": "unlink", "dup2": "dup", "dup3": "dup", "renameat2": "renameat",
           "pwritev": "writev", "pwritev2": "writev"}


def read_calls(log: Path) -> Iterator[tuple[str, list[str], int]]:
    """The calls that ended, in their order: name, arguments and result."""
    begun: dict[str, str] = {}
    for line in log.read_text("ascii").splitlines():
        thread, _, call = line.partition(" ")
        call = call.strip()
        if call.endswith("<unfinished ...>"):
            begun[thread] = call.removesuffix("<unfinished ...>")
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>(.*)", call):
            call = begun.pop(thread, "") + resumed[1]
        if found := LINE.match(call):
            yield found[1], [each.strip() for each in BETWEEN.split(found[2])], int(found[3], 0)


def text_of(argument: str) -> bytes:
    """The bytes of a string that strace printed with -xx."""
    return bytes.fromhex(argument.strip('"').replace("\\x", ""))


def number(argument: str) -> int:
    """The number of a file descriptor."""
    return int(argument)
