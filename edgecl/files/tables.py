"""Tables from .toml and JSON, read strictly: no unknown or missing key, and the right types, units and bounds.

A dataclass is the schema: its types, and a `Rule` in `Annotated` where a type alone says too little. msgspec and cattrs
were tried: msgspec ignores unknown keys of dataclasses, both take NaN, cattrs takes "3" and true for numbers, neither
can say a cure or read "8MB", and importing either takes longer (17 to 45 ms) than all of this.
"""
from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from edgecl.errors import BadInput

LARGEST = sys.float_info.max  # as a bound it refuses NaN and both infinities
WANTED: dict[type, str] = {str: "a text", int: "a whole number", float: "a number", bool: "true or false",
                           list: "a list", dict: "a table", tuple: "a list of texts"}
SHOWN = 60   # characters of a refused value
NEAR = 0.65  # similarity of two keys, by difflib, from which one may be meant for the other
T = TypeVar("T")


@dataclass(frozen=True)
class Rule:
    """What a value may be.

    kind: its type, which a dataclass's field gives (float also takes whole numbers, tuple a list of texts); low, high:
    bounds, included; choices: the texts to choose from; read: turns a text such as "8MB" into a number; cure: what to
    give, for errors; optional: whether it may be None.
    """

    kind: type = str
    low: float = -LARGEST
    high: float = LARGEST
    choices: tuple[str, ...] = ()
    read: Callable[[str], float] | None = None
    cure: str = ""
    optional: bool = False

    @property
    def wanted(self) -> str:
        """What to give, for errors: `a whole number from 1 to 10`."""
        if self.cure or self.choices:
            return self.cure or (" or ".join(self.choices) if len(self.choices) < 3
                                 else f"one of {', '.join(self.choices)}")
        low, high = self.low > -LARGEST, self.high < LARGEST
        bounds = (f" from {self.low:.15g} to {self.high:.15g}" if low and high else
                  f" of {self.low:.15g} or more" if low else f" of {self.high:.15g} or less" if high else "")
        return WANTED.get(self.kind, self.kind.__name__) + bounds

    def fits(self, value: Any) -> bool:
        """Whether it may be this value."""
        if value is None:
            return self.optional
        if not isinstance(value, (int, float) if self.kind is float else self.kind):
            return False
        if isinstance(value, bool):
            return self.kind is bool
        return not (isinstance(value, (int, float)) and not self.low <= value <= self.high) and (
            not self.choices or value in self.choices)

    def take(self, value: Any, name: str) -> Any:
        """A value of a table as it is meant: texts with a unit as numbers, lists as tuples. Raises BadInput."""
        if self.read and isinstance(value, str):
            try:
                value = self.read(value)
            except BadInput as error:
                raise BadInput(f"{name}: {error.what}", error.cure) from None
        if self.read and self.kind is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        if self.kind is tuple and isinstance(value, list) and all(isinstance(each, str) for each in value):
            value = tuple(value)
        if not self.fits(value):
            raise BadInput(f"{name} is {_shown(value)}", f"give {self.wanted}")
        return value


def rules(cls: type) -> dict[str, Rule]:
    """The rule of each field of a dataclass."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: _rule(hints[field.name]) for field in fields(cls)}


def _rule(hint: Any) -> Rule:
    rule = Rule()
    if get_origin(hint) is Annotated:
        hint, rule = get_args(hint)
    optional = isinstance(hint, UnionType)
    if optional:
        [hint] = [each for each in get_args(hint) if each is not NoneType]
    return replace(rule, kind=get_origin(hint) or hint, optional=optional)


def checked(cls: type[T], table: Any, what: str, prefix: str = "") -> T:
    """The dataclass that a table describes. what: names the table in errors; prefix: before each key in the table.

    Raises BadInput for an unknown key, naming the nearest known one, for a missing key, and for a value that its rule
    refuses."""
    needed = [prefix + field.name for field in fields(cls)  # type: ignore[arg-type]  # T is a dataclass
              if field.default is MISSING and field.default_factory is MISSING]
    values = read({prefix + name: rule for name, rule in rules(cls).items()}, table, what, needed)
    try:
        return cls(**{name.removeprefix(prefix): value for name, value in values.items()})
    except BadInput as error:  # its fields contradict each other
        raise BadInput(f"{what}: {error.what}", error.cure) from None


def read(known: Mapping[str, Rule], table: Any, what: str, needed: Collection[str] = ()) -> dict[str, Any]:
    """The values of a table. known: the rule of each key; needed: keys that must be there. Raises BadInput."""
    if not isinstance(table, dict):
        raise BadInput(f"{what} is {_shown(table)}", f"give a table of keys: {', '.join(known) or 'none'}")
    refuse_unknown(table, known, what)
    for name in needed:
        if name not in table:
            raise BadInput(f"{what} has no {name}", f"give {known[name].wanted}")
    return {name: known[name].take(value, f"{what}: {name}") for name, value in table.items()}


def refuse_unknown(table: Mapping[str, Any], known: Collection[str], what: str) -> None:
    """Raises BadInput for keys that are not known; it lists those that are."""
    unknown = sorted(set(table) - set(known))
    if unknown:
        from difflib import get_close_matches

        near = [match[0] for key in unknown if (match := get_close_matches(key, known, 1, NEAR))]
        meant = f"did you mean {' and '.join(dict.fromkeys(near))}? " if near else ""
        shown = ", ".join(key if key.isprintable() else repr(key) for key in unknown)
        raise BadInput(f"{what} has unknown keys: {shown}"[:400],
                       f"{meant}known keys are {', '.join(sorted(known)) or 'none'}")


def check(instance: Any) -> None:
    """Raises BadInput for a field of a dataclass that its rule refuses; for `__post_init__`."""
    for name, rule in rules(type(instance)).items():
        if not rule.fits(value := getattr(instance, name)):
            raise BadInput(f"{name} is {_shown(value)}", f"give {rule.wanted}")


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        text = "a number that is too long"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
