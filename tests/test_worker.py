"""A round in its worker: inside its memory and time, ended early, killed, refused with what would do."""
from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from helpers_daemon import until
from helpers_state import tree
from round_states import conv_backbone, taught, teach, window_backbone

from edgecl.backbones.cut import Anatomy
from edgecl.errors import BudgetError, StateError
from edgecl.rounds import worker
from edgecl.rounds.job import Job, Stored
from edgecl.rounds.method import read_method
from edgecl.rounds.parts import PER_SAMPLE_GRADIENT
from edgecl.rounds.run import RoundRequest, workshop
from edgecl.settings import parse_seconds
from edgecl.training.worker import forecast, limits
from edgecl.training.worker.forecast import RoundSize

TOOLS = Path(__file__).resolve().parents[1] / "tools"
WARM = str(Path(__file__).with_name("warm_process.py"))
AWAKE = str(Path(__file__).with_name("awake_process.py"))
SEED = 6526     # draws four methods, two first rounds and two later ones, little memory, and short times


@pytest.fixture(autouse=True)
def awake(monkeypatch):
    """Workers take their turn: beside a program that never sleeps, an idle one would take hours."""
    monkeypatch.setattr(worker, "COMMAND", (sys.executable, AWAKE, *worker.COMMAND[2:]))


@pytest.fixture
def learner(tmp_path):
    made = taught(tmp_path, conv_backbone())
    yield made
    made.close()


def worker_of(parent):
    """The worker of a process, and its trunk, as soon as there is one."""
    sys.path.insert(0, str(TOOLS))
    try:
        import check_rounds
    finally:
        sys.path.remove(str(TOOLS))
    until(lambda: check_rounds.processes(parent))
    return check_rounds.processes(parent)


def fake(monkeypatch, code):
    """Another program in the worker's place."""
    monkeypatch.setattr(worker, "COMMAND", (sys.executable, "-c", f"import sys, time, os, signal\n{code}"))


def job(seconds=600.0):
    return Job("er", ("a", "b"), 0, "raw", None, 400_000_000, seconds)


# without torch ------------------------------------------------------------------------------------


def test_a_worker_that_dies_says_its_last_line_and_nothing_has_changed(tmp_path, monkeypatch):
    fake(monkeypatch, "print('first', file=sys.stderr); print('\\nlast words\\n', file=sys.stderr); sys.exit(7)")
    with pytest.raises(StateError, match=r"ended with status 7 \(last words\); nothing has changed"):
        worker.run(tmp_path, job())
    fake(monkeypatch, "os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(StateError, match="was killed by signal 11"):
        worker.run(tmp_path, job())


def test_a_worker_that_ignores_its_time_is_asked_and_then_killed(tmp_path, monkeypatch):
    fake(monkeypatch, "signal.signal(signal.SIGTERM, lambda *_: open(sys.argv[1] + '/asked', 'w'))\n"
                      "while True: time.sleep(1)")
    with pytest.raises(BudgetError, match=r"not done after .*; give --time \d+s or more"):
        worker.run(tmp_path, job(1.0))      # it would never end
    assert (tmp_path / "asked").exists()


def test_progress_is_handed_on_and_other_lines_are_not(tmp_path, monkeypatch):
    fake(monkeypatch, "print('hello'); print('{\"step\": 1}'); print('{\"step\": 2', end='')\n"
                      "open(sys.argv[1] + '/result.json', 'w').write('{\"steps\": 2}')")
    seen = []
    assert worker.run(tmp_path, job(), seen.append) == {"steps": 2}
    assert seen == [{"step": 1}]


def test_samples_come_back_as_they_were_written(tmp_path):
    stored = Stored(np.array([1, 0, 1]), np.array([True, False, True]), np.array([False, False, True]),
                    np.arange(6, dtype=np.float32).reshape(3, 2), [b"abc", b"", b"de"])
    stored.write(tmp_path)
    again = Stored.read(tmp_path)
    assert again.inputs == [b"abc", b"", b"de"]
    assert Stored.read(tmp_path, inputs=False).inputs == []
    for ours, theirs in zip(again[:4], stored[:4]):
        np.testing.assert_array_equal(ours, theirs)


def test_a_round_goes_through_old_samples_then_fresh_ones_then_those_held_back():
    def arranged(fresh, held):
        order, begin, end = Stored(np.zeros(5, np.int64), np.array(fresh, bool), np.array(held, bool),
                                   np.zeros((5, 1), np.float32), []).arranged()
        return order.tolist(), begin, end

    assert arranged([1, 0, 1, 0, 1], [0, 0, 1, 0, 0]) == ([1, 3, 0, 4, 2], 2, 4)
    assert arranged([0, 0, 1, 0, 0], [0, 0, 1, 0, 0]) == ([0, 1, 3, 4, 2], 0, 4)     # nothing fresh: all counts so


def test_what_a_method_keeps_and_how_many_samples_there_are_counts_in_its_memory():
    model = conv_backbone()
    anatomy = Anatomy(model)
    cut = anatomy.cuts()[0]

    def told(name, samples):
        return forecast.memory(anatomy, cut, len(model), read_method(name), RoundSize(samples, 32))

    assert told("first-session", 5000) < told("er", 5000) < told("joint", 5000) < told("icarl", 5000)
    assert told("rwalk", 5000) > told("si", 5000) > told("mas", 5000) == told("ewc", 5000) > told("finetune", 5000)
    by_rounds = [forecast.memory(anatomy, cut, len(model), read_method("gem"), RoundSize(5000, 32, rounds))
                 for rounds in (1, 2, 3)]
    gradient = 4 * cut.weights / limits.PLANNED_SHARE       # one for each round
    assert by_rounds[2] - by_rounds[1] == pytest.approx(gradient, abs=2)
    kept = 2 * 3 * 32 * 32      # float16
    for name, copies in (("first-session", 1), ("er", 2), ("joint", 3), ("icarl", 4)):
        more = told(name, 9000) - told(name, 5000)
        assert more == pytest.approx(copies * 4000 * kept / limits.PLANNED_SHARE, rel=1e-6)


def test_the_work_after_the_last_step_is_counted():
    assert forecast.closing(read_method("er"), 1000, 300) == 1000
    assert forecast.closing(read_method("icarl"), 1000, 300) == 1000 + 300 + 2000
    assert forecast.closing(read_method("ewc"), 1000, 150) == 1000 + PER_SAMPLE_GRADIENT * 150
    assert forecast.closing(read_method("ewc"), 1000, 900) == 1000 + PER_SAMPLE_GRADIENT * 200


def test_the_peak_of_some_work_is_told_and_the_peak_of_all_kept():
    peak = limits.Peak()
    before = peak()
    raised = [peak.raised_by(lambda: np.ones(5_000_000).sum()) for _ in range(5)]   # pages may be reclaimed meanwhile
    assert None in raised or any(39_000_000 < one < 60_000_000 for one in raised)
    assert peak() >= before
    assert peak() >= limits.status("VmRSS")[0]


def test_what_running_out_of_memory_looks_like():
    assert limits.out_of_memory(MemoryError())
    assert limits.out_of_memory(RuntimeError("std::bad_alloc"))
    assert not limits.out_of_memory(RuntimeError("shape mismatch"))


# real rounds --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_round_stays_inside_memory_and_time_and_asked_to_end_it_exports_what_it_has(learner):
    told = []

    def watch(line):
        told.append(line)
        if line["step"] > 3:
            os.kill(worker_of(os.getpid())[0], signal.SIGTERM)

    found = learner.round(RoundRequest("finetune", 600, 400_000_000, epochs=100_000), watch)
    assert 3 < found.steps < found.planned_steps
    assert found.peak_rss_bytes <= 1.05 * 400_000_000
    assert (found.blocks, found.wished_blocks) == (2, 2)
    assert found.checks[3][0] == "parity" and found.checks[3][2]
    assert told[-1]["rss"] <= 1.05 * 400_000_000


@pytest.mark.slow
def test_anytime_a_round_ends_in_its_time_with_what_it_has(learner, warm):
    found = None
    for seconds in (4, 60, 600):      # a busy machine may leave too little of 4 s
        with suppress(BudgetError):
            found = found or learner.round(RoundRequest("er", seconds, 400_000_000, epochs=100_000))
    assert 0 < found.steps < found.planned_steps


@pytest.mark.slow
def test_too_little_memory_or_time_is_refused_with_what_does(learner):
    with pytest.raises(BudgetError, match=r"give --memory (\d+) or more") as refusal:
        learner.round(RoundRequest("er", 600, 100_000_000))
    named = int(re.search(r"--memory (\d+)", refusal.value.cure)[1])
    found = learner.round(RoundRequest("er", 600, named, epochs=2))
    assert found.steps == found.planned_steps
    assert found.peak_rss_bytes <= 1.05 * named
    with pytest.raises(BudgetError, match="give --time") as refusal:
        learner.round(RoundRequest("er", 2.5, 400_000_000))
    named = parse_seconds(re.search(r"--time (\w+)", refusal.value.cure)[1])
    assert named > 2.5


@pytest.mark.slow
def test_where_memory_is_short_fewer_blocks_are_tuned_and_the_result_says_so(tmp_path):
    learner = taught(tmp_path, conv_backbone((16, 16, 24, 32), 128, kernel=5), 60)
    model = (tmp_path / "backbone.onnx").read_bytes()
    anatomy, method = Anatomy(model), read_method("er")
    cuts = anatomy.cuts()
    told = [forecast.memory(anatomy, cut, len(model), method, RoundSize(240, 32)) for cut in cuts]
    assert told[0] > min(told) + 5_000_000
    found = learner.round(RoundRequest("er", 600, (told[0] + min(told)) // 2, blocks=len(cuts), epochs=1))
    assert found.blocks < found.wished_blocks == len(cuts)
    assert found.peak_rss_bytes <= 1.05 * found.memory_limit_bytes


@pytest.mark.slow
def test_windows_are_tuned_on_and_a_later_round_without_new_samples_uses_what_is_kept(tmp_path, monkeypatch, warm):
    from edgecl.rounds import gate

    monkeypatch.setattr(gate, "check_accuracy", lambda *_: [])
    learner = taught(tmp_path, window_backbone(), 20, 3)
    assert learner.round(RoundRequest("ewc", 600, epochs=2)).accepted
    teach(learner, 3)
    assert learner.round(RoundRequest("ewc", 600, epochs=2)).accepted
    again = learner.round(RoundRequest("er", 600, epochs=2))
    assert again.steps == again.planned_steps > 0


def test_a_worker_takes_only_the_time_that_nobody_else_wants():
    code = ("import os; from edgecl.training.worker.limits import step_back; step_back()\n"
            "print(os.sched_getscheduler(0) == os.SCHED_IDLE, os.nice(0))")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() == ["True", "19"]


def alive(pid):
    with suppress(OSError):     # it may be gone between two looks
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    return False


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_when_the_starting_process_ends_so_does_the_worker(learner, number):
    state = learner.store.path
    learner.close()
    before = tree(state)
    code = ("import sys; from edgecl.learner import Learner; from edgecl.rounds.run import RoundRequest\n"
            "Learner.open(sys.argv[1]).round(RoundRequest('er', 600, epochs=100_000))")
    parent = subprocess.Popen([sys.executable, "-c", code, state], stderr=subprocess.DEVNULL)
    mine = worker_of(parent.pid)
    time.sleep(0.5)
    parent.send_signal(number)
    parent.wait()
    until(lambda: not any(map(alive, mine)))
    assert tree(state) == before
    assert list(state.parent.glob(".state-round-*"))
    with workshop(state):
        assert len(list(state.parent.glob(".state-round-*"))) == 1
    assert not list(state.parent.glob(".state-round-*"))


@pytest.mark.slow
def test_four_random_settings_and_eight_kills(monkeypatch, torch_process):
    sys.path.insert(0, str(TOOLS))
    try:
        import check_rounds
    finally:
        sys.path.remove(str(TOOLS))
    monkeypatch.setattr(check_rounds, "LATE", 240.0)    # other tests run beside it; the tool alone measures how late
    monkeypatch.setattr(check_rounds, "REFUSALS", 9)    # as often as it may take to name what a busy machine needs
    prepare = check_rounds.prepare

    def prepare_warm(*about):
        with monkeypatch.context() as only_here:    # an earlier round is not watched
            only_here.setattr(worker, "COMMAND", (sys.executable, WARM, torch_process, *worker.COMMAND[2:]))
            return prepare(*about)

    monkeypatch.setattr(check_rounds, "prepare", prepare_warm)
    assert check_rounds.run(4, 8, SEED, True)
