"""The HTTP server on both ends of the range of uvicorn in pyproject.toml, since it subclasses uvicorn's internals."""
from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import uvicorn

ROOT = Path(__file__).resolve().parents[1]
LOW, HIGH = re.search(r'"uvicorn>=([0-9.]+),<([0-9.]+)"', (ROOT / "pyproject.toml").read_text("utf-8")).groups()
ENDS = {"oldest": f"uvicorn=={LOW}", "newest": f"uvicorn>={LOW},<{HIGH}"}
SERVER_TESTS = ["tests/test_http_access.py", "tests/test_http_slow.py",
                "tests/test_http_hostile.py::test_a_thousand_malformed_requests"]


def installed(requirement: str, folder: Path) -> None:
    """uvicorn alone in a folder; the test is skipped if the registry can't be reached, with CI=true it fails."""
    done = subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--disable-pip-version-check",
                           "--target", folder, requirement], capture_output=True, text=True)
    if done.returncode:
        reason = f"pip can't install {requirement}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_the_server_keeps_its_promises_on_both_ends_of_the_range(tmp_path, end):
    installed(ENDS[end], tmp_path)
    [package] = tmp_path.glob("uvicorn-*.dist-info")
    version = package.name.removeprefix("uvicorn-").removesuffix(".dist-info")
    if version == uvicorn.__version__:
        return  # the whole suite runs on it
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    used = subprocess.run([sys.executable, "-c", "import uvicorn; print(uvicorn.__version__)"], env=environment,
                          capture_output=True, text=True, check=True).stdout.strip()
    assert used == version
    done = subprocess.run([sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider", *SERVER_TESTS],
                          cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_the_uvicorn_of_this_environment_is_in_the_range():
    def number(text: str) -> list[int]:
        return [int(part) for part in text.split(".")[:2]]

    assert number(LOW) <= number(uvicorn.__version__) < number(HIGH)
