"""`edgecl profile`."""
from __future__ import annotations

import argparse
import json
import math
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgecl.commands import print_json, print_table, state_path
from edgecl.commands.learn import settings_of
from edgecl.errors import BadInput
from edgecl.settings import counted, format_size

if TYPE_CHECKING:
    from edgecl.profiling.profile import Profile

MARK = "# Written by `edgecl profile`"
WORTHWHILE = 0.9           # a precision, or more threads, is only recommended below this share of the time
EXEMPLARS_PER_CLASS = 36   # more are worth little, see edgecl.exemplars.product_quantiser
LEAST_CLASSES = 50         # that a recommended quota has room for


def profile(options: argparse.Namespace) -> None:
    """Measure, print, and write the recommended settings."""
    state, settings = state_path(options), settings_of(options)
    if not 0 < options.seconds < math.inf:
        raise BadInput(f"--seconds {options.seconds:g}", "give a number above 0, such as 20")
    _check_out(options.out)
    if options.report is not None:
        _check_folder(options.report, "--report")
        if find_spec("matplotlib") is None:
            raise BadInput("plots need matplotlib", "pip install 'edgecl[report]'")
    from edgecl.profiling import profile

    done = profile.profile(state if options.state or state.exists() else None, settings, options.seconds)
    advice = recommend(done)
    options.out.write_text(to_toml(done, advice), "utf-8")
    if options.report is not None:
        write_page(done, advice, options.report)
    if options.json:
        print_json({**done.to_json(), "recommended": advice.values, "conclusions": conclusions(done, advice),
                    "toml": str(options.out), "report": str(options.report) if options.report else None})
        return
    for title, columns, rows in tables(done):
        print_table(title, columns, rows)
        print()
    print("* in use in this state")
    for line in [*conclusions(done, advice), *(f"Note: {note}." for note in done.notes)]:
        print(line)
    print(f"Settings to start from: {options.out} (edgecl init --config {options.out})")


def _check_out(path: Path) -> None:
    """Raises BadInput if the settings can't be written there."""
    _check_folder(path, "--out")
    if path.exists():
        try:
            ours = path.read_text("utf-8").startswith(MARK)
        except (OSError, ValueError):
            ours = False
        if not ours:
            raise BadInput(f"{path} exists, and `edgecl profile` did not write it", "give another --out FILE.toml")


def _check_folder(path: Path, flag: str) -> None:
    if not path.absolute().parent.is_dir():
        raise BadInput(f"{flag} {path}: there is no folder {path.absolute().parent}", "create it first")
    if path.is_dir():
        raise BadInput(f"{flag} {path} is a folder", "name a file in it")


# what is recommended -------------------------------------------------------------------------------


class Advice(NamedTuple):
    """values: settings, ready for `edgecl init`; why: a comment for some; int8: how many times faster it is, None if it
    is not worthwhile."""

    values: dict[str, Any]
    why: dict[str, str]
    int8: float | None


def recommend(done: Profile) -> Advice:
    """Settings for this board: threads and precision from measurements, bytes from forecasts."""
    own = done.of("backbone", done.precision)
    best = min(x.p50 for x in own)
    threads = next(x for x in own if x.p50 * WORTHWHILE <= best)
    small = next((x for x in done.of("backbone", "int8") if x.threads == threads.threads), None)
    gain = None
    if small is not None and done.precision != "int8" and small.p50 < WORTHWHILE * threads.p50:
        gain = threads.p50 / small.p50
    s = done.settings
    codec = next((c for c in done.codecs if c.chosen), done.codecs[0])
    head = next((h for h in done.heads if h.chosen), done.heads[0])
    wanted, room = max(LEAST_CLASSES, 2 * done.known), done.known + head.more
    quota = s.quota if room >= wanted else _rounded(s.quota + (wanted - room) * 2 * (head.statistics + head.head))
    enough = _rounded(1.1 * codec.each * EXEMPLARS_PER_CLASS * max(LEAST_CLASSES, done.known))
    exemplars = min(max(quota // 16, s.exemplars), enough)
    values = {"state": f"{done.state}-new" if done.state else "edgecl-state", "backbone": done.backbone,
              "quota": quota, "exemplars": exemplars, "codec": s.codec, "admission": s.admission, "head": s.head,
              "threads": threads.threads,
              **{name: value for name in ("rate", "window", "hop") if (value := getattr(s, name)) is not None},
              "seed": s.seed}
    return Advice(values, {
        "backbone": f"{done.dimension:,} features, {threads.p50:.3g} ms per sample here",
        "quota": "hard limit of the whole state directory",
        "exemplars": f"of the quota; about {int(exemplars / codec.each / max(LEAST_CLASSES, done.known))} samples "
                     f"of each of {max(LEAST_CLASSES, done.known)} classes",
        "codec": (f"{codec.codec}, {codec.each:,.0f} bytes each; shorter when space gets tight" if s.codec == "auto"
                  else f"as in the measured state, {codec.each:,.0f} bytes each"),
        "head": f"chosen on stored samples; here {head.kind}, {head.statistics + head.head:,} bytes per class"
                if s.head == "auto" else "as in the measured state",
        "admission": "which exemplars stay",
        "threads": "the fewest within 10 % of the fastest measured", "rate": "Hz", "window": "seconds",
        "hop": "seconds", "state": "the state directory", "seed": "of random kernels and projections"}, gain)


def _rounded(size: float) -> int:
    """Bytes, rounded up to two digits."""
    step = 10 ** max(len(str(int(size))) - 2, 0)
    return math.ceil(size / step) * step


def to_toml(done: Profile, advice: Advice) -> str:
    """The text of the file, which `edgecl init --config` reads."""
    what = done.state or "a fresh state with made-up samples"
    lines = [f"{MARK}, {date.today().isoformat()}: {done.cores} cores, measured on {json.dumps(what)}.",
             "# Use it with: edgecl init --config FILE", ""]
    shown = {name: value if name not in ("quota", "exemplars") else _size(value)
             for name, value in advice.values.items()}
    texts = {name: f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in shown.items()}
    width = max(len(text) for text in texts.values() if len(text) < 40)
    for name, text in texts.items():
        comment = advice.why.get(name)
        lines.append(f"{text:{width}}  # {comment}" if comment else text)
    if done.precision == "int8":
        lines += ["", "# The measured state is int8. A new one needs init --calibrate FOLDER, a folder of your photos:",
                  '# precision = "int8"']
    elif advice.int8 is not None:
        lines += ["", f"# int8 was {advice.int8:.2g} times as fast here. To use it, uncomment the next line, and give",
                  "# init --calibrate FOLDER, a folder of your photos; compare `edgecl evaluate` with and without:",
                  '# precision = "int8"']
    if done.settings.memory == "statistics":
        lines += ["", "[memory]", 'kind = "statistics"  # no samples are kept']
    return "\n".join(lines) + "\n"


def _size(count: int) -> str:
    return next((f"{count // size}{unit}" for unit, size in (("MB", 10 ** 6), ("KB", 10 ** 3)) if count % size == 0),
                str(count))


# what is shown -------------------------------------------------------------------------------------


def tables(done: Profile) -> list[tuple[str, list[str], list[list[str]]]]:
    """Title, columns and rows of each table."""
    megabytes = "{:.1f} MB".format
    found = [
        ("milliseconds per sample", ["part", "precision", "threads", "p50", "p95", "p99", "runs"],
         [[x.part, x.precision, str(x.threads), *(f"{ms:.3g}" for ms in (x.p50, x.p95, x.p99)), str(x.runs)]
          for x in done.latency]),
        ("peak resident memory of the whole process", ["while", "forecast", "measured", "error", "at the end"],
         [[x.what, megabytes(x.forecast / 1e6), megabytes(x.measured / 1e6),
           f"{round(100 * (x.forecast / x.measured - 1), 1) + 0:+.1f} %", megabytes(x.after / 1e6)]
          for x in done.memory]),
        ("bytes per additional class, and how many more fit the quota of " + format_size(done.settings.quota),
         ["head", "statistics", "head", "sum", "measured", "more classes"],
         [[h.kind + (" *" if h.chosen else ""), f"{h.statistics:,}", f"{h.head:,}", f"{h.statistics + h.head:,}",
           "-" if h.measured is None else f"{h.measured:,.0f}",
           f"{h.at_least:,} to {h.more:,}" if h.at_least < h.more else f"{h.more:,}"] for h in done.heads]),
        ("bytes per stored sample, with " + format_size(done.settings.exemplars) + " for exemplars",
         ["codec", "bytes each", "per class"],
         [[c.codec + (" *" if c.chosen else ""), f"{c.each:,.0f}", f"{c.per_class:,}"] for c in done.codecs])]
    if done.learn is not None:
        x = done.learn
        found.append(("learning one class of 20 samples, including commit and sync", ["what", "value"], [
            ["milliseconds", f"{x.milliseconds:.0f}"], ["of these, the backbone", f"{x.backbone:.0f}"],
            ["bytes the state grew", f"{x.grown:,}"],
            ["bytes per sample to storage" if x.counted else "bytes per sample to write()", f"{x.flash:,.0f}"],
            ["as a multiple of its float32 features", f"{x.flash / x.features:.1f} x"]]))
    return found


def conclusions(done: Profile, advice: Advice) -> list[str]:
    """A few plain sentences."""
    threads = advice.values["threads"]
    own = next(x for x in done.of("backbone", done.precision) if x.threads == threads)
    before, after = done.of("preprocess")[0], done.of("head")[0]
    total = before.p50 + own.p50 + after.p50
    lines = [f"One sample takes {total:.3g} ms from {_input(done.kind)} to answer, {own.p50:.3g} ms of that in the "
             f"backbone, with {counted(threads, 'thread')} on {counted(done.cores, 'core')}."]
    if advice.int8:
        lines.append(f"int8 is {advice.int8:.2g} times as fast; its ranges come from --calibrate FOLDER.")
    elif done.of("backbone", "int8") and done.precision != "int8":
        lines.append("int8 is at most 10 % faster here: stay with " + done.precision + ".")
    lines.append("Answering takes {:.0f} MB of memory, learning {:.0f} MB.".format(
        *(x.measured / 1e6 for x in done.memory)))
    head = next((h for h in done.heads if h.chosen), done.heads[0])
    known = f"The state knows {done.known} class{'es' * (done.known != 1)}"
    lines.append(f"{known}; {head.at_least:,} to {head.more:,} more fit "
                 f"its quota with {head.kind}, depending on how much is in the log"
                 + (", with coarser statistics towards the end." if "exact" in head.form else "."))
    if done.learn is not None:
        lines.append(f"A class of 20 samples is learned in {done.learn.milliseconds:.0f} ms; a few samples at a time "
                     f"write {done.learn.flash / done.learn.features:.1f} times the bytes of their features"
                     + (" to storage." if done.learn.counted else
                        ", counted at write(), since this file system does not count bytes that reach storage."))
    return lines


def _input(kind: str) -> str:
    return {"image": "JPEG", "window": "recording", "feature": "vector"}[kind]


def write_page(done: Profile, advice: Advice, path: Path) -> None:
    """Write tables and conclusions as an HTML report with bars."""
    from edgecl.evaluation.report import bars, heading, paragraph, table, write_report

    first, *rest = tables(done)
    parts = [*map(paragraph, conclusions(done, advice)), heading(_title(first[0])),
             bars([f"{x.part}, {x.precision}, {x.threads} thr." if x.part != "preprocess" else x.part
                   for x in done.latency],
                  {"p50": [x.p50 for x in done.latency], "p99": [x.p99 for x in done.latency]}, "milliseconds"),
             table(first[1], first[2])]
    drawn = {0: bars([x.what for x in done.memory], {"forecast": [x.forecast / 1e6 for x in done.memory],
                                                     "measured": [x.measured / 1e6 for x in done.memory]}, "MB"),
             1: bars([h.kind for h in done.heads], {"bytes": [h.statistics + h.head for h in done.heads]},
                     "bytes per additional class", "{:,.0f}"),
             2: bars([c.codec for c in done.codecs], {"bytes": [c.each for c in done.codecs]},
                     "bytes per stored sample", "{:,.0f}")}
    for number, (title, columns, rows) in enumerate(rest):
        parts += [heading(_title(title)), drawn.get(number, ""), table(columns, rows)]
    parts += [paragraph(f"Note: {note}.") for note in done.notes]
    write_report(path, "edgecl profile", f"{done.backbone} ({done.precision}), {done.dimension:,} features, "
                 f"{counted(done.known, 'class')}, {counted(done.cores, 'core')}", parts)


def _title(text: str) -> str:
    return text[0].upper() + text[1:]
