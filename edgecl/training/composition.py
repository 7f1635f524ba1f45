"""The parts of a method as classes: those of edgecl, and those of the user's own, which only workers import."""
from __future__ import annotations

import inspect
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgecl.errors import BadInput
from edgecl.rounds.parts import OwnPart
from edgecl.training.balance.base import Balance, Chain
from edgecl.training.own_code import imported

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgecl.rounds.method import Method

# What a part of a kind derives from, and the arguments that the loop gives it before its numbers.
BASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "memory": ("memory.base.Memory", ("room", "nothing")),
    "constraint": ("constraints.base.Constraint", ()),
    "plasticity": ("plasticity.base.Plasticity", ("room", "rule")),
    "task_rule": ("plasticity.task_rules.TaskRule", ()),
    "balance": ("balance.base.Balance", ()),
    "head": ("networks.heads.Head", ("dimension",))}


def parts_of(method: Method, kind: str) -> list[Callable[..., Any]]:
    """The classes of its parts of a kind, their numbers given.

    Raises BadInput for a part of the user's own that can't be imported, is of another kind, or takes other numbers.
    """
    classes: list[Callable[..., Any]] = []
    for row in method.of_kind(kind):
        numbers = method.numbers_of(row)
        made = own_class(kind, row) if isinstance(row, OwnPart) else _ours(row.where)
        classes.append(partial(made, **numbers))
    return classes


def balance_of(method: Method) -> Balance:
    """Its parts of that kind, as one."""
    return Chain([balance() for balance in parts_of(method, "balance")])


def own_class(kind: str, part: OwnPart) -> type:
    """The class of a part of the user's own. Raises BadInput, see `parts_of`."""
    found = imported(part.where, part.folder)
    base, first = BASES[kind]
    if not isinstance(found, type) or not issubclass(found, _ours(base)):
        raise BadInput(f"{part.where} is not a {kind}", f"derive the class from edgecl.training.{base}")
    signature = inspect.signature(found)
    try:
        signature.bind(*first, **part.given)
    except TypeError as error:
        taken = list(signature.parameters)[len(first):]
        raise BadInput(f"{part.where} can't be made of {', '.join([*first, *part.given]) or 'nothing'}: {error}",
                       f"give it {', '.join(taken) or 'no numbers'} in its table of the .toml") from error
    return found


def _ours(where: str) -> Any:
    module, _, name = where.rpartition(".")
    return getattr(import_module(f"edgecl.training.{module}"), name)
