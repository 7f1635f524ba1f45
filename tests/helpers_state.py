"""What tests do with the small states of tools/vector_states.py: damage, trace, refuse, fork, count calls."""
from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from folders import directory_bytes as directory_bytes
from folders import fast_folder as fast_folder
from helpers_needs import need
from vector_states import DIMENSION as DIMENSION
from vector_states import PROBE as PROBE
from vector_states import answers as answers
from vector_states import create as create
from vector_states import fingerprint as fingerprint
from vector_states import knowledge as knowledge
from vector_states import tree as tree
from vector_states import vectors as vectors

from edgecl.cli import main
from edgecl.errors import EdgeclError

# how many processes a campaign of kills, cuts or damage uses: under xdist, whose workers use all cores, one
JOBS = 1 if "PYTEST_XDIST_WORKER" in os.environ else os.cpu_count() or 1


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
    need("strace", "strace")
    here = Path(__file__).resolve().parents[1] / "tools"
    change = {"learn": "learn(vectors('dog', 25), 'dog')", "forget": "forget('wasp')"}[command]
    code = (f"import sys, edgecl.backbones.onnx_runtime; sys.path.insert(0, {str(here)!r})\n"
            "from pathlib import Path\nfrom vector_states import vectors\nfrom edgecl.learner import Learner\n"
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
        _, err = process.communicate("x", timeout=600)
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


def calls_of(action):
    """How many Python functions an action calls."""
    count = 0

    def seen(_, event, __):
        nonlocal count
        count += event == "call"

    sys.setprofile(seen)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count
