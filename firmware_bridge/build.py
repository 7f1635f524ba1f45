"""Compiles the C side for this machine or for a Cortex-M, once for each version of its sources."""
from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from edgecl.errors import LinkError

SOURCES = Path(__file__).parent / "c"
CORE = ("bridge.c", "bridge_decode.c", "bridge_write.c")
STRICT = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-Wconversion")
CORTEX_M3 = ("-mcpu=cortex-m3", "-mthumb", "-Os", "-ffunction-sections", "-fdata-sections", "-ffreestanding")


def build(*programs: str, compiler: str = "gcc", flags: tuple[str, ...] = ("-O2",),
          libraries: tuple[str, ...] = ()) -> Path:
    """The program built from `programs` (paths in c/) and the bridge, cached. Raises LinkError if the compiler is
    missing or fails."""
    if shutil.which(compiler) is None:
        package = "gcc-arm-none-eabi" if compiler.startswith("arm") else "gcc"
        raise LinkError(f"the firmware can't be compiled: {compiler} is missing", f"apt-get install {package}")
    every = sorted(path for path in SOURCES.rglob("*") if path.suffix in (".c", ".h", ".ld"))
    key = hashlib.sha256(repr((programs, compiler, flags, libraries)).encode() + b"".join(map(Path.read_bytes, every)))
    out = cache() / f"{Path(programs[0]).stem}-{key.hexdigest()[:16]}"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_suffix(f".{os.getpid()}")
        files = [str(SOURCES / name) for name in (*CORE, *programs)]
        done = subprocess.run([compiler, *STRICT, *flags, "-I", str(SOURCES), *files, "-o", str(partial),
                               *libraries],
                              capture_output=True, text=True, check=False)
        if done.returncode:
            raise LinkError(f"{compiler} refused the firmware: {done.stderr.strip()[:500]}",
                            "check that the sources are unchanged")
        partial.replace(out)
    return out


def cache() -> Path:
    """The folder for compiled programs."""
    root = os.environ.get("EDGECL_CACHE") or os.environ.get("XDG_CACHE_HOME")
    base = Path(root) if root else Path.home() / ".cache"
    return (base if base.parent.exists() else Path(tempfile.gettempdir())) / "edgecl-firmware"


def build_qemu() -> Path:
    """The example firmware for QEMU's mps2-an385. Raises LinkError as `build` does."""
    script = str(SOURCES / "qemu" / "mps2.ld")
    return build("qemu/main.c", "app.c", compiler="arm-none-eabi-gcc",
                 flags=(*CORTEX_M3, "-fno-tree-loop-distribute-patterns", "-nostdlib", "-Wl,--gc-sections", "-T",
                        script),
                 libraries=("-lgcc",))
