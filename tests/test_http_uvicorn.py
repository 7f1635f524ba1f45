"""The HTTP server on both ends of the range of uvicorn in pyproject.toml, since it subclasses uvicorn's internals."""
from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import uvicorn
from helpers_needs import lacking

ROOT = Path(__file__).resolve().parents[1]
LOW, HIGH = re.search(r'"uvicorn>=([0-9.]+),<([0-9.]+)"', (ROOT / "pyproject.toml").read_text("utf-8")).groups()
ENDS = {"oldest": f"uvicorn=={LOW}", "newest": f"uvicorn>={LOW},<{HIGH}"}
SLOW, HOSTILE = "tests/test_http_slow.py", "tests/test_http_hostile.py"
OVERRIDDEN = {   # what of uvicorn runtime/http/server.py overrides, and the tests that reach it
    "connection_made": [f"{HOSTILE}::test_past_the_most_connections_new_ones_are_closed_and_later_served"],
    "data_received": [f"{SLOW}::test_clients_that_never_finish_their_headers_are_cut_off",
                      f"{SLOW}::test_a_second_request_that_drips_on_the_same_connection_is_cut_off",
                      f"{SLOW}::test_a_body_that_goes_on_after_its_reply_is_cut_off"],
    "send_400_response": [f"{HOSTILE}::test_a_malformed_request_of_each_kind", f"{HOSTILE}::test_a_length_that_lies"],
    "on_tick": [f"{SLOW}::test_a_client_that_does_not_read_its_events_is_cut_off_and_holds_up_nobody"]}


def installed(requirement: str, folder: Path) -> None:
    """uvicorn alone in a folder; the test is skipped if the registry can't be reached, with CI=true it fails."""
    done = subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--disable-pip-version-check",
                           "--target", folder, requirement], capture_output=True, text=True)
    if done.returncode:
        lacking(f"pip can't install {requirement}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")


@pytest.mark.slow
def test_the_server_keeps_its_promises_on_both_ends_of_the_range(tmp_path):
    for end, requirement in ENDS.items():
        installed(requirement, tmp_path / end)
        [package] = (tmp_path / end).glob("uvicorn-*.dist-info")
        version = package.name.removeprefix("uvicorn-").removesuffix(".dist-info")
        if version != uvicorn.__version__:  # on that one the whole suite runs
            run_on(tmp_path / end, version)


def run_on(folder: Path, version: str) -> None:
    """The tests of what is overridden, on the uvicorn in a folder."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    used = subprocess.run([sys.executable, "-c", "import uvicorn; print(uvicorn.__version__)"], env=environment,
                          capture_output=True, text=True, check=True).stdout.strip()
    assert used == version
    done = subprocess.run([sys.executable, "-m", "pytest", "-n0", "-q", "-p", "no:cacheprovider",
                           *(test for tests in OVERRIDDEN.values() for test in tests)],
                          cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_the_uvicorn_of_this_environment_is_in_the_range():
    def number(text: str) -> list[int]:
        return [int(part) for part in text.split(".")[:2]]

    assert number(LOW) <= number(uvicorn.__version__) < number(HIGH)
