"""What `edgecl daemon` reads from its .toml file, strictly; without numpy, since clients read it too."""
from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from edgecl.errors import BadInput
from edgecl.rounds.limits import RANGES, Limits
from edgecl.runtime.debounce import DEBOUNCE
from edgecl.runtime.protocol import SOCKET
from edgecl.settings import SETTING_NAMES, kind_of_memory, parse_seconds, parse_size, read_toml

ROUND = "round_"     # before the name of a limit of learning rounds
SIZES, TIMES = {"keep"}, {"round_idle", "round_pause"}
ROUND_LIMITS = Limits(memory=400 * 10**6, time=120.0)
TYPES: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}


@dataclass(frozen=True)
class SourceSettings:
    """One `[[source]]`. uri: as for `edgecl learn`; name: in answers and commands; state: of its own learner, where
    that is not the daemon's; debounce: equal answers in a row that make a new label; keep: bytes of what it saw last,
    for `learn --last`; queue: samples that wait, None for 1 photo or 16 windows, the oldest go first; fps: taken at
    most, None for all; restarts: after failures in a row, then it is given up."""

    uri: str
    name: str = ""
    state: str | None = None
    debounce: int = DEBOUNCE
    keep: int = 8 * 10**6
    queue: int | None = None
    fps: float | None = None
    restarts: int = 20

    def __post_init__(self) -> None:
        for name, low, high in (("debounce", 1, 1000), ("keep", 0, 10**9), ("queue", 1, 1000), ("fps", 1e-3, 1000),
                                ("restarts", 0, 10**6)):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise BadInput(f"source {self.uri}: {name} is {value!r}", f"give {low} to {high}")
        if not self.uri:
            raise BadInput("a [[source]] has an empty uri", 'write uri = "camera:/dev/video0"')


@dataclass(frozen=True)
class DaemonSettings:
    """The whole file. learner: settings of a new state; limits: of learning rounds.

    control: path of the socket, None for `control.sock` in the state; control_users: names that may change things,
    beside root and the daemon's own user; rounds: "idle" or "off"; round_samples: taught since the last one that make a
    round due; round_idle: seconds without teaching before it; round_pause: seconds between two; review_below:
    confidence under which a frame is put up for review.
    """

    state: Path
    sources: tuple[SourceSettings, ...] = ()
    learner: dict[str, Any] | None = None
    limits: Limits = ROUND_LIMITS
    control: str | None = None
    control_users: tuple[str, ...] = ()
    rounds: str = "idle"
    round_method: str | None = None
    round_samples: int = 100
    round_idle: float = 60.0
    round_pause: float = 3600.0
    review_below: float = 0.6
    http_listen: str | None = None
    http_token_file: str | None = None
    mqtt_host: str | None = None
    mqtt_port: int = 1883
    mqtt_user: str | None = None
    mqtt_password_file: str | None = None
    mqtt_device: str = "edgecl"

    def __post_init__(self) -> None:
        if self.rounds not in ("idle", "off"):
            raise BadInput(f"rounds is {self.rounds!r}", 'give "idle" or "off"')
        if not 0 <= self.review_below <= 1:
            raise BadInput(f"review_below is {self.review_below}", "give a confidence from 0 to 1")
        if self.round_samples < 1 or not 0 < self.mqtt_port < 65536:
            raise BadInput(f"round_samples is {self.round_samples}, mqtt_port {self.mqtt_port}",
                           "give round_samples 1 or more, mqtt_port 1 to 65535")
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise BadInput(f"two sources are called {twice[0]!r}", "give each [[source]] a name of its own")

    @property
    def socket(self) -> Path:
        """Where the daemon of this state listens."""
        return Path(self.control) if self.control else self.state / SOCKET


OWN = {field.name for field in fields(DaemonSettings)} - {"state", "sources", "learner", "limits"}
DAEMON_NAMES = OWN | {"source", "state"} | {ROUND + name for name in RANGES}


def read_settings(path: Path | None, state: Path | None = None) -> DaemonSettings:
    """The settings in a file (None: the defaults), `state` in place of the file's. Raises BadInput."""
    values = kind_of_memory(read_toml(path, SETTING_NAMES | DAEMON_NAMES), path) if path else {}
    limits = {name.removeprefix(ROUND): values[name] for name in values if name.startswith(ROUND)
              and name.removeprefix(ROUND) in RANGES}
    default = {"memory": "400MB", "time": "120s"}
    users = values.pop("control_users", [])
    tables = values.get("source", [])
    if not isinstance(users, list) or not all(isinstance(user, str) for user in users):
        raise BadInput(f"control_users is {users!r}", 'give a list of names, such as ["pi"]')
    if not isinstance(tables, list):
        raise BadInput("source is no list of tables", "write [[source]] above each source's keys")
    return DaemonSettings(
        state=state or Path(values.get("state", "edgecl-state")), control_users=tuple(users),
        sources=tuple(_source(number, table) for number, table in enumerate(tables)),
        learner={name: value for name, value in values.items() if name in SETTING_NAMES},
        limits=Limits.from_table({**default, **limits}),
        **_typed(DaemonSettings, {name: value for name, value in values.items() if name in OWN}, str(path)))


def _source(number: int, table: Any) -> SourceSettings:
    known = {field.name for field in fields(SourceSettings)}
    if not isinstance(table, dict):
        raise BadInput(f"source {number + 1} is no table", "write [[source]] above its keys")
    if unknown := sorted(set(table) - known):
        raise BadInput(f"source {number + 1} has unknown keys: {', '.join(unknown)}",
                       f"known keys are {', '.join(sorted(known))}")
    if "uri" not in table:
        raise BadInput(f"source {number + 1} has no uri", 'write uri = "camera:/dev/video0"')
    kind = str(table["uri"]).partition(":")[0]
    return SourceSettings(**_typed(SourceSettings, {"name": f"{kind}{number + 1}", **table}, f"source {number + 1}"))


def _typed(cls: type, values: dict[str, Any], where: str) -> dict[str, Any]:
    """Values of the types that the fields of a dataclass name, sizes and times as numbers. Raises BadInput."""
    found = dict(values)
    for field in fields(cls):
        if field.name not in values:
            assert field.default is not MISSING or field.name in ("state", "uri")
            continue
        value = values[field.name]
        if isinstance(value, str) and field.name in SIZES | TIMES:
            value = parse_size(value) if field.name in SIZES else parse_seconds(value)
        wanted = str(field.type).split(" | ")[0]
        if not isinstance(value, TYPES[wanted]) or isinstance(value, bool):
            raise BadInput(f"{where}: {field.name} is {value!r}", f"give a {wanted}")
        found[field.name] = value
    return found
