"""`edgecl bench`, `edgecl methods`."""
from __future__ import annotations

import argparse
import contextlib
import sys
import textwrap
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecl.commands import print_json
from edgecl.errors import BadInput
from edgecl.settings import counted, format_size, parse_size

if TYPE_CHECKING:
    from edgecl.evaluation.bench import BenchJob, Failed

Result = dict[str, Any]
COLUMNS = ["method", "average", "final", "forgotten", "kept", "new/s", "peak"]
LEGEND = ("average: mean over steps of the accuracy on all classes so far; final: after the\n"
          "last step; forgotten: best earlier accuracy less the final one; kept: the most\n"
          "bytes between steps besides the network; new/s: new samples per second of training;\n"
          "peak: resident memory of the whole process.")


def bench(options: argparse.Namespace) -> int:
    """Run each method and seed, show the table; 1 if any of them failed."""
    jobs = jobs_of(options)
    _check_out(options.out)
    from edgecl.evaluation import bench as bench_module

    bench_module.check(jobs)
    results: list[Result] = []
    failures: list[Failed] = []

    def done(result: Result) -> None:
        results.append(result)
        if options.json:
            print_json(result)

    def failed(error: Failed) -> None:
        failures.append(error)
        print(f"edgecl: {error}", file=sys.stderr)

    try:
        with _progress(jobs) as watch:
            bench_module.run(jobs, options.out, done, failed, watch)
    except KeyboardInterrupt:
        kept = f"; the same command continues after the {len(results)} in {options.out}" if options.out else ""
        print(f"edgecl: interrupted{kept}", file=sys.stderr)
        return 130
    if results and not options.json:
        print(f"{title(jobs[0], results)}\n\n{aligned(*table(results), right=True)}\n\n{LEGEND}")
    if results and options.out:
        bench_module.write_json(options.out / "results.json", [{**result, **more(result)} for result in results])
        write_page(jobs[0], results, options.out / "report.html")
        if not options.json:
            print(f"{options.out / 'report.html'}: plots and tables; {options.out / 'results.json'}: every number")
    return 1 if failures else 0


def jobs_of(options: argparse.Namespace) -> list[BenchJob]:
    """One job for each method and seed. Raises BadInput for invalid names and numbers."""
    from edgecl.evaluation.bench import BenchJob

    try:
        seeds = [int(part) for part in options.seeds.split(",")]
    except ValueError as error:
        raise BadInput(f"--seeds {options.seeds!r}", "give whole numbers such as 0,1,2") from error
    methods = [part.strip() for part in options.method.split(",") if part.strip()]
    if not methods:
        raise BadInput("--method names no method", "give one or more, such as er,icarl; `edgecl methods` lists them")
    return [BenchJob(method, options.data, options.scenario, options.steps, parse_size(options.memory), seed,
                     options.epochs, options.batch, options.rate, options.backbone, options.multi_head,
                     options.order, options.per_class, options.blocks)
            for method in dict.fromkeys(methods) for seed in dict.fromkeys(seeds)]


def _check_out(out: Path | None) -> None:
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise BadInput(f"--out {out} is not a folder", "name a folder; it is created if it does not exist")
    if find_spec("matplotlib") is None:
        raise BadInput("plots need matplotlib", "pip install 'edgecl[report]'")


@contextlib.contextmanager
def _progress(jobs: Sequence[BenchJob]) -> Iterator[Any]:
    """What to call with each step of a running job: a bar on stderr, if it is a terminal."""
    if not sys.stderr.isatty():
        yield lambda job, step: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    places = {job: place for place, job in enumerate(jobs)}
    with Progress(TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn(),
                  console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"{jobs[0].method}, seed {jobs[0].seed}", total=len(jobs))

        def watch(job: BenchJob, step: dict[str, Any]) -> None:
            bar.update(task, completed=places[job] + step["step"] / step["of"],
                       description=f"{job.method}, seed {job.seed}: step {step['step']} of {step['of']}, accuracy "
                                   f"{step['accuracy']:.3f}; run {places[job] + 1} of {len(jobs)}")

        yield watch


def methods(options: argparse.Namespace) -> None:
    """List the methods, or print one's .toml."""
    from edgecl.evaluation.bench import method_file
    from edgecl.rounds.method import method_names, read_method

    if options.show:
        if not options.name:
            raise BadInput("`edgecl methods show` names no method", f"give one of {', '.join(method_names())}")
        method = read_method(options.name)
        if options.json:
            print_json(method.as_json())
        else:
            print(method_file(options.name).read_text("utf-8").rstrip())
        return
    every = [read_method(name) for name in method_names()]
    if options.json:
        print_json([method.as_json() for method in every])
        return
    print(f"{len(every)} methods; `edgecl methods show NAME` prints one with its numbers and sources\n")
    print(aligned(["method", "parts, paper"], [[method.name, "\n".join([
        ", ".join(f"{kind} {name}" for kind, names in method.parts.items() for name in names if name != "none"),
        *textwrap.wrap(method.paper, 64)])] for method in every]))


# what is shown -------------------------------------------------------------------------------------


def more(result: Result) -> dict[str, float | None]:
    """What follows from the fields of a result."""
    from edgecl.evaluation import metrics

    aware = result["task_aware_matrix"]
    return {"average_without_first_step": metrics.average_incremental_accuracy(result["step_accuracy"], first=False),
            "backward_transfer": metrics.backward_transfer(result["accuracy_matrix"]),
            "task_aware_forgetting": metrics.forgetting(aware) if aware else None,
            "accuracy_per_byte": metrics.accuracy_per_byte(result["final_accuracy"], result["memory_bytes"])}


def by_method(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The results of each method, in order of appearance; methods of .toml files by the file's name."""
    found: dict[str, list[Result]] = {}
    for result in results:
        found.setdefault(result["method"], []).append(result)
    return found


def title(job: BenchJob, results: Sequence[Result]) -> str:
    """What was run."""
    first, seeds = results[0], len({result["seed"] for result in results})
    epochs = f"{counted(job.epochs, 'epoch')} per step"
    return (f"{job.data}, {first['scenario']}: {counted(first['classes'], 'class')} in "
            f"{counted(first['steps'], 'step')}, {format_size(job.memory)} for exemplars, {epochs}"
            + (f"; median of {seeds} seeds, range below" if seeds > 1 else ""))


def _cell(results: Sequence[Result], name: str, form: str = "{:.3f}", between: str = "\n") -> str:
    """The median, and below it the range, if there are several."""
    from edgecl.evaluation.metrics import spread

    middle, least, most = (form.format(value) for value in spread([result[name] for result in results]))
    return middle if least == most else f"{middle}{between}{least.removeprefix('0')}-{most.removeprefix('0')}"


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]], right: bool = False) -> str:
    """A table as text; a cell may have several lines; right: align columns after the first to the right."""
    lines = [list(columns), ["-" * len(column) for column in columns]]
    for row in rows:
        cells = [cell.split("\n") for cell in row]
        lines += [[cell[i] if i < len(cell) else "" for cell in cells] for i in range(max(map(len, cells)))]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    return "\n".join("  ".join(cell.rjust(width) if right and i else cell.ljust(width)
                               for i, (cell, width) in enumerate(zip(line, widths))).rstrip() for line in lines)


def _size(results: Sequence[Result], name: str) -> str:
    from edgecl.evaluation.metrics import spread

    return format_size(spread([result[name] for result in results])[0])


def table(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows for the terminal."""
    known = results[0]["task_aware_accuracy"] is not None
    columns = COLUMNS[:4] + ["task known"] * known + COLUMNS[4:]
    rows = []
    for method, mine in by_method(results).items():
        rows.append([Path(method).stem, *(_cell(mine, name) for name in (
            "average_incremental_accuracy", "final_accuracy", "forgetting", *["task_aware_accuracy"] * known)),
            _size(mine, "memory_bytes"), _cell(mine, "samples_per_second", "{:,.0f}").split("\n")[0],
            _size(mine, "peak_rss_bytes")])
    return columns, rows


def write_page(job: BenchJob, results: Sequence[Result], path: Path) -> None:
    """The report: plots, and tables with every measure."""
    from edgecl.evaluation.metrics import spread
    from edgecl.evaluation.report import (
        bars,
        curves,
        heading,
        paragraph,
        scatter,
        table,
        tasks_and_units,
        write_report,
    )

    methods = {Path(method).stem: [{**result, **more(result)} for result in mine]
               for method, mine in by_method(results).items()}
    steps = list(range(1, results[0]["steps"] + 1))

    def middle(mine: list[Result], name: str) -> float:
        return spread([result[name] for result in mine])[0]

    def row(mine: list[Result]) -> list[str]:
        cells = [_cell(mine, name, "{:.3f}", " ") for name in MEASURES if mine[0][name] is not None]
        return [*cells, *(_size(mine, name) for name in ("memory_bytes", "peak_rss_bytes")),
                _cell(mine, "train_seconds", "{:.3g}", " "), _cell(mine, "samples_per_second", "{:,.0f}", " ")]

    shown = [text for name, text in MEASURES.items()
             if {**results[0], **more(results[0])}[name] is not None]
    accuracies = {name: [spread([result["step_accuracy"][i] for result in mine])[0] for i in range(len(steps))]
                  for name, mine in methods.items()}
    pictures: list[str] = []
    for name, mine in methods.items():
        if mine[0]["units_used"]:
            pictures += [heading(f"{name}: what each task uses"), paragraph(
                f"Seed {mine[0]['seed']}. The darker a unit, the more of its inputs are part of the task's "
                "sub-network."), tasks_and_units(mine[0]["units_used"])]
    names = list(methods)
    seeds = sorted({result["seed"] for result in results})
    write_report(path, "edgecl bench", f"{title(job, results)}. Seeds {', '.join(map(str, seeds))}; lines and bars are "
                 "medians.", [
        heading("Accuracy after each step, on all classes so far"), curves(steps, accuracies, "step", "accuracy"),
        table(["method", *shown, "kept", "peak memory", "seconds", "new samples/s"],
              [[name, *row(mine)] for name, mine in methods.items()]),
        paragraph(LEGEND.replace("\n", " ")),
        heading("Forgetting"),
        bars(names, {"forgetting": [middle(mine, "forgetting") for mine in methods.values()]},
             "best earlier accuracy less the final one", "{:.3f}"),
        heading("Accuracy for the bytes"),
        scatter({name: (middle(mine, "memory_bytes"), middle(mine, "final_accuracy"))
                 for name, mine in methods.items()}, "bytes kept between steps", "final accuracy"),
        heading("Seconds of training"),
        bars(names, {"seconds": [middle(mine, "train_seconds") for mine in methods.values()]}, "seconds, all steps"),
        heading("Step by step"),
        table(["method", *map(str, steps)], [[name, *(f"{value:.3f}" for value in values)]
                                             for name, values in accuracies.items()]), *pictures])


MEASURES = {"average_incremental_accuracy": "average", "average_without_first_step": "without first step",
            "final_accuracy": "final", "forgetting": "forgetting", "backward_transfer": "backward transfer",
            "task_aware_accuracy": "task known", "task_aware_forgetting": "forgotten, task known"}
