"""What `edgecl daemon` reads from its .toml file, strictly; without numpy, since clients read it too."""
from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from edgecl.errors import BadInput
from edgecl.files.tables import Rule, check, checked, read, rules
from edgecl.rounds.limits import LIMIT_NAMES, Limits
from edgecl.runtime.debounce import DEBOUNCE
from edgecl.runtime.protocol import SOCKET
from edgecl.settings import SETTING_NAMES, Settings, parse_seconds, parse_size, read_configuration

ROUND = "round_"     # before the name of a limit of learning rounds
ROUND_LIMITS = Limits(memory=400 * 10**6, time=120.0)
NEW_STATE = Settings()
URI = 'a uri such as "camera:/dev/video0"'
TIME = Rule(low=0, high=1e9, read=parse_seconds, cure="a time such as 60s")


@dataclass(frozen=True)
class SourceSettings:
    """One `[[source]]`. Raises BadInput.

    uri: as for `edgecl learn`; name: in answers and commands; state: directory of its own learner, None for the
    daemon's; debounce: see `Debounce`; keep: bytes of its last samples to keep, for `learn --last`; queue: samples that
    may wait, None for 1 photo or 16 windows, the oldest are dropped first; fps: most samples taken per second, None for
    all; restarts: failures in a row after which it is given up.
    """

    uri: Annotated[str, Rule(cure=URI)]
    name: str = ""
    state: str | None = None
    debounce: Annotated[int, Rule(low=1, high=1000)] = DEBOUNCE
    keep: Annotated[int, Rule(low=0, high=10**9, read=parse_size, cure="a size from 0 to 1GB, such as 8MB")] = 8 * 10**6
    queue: Annotated[int | None, Rule(low=1, high=1000)] = None
    fps: Annotated[float | None, Rule(low=1e-3, high=1000)] = None
    restarts: Annotated[int, Rule(low=0, high=10**6)] = 20

    def __post_init__(self) -> None:
        check(self)
        if not self.uri:
            raise BadInput("uri is empty", f"give {URI}")


@dataclass(frozen=True)
class DaemonSettings:
    """The whole file. Raises BadInput. learner: settings of a new state; limits: of learning rounds.

    control: path of the socket, None for `control.sock` in the state; control_users: names of users who may change
    things, beside root and the daemon's own user; rounds: when learning rounds run; round_samples: samples taught since
    the last round that make one due; round_idle: seconds without teaching before a round; round_pause: seconds between
    two rounds; review_below: confidence under which a frame goes to the review list.
    """

    state: Path
    sources: tuple[SourceSettings, ...] = ()
    learner: Settings = NEW_STATE
    limits: Limits = ROUND_LIMITS
    control: str | None = None
    control_users: Annotated[tuple[str, ...], Rule(cure='a list of names, such as ["pi"]')] = ()
    rounds: Annotated[str, Rule(choices=("idle", "off"))] = "idle"
    round_method: str | None = None
    round_samples: Annotated[int, Rule(low=1)] = 100
    round_idle: Annotated[float, TIME] = 60.0
    round_pause: Annotated[float, TIME] = 3600.0
    review_below: Annotated[float, Rule(low=0, high=1, cure="a confidence from 0 to 1")] = 0.6
    http_listen: str | None = None
    http_token_file: str | None = None
    mqtt_host: str | None = None
    mqtt_port: Annotated[int, Rule(low=1, high=65535)] = 1883
    mqtt_user: str | None = None
    mqtt_password_file: str | None = None
    mqtt_device: str = "edgecl"

    def __post_init__(self) -> None:
        check(self)
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise BadInput(f"two sources are called {twice[0]!r}", "give each [[source]] a name of its own")

    @property
    def socket(self) -> Path:
        """Where the daemon of this state listens."""
        return Path(self.control) if self.control else self.state / SOCKET


OWN = {field.name for field in fields(DaemonSettings)} - {"state", "sources", "learner", "limits"}
ROUND_NAMES = {ROUND + name for name in LIMIT_NAMES}
DAEMON_NAMES = OWN | {"source", "state"} | ROUND_NAMES


def read_settings(path: Path | None, state: Path | None = None) -> DaemonSettings:
    """The settings in a file (None: the defaults); state: instead of the one in the file. Raises BadInput."""
    values, what = read_configuration(path, SETTING_NAMES | DAEMON_NAMES) if path else {}, str(path)
    tables = values.get("source", [])
    if not isinstance(tables, list):
        raise BadInput(f"{what}: source is not a list of tables", "write [[source]] above the keys of each source")

    def part(names: set[str]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name in names}

    known = {name: rule for name, rule in {**rules(DaemonSettings), "state": Rule()}.items() if name in OWN | {"state"}}
    own = read(known, part(OWN | {"state"}), what)
    return DaemonSettings(**{
        **own, "state": state or Path(own.get("state", "edgecl-state")),
        "sources": tuple(_source(table, number, what) for number, table in enumerate(tables, 1)),
        "learner": Settings.from_table(part(SETTING_NAMES), what),
        "limits": checked(Limits, {"round_memory": "400MB", "round_time": "120s", **part(ROUND_NAMES)}, what, ROUND)})


def _source(table: Any, number: int, what: str) -> SourceSettings:
    """A source; without a name it is called by its kind and number, such as `camera1`."""
    if isinstance(table, dict) and isinstance(uri := table.get("uri"), str):
        table = {"name": f"{uri.partition(':')[0]}{number}", **table}
    return checked(SourceSettings, table, f"{what}: source {number}")
