"""`edgecl review`: what was not known or not sure, in clusters: list, look at, name, throw away."""
from __future__ import annotations

import argparse
import base64
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecl.commands import opened, percent, print_json, print_table, socket_path
from edgecl.errors import BadInput, StateError
from edgecl.runtime.client import Client, NoDaemon
from edgecl.runtime.review import review_of
from edgecl.runtime.review_json import packed
from edgecl.runtime.settings import DaemonSettings, read_settings
from edgecl.settings import counted, format_size

if TYPE_CHECKING:
    from edgecl.learner import Learner

LIST = "see `edgecl review --help`"


def review(options: argparse.Namespace) -> None:
    """List the clusters, or do with them what is asked."""
    {"list": _list, "export": _export, "name": _name, "drop": _drop}[options.action](options)


class DirectReview:
    """The list that the last daemon has left; each method answers as the daemon's command of that name."""

    def __init__(self, learner: Learner, below: float) -> None:
        self._learner, self._review = learner, review_of(learner, below)

    def ask(self, command: str, **values: Any) -> Any:
        """The answer to a command."""
        return getattr(self, command)(**values)

    def review(self) -> dict[str, Any]:
        """See `Service.review`."""
        return self._review.to_json()

    def review_frames(self, number: int) -> list[dict[str, Any]]:
        """See `Service.review_frames`."""
        return self._review.frames(number)

    def review_sample(self, number: int) -> dict[str, Any]:
        """A frame as the control socket gives it."""
        return packed(self._review.frame(number).sample())

    def review_name(self, number: int, label: str, frames: list[int] | None, distinct: bool) -> dict[str, Any]:
        """See `Service.review_name`."""
        learned = self._review.name(number, label, frames, lambda samples, name: asdict(
            self._learner.learn(samples, name, distinct=distinct)))
        self._save()
        return learned

    def review_drop(self, number: int) -> dict[str, int]:
        """See `Service.review_drop`."""
        return self._dropped(self._review.drop(number))

    def review_drop_frames(self, frames: list[int]) -> dict[str, int]:
        """See `Service.review_drop_frames`."""
        return self._dropped(self._review.drop_frames(frames))

    def review_clear(self) -> dict[str, int]:
        """See `Service.review_clear`."""
        return self._dropped(self._review.clear())

    def _dropped(self, count: int) -> dict[str, int]:
        self._save()
        return {"dropped": count}

    def _save(self) -> None:
        self._review.save(self._learner.store, at_once=True)
        if self._review.problem:
            raise StateError(self._review.problem, "free some space, then try again")


@contextmanager
def _listed(options: argparse.Namespace) -> Iterator[Callable[..., Any]]:
    """What answers a command: the daemon that serves the state, or the list that the last one has left."""
    client: Client | None = None
    with suppress(NoDaemon):
        client = Client(socket_path(options))
    if client is None:
        below = read_settings(options.config).review_below if options.config else DaemonSettings.review_below
        with opened(options) as learner:
            yield DirectReview(learner, below).ask
        return
    with client:
        yield client.ask


def _list(options: argparse.Namespace) -> None:
    if options.values:
        raise BadInput(f"`edgecl review list` takes no {options.values[0]!r}", LIST)
    with _listed(options) as ask:
        found = ask("review")
    if options.json:
        print_json(found)
        return
    rows = [[str(each["id"]), str(each["frames"]), str(each["seen"]), _time(each["last"]), ", ".join(each["sources"]),
             f"{each['label'] or '-'}" + ("" if each["confidence"] is None else f" ({percent(each['confidence'])})"),
             "unknown" if each["unknown"] else "not sure"] for each in found["clusters"]]
    shown = counted(sum(each["frames"] for each in found["clusters"]), "frame")
    title = f"{counted(len(rows), 'cluster')} of {shown} that are not known or not sure ({format_size(found['bytes'])})"
    if rows:
        print_table(title, ["cluster", "frames", "seen", "last (UTC)", "source", "nearest", "answer"], rows)
    else:
        print("nothing was gathered that is not known or not sure")
    notes = [(found["known_by_now"], "known by now, and in no cluster"),
             (found["absorbed"], "became one with a frame like it because room was short"),
             (found["passed"], "came within a second of the last one, and were not kept")]
    for number, what in notes:
        if number:
            print(f"{counted(number, 'frame')}: {what}")
    if found.get("problem"):
        print(f"note: {found['problem']}")


def _export(options: argparse.Namespace) -> None:
    """Write frames as files: DIR/CLUSTER/FRAME.png or .csv."""
    if not options.values:
        raise BadInput("no folder was named", "give `edgecl review export DIR`, or some clusters behind it")
    out, wanted = Path(options.values[0]), _numbers(options.values[1:])
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise StateError(f"{out} exists already", "choose another name, or delete it first")
    done = []
    with _listed(options) as ask:
        for cluster in wanted or [each["id"] for each in ask("review")["clusters"]]:
            done += [_write(out / str(cluster), frame["id"], ask("review_sample", number=frame["id"]))
                     for frame in ask("review_frames", number=cluster)]
    if options.json:
        print_json({"files": [str(path) for path in done]})
    else:
        folders = counted(len({path.parent for path in done}), "cluster")
        print(f"wrote {counted(len(done), 'frame')} of {folders} to {out}")


def _write(folder: Path, number: int, given: dict[str, Any]) -> Path:
    """Write a frame as a picture or a table that `edgecl learn` reads; its path. Raises StateError."""
    values = np.frombuffer(base64.b64decode(given["data"]), np.dtype(given["dtype"]).newbyteorder("<"))
    sample: np.ndarray = values.reshape(given["shape"])
    path = folder / f"{number}.{'png' if sample.dtype == np.uint8 else 'csv'}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if sample.dtype == np.uint8:
            from PIL import Image

            Image.fromarray(sample[..., 0] if sample.ndim == 3 and sample.shape[2] == 1 else sample).save(path)
        else:
            np.savetxt(path, np.atleast_2d(sample), "%.9g", ",")
    except OSError as error:
        raise StateError(f"{path} can't be written ({error.strerror})", "check the path, the rights and the disk"
                         ) from error
    return path


def _name(options: argparse.Namespace) -> None:
    """Teach a cluster."""
    if len(options.values) != 2:
        raise BadInput("a cluster and a class are needed", "give `edgecl review name CLUSTER CLASS`")
    (number,), label = _numbers(options.values[:1]), options.values[1]
    only = _numbers(options.frames.split(",")) if options.frames else None
    with _listed(options) as ask:
        learned = ask("review_name", number=number, label=label, frames=only, distinct=options.distinct)
    if options.json:
        print_json(learned)
        return
    more = [f"{learned['known']} already known" if learned.get("known") else "",
            f"{learned['left_out']} that show nothing" if learned.get("left_out") else ""]
    print(f"learned {counted(learned['samples'], 'sample')} of {learned['label']}; generation {learned['generation']}"
          + (f"; left out: {', '.join(filter(None, more))}" if any(more) else ""))


def _drop(options: argparse.Namespace) -> None:
    """Throw clusters, single frames or all away."""
    if sum([bool(options.values), options.frames is not None, options.all]) != 1:
        raise BadInput("what is to be thrown away was not named, or twice",
                       "give `edgecl review drop CLUSTER...`, `--frames 3,5`, or `--all`")
    with _listed(options) as ask:
        if options.all:
            done = [ask("review_clear")]
        elif options.frames is not None:
            done = [ask("review_drop_frames", frames=_numbers(options.frames.split(",")))]
        else:
            done = [ask("review_drop", number=number) for number in dict.fromkeys(_numbers(options.values))]
    count = sum(each["dropped"] for each in done)
    if options.json:
        print_json({"dropped": count})
    else:
        print(f"threw {counted(count, 'frame')} away")


def _numbers(texts: Iterable[str]) -> list[int]:
    """The numbers that somebody has written. Raises BadInput."""
    found = []
    for text in texts:
        if not (text.strip().isascii() and text.strip().isdigit() and len(text.strip()) <= 15):
            raise BadInput(f"{text!r} is not the number of a cluster or frame", "write it as `edgecl review` lists it")
        found.append(int(text))
    return found


def _time(text: str) -> str:
    return text.replace("T", " ").partition("+")[0]
