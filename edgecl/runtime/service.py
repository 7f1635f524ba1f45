"""What a running daemon offers to the control socket, the page and MQTT; safe to call from any thread."""
from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecl import __version__
from edgecl.errors import BadInput, BudgetError
from edgecl.learning import repair
from edgecl.learning.advice import JudgedSamples
from edgecl.learning.sample_export import export_samples
from edgecl.learning.stored_samples import StoredSamples
from edgecl.rounds.method import read_method
from edgecl.runtime import machine
from edgecl.runtime.classifier import Classifier
from edgecl.runtime.counters import Counters
from edgecl.runtime.events import Hub
from edgecl.runtime.review import Review, forgotten_last
from edgecl.runtime.source_set import SourceSet
from edgecl.runtime.state_view import View, rolled_back, round_rows, stored_inputs, stored_samples
from edgecl.runtime.triggers import StartRound
from edgecl.runtime.writer import StateWriter, stopping
from edgecl.samples import Sample, check_class_name, check_new_name, kind_of
from edgecl.sources.spec import Spec

if TYPE_CHECKING:
    from edgecl.learner import Learner
    from edgecl.learning.sample_export import ExportFile
    from edgecl.learning.serving import Serving
    from edgecl.learning.why import Explainer
    from edgecl.results import Corrected, Learned, Prediction
    from edgecl.runtime.events import Subscription
    from edgecl.runtime.settings import DaemonSettings

PAGE = 5000                 # stored samples in one answer
BRIEF_BYTES = 4 * 10**6     # of samples: teaching that others wait for, so that one head is solved for all of them


class Service:
    """One state that a daemon serves. All values are ready for JSON except samples, which are arrays; calls raise only
    subclasses of EdgeclError."""

    def __init__(self, learner: Learner, settings: DaemonSettings) -> None:
        self.path, self.settings = learner.store.path, settings
        self.hub, self.counts, self.sources = Hub(), Counters(), SourceSet()
        self._view: View | None = None
        self._explaining: tuple[Serving, Explainer] | None = None
        self._review = Review(settings.review_below, learner.settings.quota,
                              learner.settings.memory != "statistics" and learner.store.writable)
        self._begun = time.monotonic()
        self.writer = StateWriter(learner, settings, self.counts, self._publish,
                                  lambda event: self.hub.say({"type": "round", **event}))
        self.writer.chore = lambda last: self._review.save(self.writer.learner.store, last)
        self.classifier = Classifier(self.path, self.hub, self.counts.inference, self.writer.rounds.drift, self._review)

    def start(self) -> None:
        """Read the state and take requests. Raises StateError."""
        self._review.load(self.writer.learner.store)
        self.writer.start()

    def stop(self, timeout: float) -> bool:
        """Take no more requests. True if all work has ended in that time."""
        ended = self.writer.stop(timeout)
        self.hub.close()
        return ended

    def reload(self, settings: DaemonSettings) -> None:
        """Other settings from now on."""
        self.settings = settings
        self.writer.rounds.reload(settings)
        self._review.reload(settings.review_below)

    def _publish(self, view: View, serving: Serving | None) -> None:
        before, self._view = self._view, view
        if serving is not None or not view.status["classes"]:
            self.classifier.swap(serving)
            self._explaining = None
            last = forgotten_last((row["generation"], row["action"]) for row in view.history)
            self._review.follow(serving, self.writer.learner, last)
        if before is None or before.status["generation"] != view.status["generation"]:
            self.hub.say({"type": "generation", "generation": view.status["generation"],
                          "classes": view.status["classes"]})

    @property
    def view(self) -> View:
        """The state after its last change."""
        assert self._view is not None, "start the service first"
        return self._view

    def spec(self) -> Spec:
        """How sources become samples of this state."""
        return Spec(**self.view.spec)

    # looking ------------------------------------------------------------------------------------

    def info(self) -> dict[str, Any]:
        """{version, generation, backbone, head, classes: [name], kind: image | window | feature | None, input_shape,
        uptime_seconds, sources: [{name, uri, alive, restarts, fps, error}], round_running, round_plan, spec}."""
        view, rounds, plan = self.view, self.writer.rounds, self.writer.rounds.plan
        return {"version": __version__, "generation": view.status["generation"], "backbone": view.status["backbone"],
                "head": view.status["head"], "classes": [each["name"] for each in view.classes], "kind": view.kind,
                "input_shape": view.input_shape, "uptime_seconds": round(time.monotonic() - self._begun, 1),
                "sources": self.sources.to_json(), "round_running": rounds.running,
                "round_plan": plan.why if isinstance(plan, StartRound) else plan.reason, "spec": view.spec}

    def status(self) -> dict[str, Any]:
        """`Learner.status` as a dict."""
        return {**self.view.status,
                "warnings": list(dict.fromkeys([*filter(None, [self.writer.lost, self._review.problem]),
                                                *self.view.status["warnings"], *self.view.warnings]))}

    def classes(self) -> list[dict[str, Any]]:
        """[{name, samples, exemplars, accuracy, right, judged}]."""
        return self.view.classes

    def history(self) -> list[dict[str, Any]]:
        """As `edgecl history --json`: [{generation, created, action, current, restorable, undone, ...}]."""
        return self.view.history

    def exemplars(self, label: str, limit: int = 4) -> list[np.ndarray]:
        """Stored samples of a class, decoded: uint8 [h, w, 3] or float32 [time, channels]; [] if only features are
        stored. Raises BadInput for an unknown class."""
        if not any(each["name"] == label for each in self.view.classes):
            raise BadInput(f"no class is called {label!r}", "see `edgecl classes`")
        return self.writer.submit(lambda learner: stored_samples(learner, label, limit), changes=False).result()

    def sample(self, number: str) -> np.ndarray | None:
        """See `Learner.stored_input`. Raises BadInput, StateError."""
        return self.writer.submit(lambda learner: learner.stored_input(number), changes=False).result()

    def samples(self, label: str | None = None, suspicious: bool = False, start: int = 0,
                limit: int = PAGE) -> dict[str, Any]:
        """`SampleList.to_json` of `Learner.samples`, with `limit` samples from `start` on; total: how many there are.
        Only what is stored is read in the writer's thread. Raises BadInput, StateError."""
        def stored(learner: Learner) -> StoredSamples:
            return StoredSamples.of(learner.repository, suspicious)

        listed = self.writer.submit(stored, changes=False).result().listed(label)
        page = replace(listed, samples=listed.samples[max(start, 0):max(start, 0) + limit])
        return {**page.to_json(), "total": len(listed.samples)}

    def export_samples(self, label: str | None = None) -> tuple[dict[str, Any], list[ExportFile]]:
        """`SampleExport` of all stored samples, or of those of a class, as a dict, and the files. Raises BadInput,
        StateError."""
        about, files = self.writer.submit(lambda learner: export_samples(learner.repository, label),
                                          changes=False).result()
        return asdict(about), files

    def advise(self) -> dict[str, Any]:
        """`TeachingAdvice.to_json` of `Learner.advise`. Only what is stored is read in the writer's thread. Raises
        StateError."""
        def stored(learner: Learner) -> JudgedSamples:
            return JudgedSamples.of(learner.repository)

        return self.writer.submit(stored, changes=False).result().advice().to_json()

    def inputs(self, ids: Sequence[str]) -> dict[str, np.ndarray | None]:
        """Stored samples by their ids, as `exemplars` gives them; None for one that is not stored, or only its feature.
        Raises BadInput for what is not an id, StateError."""
        return self.writer.submit(lambda learner: stored_inputs(learner, ids), changes=False).result()

    def latest(self) -> dict[str, dict[str, Any]]:
        """{source: {label, confidence, unknown, milliseconds, reason if there is one, age_seconds, stable}}; stable:
        the label that `Debounce` holds for stable, or None."""
        return self.sources.latest()

    def stable(self) -> list[Prediction]:
        """For each source the answer that made its present label stable."""
        return [source.stable for source in self.sources.threads if source.stable is not None]

    def latest_sample(self, source: str) -> np.ndarray | None:
        """The last sample of a source; None before the first. Raises BadInput for an unknown source."""
        return self.sources.newest(source)

    def budget(self) -> dict[str, Any]:
        """{used_bytes, quota_bytes, exemplar_bytes, exemplar_limit_bytes, rss_bytes, heat_celsius, heat_limit, battery,
        may_run: {ok, reason}}; None for what this machine does not report."""
        rounds, names = self.writer.rounds, ("used_bytes", "quota_bytes", "exemplar_bytes", "exemplar_limit_bytes")
        used = {name: self.view.status[name] for name in names}
        return used | machine.room(rounds.readings, self.settings.limits, rounds.verdict())

    def counters(self) -> dict[str, Any]:
        """{frames_total: {source: n}, dropped_total: {source: n}, restarts_total: {source: n}, serial_frames_total:
        {source: {result: n}}, learned_total: n, rounds_total: {verdict: n}, bytes_written_total: n | None,
        inference_seconds, learn_seconds: {buckets: [[le, n]], sum, count}}; the buckets are cumulative, the last le is
        "+Inf"."""
        return {**self.sources.totals(), "learned_total": self.counts.learned, "rounds_total": dict(self.counts.rounds),
                "bytes_written_total": machine.bytes_written(),
                "inference_seconds": self.counts.inference.to_json(), "learn_seconds": self.counts.learning.to_json()}

    def subscribe(self) -> Subscription:
        """Events from now on: {"type": "prediction" | "generation" | "round" | "source", ...}. Raises BudgetError if
        there are too many listeners."""
        made = self.hub.subscribe()
        if made is None:
            raise BudgetError("too many clients listen already", "close another page first")
        return made

    # answering and learning ---------------------------------------------------------------------

    def predict(self, batch: np.ndarray, why: bool = False) -> list[dict[str, Any]]:
        """`Prediction.to_json` for each sample of a batch [n, ...]; see `Learner.predict`. Raises BadInput, StateError.
        """
        self._check(batch)
        answers, explaining = [], self._explaining_now() if why else None
        for answer in self.classifier.predict(batch, explaining):   # one by one: the loop gets its turn in between
            if self.writer.stopping:
                raise stopping()
            answers.append(answer.to_json())
        return answers

    def _explaining_now(self) -> tuple[Serving, Explainer]:
        """What `Sessions.explaining` gives for what serves now: only the writer reads stored samples."""
        found = self._explaining    # once: another thread may change it
        if found is None or found[0] is not self.classifier.serving:
            work = self.writer.submit(lambda learner: learner.sessions.explaining(), changes=False)
            self._explaining = found = work.result()
        return found

    def learn(self, label: str, batch: np.ndarray, name: str = "", again: bool = False,
              distinct: bool = False) -> dict[str, Any]:
        """Learn a batch [n, ...]; `Learned` as a dict, once it is on the disk and serves. name: of the file that it is;
        again, distinct: see `Learner.learn`. Raises BadInput, BudgetError, StateError; then nothing has changed."""
        self._check(batch)
        samples = [Sample(data, name) for data in batch] if len(batch) == 1 or not name else [
            Sample(data, name, at=number, unit="index") for number, data in enumerate(batch)]
        return self._learn(label, samples, batch.nbytes, batch.nbytes, again, distinct)

    def learn_samples(self, label: str, samples: Iterator[Sample], size: int = 0,
                      again: bool = False, distinct: bool = False) -> dict[str, Any]:
        """The same for samples that are read while they are learned. size: bytes of them; 0 if it is not known."""
        return self._learn(label, samples, 0, size, again, distinct)

    def learn_last(self, label: str, seconds: float, source: str | None = None, session: str = "",
                   again: bool = False, distinct: bool = False) -> dict[str, Any]:
        """Learn what a source showed in the last seconds; `Learned` as a dict. source: None for the only one; session:
        see `edgecl.samples.Sample`; again, distinct: see `Learner.learn`. Raises as `learn`."""
        samples = [replace(sample, session=session) for sample in self.sources.last(seconds, source)]
        size = sum(sample.data.nbytes for sample in samples)
        return self._learn(label, samples, size, size, again, distinct)

    def _learn(self, label: str, samples: Sequence[Sample] | Iterator[Sample], nbytes: int,
               size: int, again: bool = False, distinct: bool = False) -> dict[str, Any]:
        """nbytes: held in memory until they are learned; size: of all samples."""
        label = check_class_name(label)
        if not distinct:    # before the samples are read
            check_new_name(label, (each["name"] for each in self.view.classes))

        def until_stopped() -> Iterator[Sample]:
            for sample in samples:
                if self.writer.stopping:
                    raise stopping()
                yield sample

        def work(learner: Learner) -> Learned:
            begun = time.perf_counter()
            learned = learner.learn(until_stopped(), label, again=again, distinct=distinct)
            self.counts.count_learned(learned.samples, time.perf_counter() - begun)
            return learned

        return self.writer.submit(work, nbytes=nbytes, brief=0 < size <= BRIEF_BYTES, report=asdict).result()

    def forget(self, label: str, certify: bool = False) -> dict[str, Any]:
        """See `Learner.forget`; frames gathered for review are thrown away too. Raises BadInput, StateError."""
        def work(learner: Learner) -> dict[str, Any]:
            done = learner.forget(label, certify)
            return {**done, "gathered": True} if self._review.clear() else done

        return self.writer.submit(work).result()

    def remove(self, ids: Sequence[int | str], erase: bool = False) -> dict[str, Any]:
        """`Corrected` as a dict, see `Learner.remove`; with `erase`, frames gathered for review are thrown away too.
        Raises BadInput, StateError."""
        def work(learner: Learner) -> Corrected:
            done = learner.remove(ids, erase)
            if erase:
                self._review.clear()
            return done

        return self.writer.submit(work, report=asdict).result()

    def move(self, ids: Sequence[int | str], label: str) -> dict[str, Any]:
        """The same of `Learner.move`. Raises BadInput, BudgetError, StateError."""
        return self.writer.submit(lambda learner: learner.move(ids, label), report=asdict).result()

    def rename(self, old: str, new: str, into: bool = False) -> dict[str, Any]:
        """The same of `Learner.rename`; what is said of the sources from then on has the new name. Raises BadInput,
        BudgetError, StateError."""
        done = self.writer.submit(lambda learner: learner.rename(old, new, into), report=asdict).result()
        for answer in self.sources.rename(old, done["label"]):
            self.hub.say({"type": "prediction", **answer.to_json(), "stable": answer.label, "changed": True})
        return done

    def rollback(self, generation: int | None = None) -> dict[str, Any]:
        """{generation, restored, classes}. Raises StateError."""
        return self.writer.submit(lambda learner: rolled_back(learner, generation)).result()

    def _check(self, batch: np.ndarray) -> None:
        kind = kind_of(batch)
        if self.view.kind is not None and kind != self.view.kind:
            raise BadInput(f"samples of kind {kind}; this state takes {self.view.kind}",
                           "give samples like those of its sources, see `edgecl status`")

    # integrity ----------------------------------------------------------------------------------

    def check(self) -> dict[str, Any]:
        """`edgecl check --json`: every file is read."""
        return repair.check(self.path).to_json()

    def repair(self) -> dict[str, Any]:
        """The same after what can be restored was restored. Raises BudgetError, StateError."""
        return self.writer.submit(lambda learner: repair.repair(learner.repository).to_json()).result()

    def discard(self) -> int:
        """Delete what is set aside; the number of files. Raises StateError."""
        return self.writer.submit(lambda learner: repair.discard(learner.store)).result()

    # rounds -------------------------------------------------------------------------------------

    def start_round(self, method: str | None = None, time: float | None = None, memory: int | None = None,
                    own_code: bool = True, **more: Any) -> dict[str, Any]:
        """{"started": true}; the verdict comes as an event and in `rounds`. time: seconds; memory: bytes; own_code,
        more: further fields of `RoundRequest`, and max_regression. Raises StateError if a round is running, BadInput
        for an unknown method."""
        if method is not None:
            read_method(method, own_code)
        self.writer.submit(lambda _: self.writer.rounds.begin(method, time, memory, True, own_code=own_code, **more),
                           changes=False).result()
        return {"started": True}

    def round_result(self) -> dict[str, Any]:
        """{running, result}: the last answer of `Learner.round` as a dict, {"error": {what, cure}}, or None."""
        return self.writer.rounds.outcome()

    def rounds(self) -> list[dict[str, Any]]:
        """[{generation, method, taken: bool, reasons: [str], checks: [[name, found]], seconds | None, when}], newest
        first."""
        return round_rows(self.view.history, self.writer.rounds.durations)

    # review -------------------------------------------------------------------------------------

    def review(self) -> dict[str, Any]:
        """What is not known or not sure, in clusters: {clusters: [{id, frames, seen, first, last, sources, typical,
        label, confidence, unknown}], frames, bytes, absorbed, passed, known_by_now, on_disk, problem if there is one}.

        id: of the cluster, valid as long as any of its frames is there; frames: that are kept, seen: near copies that
        were only counted included; first, last: ISO times; typical: the number of its most typical frame, whose label,
        confidence and unknown these are, by what serves now. absorbed: frames that became one with a kept one because
        room was short; passed: frames that came too soon after the last one; known_by_now: frames that are known and
        sure by now, so that no cluster has them.
        """
        return self._review.to_json()

    def review_frames(self, number: int) -> list[dict[str, Any]]:
        """The frames of a cluster, the most typical first: [{id, source, seen, first, last, label, confidence,
        unknown}]. Raises BadInput if it is not there any more."""
        return self._review.frames(number)

    def review_sample(self, number: int) -> np.ndarray:
        """A frame of the review list, uint8 or float32. Raises BadInput if it is not there any more."""
        return self._review.frame(number).sample()

    def review_name(self, number: int, label: str, frames: list[int] | None = None,
                    distinct: bool = False) -> dict[str, Any]:
        """Learn a cluster as `label`, and take its frames off the list; `Learned` as a dict. frames: the numbers of
        those that are meant, None for all; distinct: see `Learner.learn`. Raises as `learn`; then they stay."""
        def teach(samples: list[Sample], label: str) -> dict[str, Any]:
            size = sum(sample.data.nbytes for sample in samples)
            return self._learn(label, samples, size, size, distinct=distinct)

        learned = self._review.name(number, label, frames, teach)
        self._save_review()
        return learned

    def review_drop(self, number: int) -> dict[str, int]:
        """Throw a cluster away; {"dropped": frames}. Raises BadInput if it is not there any more."""
        return self._dropped(self._review.drop(number))

    def review_drop_frames(self, frames: list[int]) -> dict[str, int]:
        """Throw single frames away; {"dropped": frames}. Raises BadInput if one is not there any more."""
        return self._dropped(self._review.drop_frames(frames))

    def review_clear(self) -> dict[str, int]:
        """Throw all frames away; {"dropped": frames}."""
        return self._dropped(self._review.clear())

    def _dropped(self, count: int) -> dict[str, int]:
        self._save_review()
        return {"dropped": count}

    def _save_review(self) -> None:
        """Have the disk hold what the list holds."""
        self.writer.submit(lambda learner: self._review.save(learner.store, True), changes=False).result()
