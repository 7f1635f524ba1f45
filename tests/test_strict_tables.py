"""Tables from .toml and JSON into dataclasses: what is refused, how it is said, and what is taken as meant."""
from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecl.errors import BadInput
from edgecl.files.tables import Rule, check, checked, read, refuse_unknown, rules
from edgecl.rounds.limits import Limits
from edgecl.runtime.settings import DaemonSettings, SourceSettings, read_settings
from edgecl.settings import Settings, parse_seconds, parse_size


@dataclass(frozen=True)
class Kettle:
    name: str
    litres: Annotated[float, Rule(low=0.5, high=2)] = 1.0
    cups: Annotated[int | None, Rule(low=1)] = None
    room: Annotated[int, Rule(low=0, read=parse_size, cure="a size such as 8MB")] = 10
    wait: Annotated[float, Rule(low=0, high=60, read=parse_seconds)] = 1.0
    colour: Annotated[str, Rule(choices=("red", "green", "blue"))] = "red"
    whistles: bool = False
    tea: tuple[str, ...] = ()

    def __post_init__(self):
        check(self)
        if self.whistles and self.cups is None:
            raise BadInput("a kettle that whistles has no cups", "give cups")


def test_a_table_becomes_a_dataclass():
    table = {"name": "k", "litres": 2, "cups": 3, "room": "8MB", "wait": "500ms", "colour": "blue", "whistles": True,
             "tea": ["mint", "oolong"]}
    assert checked(Kettle, table, "k.toml") == Kettle("k", 2, 3, 8_000_000, 0.5, "blue", True, ("mint", "oolong"))
    assert checked(Kettle, {"name": "k", "room": 4e6}, "k") == Kettle("k", room=4_000_000)
    assert checked(Kettle, {"my_name": "k", "my_cups": 2}, "k", "my_") == Kettle("k", cups=2)


@pytest.mark.parametrize(("table", "says"), [
    ({}, "k.toml has no name; give a text"),
    ({"name": "k", "litre": 1},
     "k.toml has unknown keys: litre; did you mean litres? known keys are colour, cups, litres, name"),
    ({"name": "k", "cup": 1, "zzz": 1}, "k.toml has unknown keys: cup, zzz; did you mean cups? known keys"),
    ({"name": "k", "zzz": 1}, "k.toml has unknown keys: zzz; known keys are colour, cups"),
    ({"name": 3}, "k.toml: name is 3; give a text"),
    ({"name": None}, "k.toml: name is None; give a text"),
    ({"name": "k", "litres": True}, "k.toml: litres is True; give a number from 0.5 to 2"),
    ({"name": "k", "litres": "1"}, "k.toml: litres is '1'; give a number from 0.5 to 2"),
    ({"name": "k", "litres": math.nan}, "k.toml: litres is nan"), ({"name": "k", "wait": math.inf}, "wait is inf"),
    ({"name": "k", "litres": 2.1}, "litres is 2.1"), ({"name": "k", "litres": 10**400}, "litres is 1000"),
    ({"name": "k", "cups": 1.0}, "cups is 1.0; give a whole number of 1 or more"),
    ({"name": "k", "cups": 0}, "cups is 0; give"), ({"name": "k", "cups": False}, "cups is False"),
    ({"name": "k", "room": "8 potatoes"}, "k.toml: room: '8 potatoes' is not a size; write it like 200KB, 8MB or 4MiB"),
    ({"name": "k", "room": -1}, "room is -1; give a size such as 8MB"), ({"name": "k", "room": 1.5}, "room is 1.5"),
    ({"name": "k", "wait": "2m"}, "wait is 120.0; give a number from 0 to 60"),
    ({"name": "k", "wait": "soon"}, "k.toml: wait: 'soon' is not a time; write it like 500ms, 30s or 2m"),
    ({"name": "k", "colour": "mauve"}, "k.toml: colour is 'mauve'; give one of red, green, blue"),
    ({"name": "k", "colour": ["red"]}, "colour is ['red']; give one of red"),
    ({"name": "k", "whistles": 1}, "k.toml: whistles is 1; give true or false"),
    ({"name": "k", "tea": "mint"}, "k.toml: tea is 'mint'; give a list of texts"),
    ({"name": "k", "tea": ["mint", 3]}, "tea is ['mint', 3]"),
    ({"name": "k", "whistles": True}, "k.toml: a kettle that whistles has no cups; give cups"),
    ([], "k.toml is []; give a table of keys: name, litres, cups"), ("k", "k.toml is 'k'"), (None, "k.toml is None"),
    ({"name": "k", "cups": "9" * 999}, "cups is '99999")])
def test_what_is_refused_says_what_the_value_is_and_what_to_give(table, says):
    with pytest.raises(BadInput) as raised:
        checked(Kettle, table, "k.toml")
    assert says in str(raised.value) and len(str(raised.value)) < 250


def test_a_prefix_is_part_of_the_keys_in_errors():
    for table, says in (({"my_name": 3}, "k: my_name is 3"), ({}, "k has no my_name"),
                        ({"name": "k"}, "unknown keys: name; did you mean my_name?")):
        with pytest.raises(BadInput, match=says.replace("?", r"\?")):
            checked(Kettle, table, "k", "my_")


def test_no_key_may_be_allowed():
    with pytest.raises(BadInput, match="unknown keys: a; known keys are none"):
        read({}, {"a": 1}, "the request")
    assert read({}, {}, "the request") == {}
    refuse_unknown({}, [], "the request")


@pytest.mark.parametrize("instance", [Settings(), Limits(), SourceSettings("udp:1"), DaemonSettings(Path("s"))])
def test_every_default_fits_its_own_rule(instance):
    assert all(rule.fits(getattr(instance, name)) for name, rule in rules(type(instance)).items())


texts = st.text("a8MBs\n", max_size=4)
plain = st.none() | st.booleans() | st.integers() | st.floats() | texts
values = plain | st.lists(plain, max_size=2) | st.dictionaries(texts, plain, max_size=2)
keys = st.sampled_from([*{*rules(Settings), *rules(Limits), *rules(SourceSettings)}, "a\nb"])


@pytest.mark.parametrize("cls", [Settings, Limits, SourceSettings])
@given(st.dictionaries(keys, values, max_size=3))
def test_any_json_is_either_taken_or_refused_in_one_line(cls, table):
    try:
        found = checked(cls, {"uri": "udp:1", **table} if cls is SourceSettings else table, "it")
    except BadInput as refused:
        assert "\n" not in str(refused)  # noqa: PT017
        return
    assert all(rule.fits(getattr(found, name)) for name, rule in rules(cls).items())


@pytest.mark.parametrize(("text", "says"), [
    ("round_heats = 3", "robot.toml has unknown keys: round_heats; did you mean round_heat?"),
    ("round_heat = 'hot'", "robot.toml: round_heat is 'hot'; give degrees C, 1 to 125"),
    ("round_memory = 'much'", "round_memory: 'much' is not a size"), ("rate = 'fast'", "rate is 'fast'; give --rate"),
    ("round_idle = -1", "round_idle is -1; give a time such as 60s"),
    ("rounds = 'idl'", "rounds is 'idl'; give idle or off"),
    ("[memory]\nkind = 'x'", "[memory]: kind is 'x'; give exemplars or statistics"),
    ("memory = 'statistics'", "[memory] is 'statistics'; give a table of keys: kind"),
    ("[memory]", "[memory] has no kind"),
    ("[[source]]\nname = 'x'", "robot.toml: source 1 has no uri; give a uri such as"),
    ("[[source]]\nuri = ''", "source 1: uri is empty"), ("source = ['x']", "source 1 is 'x'"),
    ("[[source]]\nuri = 'udp:1'\n[[source]]\nuri = 'udp:2'\nfsp = 3",
     "source 2 has unknown keys: fsp; did you mean fps?")])
def test_the_file_of_a_daemon_says_where_and_what(tmp_path, text, says):
    (tmp_path / "robot.toml").write_text(text)
    with pytest.raises(BadInput, match=re.escape(says)):
        read_settings(tmp_path / "robot.toml")
