"""A service inside this process: teaching beside answering, swaps that cost no frame, nothing that grows."""
from __future__ import annotations

import os
import threading
import time

import numpy as np
import pytest
from helpers_daemon import serving, until
from helpers_state import vectors

from edgecl.errors import BadInput, BudgetError, StateError
from edgecl.learner import Learner
from edgecl.learning.knowledge import Knowledge
from edgecl.runtime import writer
from edgecl.samples import sample_keys


def run(loop):
    thread = threading.Thread(target=loop.run, daemon=True)
    thread.start()
    return thread


def test_a_swap_drops_no_frame_and_the_next_one_is_answered_by_the_new_head(tmp_path):
    with serving(tmp_path / "state", queue=1000) as (service, loop, taps):   # two seconds of frames, for a slow machine
        source, tap, events = service.sources.threads[0], taps["tap"], service.subscribe()
        source.start()
        run(loop)
        stop, sent = threading.Event(), [0]

        def camera():
            while not stop.is_set():
                tap.put(vectors("cat", 1, sent[0])[0])
                sent[0] += 1
                time.sleep(0.002)

        thread = threading.Thread(target=camera)
        thread.start()
        until(lambda: source.frames > 20)
        generations = []
        for _ in range(5):
            generations.append(service.learn("cat", vectors("cat", 20))["generation"])
            asked = source.frames + 2
            until(lambda: source.frames > asked)  # noqa: B023
            assert service.latest()["tap"]["label"] == "cat"
            service.forget("cat")
        stop.set()
        thread.join()
        until(lambda: source.frames == sent[0])
        assert source.dropped == 0 and service.counters()["dropped_total"] == {"tap": 0}
        assert generations == sorted(set(generations))
        events.close()


def test_what_a_source_has_just_shown_is_learned(tmp_path):
    with serving(tmp_path / "state", sources=("left", "right")) as (service, loop, taps):
        for source in service.sources.threads:
            source.start()
        run(loop)
        taps["left"].put(*vectors("cat", 12))
        taps["right"].put(*vectors("dog", 5))
        until(lambda: [source.frames for source in service.sources.threads] == [12, 5])
        with pytest.raises(BadInput, match="several sources"):
            service.learn_last("cat", 600.0)
        assert service.learn_last("cat", 600.0, "left")["samples"] == 12
        assert service.learn_last("dog", 600.0, "right", "monday")["samples"] == 5
        monday = sample_keys(vectors("dog", 1), sessions=["monday"])[0] >> 32
        rows = Learner.open(service.path).repository.known().stored
        assert [row.key >> 32 == monday for row in rows if row.label in ("cat", "dog")] == [False] * 12 + [True] * 5
        assert {answer["label"] for answer in service.predict(vectors("cat", 5, 3))} == {"cat"}
        time.sleep(0.05)
        with pytest.raises(BadInput, match="showed nothing"):
            service.learn_last("cat", 0.01, "left")
        for seconds in (0.0, -1.0, float("nan"), 1e9):
            with pytest.raises(BadInput, match="seconds"):
                service.learn_last("cat", seconds, "left")
        with pytest.raises(BadInput, match="no source is called"):
            service.learn_last("cat", 600.0, "middle")
        assert np.array_equal(service.latest_sample("left"), vectors("cat", 12)[-1])


def test_teaching_from_many_threads_loses_nothing(tmp_path):
    with serving(tmp_path / "state") as (service, _, _):
        done = []

        def teach(number):
            done.append(service.learn(f"class {number % 4}", vectors(f"class {number % 4}", 6, number))["generation"])

        threads = [threading.Thread(target=teach, args=(number,)) for number in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(done)) == 24
        counts = {each["name"]: each["samples"] for each in service.classes()}
        assert counts == {"ant": 25, "wasp": 25, **{f"class {i}": 36 for i in range(4)}}
    learner = Learner.open(tmp_path / "state")
    assert {each.name: each.samples for each in learner.classes()} == counts
    learner.close()


def test_a_burst_is_committed_one_by_one_and_solved_once_before_the_replies(tmp_path, monkeypatch):
    with serving(tmp_path / "state") as (service, _, _):
        hold, held, judged, judge = threading.Event(), threading.Event(), [], Knowledge.judge
        monkeypatch.setattr(writer, "BURST_SECONDS", 240.0)

        def wait(_):
            held.set()
            hold.wait(240)

        def counted(self, *arguments, **named):
            judged.append(threading.current_thread().name)
            return judge(self, *arguments, **named)

        service.writer.submit(wait, changes=False)
        held.wait(240)
        monkeypatch.setattr(Knowledge, "judge", counted)
        told = []

        def teach(number):
            learned = service.learn(f"class {number % 3}", vectors(f"class {number % 3}", 6, number))
            label = service.predict(vectors(f"class {number % 3}", 1, 50))[0]["label"]
            told.append((learned["generation"], learned["label"] == label, sorted(learned["accuracy"])))

        threads = [threading.Thread(target=teach, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        until(lambda: service.writer._requests.qsize() == 12)
        hold.set()
        for thread in threads:
            thread.join()
        first = min(told)[0]
        assert [generation for generation, *_ in sorted(told)] == [*range(first, first + 12)]
        assert all(serves for _, serves, _ in told)
        assert max(told)[2] == ["ant", "class 0", "class 1", "class 2", "wasp"]
        assert judged == ["writer"]


def held_up(service):
    """Keep the writer busy until the event is set."""
    hold, held = threading.Event(), threading.Event()

    def wait(_):
        held.set()
        hold.wait(240)

    service.writer.submit(wait, changes=False)
    held.wait(240)
    return hold


def test_one_that_fails_in_a_burst_fails_alone(tmp_path):
    with serving(tmp_path / "state") as (service, _, _):
        hold = held_up(service)
        asked = [service.writer.submit(lambda learner, count=count: learner.learn(vectors("cat", count, count), "cat"),
                                       brief=True, report=lambda learned: learned.accuracy) for count in (5, 0, 7)]
        hold.set()
        assert [sorted(each.result(240)) for each in asked[::2]] == [["ant", "cat", "wasp"]] * 2
        with pytest.raises(BadInput):
            asked[1].result(240)
        assert {each["name"]: each["samples"] for each in service.classes()}["cat"] == 12


def test_past_its_bounds_teaching_is_refused_and_never_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "WAITING_BYTES", 20_000)
    with serving(tmp_path / "state") as (service, _, _):
        hold = held_up(service)
        first = service.writer.submit(lambda learner: learner.learn(vectors("cat", 200), "cat"), nbytes=12_800)
        with pytest.raises(BudgetError, match="nothing was saved"):
            service.learn("dog", vectors("dog", 200))
        hold.set()
        assert first.result(240).samples == 200
        assert service.learn("dog", vectors("dog", 200))["samples"] == 200


def test_what_waits_when_it_ends_is_refused(tmp_path):
    with serving(tmp_path / "state") as (service, _, _):
        held, caught = threading.Event(), []

        def wait(_):
            held.set()
            until(lambda: service.writer.stopping)

        service.writer.submit(wait, changes=False)
        held.wait(240)

        def teach():
            with pytest.raises(StateError, match="stopping") as error:
                service.learn("cat", vectors("cat", 20))
            caught.append(error)

        thread = threading.Thread(target=teach)
        thread.start()
        until(lambda: service.writer._bytes)
        assert service.stop(240.0)
        thread.join(240)
        assert caught
        with pytest.raises(StateError, match="stopping"):
            service.learn("cat", vectors("cat", 20))
    learner = Learner.open(tmp_path / "state")
    assert [each.name for each in learner.classes()] == ["ant", "wasp"]
    learner.close()


def test_what_another_process_changes_is_taken_up(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "OUTSIDE_SECONDS", 0.05)
    monkeypatch.setattr(writer, "TICK_SECONDS", 0.05)
    with serving(tmp_path / "state") as (service, _, _):
        other = Learner.open(tmp_path / "state")
        other.learn(vectors("cat", 20), "cat")
        other.close()
        until(lambda: len(service.classes()) == 3)
        assert service.predict(vectors("cat", 1, 3))[0]["label"] == "cat"


def test_nothing_was_taught_yet(tmp_path):
    with serving(tmp_path / "state", classes=()) as (service, loop, taps):
        service.sources.threads[0].start()
        run(loop)
        taps["tap"].put(*vectors("cat", 9))
        until(lambda: service.sources.threads[0].frames == 9)
        assert service.latest() == {} and service.info()["kind"] is None and service.classes() == []
        with pytest.raises(StateError, match="learned nothing yet"):
            service.predict(vectors("cat", 1))
        assert service.learn_last("cat", 600.0)["samples"] == 9
        taps["tap"].put(vectors("cat", 1)[0])
        assert until(service.latest)["tap"]["label"] == "cat"
        with pytest.raises(BadInput, match="kind image"):
            service.predict(np.zeros((1, 4, 4, 3), np.uint8))
        service.forget("cat")
        with pytest.raises(StateError, match="learned nothing yet"):
            service.predict(vectors("cat", 1))


def test_a_frame_of_another_shape_is_that_sources_fault(tmp_path):
    with serving(tmp_path / "state", sources=("good", "bad")) as (service, loop, taps):
        for source in service.sources.threads:
            source.start()
        run(loop)
        taps["bad"].put(np.zeros(7, np.float32))
        taps["good"].put(vectors("ant", 1)[0])
        until(lambda: service.latest() and service.sources.threads[1].error)
        assert "takes 16" in service.info()["sources"][1]["error"]
        assert service.latest()["good"]["label"] == "ant"


def test_a_strange_frame_is_named_with_one_call(tmp_path):
    with serving(tmp_path / "state", review_below=0.0) as (service, loop, taps):
        for name in ("cat", "dog"):
            service.learn(name, vectors(name, 40))
        service.sources.threads[0].start()
        run(loop)
        ants = np.concatenate([vectors("ant", 1, number) for number in range(20)])
        ants = ants[[not answer["unknown"] for answer in service.predict(ants)]]
        assert len(ants) > 10
        taps["tap"].put(*ants, 10 * vectors("elk", 1)[0])
        until(lambda: service.sources.threads[0].frames + service.sources.threads[0].dropped == len(ants) + 1)
        cluster = until(lambda: service.review()["clusters"])[0]
        assert np.array_equal(service.review_sample(cluster["typical"]), service.latest_sample("tap"))
        assert service.review_name(cluster["id"], "elk")["samples"] == 1
        assert all(each["id"] != cluster["id"] for each in service.review()["clusters"])
        assert "elk" in service.info()["classes"]
        with pytest.raises(BadInput, match="not on the review list"):
            service.review_drop(cluster["id"])


def test_threads_and_descriptors_are_constant(tmp_path):
    with serving(tmp_path / "state", control=(240.0, 240.0)) as (service, loop, taps):
        service.sources.threads[0].start()
        run(loop)

        def work(times):
            for number in range(times):
                taps["tap"].put(vectors("ant", 1, number)[0])
                for back in (service.rollback, lambda: service.forget("cat")):
                    service.learn("cat", vectors("cat", 5, number))
                    back()
                service.status()
                service.subscribe().close()
            return threading.active_count(), len(os.listdir("/proc/self/fd"))

        before = work(3)
        assert work(12) == before


def test_budget_and_counters_say_what_was_done(tmp_path):
    with serving(tmp_path / "state") as (service, loop, taps):
        service.sources.threads[0].start()
        run(loop)
        taps["tap"].put(*vectors("ant", 8))
        until(lambda: service.sources.threads[0].frames == 8)
        service.learn("cat", vectors("cat", 7))
        counted, budget = service.counters(), service.budget()
        assert counted["frames_total"] == {"tap": 8} and counted["learned_total"] == 7
        assert counted["inference_seconds"]["count"] == 8 and counted["learn_seconds"]["count"] == 1
        assert budget["quota_bytes"] == 1_000_000 and 0 < budget["used_bytes"] < budget["quota_bytes"]
        assert budget["rss_bytes"] > 10**7 and isinstance(budget["may_run"]["ok"], bool)
