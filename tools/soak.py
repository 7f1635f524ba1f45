#!/usr/bin/env python3
"""Measures what the daemon needs, and whether that stays constant, on efficientnet-lite0 with a folder as the camera.

    tools/soak.py [--minutes 10] [--cycles 200] [--fps 100] [--only start,memory,latency,round]

start: time from `edgecl daemon` to its first answer, and of `edgecl status` through it. latency: from a frame to its
answer in the loop, and of a bare `session.run` on the same session, alternately. round: p99 of answers with and without
a round running, alternately, and frames dropped. memory: resident bytes compared with a process that only runs the
backbone, and their slope, threads and descriptors over `minutes` at `fps`, while a class is learned and forgotten
`cycles` times. Exits with 1 if a target is missed; the load shows what else the machine did.
"""
from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)

import numpy as np  # noqa: E402
import psutil  # noqa: E402
from PIL import Image  # noqa: E402

from edgecl.commands import keep_memory_low  # noqa: E402
from edgecl.learner import Learner  # noqa: E402
from edgecl.profiling import sandbox  # noqa: E402
from edgecl.runtime.client import Client, NoDaemon  # noqa: E402
from edgecl.runtime.loop import Loop  # noqa: E402
from edgecl.runtime.service import Service  # noqa: E402
from edgecl.runtime.settings import DaemonSettings, SourceSettings  # noqa: E402
from edgecl.runtime.source_threads import SourceThread  # noqa: E402
from edgecl.samples import Sample  # noqa: E402
from edgecl.settings import Settings  # noqa: E402

SIDE, CLASSES, EACH = 224, 5, 25
MAX_START, MAX_STATUS = 2.0, 0.150  # seconds
REST_SECONDS = 2.8                  # after a cycle, for the daemon to come to rest
MAX_LATENCY_RATIO, MAX_ROUND_RATIO, MAX_RSS_RATIO = 1.05, 1.5, 1.3
MAX_GROWTH = 1.0                    # MB per hour
BARE = """
import os, sys, numpy as np
os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1')
import onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = ort.InferenceSession(sys.argv[1], options)
name, rng = session.get_inputs()[0].name, np.random.default_rng(0)
for _ in range(50):
    session.run(None, {name: rng.integers(0, 256, (1, 224, 224, 3), dtype=np.uint8)})
print(int(open('/proc/self/statm').read().split()[1]) * 4096)
"""


def made(folder: Path) -> Path:
    """A state that knows some classes, and a folder of photos."""
    learner = Learner.create(folder / "state", Settings(backbone="efficientnet-lite0", codec="jpeg"))
    (folder / "photos").mkdir()
    for number in range(CLASSES):
        data = sandbox.samples("image", (SIDE, SIDE, 3), EACH, number)
        learner.learn(data, f"class {number}")
        for place, photo in enumerate(data[:4]):
            Image.fromarray(photo).save(folder / "photos" / f"{number}-{place}.jpg")
    learner.close()
    return folder / "state"


class Daemon:
    """A daemon process with one fake camera."""

    def __init__(self, folder: Path, fps: float) -> None:
        (folder / "robot.toml").write_text(f'state = "state"\nrounds = "off"\n[[source]]\nname = "cam"\n'
                                           f'uri = "fake:photos?fps={fps:g}"\n')
        self.begun, self.path = time.perf_counter(), folder / "state" / "control.sock"
        self.process = subprocess.Popen([sys.executable, "-m", "edgecl.cli", "daemon", "--config", "robot.toml"],
                                        cwd=folder, stderr=subprocess.DEVNULL)

    def ask(self, command: str, **values: object) -> dict:
        while True:
            try:
                with Client(self.path) as client:
                    return client.ask(command, **values)
            except NoDaemon:
                time.sleep(0.005)

    def first_answer(self) -> float:
        while not self.ask("latest"):
            time.sleep(0.005)
        return time.perf_counter() - self.begun

    def end(self) -> float:
        begun = time.perf_counter()
        self.process.terminate()
        self.process.wait()
        return time.perf_counter() - begun


def start(folder: Path, given: argparse.Namespace) -> bool:
    firsts, ends, asked = [], [], []
    for _ in range(5):
        daemon = Daemon(folder, 10)
        firsts.append(daemon.first_answer())
        for _ in range(3):
            begun = time.perf_counter()
            subprocess.run([sys.executable, "-m", "edgecl.cli", "status", "--state", str(folder / "state")],
                           stdout=subprocess.DEVNULL, check=True)
            asked.append(time.perf_counter() - begun)
        ends.append(daemon.end())
    found = [float(np.median(times)) for times in (firsts, asked, ends)]
    print(f"start to first answer {found[0]:.2f} s (target {MAX_START}), edgecl status {1000 * found[1]:.0f} ms "
          f"(target {1000 * MAX_STATUS:.0f}), SIGTERM to end {found[2]:.2f} s, longest {max(ends):.2f} (target 2); "
          f"medians; load {os.getloadavg()[0]:.1f}")
    return found[0] < MAX_START and found[1] <= MAX_STATUS and max(ends) < 2


class Inside:
    """Service and loop in this process, so that each answer can be timed."""

    def __init__(self, folder: Path) -> None:
        keep_memory_low()
        self.service = Service(Learner.open(folder / "state"), DaemonSettings(folder / "state", rounds="off"))
        self.loop = Loop(self.timed)
        self.source = SourceThread(SourceSettings("camera:", "cam"), self.service.spec, self.service.hub.say,
                                   self.loop.offer, iter)
        self.service.sources.follow([self.source])
        self.loop.follow([self.source])
        self.service.start()
        threading.Thread(target=self.loop.run, daemon=True).start()
        self.classified = 0.0
        self.photos = sandbox.samples("image", (SIDE, SIDE, 3), 50, 99)
        self.number = 0

    def timed(self, source: SourceThread, sample: Sample) -> None:
        begun = time.monotonic()
        self.service.classifier.classify(source, sample)
        self.classified = time.monotonic() - begun

    def answer(self, pause: float) -> float:
        """Seconds from offering a frame to its answer, followed by a pause."""
        self.number += 1
        photo = self.photos[self.number % len(self.photos)].copy()
        before, begun = self.source.frames, time.monotonic()
        self.loop.offer(self.source, Sample(photo))
        time.sleep(pause)
        while self.source.frames == before:
            time.sleep(0.001)
        assert self.source.latest is not None
        return self.source.latest.at - begun

    def bare(self, pause: float) -> float:
        self.number += 1
        photo = self.photos[self.number % len(self.photos)][None].copy()
        backbone = self.service.classifier.serving.backbone
        begun = time.monotonic()
        backbone.session.run(None, {backbone._input: photo})
        took = time.monotonic() - begun
        time.sleep(pause)
        return took

    def end(self) -> None:
        self.loop.stop()
        self.service.stop(5)


def latency(folder: Path, given: argparse.Namespace) -> bool:
    inside = Inside(folder)
    for _ in range(20):
        inside.answer(0.02), inside.bare(0.02)
    rows = [(inside.answer(0.04), inside.classified, inside.bare(0.04)) for _ in range(given.frames)]
    inside.end()
    whole, loop, bare = (1000 * np.median(times) for times in zip(*rows))
    print(f"p50 of a bare session.run {bare:.2f} ms; of the loop, from a frame to its published answer, {loop:.2f} ms: "
          f"{loop / bare:.3f} times (target {MAX_LATENCY_RATIO}); including the wake-up of the loop's thread "
          f"{whole:.2f} ms: {whole / bare:.3f} times; load {os.getloadavg()[0]:.1f}")
    return loop / bare <= MAX_LATENCY_RATIO


def round_beside(folder: Path, given: argparse.Namespace) -> bool:
    inside, times = Inside(folder), {"idle": [], "busy": []}
    for number in range(given.phases):
        kind = ("idle", "busy")[number % 2]
        if kind == "busy":
            inside.service.start_round(method="er", time=given.seconds, memory=900_000_000, epochs=1000)
        until = time.monotonic() + given.seconds
        while inside.service.round_result()["running"] if kind == "busy" else time.monotonic() < until:
            times[kind].append(1000 * inside.answer(0.03))
        said = inside.service.round_result()["result"] if kind == "busy" else None
        what = "" if said is None else said["error"]["what"] if "error" in said else \
            f"{said['steps']} steps, accepted: {said['accepted']}"
        print(f"  {kind}: {len(times[kind])} answers so far, p50 {np.percentile(times[kind], 50):.1f} p99 "
              f"{np.percentile(times[kind], 99):.1f} ms; load {os.getloadavg()[0]:.1f}  {what}", flush=True)
    dropped = inside.source.dropped
    inside.end()
    ratio = np.percentile(times["busy"], 99) / np.percentile(times["idle"], 99)
    print(f"p99 during a round {ratio:.2f} times that when idle (target {MAX_ROUND_RATIO}); {dropped} frames dropped "
          "(target 0)")
    return ratio <= MAX_ROUND_RATIO and dropped == 0


def memory(folder: Path, given: argparse.Namespace) -> bool:
    backbone = max((folder / "state/models").glob("*.onnx"), key=lambda path: path.stat().st_size)
    bare = int(subprocess.run([sys.executable, "-c", BARE, backbone], capture_output=True, text=True,
                              check=True).stdout)
    daemon = Daemon(folder, given.fps)
    daemon.first_answer()
    process = psutil.Process(daemon.process.pid)
    begun, until = time.monotonic(), time.monotonic() + 60 * given.minutes
    served = process.memory_info().rss
    every, rows, rests, took = 60 * given.minutes / given.cycles, [], [], {"learn_last": [], "forget": []}
    due, shown = begun + 5, 0.0
    while time.monotonic() < until:
        time.sleep(0.1)
        now = time.monotonic() - begun
        rows.append((process.memory_info().rss, process.num_threads(), process.num_fds()))
        if time.monotonic() >= due:
            rests.append((now, rows[-1][0]))
            for command in took:
                asked = time.monotonic()
                daemon.ask(command, label="new", **({"seconds": 1.0} if command == "learn_last" else {}))
                took[command].append(time.monotonic() - asked)
            due = max(due + every, time.monotonic() + REST_SECONDS)
        if now - shown > 30:
            shown = now
            print(f"  {now:5.0f} s  {rows[-1][0] / 1e6:6.1f} MB  {rows[-1][1]} threads  {rows[-1][2]} descriptors  "
                  f"{len(rests)} cycles; load {os.getloadavg()[0]:.1f}", flush=True)
    time.sleep(5)
    rest, counted = process.memory_info().rss, daemon.ask("counters")
    daemon.end()
    at, size = np.array(rests[len(rests) // 4:]).T
    first, second = np.triu_indices(len(at), 1)
    slope = 3600 / 1e6 * float(np.median((size[second] - size[first]) / (at[second] - at[first])))
    most, threads, handles = max(row[0] for row in rows), *(sorted({row[i] for row in rows[50:]}) for i in (1, 2))
    print(f"resident: bare ONNX Runtime {bare / 1e6:.1f} MB; the daemon {served / 1e6:.1f} at its first answer, "
          f"{rest / 1e6:.1f} at rest after {len(rests)} cycles of learn and forget: {rest / bare:.2f} times (target "
          f"{MAX_RSS_RATIO}); at most {most / 1e6:.1f} while learning")
    print(f"over {given.minutes:g} min at {given.fps:g} fps, at rest before each cycle, without the first quarter: "
          f"{slope:+.2f} MB per hour (target < {MAX_GROWTH}; median of all pairs); threads {threads}, descriptors "
          f"{handles}; {counted['frames_total']['cam']} answers; medians: learn {np.median(took['learn_last']):.2f} s, "
          f"forget {np.median(took['forget']):.2f} s")
    return rest <= MAX_RSS_RATIO * bare and slope < MAX_GROWTH and len(threads) == 1


PARTS = {"start": start, "latency": latency, "round": round_beside, "memory": memory}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--cycles", type=int, default=200, help="cycles of learn and forget")
    options.add_argument("--fps", type=float, default=100.0)
    options.add_argument("--frames", type=int, default=400, help="frames for `latency`")
    options.add_argument("--phases", type=int, default=6, help="phases for `round`, half of them busy")
    options.add_argument("--seconds", type=float, default=20.0, help="of each")
    options.add_argument("--only", default=",".join(PARTS))
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as text:
        made(Path(text))
        good = [PARTS[name](Path(text), given) for name in given.only.split(",")]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
