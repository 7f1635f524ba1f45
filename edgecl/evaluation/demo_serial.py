"""`edgecl demo --serial`: compares recordings from the compiled firmware, over a paced pty, with the same from files.
"""
from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgecl.evaluation.demo import HOP, QUOTA, WINDOW, watch_rate, windows, write_recordings
from edgecl.learner import Learner
from edgecl.learning.foundation import CALIBRATION_SAMPLES
from edgecl.samples import Sample
from edgecl.settings import Settings
from edgecl.sources import read, stack
from edgecl.sources.spec import Spec

BAUD = 921600


@dataclass(frozen=True)
class TableRow:
    """One class: windows learned, asked about, and answered correctly, each (from files, from serial)."""

    label: str
    learned: tuple[int, int]
    asked: tuple[int, int]
    right: tuple[int, int]


@dataclass(frozen=True)
class SerialDemo:
    """Result of the serial demo. Accuracies are over all test windows, of unseen people."""

    rows: list[TableRow]
    from_file: float
    from_serial: float


@contextmanager
def replayed(recordings: list[Path], spec: Spec) -> Iterator[tuple[Path, Spec]]:
    """The recordings as a serial source, 10 s of device time apart, and a spec that ends with the last one."""
    from firmware_bridge.simulator import Simulator

    rows = sum(len(path.read_text().splitlines()) - 1 for path in recordings)
    spec = Spec(rate=spec.rate, window=spec.window, hop=spec.hop, seconds=rows / (spec.rate or 1))
    folder = Path(tempfile.mkdtemp(prefix="edgecl-port-"))
    try:
        with Simulator(folder, recordings, "--rate", f"{spec.rate:g}", "--type", "f32", "--baud", str(BAUD),
                       "--fast") as board:
            yield Path(f"serial:{board.port}?baud={BAUD}&channel=imu"), spec
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(out: Path, say: Callable[[str], None], classes: int | None = None, recordings: int | None = None) -> SerialDemo:
    """Learn and predict twice, from files and through the bridge. classes, recordings: limits on the classes and on the
    recordings of each, for tests. Raises BadInput as `write_recordings` does, LinkError if the bridge fails.
    """
    written, train_people, test_people = write_recordings(out)
    spec = Spec(rate=watch_rate(written), window=WINDOW, hop=HOP)
    names = sorted(folder.name for folder in (written / "train").iterdir())[:classes]
    say(f"{len(names)} exercises from {len(train_people)} people, tested on {len(test_people)} unseen; "
        f"firmware behind a pty at {BAUD} baud")
    settings = Settings(backbone="rocket", quota=QUOTA, rate=spec.rate, window=WINDOW, hop=HOP)
    calibration = stack(read(written / "train", spec), CALIBRATION_SAMPLES)
    learners = [Learner.create(out / name, settings, calibration) for name in ("state-file", "state-serial")]
    learned = {name: _learn(learners, _files(written / "train" / name, recordings), name, spec, say) for name in names}
    rows = [_ask(learners, _files(written / "test" / name, recordings), name, learned[name], spec, say)
            for name in names]
    for learner in learners:
        learner.close()
    right, asked = np.sum([row.right for row in rows], 0), np.sum([row.asked for row in rows], 0)
    return SerialDemo(rows, *(right / asked).tolist())


def _files(folder: Path, most: int | None) -> list[Path]:
    return sorted(folder.glob("*.csv"))[:most]


def _learn(learners: list[Learner], files: list[Path], name: str, spec: Spec,
           say: Callable[[str], None]) -> tuple[int, int]:
    first = learners[0].learn((sample for path in files for sample in windows(path, spec)), name)
    with replayed(files, spec) as (source, limited):
        second = learners[1].learn((item for item in read(source, limited) if isinstance(item, Sample)), name)
    say(f"  learned {name}: {first.samples} windows from files, {second.samples} from serial")
    return first.samples, second.samples


def _ask(learners: list[Learner], files: list[Path], name: str, learned: tuple[int, int], spec: Spec,
         say: Callable[[str], None]) -> TableRow:
    first = [answer.label == name for path in files for answer in learners[0].predict(iter(windows(path, spec)))]
    with replayed(files, spec) as (source, limited):
        samples = (item for item in read(source, limited) if isinstance(item, Sample))
        second = [answer.label == name for answer in learners[1].predict(samples)]
    say(f"  predicted {name}: {100 * np.mean(first):.1f} % right from files, "
        f"{100 * np.mean(second):.1f} % from serial")
    return TableRow(name, learned, (len(first), len(second)), (sum(first), sum(second)))
