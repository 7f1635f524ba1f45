#!/usr/bin/env python3
"""Damages one file of a state, and checks that nothing is lost without a word.

    tools/corrupt.py [--flips 400] [--others 100] [--jobs 2] [--seed 0] [--folder DIR]

The files of six kinds of state (tools/corruptions.py) are damaged one at a time: a bit is flipped, or a file is cut,
zeroed, overwritten, swapped, deleted, appended to, replaced by an older version or by a folder. Then the state is
looked at by `check`, opened, asked, taught, opened again, and looked at by `doctor`, in a fork of this process, which
has imported everything; a copy is repaired by `check --repair`. What came of it is one of:

    harmless    the newest generation answers, everything is known, and it learns on
    said        the same, but something is lost, and `damage` says so
    no learning the newest generation answers; `learn` is refused, with words
    older       an older generation answers, and `damage` says so
    refused     it can't be opened or asked, with words
    SILENT      answers or knowledge differ, and nothing says so; or `check` calls all files intact
    BROKEN      what was learned since is lost, the quota is passed, looking has changed a file, or repairing has lost
                more
    CRASHED     a traceback, or no end after minutes of processor time

Prints a table, a row for each kind of file, with the share in which the newest generation still answers; exits with 1
if anything was silent, broken or crashed. --folder: results are kept there, and a run that was stopped goes on.
"""
from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any

from corruptions import STATES, Damage, files_of, flip, other
from crash import child, wait
from state_view import NEW, View, counts, differences, in_fork, look, only_look, over_quota, part, samples
from vector_states import tree

from edgecl.cli import main as command
from edgecl.commands import doctor
from edgecl.learner import Learner

NEWEST = ("harmless", "said", "no learning")
WORDS = (*NEWEST, "older", "refused", "SILENT", "BROKEN", "CRASHED")
BAD = ("SILENT", "BROKEN", "CRASHED")
KNOWN = ("answers", "classes", "means", "moment", "residual", "exemplars", "stored", "history")


def trial(state: Path) -> View:
    """What a state shows, whether it learns, and what it knows when it is opened again; first what a process without
    write access sees, and what `check` says; at last what is there if it is repaired at once."""
    before = tree(state)
    shutil.copytree(state, copy := state.with_name(f"{state.name}-repaired"))
    code, (seen, broken) = run("check", "--state", state), only_look(state)
    if tree(state) != before:
        broken.append("`check` has changed a file")
    view = {"check": code, "seen": seen, "broken": broken, "repaired": part(lambda: repaired(copy))}
    shutil.rmtree(copy)
    learner = Learner.open(state)
    view |= look(learner)
    view["warnings"] = part(lambda: learner.status().warnings)
    view["learn"] = part(lambda: learner.learn(samples(learner, NEW, 20), NEW).label)
    view["then"] = part(lambda: counts(learner))
    view["close"] = part(learner.close)
    again = Learner.open(state)
    view["again"], view["still"] = part(lambda: counts(again)), part(lambda: bool(again.damage))
    view["asked"] = part(lambda: [each.label for each in again.predict(samples(again, NEW, 2))])
    again.close()
    broken += over_quota(state)
    found = doctor.state(argparse.Namespace(state=state, config=None))
    view["doctor"] = [each.level for each in found if each.check == "state"]
    return view


def repaired(state: Path) -> View:
    """What a repaired state knows, and whether it learns."""
    run("check", "--repair", "--state", state)
    with closing(Learner.open(state)) as learner:
        return {"counts": counts(learner), "learn": part(lambda: learner.learn(samples(learner, NEW, 20), NEW).label)}


def run(*words: object) -> int:
    """The exit code of a command line."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return command([str(word) for word in words])


def judge(found: View, whole: View) -> tuple[str, str]:
    """One of WORDS for what a damaged state showed, beside a whole one, and details."""
    if "crashed" in found:
        return "CRASHED", found["crashed"]
    if "refused" in found:
        return "refused", found["refused"]
    apart = [name for name in KNOWN if name in differences(found, whole)]
    said = alarms_in(found)
    detail = "; ".join(said)
    learned = not str(found["learn"]).startswith("refused")
    if not isinstance(found["answers"], list):
        return "refused", detail
    if apart and not said:
        return "SILENT", f"other {', '.join(apart)}"
    if found["broken"]:
        return "BROKEN", "; ".join(found["broken"])
    seen = [name for name in KNOWN if name in differences(found["seen"], whole)]
    if seen and not alarms_in(found["seen"]):
        return "SILENT", f"to a reader other {', '.join(seen)}"
    if isinstance(found["repaired"], dict) and isinstance(found["classes"], list) and isinstance(found["means"], dict):
        after = found["repaired"]
        if any(after["counts"].get(name, 0) < count for name, count, _ in found["classes"]) or (
                learned and after["learn"] != NEW):
            return "BROKEN", f"repaired, it knows {after['counts']}, not {found['classes']}; learn: {after['learn']}"
    if learned and isinstance(found["classes"], list):
        should = {NEW: 20, **{name: count for name, count, _ in found["classes"]}}
        if found["then"] != should or found["again"] != should:
            return "BROKEN", f"learned, it knows {found['then']}, opened again {found['again']}, not {should}"
    if "answers" in apart:
        return "older", detail
    if not learned:
        return "no learning", detail
    return ("said" if found["damage"] else "harmless"), detail


def alarms_in(view: View) -> list[str]:
    """Everything that a view says of damage: what `damage` names, and what was refused."""
    damage = view.get("damage", [])
    return [*(damage if isinstance(damage, list) else []),
            *(f"{name}: {value}" for name, value in view.items() if isinstance(value, str)
              and (name == "refused" or value.startswith("refused: ")))]


def prepare(folder: Path) -> None:
    """Make the states, and look at each as it is."""
    for kind, make in STATES.items():
        place = folder / kind
        if (place / "whole.json").exists():
            continue
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        if wait(child(lambda make=make, place=place: make(place / "state", place / "older"))[0]) != 0:
            raise SystemExit(f"the state {kind!r} could not be made")
        files = in_fork(lambda place=place: files_of(place / "state"), place / "answer")
        shutil.copytree(place / "state", place / "copy")
        whole = in_fork(lambda place=place: trial(place / "copy"), place / "answer")
        shutil.rmtree(place / "copy")
        if judge(whole, whole)[0] != "harmless":
            raise SystemExit(f"the state {kind!r} is not whole: {whole}")
        (place / "whole.json").write_text(json.dumps([files, whole]))


def damaged(folder: Path, copy: Path, seed: int, number: int, flips: int) -> tuple[str, Damage]:
    """Make a copy of a state and damage it: the kind of state, and what was done. number: of the trial; the first
    `flips` flip a bit."""
    rng = random.Random(f"{seed} {number}")
    kind = list(STATES)[number % len(STATES)]
    files = json.loads((folder / kind / "whole.json").read_text())[0]
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder / kind / "state", copy)
    return kind, flip(copy, files, rng) if number < flips else other(copy, files, rng, folder / kind / "older")


def share(folder: Path, numbers: list[int], seed: int, flips: int, job: int) -> None:
    """Do some trials, and append what came of each to the results."""
    whole = {kind: json.loads((folder / kind / "whole.json").read_text())[1] for kind in STATES}
    gc.freeze()     # else a collection in a fork copies every page of this process
    copy, answer = folder / f"copy{job}", folder / f"answer{job}"
    with (folder / "results").open("a") as results:
        for number in numbers:
            kind, damage = damaged(folder, copy, seed, number, flips)
            changed = tree(copy) != tree(folder / kind / "state")
            found = in_fork(lambda: trial(copy), answer)
            word, detail = judge(found, whole[kind])
            if changed and damage.name.startswith("models/") and found.get("check") == 0 and word not in BAD:
                word, detail = "SILENT", "`edgecl check` calls everything intact"
            after = found.get("repaired")
            learns = isinstance(after, dict) and after["learn"] == NEW
            results.write(json.dumps([number, kind, *damage, word, learns, detail]) + "\n")
            results.flush()
            for path in (copy, copy.with_name(f"{copy.name}-repaired")):
                shutil.rmtree(path, ignore_errors=True)


def campaign(folder: Path, flips: int, others: int, jobs: int, seed: int = 0) -> list[list[Any]]:
    """All trials that are not among the results in the folder; each with its number, kind of state, damage and what
    came of it."""
    folder.mkdir(parents=True, exist_ok=True)
    prepare(folder)
    results = folder / "results"
    done = {row[0] for row in rows(results)}
    open_ones = [number for number in range(flips + others) if number not in done]
    workers = [child(lambda job=job: share(folder, open_ones[job::jobs], seed, flips, job))[0] for job in range(jobs)]
    codes = [wait(worker) for worker in workers]
    if any(codes):
        raise SystemExit("a worker failed")
    return sorted(rows(results))


def rows(results: Path) -> list[list[Any]]:
    """What is in a file of results."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def table(found: list[list[Any]]) -> list[str]:
    """A row for each kind of file, and one for all."""
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for _, _, what, _, kind, word, *_ in found:
        for name in (f"{kind}, {'flips' if what.startswith('bit') else 'others'}", "all"):
            kinds[name][word] += 1
    lines = [f"{'file':26}{'trials':>7}{''.join(f'{word:>12}' for word in WORDS)}{'newest':>9}"]
    for name in sorted(kinds, key=lambda name: (name == "all", name)):
        c = kinds[name]
        share = sum(c[word] for word in NEWEST) / c.total()
        lines.append(f"{name:26}{c.total():7}{''.join(f'{c[word]:12}' for word in WORDS)}{share:9.1%}")
    return lines


def main() -> int:
    """Run the campaign and print its table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--flips", type=int, default=400, metavar="N")
    options.add_argument("--others", type=int, default=100, metavar="N")
    options.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N")
    options.add_argument("--seed", type=int, default=0, metavar="N")
    options.add_argument("--folder", type=Path, metavar="DIR")
    given = options.parse_args()
    started, memory = time.monotonic(), Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as temporary:
        found = campaign(given.folder or Path(temporary), given.flips, given.others, given.jobs, given.seed)
    shown = Counter[tuple[str, str]]()
    for number, kind, what, name, of, word, _, detail in found:
        shown[of, word] += 1
        if word in BAD and shown[of, word] <= 3:
            print(f"{number}: {kind}, {name}: {what}: {word}: {detail}")
    print("\n".join(table(found)))
    stuck = [learns for *_, word, learns, _ in found if word in ("no learning", "refused")]
    print(f"{sum(stuck)} of {len(stuck)} that were refused or did not learn do so after `edgecl check --repair`")
    bad = sum(word in BAD for *_, word, _, _ in found)
    print(f"{len(found)} trials, {bad} silent, broken or crashed, in {time.monotonic() - started:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
