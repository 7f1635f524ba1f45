"""Prometheus' text format of what a service counts; base units, and no label that a stranger can choose."""
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


class Found(NamedTuple):
    """What one state's service says."""

    state: str
    info: dict[str, Any]
    budget: dict[str, Any]
    counters: dict[str, Any]


def exposition(states: list[Found], replies: Mapping[int, int]) -> str:
    """All metrics. states: the main one first; replies: of HTTP by code."""
    main = states[0]

    def each(value: Callable[[Found], float]) -> Samples:
        return [({"state": found.state}, value(found)) for found in states]

    def by(label: str, name: str) -> Samples:
        return [({"state": found.state, label: str(key)}, value) for found in states
                for key, value in found.counters.get(name, {}).items()]

    def seconds(name: str) -> list[tuple[dict[str, str], dict[str, Any]]]:
        return [({"state": found.state}, found.counters[name]) for found in states]

    lines = [
        *_family("edgecl_build_info", "gauge", "Version of edgecl.", [({"version": main.info["version"]}, 1)]),
        *_family("edgecl_uptime_seconds", "gauge", "Since the daemon started.", [({}, main.info["uptime_seconds"])]),
        *_family("edgecl_generation", "gauge", "The generation that serves.", each(lambda f: f.info["generation"])),
        *_family("edgecl_classes", "gauge", "Known classes.", each(lambda f: len(f.info["classes"]))),
        *_family("edgecl_round_running", "gauge", "Whether a learning round runs.",
                 each(lambda f: int(f.info["round_running"]))),
        *_family("edgecl_source_up", "gauge", "Whether a source gives samples.",
                 [({"state": found.state, "source": source["name"]}, int(source["alive"]))
                  for found in states for source in found.info["sources"]]),
        *_family("edgecl_frames_total", "counter", "Samples classified.", by("source", "frames_total")),
        *_family("edgecl_frames_dropped_total", "counter", "Samples that newer ones overtook.",
                 by("source", "dropped_total")),
        *_family("edgecl_source_restarts_total", "counter", "Restarts of a source that failed.",
                 by("source", "restarts_total")),
        *_family("edgecl_serial_frames_total", "counter", "Frames of a serial line.",
                 by("result", "serial_frames_total")),
        *_histogram("edgecl_inference_duration_seconds", "Backbone and head of one sample.",
                    seconds("inference_seconds")),
        *_histogram("edgecl_learn_duration_seconds", "One teaching, until it is on the disk.",
                    seconds("learn_seconds")),
        *_family("edgecl_samples_learned_total", "counter", "Samples taught.",
                 each(lambda f: f.counters["learned_total"])),
        *_family("edgecl_rounds_total", "counter", "Learning rounds by what came of them.",
                 by("verdict", "rounds_total")),
        *_family("edgecl_state_bytes", "gauge", "Bytes of the state directory.",
                 each(lambda f: f.budget["used_bytes"])),
        *_family("edgecl_state_limit_bytes", "gauge", "What it may have.", each(lambda f: f.budget["quota_bytes"])),
        *_family("edgecl_buffer_bytes", "gauge", "Bytes of stored samples.",
                 each(lambda f: f.budget["exemplar_bytes"])),
        *_family("edgecl_buffer_limit_bytes", "gauge", "What they may have.",
                 each(lambda f: f.budget["exemplar_limit_bytes"])),
        *_family("edgecl_bytes_written_total", "counter", "Bytes that the daemon wrote to disks.",
                 [({}, main.counters["bytes_written_total"])]),
        *_family("process_resident_memory_bytes", "gauge", "Resident memory.", [({}, main.budget["rss_bytes"])]),
        *_family("edgecl_temperature_celsius", "gauge", "The zone of the board that is nearest to its limit.",
                 [({}, main.budget["heat_celsius"])]),
        *_family("edgecl_http_replies_total", "counter", "Replies of the HTTP server by code.",
                 [({"code": str(code)}, number) for code, number in sorted(replies.items())]),
    ]
    return "\n".join(lines) + "\n"
