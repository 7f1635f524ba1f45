"""`edgecl.backbones.checkpoint`: what it reads equals torch, what it must not read it refuses."""
from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import edgecl
from edgecl.backbones.checkpoint import read_checkpoint
from edgecl.errors import BackboneError

FORMATS = {"zip": True, "legacy": False}


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    shared = torch.randn(4, 6)
    return {"plain": torch.randn(3, 2, 5), "turned": shared.T, "part": shared[1:3, 2:5],
            "scalar": torch.tensor(7), "empty": torch.zeros(0, 3), "half": torch.randn(9).half(),
            "brain": torch.randn(8).bfloat16(), "double": torch.randn(2).double(),
            "bytes": torch.arange(5, dtype=torch.uint8), "flags": torch.tensor([True, False])}


def save(path: Path, content: Any, new: bool) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=new)
    return path


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        reference = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        assert found[name].dtype == reference.dtype
        np.testing.assert_array_equal(found[name], reference, strict=True)


@pytest.mark.parametrize("new", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("wrap", [dict, OrderedDict, lambda t: {"state_dict": t, "epoch": 3.5}])
def test_reads_what_torch_saved(tmp_path: Path, tensors: dict[str, torch.Tensor], new: bool,
                                wrap: Any) -> None:
    assert_equal(read_checkpoint(save(tmp_path / "a.pth", wrap(tensors), new)), tensors)


@pytest.mark.parametrize("new", FORMATS.values(), ids=FORMATS)
def test_reads_modules_and_parameters(tmp_path: Path, new: bool) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    path = save(tmp_path / "a.pth", {"model": module.state_dict()}, new)
    assert_equal(read_checkpoint(path), module.state_dict())
    parameters = dict(module.named_parameters())
    expected = {name: value.detach() for name, value in parameters.items()}
    assert_equal(read_checkpoint(save(path, parameters, new)), expected)


def test_reads_safetensors(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> None:
    plain = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(plain, tmp_path / "a.safetensors", metadata={"by": "test"})
    assert_equal(read_checkpoint(tmp_path / "a.safetensors"), plain)


def refuse(path: Path, reason: str, data: bytes | None = None) -> None:
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(BackboneError, match=reason) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)


class Bomb:
    """Unpickling it makes the folder `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_runs_nothing(tmp_path: Path, new: bool, protocol: int) -> None:
    fired = tmp_path / "fired"
    torch.save({"w": torch.ones(2), "x": Bomb(fired)}, tmp_path / "a.pth", pickle_protocol=protocol,
               _use_new_zipfile_serialization=new)
    refuse(tmp_path / "a.pth", "refers to posix.mkdir|pickle opcode|starts with")
    assert not fired.exists()


def test_no_module_unpickles() -> None:
    modules = list(Path(edgecl.__file__).parent.rglob("*.py"))
    assert len(modules) > 5
    for module in modules:
        assert not re.search(r"(import|from) pickle\b|torch\.load\(", module.read_text()), module


@pytest.mark.parametrize("opcodes", [
    b"cposix\nsystem\n(X\x04\x00\x00\x00truetR.", b"cbuiltins\neval\n.",
    b"cos\nsystem\nq\x00h\x00)R.",
    b"(S'true'\nios\nsystem\n.", b"\x82\x01.", b"ctorch\nFloatStorage\n)\x81.", b"P0\n."])
def test_refuses_opcodes(tmp_path: Path, opcodes: bytes) -> None:
    refuse(tmp_path / "a.pth", "refers to|pickle opcode", archive(b"\x80\x02" + opcodes))


def archive(root: bytes, packed: int = zipfile.ZIP_STORED, **entries: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packed) as file:
        for name, content in {"data.pkl": root, **entries}.items():
            file.writestr(f"archive/{name.replace('__', '/')}", content)
    return buffer.getvalue()


def described(shape: str, strides: str, offset: str = "K\x00") -> bytes:
    """The pickle of {"w": a tensor view} over the storage "0"."""
    storage = ("(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
               "X\x03\x00\x00\x00cpuK\x04tQ")
    return (f"\x80\x02}}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n({storage}"
            f"{offset}({shape}t({strides}t\x89}}tRs.").encode("latin-1")


HUGE = "\x8a\x05" + "\x00\x00\x00\x00\x7f"      # 2 ** 32 * 127


def test_the_described_tensor_is_read(tmp_path: Path) -> None:
    values = np.arange(4, dtype="<f4")
    data = archive(described("K\x02K\x02", "K\x02K\x01"), data__0=values.tobytes())
    (tmp_path / "a.pth").write_bytes(data)
    np.testing.assert_array_equal(read_checkpoint(tmp_path / "a.pth")["w"], values.reshape(2, 2))


@pytest.mark.parametrize(("shape", "strides", "offset"), [
    ("K\x05", "K\x01", "K\x00"), ("K\x04", "K\x01", "K\x01"), ("K\x02", "K\x04", "K\x00"),
    (HUGE, "K\x00", "K\x00"), ("K\x02" + HUGE, "K\x00K\x00", "K\x00"), ("K\x01", "K\x01", HUGE),
    ("K\x02", "J\xff\xff\xff\xff", "K\x03"), ("K\x02", "K\x01K\x01", "K\x00"),
    ("X\x01\x00\x00\x00a", "K\x01", "K\x00"), ("", "", "K\x04"),
    ("K\x01" * 99, "K\x01" * 99, "K\x00")])
def test_refuses_sizes(tmp_path: Path, shape: str, strides: str, offset: str) -> None:
    data = archive(described(shape, strides, offset), data__0=bytes(16))
    refuse(tmp_path / "a.pth", "plain tensors", data)


def test_refuses_bad_zips(tmp_path: Path) -> None:
    path, root = tmp_path / "a.pth", described("K\x04", "K\x01")
    refuse(path, "data/0", archive(root))
    refuse(path, "compressed", archive(root, zipfile.ZIP_DEFLATED, data__0=bytes(1 << 20)))
    refuse(path, "big-endian", archive(root, data__0=bytes(16), byteorder=b"big"))
    refuse(path, "0 data.pkl", archive(b"", data__0=b"").replace(b"data.pkl", b"code.pkl"))
    refuse(path, "0 state dicts", archive(b"\x80\x02}X\x01\x00\x00\x00wK\x01s."))
    refuse(path, "plain tensors", archive(b"\x80\x02]X\x01\x00\x00\x00wa."))
    refuse(path, "wrong type", archive(b"\x80\x02})K\x01s."))
    refuse(path, "before seeing STOP", archive(b"\x80\x02}"))
    sixteen, many = b"\x10\x00\x00\x00", b"\xff\xff\xff\x70"
    refuse(path, "larger than the file",
           archive(root, data__0=bytes(16)).replace(2 * sixteen, sixteen + many))


def test_refuses_deep_nesting_as_key(tmp_path: Path) -> None:
    deep = b"\x80\x02})" + b"\x85" * 200_000 + b"K\x01s."     # its hash would overflow the stack
    refuse(tmp_path / "a.pth", "wrong type", archive(deep))


@pytest.mark.parametrize("new", FORMATS.values(), ids=FORMATS)
def test_any_damage_is_one_error(tmp_path: Path, new: bool) -> None:
    path = save(tmp_path / "a.pth", {"w": torch.arange(6.0), "b": torch.ones(2)}, new)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for length in random.integers(0, len(whole) - 16, 60):
        refuse(path, "plain tensors", whole[:length])
    for place in random.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        try:
            found = read_checkpoint(path)
        except BackboneError:
            continue
        assert sum(array.nbytes for array in found.values()) <= len(whole)


@pytest.mark.parametrize("entry", [
    {"dtype": "F32", "shape": [2], "data_offsets": [0, 12]},
    {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]},
    {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]},
    {"dtype": "F32", "shape": [1 << 62], "data_offsets": [0, 8]},
    {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
    {"dtype": "object", "shape": [2], "data_offsets": [0, 8]},
    {"dtype": "F32", "shape": None, "data_offsets": [0, 8]}, {"dtype": "F32"}, 5])
def test_refuses_safetensors(tmp_path: Path, entry: Any) -> None:
    refuse(tmp_path / "a", "plain tensors", safetensors({"w": entry}))


def safetensors(header: Any, body: int = 16) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(body)


def test_refuses_odd_files(tmp_path: Path) -> None:
    once = {"dtype": "BF16", "shape": [8], "data_offsets": [0, 16]}
    refuse(tmp_path / "a", "is at", safetensors({"v": once, "w": once}))
    refuse(tmp_path / "a", "plain tensors", safetensors(b'{"a":' + b"[" * 200_000))
    refuse(tmp_path / "a", "plain tensors", (1 << 60).to_bytes(8, "little") + b"{}")
    refuse(tmp_path / "a", "starts with", b"\x80\x04}.")
    refuse(tmp_path / "a", "starts with", b"")
    refuse(tmp_path, "not a file")
    refuse(tmp_path / "missing", "not a file")
