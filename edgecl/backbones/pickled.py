"""What a torch pickle describes, found by reading its opcodes; nothing that it names is called.

A state dict needs two dozen opcodes and a dozen names. Those are interpreted, any other is refused.
"""
from __future__ import annotations

from pickletools import genops
from typing import IO, Any, NamedTuple

DTYPES = {"torch FloatStorage": "f4", "torch DoubleStorage": "f8", "torch HalfStorage": "f2",
          "torch BFloat16Storage": "bf16", "torch LongStorage": "i8", "torch IntStorage": "i4",
          "torch ShortStorage": "i2", "torch CharStorage": "i1", "torch ByteStorage": "u1",
          "torch BoolStorage": "?"}
ORDERED_DICT = "collections OrderedDict"
TENSOR = "torch._utils _rebuild_tensor_v2"
PARAMETER = "torch._utils _rebuild_parameter"
NAMES = {ORDERED_DICT, TENSOR, PARAMETER, *DTYPES}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class Storage(NamedTuple):
    """A row of values that the file keeps under `key`."""

    dtype: str
    key: str


class Tensor(NamedTuple):
    """A view of a storage; offset and strides count values."""

    storage: Storage
    offset: int
    shape: tuple[Any, ...]
    strides: tuple[Any, ...]


class _Name(NamedTuple):
    name: str


def interpret(stream: IO[bytes]) -> Any:
    """The object, of plain values and `Tensor`s, that the next pickle in the stream describes.

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
                if argument not in NAMES:
                    raise ValueError(f"it refers to {str(argument).replace(' ', '.')}")
                stack.append(_Name(str(argument)))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_call(stack.pop(), arguments))
            case "BINPERSID":
                stack.append(_storage(stack.pop()))
            case "BUILD":           # attributes of an OrderedDict, torch's `_metadata`: not needed
                stack.pop()
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


def _call(function: Any, arguments: Any) -> Any:
    match function, arguments:
        case _Name(name), () if name == ORDERED_DICT:
            return {}
        case _Name(name), (Tensor() as tensor, *_) if name == PARAMETER:
            return tensor
        case _Name(name), (Storage() as storage, int(offset), tuple(shape), tuple(strides), *_) \
                if name == TENSOR:
            return Tensor(storage, offset, shape, strides)
    raise ValueError("it calls a function in an unknown way")


def _storage(key: Any) -> Storage:
    match key:          # what, type, key, device, length; before torch 1.6 also a view, here None
        case ("storage", _Name(name), str(key), _, _, *view) if view in ([], [None]):
            return Storage(DTYPES[name], key)
    raise ValueError("it has a storage of an unknown kind")
