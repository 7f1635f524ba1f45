"""The metrics in Prometheus' text format: base units, and no label values that a stranger can choose."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Samples = Iterable[tuple[dict[str, str], float | None]]


def _label(text: str) -> str:
    return str(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _line(name: str, labels: Mapping[str, str], value: Any) -> str:
    inner = ",".join(f'{key}="{_label(text)}"' for key, text in labels.items())
    return f"{name}{{{inner}}} {value}" if inner else f"{name} {value}"


def _family(name: str, kind: str, about: str, samples: Samples) -> list[str]:
    lines = [_line(name, labels, value) for labels, value in samples if value is not None]
    return [f"# HELP {name} {about}", f"# TYPE {name} {kind}", *lines] if lines else []


def _histogram(name: str, about: str, found: Iterable[tuple[dict[str, str], dict[str, Any]]]) -> list[str]:
    lines = [f"# HELP {name} {about}", f"# TYPE {name} histogram"]
    for labels, one in found:
        lines += [_line(f"{name}_bucket", {**labels, "le": str(le)}, count) for le, count in one["buckets"]]
        lines += [_line(f"{name}_sum", labels, one["sum"]), _line(f"{name}_count", labels, one["count"])]
    return lines


class ServiceValues(NamedTuple):
    """The values of one state's service."""

    state: str
    info: dict[str, Any]
    budget: dict[str, Any]
    counters: dict[str, Any]


def exposition(states: list[ServiceValues], replies: Mapping[int, int]) -> str:
    """All metrics. states: the main one first; replies: of HTTP by status."""
    main = states[0]

    def once(value: float | None, **labels: str) -> Samples:
        return [(labels, value)]

    def each(value: Callable[[ServiceValues], float]) -> Samples:
        return [({"state": found.state}, value(found)) for found in states]

    def by(label: str, name: str) -> Samples:
        return [({"state": found.state, label: str(key)}, value) for found in states
                for key, value in found.counters[name].items()]

    families: list[tuple[str, str, str, Samples]] = [
        ("edgecl_build_info", "gauge", "Version of edgecl.", once(1, version=main.info["version"])),
        ("edgecl_uptime_seconds", "gauge", "Seconds since the daemon started.", once(main.info["uptime_seconds"])),
        ("edgecl_generation", "gauge", "Current generation.", each(lambda f: f.info["generation"])),
        ("edgecl_classes", "gauge", "Known classes.", each(lambda f: len(f.info["classes"]))),
        ("edgecl_round_running", "gauge", "1 while a learning round runs.",
         each(lambda f: int(f.info["round_running"]))),
        ("edgecl_source_up", "gauge", "1 while a source gives samples.",
         [({"state": found.state, "source": source["name"]}, int(source["alive"]))
          for found in states for source in found.info["sources"]]),
        ("edgecl_frames_total", "counter", "Samples classified.", by("source", "frames_total")),
        ("edgecl_frames_dropped_total", "counter", "Samples dropped from full queues.", by("source", "dropped_total")),
        ("edgecl_source_restarts_total", "counter", "Restarts of failed sources.", by("source", "restarts_total")),
        ("edgecl_serial_frames_total", "counter", "Frames of a device's link by result.",
         [({"state": found.state, "source": source, "result": result}, count) for found in states
          for source, counts in found.counters["serial_frames_total"].items() for result, count in counts.items()]),
        ("edgecl_samples_learned_total", "counter", "Samples learned.", each(lambda f: f.counters["learned_total"])),
        ("edgecl_rounds_total", "counter", "Learning rounds by verdict.", by("verdict", "rounds_total")),
        ("edgecl_state_bytes", "gauge", "Bytes of the state directory.", each(lambda f: f.budget["used_bytes"])),
        ("edgecl_state_limit_bytes", "gauge", "Quota of the state directory, in bytes.",
         each(lambda f: f.budget["quota_bytes"])),
        ("edgecl_buffer_bytes", "gauge", "Bytes of stored samples.", each(lambda f: f.budget["exemplar_bytes"])),
        ("edgecl_buffer_limit_bytes", "gauge", "Limit of stored samples, in bytes.",
         each(lambda f: f.budget["exemplar_limit_bytes"])),
        ("edgecl_bytes_written_total", "counter", "Bytes that the daemon has sent to disks.",
         once(main.counters["bytes_written_total"])),
        ("process_resident_memory_bytes", "gauge", "Resident memory of the daemon.", once(main.budget["rss_bytes"])),
        ("edgecl_temperature_celsius", "gauge", "Temperature of the thermal zone nearest to its limit.",
         once(main.budget["heat_celsius"])),
        ("edgecl_http_replies_total", "counter", "HTTP replies by status.",
         [({"code": str(code)}, number) for code, number in sorted(replies.items())]),
    ]
    histograms = [
        ("edgecl_inference_duration_seconds", "Seconds for backbone and head, per sample of a source.",
         "inference_seconds"),
        ("edgecl_learn_duration_seconds", "Seconds for one learn, until it is on the disk.", "learn_seconds")]
    lines = [line for family in families for line in _family(*family)]
    for name, about, key in histograms:
        lines += _histogram(name, about, [({"state": found.state}, found.counters[key]) for found in states])
    return "\n".join(lines) + "\n"
