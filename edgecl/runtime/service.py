"""What a running daemon offers to the control socket, the page and MQTT; safe to call from any thread."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np


class Subscription(Protocol):
    """Events of a service from now on; bounded, the newest win."""

    def get(self, timeout: float | None = None) -> dict[str, Any] | None:
        """The next event: {"type": "prediction" | "generation" | "round" | "source", ...}; None where none came."""

    def close(self) -> None:
        """No more events."""


class Service:
    """One state that a daemon serves. All values are ready for JSON but samples, which are arrays; every call raises
    EdgeclError subclasses only."""

    def info(self) -> dict[str, Any]:
        """{version, generation, backbone, head, classes: [name], kind: image | window | feature | None, input_shape,
        uptime_seconds, sources: [{name, uri, alive, restarts, fps, error}], round_running}."""
        raise NotImplementedError

    def status(self) -> dict[str, Any]:
        """`Learner.status` as a dict."""
        raise NotImplementedError

    def classes(self) -> list[dict[str, Any]]:
        """[{name, samples, exemplars, held_back_accuracy}]."""
        raise NotImplementedError

    def history(self) -> list[dict[str, Any]]:
        """As `edgecl history --json`: [{generation, created, action, current, restorable, undone, ...}]."""
        raise NotImplementedError

    def exemplars(self, label: str, limit: int = 4) -> list[np.ndarray]:
        """Stored samples of a class, decoded: uint8 [h, w, 3] or float32 [time, channels]; [] where only features are
        kept."""
        raise NotImplementedError

    def predict(self, batch: np.ndarray) -> list[dict[str, Any]]:
        """A `Prediction` as a dict for each sample of a batch [n, ...]."""
        raise NotImplementedError

    def learn(self, label: str, batch: np.ndarray) -> dict[str, Any]:
        """Learn a batch [n, ...]; `Learned` as a dict, once that is on the disk."""
        raise NotImplementedError

    def learn_last(self, label: str, seconds: float, source: str | None = None) -> dict[str, Any]:
        """Learn what a source showed in the last seconds; `Learned` as a dict. source: None for the only one."""
        raise NotImplementedError

    def forget(self, label: str) -> dict[str, Any]:
        """{class, generation, exact}."""
        raise NotImplementedError

    def rollback(self, generation: int | None = None) -> dict[str, Any]:
        """{generation, restored, classes}."""
        raise NotImplementedError

    def start_round(self, method: str | None = None, time: float | None = None,
                    memory: int | None = None) -> dict[str, Any]:
        """{"started": true}; the verdict comes as an event, and in `rounds`. time: seconds; memory: bytes."""
        raise NotImplementedError

    def rounds(self) -> list[dict[str, Any]]:
        """[{generation, method, taken: bool, reasons: [str], checks: [[name, found]], seconds | None, when}],
        the newest first."""
        raise NotImplementedError

    def review(self) -> list[dict[str, Any]]:
        """Frames that nothing known fits well: [{id, source, label, confidence, unknown, age_seconds}]."""
        raise NotImplementedError

    def review_sample(self, number: int) -> np.ndarray:
        """The frame itself. Raises BadInput where it has gone."""
        raise NotImplementedError

    def review_name(self, number: int, label: str) -> dict[str, Any]:
        """Learn that frame as `label`, and take it off the list; `Learned` as a dict."""
        raise NotImplementedError

    def review_drop(self, number: int) -> None:
        """Take a frame off the list."""
        raise NotImplementedError

    def latest(self) -> dict[str, dict[str, Any]]:
        """{source: {label, confidence, unknown, milliseconds, age_seconds}}; debounced: "stable" is the label that came
        several times in a row, or None."""
        raise NotImplementedError

    def latest_sample(self, source: str) -> np.ndarray | None:
        """What a source saw last; None where it saw nothing. Raises BadInput for a source that there is not."""
        raise NotImplementedError

    def budget(self) -> dict[str, Any]:
        """{used_bytes, quota_bytes, exemplar_bytes, exemplar_limit_bytes, rss_bytes, heat_celsius, heat_limit, battery,
        may_run: {ok, reason}}; None for what the machine does not tell."""
        raise NotImplementedError

    def counters(self) -> dict[str, Any]:
        """{frames_total: {source: n}, dropped_total: {source: n}, restarts_total: {source: n}, learned_total: n,
        rounds_total: {verdict: n}, bytes_written_total: n, inference_seconds, learn_seconds: {buckets: [[le, n]],
        sum, count}}; the buckets are cumulative, the last le is "+Inf"."""
        raise NotImplementedError

    def subscribe(self) -> Subscription:
        """Events from now on."""
        raise NotImplementedError
