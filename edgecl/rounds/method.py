"""A method is a named composition of parts. It is read from its .toml file and checked here, without torch."""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgecl.errors import BadInput
from edgecl.files.tables import Rule
from edgecl.rounds.parts import PARTS, STATISTICS, Number, OwnPart, PartSpec, own_part, rule_of
from edgecl.settings import read_toml

FOLDER = Path(__file__).parents[1] / "methods"
TUNED = ("all", "first", "none")
DEFAULTS = {"memory": "none", "constraint": (), "plasticity": (), "task_rule": "none", "balance": (),
            "head": "softmax"}
TRAINING: dict[str, Any] = {"rate": 0.0, "momentum": 0.0, "decay": 0.0, "milestones": (), "factor": 1.0,
                            "clip": 0.0}
TEXTS = {"paper": (Rule(), ""), "differs": (Rule(), ""), "tuned": (Rule(choices=TUNED), "all")}
KEYS = {*TEXTS, *PARTS, *TRAINING}


@dataclass(frozen=True)
class Method:
    """A composition that works.

    parts: kind -> names, of a part of the user's own its `where`; numbers: of the parts of `PARTS`, by name; tuned: the
    rounds that train the network (all, first, none); training: rate, momentum, decay (of weights), the shares of a
    round (`milestones`) after which the rate is divided by `factor`, and the largest norm of the gradients (`clip`, 0
    for any); own: the parts of the user's own, by `where`.
    """

    name: str
    paper: str
    differs: str
    tuned: str
    parts: dict[str, tuple[str, ...]]
    numbers: dict[str, Number]
    training: dict[str, Any]
    own: dict[str, OwnPart] = field(default_factory=dict)

    @property
    def plastic(self) -> bool:
        """Whether each round gets a sub-network of its own, so that answers need a task or a rule that infers it."""
        return bool(self.parts["plasticity"])

    @property
    def closed_form(self) -> bool:
        """Whether a part solves the head from class statistics."""
        return any(row.needs & STATISTICS for row in self.of_kind("balance"))

    @property
    def memory(self) -> PartSpec:
        """Its row."""
        return self.of_kind("memory")[0]

    def of_kind(self, kind: str) -> list[PartSpec]:
        """The rows of its parts of a kind. Raises KeyError for a name that is not in `PARTS`."""
        return [self.own.get(name) or PARTS[kind][name] for name in self.parts[kind]]

    def rows(self) -> list[tuple[str, PartSpec]]:
        """(kind, row) of each part."""
        return [(kind, row) for kind in self.parts for row in self.of_kind(kind)]

    def numbers_of(self, row: PartSpec) -> dict[str, Number]:
        """The numbers that the part of a row takes."""
        return row.given if isinstance(row, OwnPart) else {name: self.numbers[name] for name in row.numbers}

    def as_json(self) -> dict[str, Any]:
        """As `edgecl methods --json` prints it; the numbers of a part of the user's own below its `where`."""
        numbers = {**self.numbers, **{where: row.given for where, row in self.own.items()}}
        return {"name": self.name, "paper": self.paper, "differs": self.differs, "tuned": self.tuned,
                "parts": self.parts, "numbers": numbers, "training": self.training}


def method_names() -> list[str]:
    """The methods that come with edgecl, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def read_method(method: str | Path, own_code: bool = True) -> Method:
    """The method of that name, or of a .toml file. Parts of the user's own are not imported.

    own_code: whether it may have any. Raises BadInput for an unknown method, key, part or number, and for a composition
    that can't work.
    """
    path = Path(method) if str(method).endswith(".toml") else FOLDER / f"{method}.toml"
    if not path.is_file():
        raise BadInput(f"there is no method {str(method)!r}",
                       f"give a .toml file or one of {', '.join(method_names())}")
    named = {name for rows in PARTS.values() for row in rows.values() for name in row.numbers}
    values = read_toml(path, KEYS | named)
    own: dict[str, OwnPart] = {}
    parts = {kind: _chosen(path, kind, values.get(kind, default), own) for kind, default in DEFAULTS.items()}
    paper, differs, tuned = (rule.take(values.get(name, default), f"{path.name}: {name}")
                             for name, (rule, default) in TEXTS.items())
    training = {key: values.get(key, default) for key, default in TRAINING.items()}
    numbers = {key: value for key, value in values.items() if key in named}
    found = Method(path.stem, paper, differs, tuned, parts, numbers, training, own)
    if own and not own_code:
        raise BadInput(f"{path.name} names code of its author's own, {', '.join(own)}, to be run as another user",
                       "name a method that edgecl brings, or start the round as the user whose process runs it")
    _check_numbers(path, found)
    _check_works(path, found)
    return found


def _chosen(path: Path, kind: str, given: Any, own: dict[str, OwnPart]) -> tuple[str, ...]:
    """The names of the parts of a kind; those of the user's own are added to `own`."""
    several = isinstance(DEFAULTS[kind], tuple)
    names = []
    for each in given if isinstance(given, list | tuple) else [given]:
        if isinstance(each, dict):
            part = own_part(kind, each, path)
            if part.where in own:
                raise BadInput(f"{path.name} names {part.where} twice", "give each part once")
            own[part.where] = part
            each = part.where
        names.append(str(each))
    unknown = [name for name in names if name not in PARTS[kind] and name not in own]
    if unknown or (len(names) != 1 and not several) or len(set(names)) < len(names):
        raise BadInput(f"{path.name}: {kind} is {given!r}",
                       f"give {'a list of' if several else 'one of'} {', '.join(PARTS[kind])}, or a table with where = "
                       '"package.module:Class"')
    return tuple(names)


def _check_numbers(path: Path, method: Method) -> None:
    wanted = {name: kind for _, row in method.rows() for name, kind in row.numbers.items()}
    unused, missing = sorted(set(method.numbers) - set(wanted)), sorted(set(wanted) - set(method.numbers))
    if unused or missing:
        raise BadInput(f"{path.name}: " + "; ".join(
            [f"none of its parts takes {name}" for name in unused] + [f"{name} is missing" for name in missing]),
            f"its parts take {', '.join(wanted) or 'no numbers'}")
    for name, kind in wanted.items():
        rule_of(kind).take(method.numbers[name], f"{path.name}: {name}")
        takers = [part for kind, parts in method.parts.items() for part, row in zip(parts, method.of_kind(kind))
                  if name in row.numbers]
        if len(takers) > 1:
            raise BadInput(f"{path.name}: {name} is a number of both {' and '.join(takers)}",
                           "give a method only one of them")
    for name, value in method.training.items():
        for number in value if name == "milestones" and isinstance(value, list | tuple) else [value]:
            rule_of(float).take(number, f"{path.name}: {name}")
    if not method.paper:
        raise BadInput(f"{path.name} has no paper", 'add a line such as paper = "Rebuffi et al. 2017"')


def _check_works(path: Path, method: Method) -> None:
    given = frozenset().union(*(row.gives for _, row in method.rows()))
    for kind, row in method.rows():
        if lacks := row.needs - given:
            makers = {maker: [name for name, part in rows.items() if lacks & part.gives]
                      for maker, rows in PARTS.items()}
            maker = next(maker for maker, names in makers.items() if names)
            raise BadInput(f"{path.name}: its {kind} needs {', '.join(sorted(lacks))}, which {maker} = "
                           f"{_written(method.parts[maker])} does not provide",
                           f"give {maker} = {' or '.join(makers[maker])}")
    if method.plastic:
        _check_plastic(path, method)
    if method.tuned == "all" and given & STATISTICS:
        raise BadInput(f"{path.name}: statistics of a network that keeps changing would be stale",
                       'give tuned = "first" or "none"')
    if method.tuned != "all" and not any(row.untrained for row in method.of_kind("balance")):
        raise BadInput(f"{path.name}: nothing learns if the network is not tuned",
                       'give tuned = "all", or balance = "closed-form"')
    if method.tuned != "none" and not method.training["rate"] > 0:
        raise BadInput(f"{path.name}: it tunes a network and has no rate", "give rate, the step size of SGD")
    if method.training["milestones"] and not method.training["factor"] >= 1:
        raise BadInput(f"{path.name}: factor is {method.training['factor']}",
                       "give what the rate is divided by, 1 or more")


def _written(names: tuple[str, ...]) -> str:
    """Parts as a .toml file has them."""
    return names[0] if len(names) == 1 else f"[{', '.join(names)}]"


def _check_plastic(path: Path, method: Method) -> None:
    """A frozen sub-network must not change: no other part may touch its weights, or ask for old outputs."""
    if len(method.parts["plasticity"]) > 1:
        raise BadInput(f"{path.name}: plasticity is {list(method.parts['plasticity'])}", "give one of them")
    if method.parts["task_rule"] == ("none",):
        rules = [rule for rule in PARTS["task_rule"] if rule != "none"]
        raise BadInput(f"{path.name}: it has one sub-network per task, and no rule picks the one that answers",
                       f"give task_rule = {' or '.join(rules)}")
    others = [kind for kind in ("memory", "constraint", "balance") if method.parts[kind] not in ((), ("none",))]
    if others:
        raise BadInput(f"{path.name}: plasticity beside {', '.join(others)}, but frozen sub-networks forget nothing",
                       f"leave out {', '.join(others)}")
    if method.tuned != "all" or method.training["decay"]:
        raise BadInput(f"{path.name}: tuned is {method.tuned!r} and decay {method.training['decay']} with plasticity",
                       'give tuned = "all" and no decay, which would move frozen weights')
