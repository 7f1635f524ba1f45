"""Settings of a learner, and sizes, times and counts as people write them."""
from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any

from edgecl.errors import BadInput
from edgecl.files.tables import Rule, check, checked, refuse_unknown

BYTES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
SECONDS = {"": 1.0, "MS": 1e-3, "S": 1.0, "M": 60.0, "MIN": 60.0, "H": 3600.0}
DEFAULT_QUOTA = 64 * 10**6
EXEMPLAR_SHARE = 16     # the quota divided by this is the default for exemplars
SHA256 = re.compile(r"\b([0-9a-f]{12})[0-9a-f]{52}\b")
ADMISSIONS = ("reservoir", "herding", "boundary", "ring")
MEMORIES = ("exemplars", "statistics")


def _number(text: str, units: dict[str, Any], what: str, example: str) -> float:
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in units:
        raise BadInput(f"{text!r} is not a {what}", f"write it like {example}")
    return float(match[1]) * units[match[2].upper()]


def parse_size(text: str) -> int:
    """Bytes of `200KB`, `8MB` (powers of 1000), `4MiB` (powers of 1024) or a plain number. Raises BadInput."""
    return int(_number(text, BYTES, "size", "200KB, 8MB or 4MiB"))


def parse_seconds(text: str) -> float:
    """Seconds of `500ms`, `30s`, `2m`, `1h` or a plain number. Raises BadInput."""
    return _number(text, SECONDS, "time", "500ms, 30s or 2m")


def format_size(count: float) -> str:
    """Bytes for people, in powers of 1000: `3.28 MB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:.0f} {unit}"
    return f"{int(count)} B"


def _size(low: float, cure: str) -> Rule:
    return Rule(low=low, read=parse_size, cure=cure)


def _positive(flag: str) -> Rule:
    return Rule(low=1e-9, high=1e9, read=None if flag == "--rate" else parse_seconds,
                cure=f"{flag} a positive number" + ("" if flag == "--rate" else " of seconds"))


@dataclass(frozen=True)
class Settings:
    """What `edgecl init` fixes for a state's whole life. Raises BadInput.

    backbone: registry name, or "auto" (chosen by the first thing taught); quota: bytes of the whole state directory;
    exemplars: bytes of the exemplar buffer; codec: how an exemplar is stored, see `edgecl.exemplars.codecs`; admission:
    which exemplars are kept; head: "auto" or a kind; rate: Hz; window, hop: seconds; precision: "auto" (fp32, or stored
    as fp16 if the quota is small) or "int8"; threads: of ONNX Runtime; memory: "exemplars", or "statistics": no sample
    is ever written to the disk, and half of the bytes for exemplars hold a covariance of each class.
    """

    backbone: str = "auto"
    quota: Annotated[int, _size(1, "--quota a size such as 16MB")] = DEFAULT_QUOTA
    exemplars: Annotated[int, _size(0, "--exemplars a size such as 4MB")] = DEFAULT_QUOTA // EXEMPLAR_SHARE
    codec: str = "auto"
    admission: Annotated[str, Rule(choices=ADMISSIONS)] = "reservoir"
    head: str = "auto"
    rate: Annotated[float | None, _positive("--rate")] = None
    window: Annotated[float | None, _positive("--window")] = None
    hop: Annotated[float | None, _positive("--hop")] = None
    precision: Annotated[str, Rule(choices=("auto", "int8"))] = "auto"
    threads: Annotated[int, Rule(low=1, cure="--threads 1 or more")] = 1
    seed: Annotated[int, Rule(low=0, high=2**32 - 1)] = 0
    memory: Annotated[str, Rule(choices=MEMORIES)] = "exemplars"

    def __post_init__(self) -> None:
        check(self)
        if self.exemplars > self.quota:
            raise BadInput(f"exemplars of {format_size(self.exemplars)} in a quota of {format_size(self.quota)}",
                           "give --exemplars less than --quota")

    @classmethod
    def from_table(cls, values: dict[str, Any], what: str) -> Settings:
        """Settings of a table such as `quota = "16MB"`, `window = "3s"`, of whose quota a sixteenth is for exemplars
        unless it says otherwise. what: names the table in errors. Raises BadInput."""
        found = checked(cls, {"exemplars": 0, **values}, what)
        return found if "exemplars" in values else replace(found, exemplars=found.quota // EXEMPLAR_SHARE)


@dataclass(frozen=True)
class MemoryTable:
    """The table [memory] of a configuration."""

    kind: Annotated[str, Rule(choices=MEMORIES)]


SETTING_NAMES = {field.name for field in fields(Settings)}


def counted(count: int, noun: str) -> str:
    """A count as people read it: `1 sample`, `2 samples`, `3 classes`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun.endswith('s') else 's'}"


def short_names(text: str) -> str:
    """A text for people: of the SHA-256 in the name of a file, the first 12 digits."""
    return SHA256.sub(r"\1…", text)


def read_toml(path: Path, known: set[str]) -> dict[str, Any]:
    """The keys of a .toml file. Raises BadInput if it can't be read, and for unknown keys."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"can't read {path}: {error}", "give a readable .toml file") from error
    refuse_unknown(values, known, str(path))
    return values


def read_configuration(path: Path, known: set[str]) -> dict[str, Any]:
    """The keys of a file for a state or a daemon; `memory` is the kind that its table [memory] names. Raises
    BadInput."""
    values = read_toml(path, known)
    if "memory" in values:
        if not isinstance(values["memory"], dict):
            raise BadInput(f"{path}: memory is {values['memory']!r}",
                           f"write [memory] and below it kind = {' or '.join(map(json.dumps, MEMORIES))}")
        values["memory"] = checked(MemoryTable, values["memory"], f"{path}: [memory]").kind
    return values
