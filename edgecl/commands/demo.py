"""`edgecl demo`."""
from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from edgecl.commands import percent, print_json, print_table


def demo(options: argparse.Namespace) -> None:
    """Run the demo and show its table."""
    from edgecl.evaluation.demo import STEP_COLUMNS, row, timed

    if options.serial:
        demo_serial(options)
        return

    def say(line: str) -> None:
        print(line, file=sys.stderr if options.json else sys.stdout, flush=True)

    done, seconds = timed(options.out, say)
    if options.json:
        print_json({"steps": [asdict(step) for step in done.steps], "test_windows": done.test_windows,
                    "head": done.head, "round": None if done.round is None else {
                        "accepted": done.round.accepted, "method": done.round.method, "accuracy": done.tuned},
                    "exported_accuracy": done.exported, "seconds": round(seconds, 2),
                    "report": str(done.out / "report.html"), "model": str(done.out / "model.onnx")})
        return
    print()
    print_table("accuracy on people never seen, over all classes so far", STEP_COLUMNS,
                [row(number, step) for number, step in enumerate(done.steps, 1)])
    if done.round is not None:
        verdict = f"took it: generation {done.round.generation} serves" if done.round.accepted else "refused it"
        why = next((found for name, found, passed in done.round.checks if not passed), done.round.checks[-2][1])
        print(f"learning round ({done.round.method}, {done.round.seconds:.0f} s): the gate {verdict} ({why}); "
              f"right on {percent(done.tuned)} now")
    print(f"{done.out / 'model.onnx'}: by ONNX Runtime alone right on {percent(done.exported)} of the same windows\n"
          f"{done.out / 'report.html'}: the curve and the table\n"
          f"{seconds:.0f} s in all; try `edgecl status --state {done.out / 'state'}`")


def demo_serial(options: argparse.Namespace) -> None:
    """The same recordings through the firmware bridge."""
    from edgecl.evaluation.demo_serial import run

    done = run(options.out, lambda line: print(line, file=sys.stderr if options.json else sys.stdout, flush=True))
    if options.json:
        print_json(asdict(done))
        return
    print_table("windows of people never seen, named right", ["class", "learned", "asked", "from files", "from serial"],
                [[row.label, "/".join(map(str, row.learned)), "/".join(map(str, row.asked)),
                  *(percent(right / asked) for right, asked in zip(row.right, row.asked))] for row in done.rows])
    print(f"in all {percent(done.from_file)} from files, {percent(done.from_serial)} through firmware and serial line "
          f"({100 * (done.from_serial - done.from_file):+.2f} points)")
