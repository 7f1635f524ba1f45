"""Prometheus' text format of what a service counts; base units, and no label that a stranger can choose."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

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


def _histogram(name: str, about: str, found: dict[str, Any] | None) -> list[str]:
    if not found:
        return []
    return [f"# HELP {name} {about}", f"# TYPE {name} histogram",
            *(_line(f"{name}_bucket", {"le": str(le)}, count) for le, count in found["buckets"]),
            f"{name}_sum {found['sum']}", f"{name}_count {found['count']}"]


def exposition(info: dict[str, Any], budget: dict[str, Any], counters: dict[str, Any],
               replies: Mapping[int, int]) -> str:
    """All metrics. info, budget, counters: of the service; replies: of HTTP by code."""
    def one(value: float | None) -> Samples:
        return [({}, value)]

    def by(label: str, values: Mapping[Any, float]) -> Samples:
        return [({label: str(key)}, value) for key, value in values.items()]

    sources = info["sources"]
    lines = [
        *_family("edgecl_build_info", "gauge", "Version of edgecl.", [({"version": info["version"]}, 1)]),
        *_family("edgecl_uptime_seconds", "gauge", "Since the daemon started.", one(info["uptime_seconds"])),
        *_family("edgecl_generation", "gauge", "The generation that serves.", one(info["generation"])),
        *_family("edgecl_classes", "gauge", "Known classes.", one(len(info["classes"]))),
        *_family("edgecl_round_running", "gauge", "Whether a learning round runs.", one(int(info["round_running"]))),
        *_family("edgecl_source_up", "gauge", "Whether a source gives samples.",
                 [({"source": each["name"]}, int(each["alive"])) for each in sources]),
        *_family("edgecl_frames_total", "counter", "Samples classified.", by("source", counters["frames_total"])),
        *_family("edgecl_frames_dropped_total", "counter", "Samples that newer ones overtook.",
                 by("source", counters["dropped_total"])),
        *_family("edgecl_source_restarts_total", "counter", "Restarts of a source that failed.",
                 by("source", counters["restarts_total"])),
        *_family("edgecl_serial_frames_total", "counter", "Frames of a serial line.",
                 by("result", counters.get("serial_frames_total", {}))),
        *_histogram("edgecl_inference_duration_seconds", "Backbone and head of one sample.",
                    counters["inference_seconds"]),
        *_histogram("edgecl_learn_duration_seconds", "One teaching, until it is on the disk.",
                    counters["learn_seconds"]),
        *_family("edgecl_samples_learned_total", "counter", "Samples taught.", one(counters["learned_total"])),
        *_family("edgecl_rounds_total", "counter", "Learning rounds by what came of them.",
                 by("verdict", counters["rounds_total"])),
        *_family("edgecl_bytes_written_total", "counter", "Bytes written to the disk.",
                 one(counters["bytes_written_total"])),
        *_family("edgecl_state_bytes", "gauge", "Bytes of the state directory.", one(budget["used_bytes"])),
        *_family("edgecl_state_limit_bytes", "gauge", "What it may have.", one(budget["quota_bytes"])),
        *_family("edgecl_buffer_bytes", "gauge", "Bytes of stored samples.", one(budget["exemplar_bytes"])),
        *_family("edgecl_buffer_limit_bytes", "gauge", "What they may have.", one(budget["exemplar_limit_bytes"])),
        *_family("process_resident_memory_bytes", "gauge", "Resident memory.", one(budget["rss_bytes"])),
        *_family("edgecl_temperature_celsius", "gauge", "The hottest zone of the board.", one(budget["heat_celsius"])),
        *_family("edgecl_http_replies_total", "counter", "Replies of the HTTP server by code.", by("code", replies)),
    ]
    return "\n".join(lines) + "\n"
