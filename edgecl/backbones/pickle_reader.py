"""What a pickle describes, found by reading its opcodes; nothing that it names is called.

Two dozen opcodes are interpreted, and only names of a vocabulary that the caller gives; any other is refused.
"""
from __future__ import annotations

from collections.abc import Mapping
from pickletools import genops
from typing import IO, Any, Protocol, runtime_checkable

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
PERSISTENT = "persistent id"


@runtime_checkable
class Buildable(Protocol):
    """An object that takes a state after it was made."""

    def build(self, state: Any) -> None:
        """Take the state; raises ValueError where it can't be right."""


def interpret(stream: IO[bytes], vocabulary: Mapping[str, Any]) -> Any:
    """The object that the next pickle in the stream describes, made of plain values and of what `vocabulary` makes.

    vocabulary: "module name" -> a function of our own that stands for it, or a constant; `PERSISTENT` -> what makes an
    object of a persistent id. An object with a method `build` is given its state by that.
    Raises ValueError for what is not allowed, that or KeyError, IndexError, TypeError for damage.
    """
    stack: list[Any] = []
    outer: list[list[Any]] = []
    memo: dict[Any, Any] = {}
    for opcode, argument, _ in genops(stream):
        match opcode.name:
            case "STOP":
                return stack.pop()
            case "PROTO":
                pass
            case "MARK":
                outer.append(stack)
                stack = []
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE":
                stack.append(CONSTANTS[opcode.name])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(opcode.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                items, stack = stack, outer.pop()
                stack.append(tuple(items))
            case "APPENDS" | "SETITEMS":
                items, stack = stack, outer.pop()
                _extend(stack[-1], items)
            case "APPEND":
                _extend(stack[-2], [stack.pop()])
            case "SETITEM":
                items = [stack.pop(-2), stack.pop()]
                _extend(stack[-1], items)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                if argument not in vocabulary:
                    raise ValueError(f"it refers to {str(argument).replace(' ', '.')}")
                stack.append(vocabulary[str(argument)])
            case "REDUCE":
                arguments = stack.pop()
                function = stack.pop()
                if not callable(function) or not isinstance(arguments, tuple):
                    raise ValueError("it calls what is no function")
                stack.append(function(*arguments))
            case "BINPERSID":
                stack.append(vocabulary[PERSISTENT](stack.pop()))
            case "BUILD":           # plain objects lose their attributes, such as torch's `_metadata`
                state = stack.pop()
                if isinstance(stack[-1], Buildable):
                    stack[-1].build(state)
            case other:
                raise ValueError(f"it uses the pickle opcode {other}")
    raise ValueError("the pickle has no end")


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif isinstance(target, dict) and all(isinstance(key, str | int) for key in items[::2]):
        target.update(zip(items[::2], items[1::2], strict=True))
    else:
        raise ValueError("a pickle opcode meets an object of the wrong type")
