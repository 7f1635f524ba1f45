"""Reads the object that a pickle describes by interpreting its opcodes; nothing that it names is called.

Interprets two dozen opcodes, and only names in a vocabulary from the caller; refuses all others.
"""
from __future__ import annotations

from collections.abc import Mapping
from pickletools import genops
from typing import IO, Any, Protocol, runtime_checkable

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
PERSISTENT = "persistent id"


@runtime_checkable
class Buildable(Protocol):
    """An object that receives its state after it was created."""

    def build(self, state: Any) -> None:
        """Set the state. Raises ValueError if it can't be right."""


def interpret(stream: IO[bytes], vocabulary: Mapping[str, Any]) -> Any:
    """The object that the next pickle in the stream describes, built from plain values and by `vocabulary`.

    vocabulary: "module name" -> our own function in its place, or a constant; `PERSISTENT` -> function from a
    persistent id to an object. An object with a method `build` receives its state through it.
    Raises ValueError for what is not allowed, and ValueError, KeyError, IndexError or TypeError for damage.
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
                    raise ValueError("it calls something that is not a function")
                stack.append(function(*arguments))
            case "BINPERSID":
                stack.append(vocabulary[PERSISTENT](stack.pop()))
            case "BUILD":           # attributes of plain objects are dropped, such as torch's `_metadata`
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
        raise ValueError("a pickle opcode is applied to an object of the wrong type")
