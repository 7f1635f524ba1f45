"""Reads the tensors of a torch `.pth` or a `.safetensors` file without running anything in it.

A `.pth` file is a pickle, and unpickling calls whatever the pickle names; `pickle_reader` does not. Arrays are views of
bytes that the file really contains: no header can claim more.
"""
from __future__ import annotations

import io
import json
import math
import struct
import zipfile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgecl.backbones.pickle_reader import PERSISTENT, interpret
from edgecl.errors import BackboneError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAX_BYTES = 2_000_000_000           # the limit of an ONNX file, which the tensors end up in
LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
DTYPES = {"F32": "f4", "F64": "f8", "F16": "f2", "BF16": "bf16", "I64": "i8", "I32": "i4",
          "I16": "i2", "I8": "i1", "U8": "u1", "BOOL": "?"}
DAMAGE = (ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, OverflowError,
          RuntimeError, struct.error, zipfile.BadZipFile)


class Storage(NamedTuple):
    """A one-dimensional run of values that the file stores under `key`."""

    dtype: str
    key: str


class Tensor(NamedTuple):
    """A view of a storage; offset and strides are in values, not bytes."""

    storage: Storage
    offset: int
    shape: tuple[Any, ...]
    strides: tuple[Any, ...]


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    match storage, offset, shape, strides:
        case Storage(), int(), tuple(), tuple():
            return Tensor(storage, offset, shape, strides)
    raise ValueError("it describes a tensor in an unknown way")


def _parameter(tensor: Any, *_: Any) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise ValueError("it has a parameter that is not a tensor")
    return tensor


def _storage(key: Any) -> Storage:
    match key:          # tag, type, key, device, length; before torch 1.6 also a view, which must be None
        case ("storage", str(dtype), str(name), _, _, *view) if view in ([], [None]) and dtype in STORED:
            return Storage(dtype, name)
    raise ValueError("it has a storage of an unknown kind")


STORAGES = {"Float": "f4", "Double": "f8", "Half": "f2", "BFloat16": "bf16", "Long": "i8", "Int": "i4", "Short": "i2",
            "Char": "i1", "Byte": "u1", "Bool": "?"}
STORED = set(STORAGES.values())
TORCH: dict[str, Any] = {
    "collections OrderedDict": dict, "torch._utils _rebuild_tensor_v2": _tensor,
    "torch._utils _rebuild_parameter": _parameter, PERSISTENT: _storage,
    **{f"torch {name}Storage": dtype for name, dtype in STORAGES.items()}}


def read_checkpoint(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by name, read-only, in the file's dtypes (bfloat16 as float32).

    Reads `.safetensors` and both `.pth` formats (zip, and the one before torch 1.6), distinguished by their content; a
    state dict may be nested one key deep. Raises BackboneError for anything else.
    """
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            raise BackboneError(f"{path} is not a file of at most {MAX_BYTES} bytes",
                                "name a .pth or .safetensors file")
        data = path.read_bytes()
    except OSError as error:
        raise BackboneError(f"{path} can't be read ({error.strerror})",
                            "check its name and permissions") from error
    try:
        if data.startswith(b"PK\x03\x04"):
            return _read_zip(data)
        if data.startswith(LEGACY_MAGIC):
            return _read_legacy(data)
        return _read_safetensors(data)
    except DAMAGE as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise BackboneError(f"{path} does not consist of plain tensors: {reason}",
                            "give a state dict saved by torch.save, or a .safetensors file") from error


def _read_zip(data: bytes) -> dict[str, np.ndarray]:
    """A zip file with FOLDER/data.pkl, which describes the state dict, and FOLDER/data/KEY for each storage."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        roots = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(roots) != 1:
            raise ValueError(f"the zip file has {len(roots)} data.pkl entries instead of 1")
        folder, left = roots[0].removesuffix("data.pkl"), len(data)

        def read(name: str) -> bytes:
            nonlocal left
            entry = entries[folder + name]
            left -= entry.file_size
            if entry.compress_type != zipfile.ZIP_STORED or left < 0:
                raise ValueError(f"zip entry {name} is compressed, or larger than the file")
            return archive.read(entry)

        if folder + "byteorder" in entries and read("byteorder") != b"little":
            raise ValueError("the tensors are big-endian")
        root = interpret(io.BytesIO(read("data.pkl")), TORCH)
        return _arrays(root, lambda storage: read(f"data/{storage.key}"))


def _read_legacy(data: bytes) -> dict[str, np.ndarray]:
    """Five pickles (magic, version, system, state dict, keys), then length and values for each key."""
    stream = io.BytesIO(data)
    _magic, _version, system, root, keys = [interpret(stream, TORCH) for _ in range(5)]
    if system.get("little_endian") is not True:
        raise ValueError("the tensors are big-endian")
    dtypes = {tensor.storage.key: tensor.storage.dtype for tensor in _state_dict(root).values()}
    found = {}
    for key in keys:
        if not isinstance(key, str) or key not in dtypes:
            raise ValueError("a storage belongs to no tensor")
        start = stream.tell() + 8
        size = struct.unpack_from("<q", data, start - 8)[0] * _item_size(dtypes[key])
        if not 0 <= size <= len(data) - start:
            raise ValueError(f"storage {key} has {size} bytes, but {len(data) - start} are left")
        found[key] = memoryview(data)[start:start + size]
        stream.seek(start + size)
    return _arrays(root, lambda storage: found[storage.key])


def _read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    """The length of the header as uint64, the header as JSON, the values."""
    length = int.from_bytes(data[:8], "little")
    if data[8:9] != b"{" or length > len(data) - 8:
        raise ValueError(f"it starts with {data[:8]!r}, which is neither .pth nor .safetensors")
    header, body, used, found = json.loads(data[8:8 + length]), memoryview(data)[8 + length:], 0, {}
    header.pop("__metadata__", None)
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        used += end - start
        if not 0 <= start <= end <= len(body) or used > len(body):
            raise ValueError(f"tensor {name} is at {start} to {end} of {len(body)} bytes")
        values = _values(body[start:end], DTYPES[entry["dtype"]])
        if math.prod(entry["shape"]) != len(values):
            raise ValueError(f"tensor {name} of shape {entry['shape']} has {len(values)} values")
        found[name] = values.reshape(entry["shape"])
    return found


def _state_dict(root: Any) -> dict[str, Tensor]:
    """The tensors by name, of the root itself or of the only mapping with tensors one key below it."""
    def tensors(mapping: Any) -> dict[str, Tensor]:
        items = mapping.items() if isinstance(mapping, dict) else ()
        return {k: v for k, v in items if isinstance(k, str) and isinstance(v, Tensor)}

    if found := tensors(root):
        return found
    below = {key: tensors(value) for key, value in root.items() if tensors(value)}
    if len(below) != 1:
        raise ValueError(f"it has {len(below)} state dicts instead of 1: {sorted(map(str, below))}")
    return next(iter(below.values()))


def _arrays(root: Any, read: Callable[[Storage], bytes | memoryview]) -> dict[str, np.ndarray]:
    loaded: dict[Storage, np.ndarray] = {}
    found = {}
    for name, (storage, offset, shape, strides) in _state_dict(root).items():
        if storage not in loaded:
            loaded[storage] = _values(read(storage), storage.dtype)
        values = loaded[storage]
        sizes = (offset, *shape, *strides)
        if not all(isinstance(size, int) and 0 <= size <= MAX_BYTES for size in sizes):
            raise ValueError(f"tensor {name} has a size that is not a number in range")
        last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
        if math.prod(shape) > len(values) or (0 not in shape and last >= len(values)):
            raise ValueError(f"tensor {name} of shape {shape} has {len(values)} stored values")
        found[name] = np.lib.stride_tricks.as_strided(
            values[offset:], shape, [step * values.itemsize for step in strides], writeable=False)
    return found


def _item_size(dtype: str) -> int:
    return 2 if dtype == "bf16" else np.dtype(dtype).itemsize


def _values(data: bytes | memoryview, dtype: str) -> np.ndarray:
    if dtype == "bf16":             # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<"))
