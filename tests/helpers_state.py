"""States for the tests of the state directory: small ones, with the identity backbone."""
from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgecl.cli import main
from edgecl.errors import EdgeclError
from edgecl.learner import Learner
from edgecl.settings import Settings

DIMENSION = 16
PROBE = np.random.default_rng(99).normal(size=(32, DIMENSION)).astype(np.float32) * 3


def vectors(label: str, count: int, seed: int = 0, dimension: int = DIMENSION) -> np.ndarray:
    """Feature vectors [count, dimension] of one class; the same for the same arguments."""
    own = int.from_bytes(hashlib.blake2b(label.encode(), digest_size=4).digest(), "big")
    centre = np.random.default_rng(own).normal(size=dimension) * 3
    noise = np.random.default_rng([own, seed]).normal(size=(count, dimension))
    return (centre + noise).astype(np.float32)


def create(path: Path, quota: int = 1_000_000, exemplars: int = 20_000, head: str = "slda", **settings: Any) -> Learner:
    """A new state with the identity backbone, which keeps samples as they are."""
    return Learner.create(path, Settings(backbone="identity", quota=quota, exemplars=exemplars, head=head,
                                         **{"codec": "raw", **settings}))


def answers(learner: Learner, probe: np.ndarray = PROBE) -> list[tuple[str, float, bool]] | str:
    """All that `predict` says, bit for bit, or why it refuses."""
    try:
        return [(each.label, each.confidence, each.unknown) for each in learner.predict(probe)]
    except EdgeclError as error:
        return type(error).__name__


def knowledge(learner: Learner) -> Any:
    """What the learner would go on from: counts, sums and second moment of every transform, and the stored samples."""
    if learner.foundation is None:
        return None
    known = learner.repository.known()
    return [[(sorted(s.counts.items()), [s.sums[c].tobytes() for c in s.labels], s.residual,
              None if s.moment is None else s.moment.tobytes()) for s in known.statistics.values()],
            sorted((row.label, row.key, row.feature.tobytes()) for row in known.exemplars())]


def fingerprint(path: Path, older: bool = True) -> str:
    """A digest of all that a freshly opened state shows and knows; the ids and times of generations apart. older:
    whether the accuracies of older generations count, which go when room is made for a change."""
    learner = Learner.open(path)
    try:
        history = [(g.action, {key: value for key, value in g.detail.items() if older or key != "held_back"}, g.undone)
                   for g in learner.history()]
        d = learner.foundation.dimension if learner.foundation else DIMENSION
        probe = PROBE if d == DIMENSION else np.random.default_rng(99).normal(size=(32, d)).astype(np.float32) * 3
        damage = learner.damage if learner.store.newest.head else []
        shown = [answers(learner, probe), knowledge(learner), history, damage]
        return hashlib.sha256(repr(shown).encode()).hexdigest()
    finally:
        learner.close()


def directory_bytes(path: Path, reserve: bool = True) -> int:
    """Bytes of all that is in a directory, itself and temporaries included, in whole pages; counted without edgecl."""
    seen: set[int] = set()
    total = 0
    for folder, _, names in os.walk(path):
        total += max(-(-os.stat(folder).st_size // 4096) * 4096, 4096)
        for name in names:
            try:
                about = os.stat(Path(folder, name))
            except FileNotFoundError:  # a temporary that is gone already
                continue
            if about.st_ino not in seen and (reserve or name != "reserved"):
                seen.add(about.st_ino)
                total += -(-about.st_size // 4096) * 4096
    return total


def tree(path: Path) -> dict[str, str]:
    """Digest of every file below a folder."""
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(path.rglob("*")) if file.is_file()}


def refused(capsys, *arguments):
    """The one line with which the command line refuses."""
    assert main([str(argument) for argument in arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("edgecl: ")
    assert err.count("\n") == 1
    assert "; " in err
    return err


def flip(path, place=-1):
    """Damage one byte."""
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


def error_of(work):
    """The error with which some work is refused, or None."""
    try:
        work()
    except EdgeclError as error:
        return error
    return None


def in_a_child(work):
    """The exit code of a fork that does the work; 1 and its error on stderr where that is refused."""
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            work()
            code = 0
        except EdgeclError as error:
            os.write(2, f"{error}\n".encode())
            code = 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def strace(command, state, call, injection):
    """Run a change in a process whose system calls fail as told: exit code and stderr."""
    if shutil.which("strace") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("strace is missing: `apt-get install strace`")
        pytest.skip("strace is missing: `apt-get install strace`")
    here = Path(__file__).parent
    change = {"learn": "learn(vectors('dog', 25), 'dog')", "forget": "forget('wasp')"}[command]
    code = (f"import sys, edgecl.backbones.onnx_runtime; sys.path.insert(0, {str(here)!r})\n"
            "from pathlib import Path\nfrom helpers_state import vectors\nfrom edgecl.learner import Learner\n"
            "from edgecl.errors import EdgeclError\nimport edgecl.backbones.graph, onnx.helper, os\n"
            f"state = Path({str(state)!r})\n"
            "os.read(0, 1)\n"
            "try:\n"
            f"    Learner.open(state).{change}\n"
            "except EdgeclError as error:\n    print(f'{type(error).__name__}: {error}', file=sys.stderr)\n"
            "    raise SystemExit(1)\n")
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    tracer = None
    try:
        while f"/proc/{process.pid}" and "pipe_read" not in Path(f"/proc/{process.pid}/wchan").read_text() \
                and process.poll() is None:
            time.sleep(0.01)
        tracer = subprocess.Popen(["strace", "-qq", "-f", "-o", "/dev/null", "-p", str(process.pid), "-e",
                                   f"trace={call}", "-e", f"inject={call}:{injection}"])
        while "TracerPid:\t0" in Path(f"/proc/{process.pid}/status").read_text():
            time.sleep(0.002)
        _, err = process.communicate("x", timeout=60)
    finally:
        process.kill()
        if tracer is not None:
            tracer.wait()
    return process.returncode, err


def traces(state, features, names):
    """What of a class lies anywhere in a state's files: its names in any encoding, and its features' bytes."""
    found = []
    for file in state.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            found += [(file.name, name) for name in names
                      if any(name.encode(code) in data for code in ("utf-8", "utf-16-le", "utf-32-le"))
                      or json.dumps(name)[1:-1].encode() in data]
            found += [(file.name, number) for number, feature in enumerate(features) if feature[:3].tobytes() in data]
    return found
