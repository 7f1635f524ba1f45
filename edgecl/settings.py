"""Settings of a learner, sizes and times as people write them, and .toml files that are read strictly."""
from __future__ import annotations

import re
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from edgecl.errors import BadInput

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
SECONDS = {"": 1.0, "MS": 1e-3, "S": 1.0, "M": 60.0, "MIN": 60.0, "H": 3600.0}
TYPES: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}
DEFAULT_QUOTA = 64 * 10**6
ADMISSIONS = ("reservoir", "herding", "boundary", "ring")
MEMORIES = ("exemplars", "statistics")


def _number(text: str, units: dict[str, Any], what: str, example: str) -> float:
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", str(text))
    if not match or match[2].upper() not in units:
        raise BadInput(f"{text!r} is not a {what}", f"write it like {example}")
    return float(match[1]) * units[match[2].upper()]


def parse_size(text: str) -> int:
    """Bytes of `200KB`, `8MB` (powers of 1000), `4MiB` (powers of 1024) or a plain number."""
    return int(_number(text, UNITS, "size", "200KB, 8MB or 4MiB"))


def parse_seconds(text: str) -> float:
    """Seconds of `500ms`, `30s`, `2m`, `1h` or a plain number."""
    return _number(text, SECONDS, "time", "500ms, 30s or 2m")


def format_size(count: float) -> str:
    """Bytes for people, in powers of 1000: `3.28 MB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 999.5 * size else f"{count / size:.0f} {unit}"
    return f"{int(count)} B"


@dataclass(frozen=True)
class Settings:
    """What `edgecl init` fixes for a state's whole life.

    backbone: registry name, or "auto" (by the first thing taught); quota: bytes of the whole state directory;
    exemplars: bytes of the exemplar buffer; codec: how an exemplar is stored, see `edgecl.exemplars.codecs`; admission:
    which are kept: reservoir, herding, boundary or ring; head: "auto" or a kind; rate: Hz; window, hop: seconds;
    precision: "auto" (fp32, or stored as fp16 where the quota is small) or "int8"; threads: of ONNX Runtime;
    memory: "exemplars", or "statistics": no sample ever comes to the disk, and half of what was for exemplars holds a
    covariance of each class.
    """

    backbone: str = "auto"
    quota: int = DEFAULT_QUOTA
    exemplars: int = DEFAULT_QUOTA // 16
    codec: str = "auto"
    admission: str = "reservoir"
    head: str = "auto"
    rate: float | None = None
    window: float | None = None
    hop: float | None = None
    precision: str = "auto"
    threads: int = 1
    seed: int = 0
    memory: str = "exemplars"

    def __post_init__(self) -> None:
        for field in fields(self):
            value, (wanted, *rest) = getattr(self, field.name), str(field.type).split(" | ")
            if not (value is None and rest) and (not isinstance(value, TYPES[wanted]) or isinstance(value, bool)):
                raise BadInput(f"{field.name} is {value!r}", f"give a {field.type}")
        if self.precision not in ("auto", "int8"):
            raise BadInput(f"precision {self.precision!r}", "give auto or int8")
        if self.admission not in ADMISSIONS:
            raise BadInput(f"admission {self.admission!r}", f"give {', '.join(ADMISSIONS)}")
        if self.memory not in MEMORIES:
            raise BadInput(f"a memory of kind {self.memory!r}", f"give {' or '.join(MEMORIES)}")
        if self.quota < 1:
            raise BadInput(f"quota of {self.quota} bytes", "give --quota a size such as 16MB")
        if not 0 <= self.exemplars <= self.quota:
            raise BadInput(f"exemplars of {format_size(self.exemplars)} in a quota of {format_size(self.quota)}",
                           "give --exemplars less than --quota")
        for name in ("rate", "window", "hop"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1e9:
                raise BadInput(f"{name} of {value}", f"give --{name} a positive number")
        if self.threads < 1:
            raise BadInput(f"{self.threads} threads", "give --threads 1 or more")


def read_toml(path: Path, known: set[str]) -> dict[str, Any]:
    """The keys of a flat .toml file. Raises BadInput for a file that can't be read and for unknown keys."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"can't read {path}: {error}", "give a readable .toml file") from error
    unknown = sorted(set(values) - known)
    if unknown:
        raise BadInput(f"{path} has unknown keys: {', '.join(unknown)}", f"known keys are {', '.join(sorted(known))}")
    return values


def kind_of_memory(values: dict[str, Any], path: Path | None) -> dict[str, Any]:
    """Settings as `Settings` takes them, from a file's: of its table [memory], the kind. Raises BadInput."""
    table = values.get("memory", {"kind": Settings.memory})
    if not isinstance(table, dict) or set(table) != {"kind"} or table["kind"] not in MEMORIES:
        raise BadInput(f"{path}: memory is {table!r}",
                       f"write [memory] and below it kind = {' or '.join(map(repr, MEMORIES))}".replace("'", '"'))
    return {**values, "memory": table["kind"]} if "memory" in values else values


SETTING_NAMES = {field.name for field in fields(Settings)}
