"""What a running daemon offers to the control socket, the page and MQTT; safe to call from any thread."""
from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecl import __version__
from edgecl.errors import BadInput, BudgetError, StateError
from edgecl.results import Prediction
from edgecl.rounds.method import read_method
from edgecl.runtime import machine
from edgecl.runtime.answer import Answer
from edgecl.runtime.counters import Counters
from edgecl.runtime.events import Hub
from edgecl.runtime.review import Review
from edgecl.runtime.state_view import View, rolled_back
from edgecl.runtime.triggers import StartRound
from edgecl.runtime.writer import StateWriter, stopping
from edgecl.samples import Sample, check_class_name, kind_of, prepare
from edgecl.sources.spec import Spec

if TYPE_CHECKING:
    from edgecl.learner import Learner
    from edgecl.learning.serving import Serving
    from edgecl.results import Learned
    from edgecl.runtime.events import Subscription
    from edgecl.runtime.settings import DaemonSettings
    from edgecl.runtime.source_threads import SourceThread

LONGEST = 3600.0      # seconds of `learn_last`
MOST_EXEMPLARS = 64   # of one call
RESULTS = 32          # rounds whose duration is remembered


class Service:
    """One state that a daemon serves. All values are ready for JSON but samples, which are arrays; every call raises
    EdgeclError subclasses only."""

    def __init__(self, learner: Learner, settings: DaemonSettings) -> None:
        self.path, self.settings = learner.store.path, settings
        self.hub, self.counts, self.feeds = Hub(), Counters(), tuple["SourceThread", ...]()
        self.serving: Serving | None = None
        self._view: View | None = None
        self._review, self._begun = Review(settings.review_below), time.monotonic()
        self._ended: dict[int, float] = {}   # generation of a round -> seconds that it took
        self._takes = 0
        self.writer = StateWriter(learner, settings, self.counts, self._publish, self._round_told)

    def start(self) -> None:
        """Read the state and take work. Raises StateError."""
        self.writer.start()

    def stop(self, timeout: float) -> bool:
        """Take no more work; whether all of it has ended in that time."""
        ended = self.writer.stop(timeout)
        self.hub.close()
        return ended

    def reload(self, settings: DaemonSettings) -> None:
        """Go by other settings from now on."""
        self.settings = self.writer.settings = settings
        self._review.below = settings.review_below

    # the loop, and the writer ------------------------------------------------------------------

    def classify(self, feed: SourceThread, sample: Sample) -> None:
        """Answer about a sample of a source. Raises BadInput for one of another form than this state takes."""
        serving = self.serving   # once: the next frame may have another
        if serving is None:
            return
        begun = time.perf_counter()
        backbone, head = serving.backbone, serving.head
        feature = backbone.features(prepare(sample.data[None], backbone.info.kind, backbone.info.input_shape))
        probabilities, unknown = head(feature)
        place = int(probabilities[0].argmax())
        seconds = time.perf_counter() - begun
        said = Prediction(feed.name, head.labels[place], float(probabilities[0, place]), bool(unknown[0]),
                          1000 * seconds)
        self.counts.inference.add(seconds)
        self.writer.drift.add(said.confidence)
        shown = None if said.unknown else said.label
        changed = feed.changed(shown)
        if changed:
            feed.stable = shown
        feed.latest = Answer(said.label, said.confidence, said.unknown, said.milliseconds, feed.stable,
                             time.monotonic())
        self._review.see(feed.name, said, sample.data, feature[0])
        if self.hub.heard:
            self.hub.say({"type": "prediction", **asdict(said), "stable": feed.stable, "changed": changed})

    def _publish(self, view: View, serving: Serving | None) -> None:
        before, self._view = self._view, view
        if serving is not None or not view.status["classes"]:
            self.serving = serving
        if before is None or before.status["generation"] != view.status["generation"]:
            self.hub.say({"type": "generation", "generation": view.status["generation"],
                          "classes": view.status["classes"]})

    def _round_told(self, told: dict[str, Any]) -> None:
        if told["state"] == "ended" and "seconds" in told:
            self._ended[self.history()[-1]["generation"] if told["generation"] is None else told["generation"]] = \
                round(told["seconds"], 1)
            while len(self._ended) > RESULTS:
                del self._ended[min(self._ended)]
        self.hub.say({"type": "round", **told})

    @property
    def view(self) -> View:
        """What the state looked like after its last change."""
        assert self._view is not None, "start the service first"
        return self._view

    @property
    def spec(self) -> Spec:
        """How sources become samples of this state."""
        return Spec(**self.view.spec)

    # looking ------------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """{version, generation, backbone, head, classes: [name], kind: image | window | feature | None, input_shape,
        uptime_seconds, sources: [{name, uri, alive, restarts, fps, error}], round_running, round_plan, spec}."""
        view, plan = self.view, self.writer.plan
        return {"version": __version__, "generation": view.status["generation"], "backbone": view.status["backbone"],
                "head": view.status["head"], "classes": [each["name"] for each in view.classes], "kind": view.kind,
                "input_shape": view.input_shape, "uptime_seconds": round(time.monotonic() - self._begun, 1),
                "sources": [feed.to_json() for feed in self.feeds], "round_running": self.writer.round_running,
                "round_plan": plan.why if isinstance(plan, StartRound) else plan.reason, "spec": view.spec}

    def status(self) -> dict[str, Any]:
        """`Learner.status` as a dict."""
        return {**self.view.status, "warnings": [*self.view.status["warnings"], *self.view.warnings]}

    def classes(self) -> list[dict[str, Any]]:
        """[{name, samples, exemplars, held_back_accuracy}]."""
        return self.view.classes

    def history(self) -> list[dict[str, Any]]:
        """As `edgecl history --json`: [{generation, created, action, current, restorable, undone, ...}]."""
        return self.view.history

    def exemplars(self, label: str, limit: int = 4) -> list[np.ndarray]:
        """Stored samples of a class, decoded: uint8 [h, w, 3] or float32 [time, channels]; [] where only features are
        kept. Raises BadInput for a class that is not known."""
        if not any(each["name"] == label for each in self.view.classes):
            raise BadInput(f"no class is called {label!r}", "see `edgecl classes`")

        def decoded(learner: Learner) -> list[np.ndarray]:
            foundation = learner.foundation
            codec = foundation.buffer(learner.settings).codec.input if foundation else None
            stored = learner.repository.known().stored if codec else []
            rows = [row for row in stored if row.label == label and row.input]
            step = max(len(rows) // max(min(limit, MOST_EXEMPLARS), 1), 1)
            return [codec.decode(row.input) for row in rows[::step][:limit]] if codec else []

        return self.writer.submit(decoded, changes=False).result()

    def latest(self) -> dict[str, dict[str, Any]]:
        """{source: {label, confidence, unknown, milliseconds, age_seconds, stable}}; stable: the label that came
        several times in a row, or None."""
        now = time.monotonic()
        return {feed.name: {"label": said.label, "confidence": said.confidence, "unknown": said.unknown,
                            "milliseconds": said.milliseconds, "age_seconds": round(now - said.at, 3),
                            "stable": said.stable}
                for feed in self.feeds if (said := feed.latest) is not None}

    def latest_sample(self, source: str) -> np.ndarray | None:
        """What a source saw last; None where it saw nothing. Raises BadInput for a source that there is not."""
        return self._feed(source).ring.newest

    def budget(self) -> dict[str, Any]:
        """{used_bytes, quota_bytes, exemplar_bytes, exemplar_limit_bytes, rss_bytes, heat_celsius, heat_limit, battery,
        may_run: {ok, reason}}; None for what the machine does not tell."""
        used = {name: self.view.status[name] for name in ("used_bytes", "quota_bytes", "exemplar_bytes",
                                                          "exemplar_limit_bytes")}
        return used | machine.room(self.writer.readings, self.settings.limits, self.writer.verdict())

    def counters(self) -> dict[str, Any]:
        """{frames_total: {source: n}, dropped_total: {source: n}, restarts_total: {source: n}, learned_total: n,
        rounds_total: {verdict: n}, bytes_written_total: n | None, inference_seconds, learn_seconds:
        {buckets: [[le, n]], sum, count}}; the buckets are cumulative, the last le is "+Inf"."""
        return {"frames_total": {feed.name: feed.frames for feed in self.feeds},
                "dropped_total": {feed.name: feed.dropped for feed in self.feeds},
                "restarts_total": {feed.name: feed.restarts for feed in self.feeds},
                "learned_total": self.counts.learned, "rounds_total": dict(self.counts.rounds),
                "bytes_written_total": machine.bytes_written(),
                "inference_seconds": self.counts.inference.to_json(), "learn_seconds": self.counts.learning.to_json()}

    def subscribe(self) -> Subscription:
        """Events from now on: {"type": "prediction" | "generation" | "round" | "source", ...}. Raises BudgetError where
        too many listen."""
        made = self.hub.subscribe()
        if made is None:
            raise BudgetError("too many listen already", "close another page first")
        return made

    # answering and learning ---------------------------------------------------------------------

    def predict(self, batch: np.ndarray) -> list[dict[str, Any]]:
        """A `Prediction` as a dict for each sample of a batch [n, ...]. Raises BadInput, StateError."""
        serving = self.serving
        if serving is None:
            raise StateError(f"{self.path} has learned nothing yet", "teach it with `edgecl learn --class NAME ...`")
        self._check(batch)
        info, answers = serving.backbone.info, []
        for sample in batch:   # one at a time: the loop gets its turn between two
            if self.writer.stopping:
                raise stopping()
            begun = time.perf_counter()
            probabilities, unknown = serving.answer(prepare(sample[None], info.kind, info.input_shape))
            best = int(probabilities[0].argmax())
            answers.append(asdict(Prediction("", serving.head.labels[best], float(probabilities[0, best]),
                                             bool(unknown[0]), 1000 * (time.perf_counter() - begun))))
        return answers

    def learn(self, label: str, batch: np.ndarray) -> dict[str, Any]:
        """Learn a batch [n, ...]; `Learned` as a dict, once that is on the disk and serves. Raises BadInput,
        BudgetError, StateError; then nothing has changed."""
        self._check(batch)
        return self._learn(label, [Sample(data) for data in batch], batch.nbytes)

    def learn_samples(self, label: str, samples: Iterator[Sample]) -> dict[str, Any]:
        """The same for samples that are read while they are learned."""
        return self._learn(label, samples, 0)

    def learn_last(self, label: str, seconds: float, source: str | None = None) -> dict[str, Any]:
        """Learn what a source showed in the last seconds; `Learned` as a dict. source: None for the only one. Raises as
        `learn`."""
        if not (math.isfinite(seconds) and 0 < seconds <= LONGEST):
            raise BadInput(f"the last {seconds} seconds", f"give more than 0, and at most {LONGEST:g}")
        feed = self._feed(source)
        data = feed.ring.since(time.monotonic() - seconds)
        if not data:
            raise BadInput(f"{feed.name} showed nothing in the last {seconds:g} s",
                           f"check the source: {feed.error}" if feed.error else "wait until it does")
        self._takes += 1
        group = f"{feed.name}#{self._takes}"   # one recording
        return self._learn(label, [Sample(each, feed.name, group) for each in data], sum(d.nbytes for d in data))

    def _learn(self, label: str, samples: Sequence[Sample] | Iterator[Sample], nbytes: int) -> dict[str, Any]:
        label = check_class_name(label)

        def until_stopped() -> Iterator[Sample]:
            for sample in samples:
                if self.writer.stopping:
                    raise stopping()
                yield sample

        def work(learner: Learner) -> Learned:
            begun = time.perf_counter()
            learned = learner.learn(until_stopped(), label)
            self.counts.count_learned(learned.samples, time.perf_counter() - begun)
            return learned

        return asdict(self.writer.submit(work, nbytes=nbytes).result())

    def forget(self, label: str) -> dict[str, Any]:
        """{class, generation, exact}. Raises BadInput, StateError."""
        return self._change(lambda learner: learner.forget(label))

    def rollback(self, generation: int | None = None) -> dict[str, Any]:
        """{generation, restored, classes}. Raises StateError."""
        return self._change(lambda learner: rolled_back(learner, generation))

    def _change(self, work: Callable[[Learner], dict[str, Any]]) -> dict[str, Any]:
        return self.writer.submit(work).result()

    # rounds -------------------------------------------------------------------------------------

    def start_round(self, method: str | None = None, time: float | None = None, memory: int | None = None,
                    **more: Any) -> dict[str, Any]:
        """{"started": true}; the verdict comes as an event, and in `rounds`. time: seconds; memory: bytes; more:
        further fields of `RoundRequest`, and max_regression. Raises StateError where one runs, BadInput for a method
        that there is not."""
        if method is not None:
            read_method(method)
        self.writer.submit(lambda _: self.writer.begin_round(method, time, memory, True, **more),
                            changes=False).result()
        return {"started": True}

    def round_result(self) -> dict[str, Any]:
        """{running, result}: what `Learner.round` answered last as a dict, {"error": {what, cure}}, or None."""
        writer = self.writer
        return {"running": writer.round_running or writer.settling, "result": writer.round_result}

    def rounds(self) -> list[dict[str, Any]]:
        """[{generation, method, taken: bool, reasons: [str], checks: [[name, found]], seconds | None, when}],
        the newest first."""
        return [{"generation": g["generation"], "method": g.get("method"), "taken": "refused" not in g,
                 "reasons": g.get("refused", []), "checks": g.get("checks", []),
                 "seconds": self._ended.get(g["generation"]), "when": g["created"]}
                for g in reversed(self.history()) if g["action"] == "round"]

    # review -------------------------------------------------------------------------------------

    def review(self) -> list[dict[str, Any]]:
        """Frames that nothing known fits well: [{id, source, label, confidence, unknown, age_seconds}]."""
        return self._review.to_json()

    def review_sample(self, number: int) -> np.ndarray:
        """The frame itself. Raises BadInput where it has gone."""
        return self._review.get(number).data

    def review_name(self, number: int, label: str) -> dict[str, Any]:
        """Learn that frame as `label`, and take it off the list; `Learned` as a dict. Raises as `learn`."""
        entry = self._review.get(number)
        learned = self._learn(label, [Sample(entry.data, entry.source)], entry.data.nbytes)
        self._review.discard(number)
        return learned

    def review_drop(self, number: int) -> None:
        """Take a frame off the list. Raises BadInput where it has gone."""
        self._review.get(number)
        self._review.discard(number)

    # within -------------------------------------------------------------------------------------

    def _feed(self, name: str | None) -> SourceThread:
        feeds = [feed for feed in self.feeds if name is None or feed.name == name]
        if len(feeds) == 1:
            return feeds[0]
        names = ", ".join(feed.name for feed in self.feeds) or "none"
        raise BadInput("this daemon has several sources" if feeds else
                       "this daemon has no source" if name is None else f"no source is called {name!r}",
                       f"name one with --source; there are: {names}")

    def _check(self, batch: np.ndarray) -> None:
        kind = kind_of(batch)
        if self.view.kind is not None and kind != self.view.kind:
            raise BadInput(f"samples of kind {kind}; this state takes {self.view.kind}",
                           "give what its sources give, see `edgecl status`")
