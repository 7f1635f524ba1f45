"""The review list: frames that are not known or not sure, gathered in clusters for a person to name or throw away.

The loop only adds a frame; clusters are computed when somebody looks. The id of a cluster is the number of its oldest
frame, and the number of any of its frames stands for it, so that it stays valid while the cluster grows.
"""
from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecl.errors import BadInput, BudgetError, EdgeclError, StateError
from edgecl.learning.gathered import MOST_BYTES, QUOTA_SHARE, Gathered, GatheredFrame, clusters
from edgecl.runtime.review_json import FrameAnswer, cluster_json, frame_json
from edgecl.samples import NOTHING, Sample, prepare
from edgecl.state.gathered_file import GATHERED_FILE, discard_gathered, read_gathered
from edgecl.state.gathered_writer import write_gathered

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgecl.learner import Learner
    from edgecl.learning.serving import Serving
    from edgecl.results import Prediction
    from edgecl.state.store import Store

    Teach = Callable[[list[Sample], str], dict[str, Any]]

PAUSE_SECONDS = 1.0         # between two frames of one source that are kept
SAVE_SECONDS = 3600.0       # between two writes of the file, but for what a person does and the end
SHOWN = 60                  # characters of a value in a message
LIST = "list them with `edgecl review`"


class Review:
    """The list; any thread may use it. below: frames with less confidence are put on it; quota: of the state, in bytes;
    keeps: whether frames may come to the disk."""

    def __init__(self, below: float, quota: int, keeps: bool) -> None:
        self._below, self._keeps = below, keeps
        self._gathered = Gathered(min(MOST_BYTES, quota // QUOTA_SHARE))
        self._lock = threading.Lock()
        self._last: dict[str, float] = {}
        self._taught = set[int]()               # frames that are being taught
        self._serving: Serving | None = None
        self._passed = self._forgotten = 0
        self._version = self._saved = 0         # of the frames, and of those on the disk
        self._due = 0.0
        self._found: tuple[object, list[list[int]], dict[int, FrameAnswer]] = None, [], {}
        self.problem = ""       # with the file, for people; "" for none

    def reload(self, below: float) -> None:
        """Another confidence from now on."""
        self._below = below

    # gathering ----------------------------------------------------------------------------------

    def see(self, answer: Prediction, sample: np.ndarray, feature: NDArray[np.float32], backbone: str) -> None:
        """Take a classified frame, and put it on the list if it belongs there. backbone: that computed the feature."""
        if answer.label is None or not self._uncertain(answer):     # `nothing` and a black picture need no name
            return
        with self._lock:
            gathered, now = self._gathered, time.monotonic()
            if gathered.backbone != backbone:   # another one is about to serve
                return
            room = now - self._last.get(answer.source, -PAUSE_SECONDS) >= PAUSE_SECONDS
            before = gathered.newest
            if not gathered.see(answer.source, int(time.time()), sample, feature, room):
                self._passed += 1
            elif gathered.newest != before:
                self._last[answer.source] = now
                self._version += 1

    def _uncertain(self, answer: Prediction | FrameAnswer) -> bool:
        return bool(answer.unknown or answer.confidence < self._below)

    def follow(self, serving: Serving | None, learner: Learner, forgotten: int) -> None:
        """Have what serves from now on judge the frames; by another backbone, their features are computed again.
        forgotten: the newest generation that has forgotten a class: later than at the last call, all frames are thrown
        away. To be called in the thread that owns the learner."""
        if forgotten > self._forgotten:
            self.clear()
        self._forgotten = forgotten
        power = spread = None
        with suppress(StateError):      # damaged: as before
            known = learner.repository.known()
            power = known.transforms[0].power
            if known.labels:
                spread = known.plain.spread(np.zeros((1, known.plain.dimension), np.float32))
        with self._lock:
            self._serving = serving
            self._gathered.spread = self._gathered.spread if spread is None else spread
            if serving is None or self._gathered.backbone == serving.backbone_name:
                self._gathered.measure(self._gathered.backbone, power or 1.0, self._gathered.features)
                return
            self._gathered.backbone, frames = "", list(self._gathered.frames)   # nothing is taken meanwhile
        features, fits = self._computed(frames, serving)
        with self._lock:
            self._gathered.remove({frame.number for frame in self._gathered.frames} - fits.keys())
            rows = [features[fits[frame.number]] for frame in self._gathered.frames]
            self._gathered.measure(serving.backbone_name, power or 1.0, np.stack(rows) if rows else features[:0])
            self._version += 1

    def _computed(self, frames: list[GatheredFrame], serving: Serving) -> tuple[NDArray[np.float32], dict[int, int]]:
        """The features of frames by another backbone, float32 [m, d], and the row of each frame that fits it."""
        info, rows, fits = serving.backbone.info, list[np.ndarray](), dict[int, int]()
        for frame in frames:
            with suppress(EdgeclError):     # damaged, or of another form
                fitted = prepare(frame.sample()[None], info.kind, info.input_shape)
                rows.append(serving.backbone.features(fitted)[0])
                fits[frame.number] = len(rows) - 1
        return np.stack(rows) if rows else np.empty((0, 0), np.float32), fits

    # looking ------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """See `Service.review`."""
        parts, answers = self._parts()
        with self._lock:
            there = {frame.number: frame for frame in self._gathered.frames}
            about = {"frames": len(there), "bytes": self._gathered.size, "absorbed": self._gathered.absorbed,
                     "passed": self._passed, "on_disk": self._keeps and not self.problem}
        found = [[there[number] for number in part if number in there] for part in parts]
        listed = [cluster_json(part, answers) for part in found if part]
        listed.sort(key=lambda each: (-each["seen"], each["id"]))
        shown = sum(each["frames"] for each in listed)
        return {"clusters": listed, **about, "known_by_now": about["frames"] - shown,
                **({"problem": self.problem} if self.problem else {})}

    def frames(self, number: int) -> list[dict[str, Any]]:
        """See `Service.review_frames`."""
        part, answers = self._cluster(number)
        with self._lock:
            there = {frame.number: frame for frame in self._gathered.frames}
        return [frame_json(there[each], answers) for each in part if each in there]

    def frame(self, number: int) -> GatheredFrame:
        """A frame. Raises BadInput if it is not on the list any more."""
        with self._lock:
            found = [frame for frame in self._gathered.frames if frame.number == number]
        if not found:
            raise BadInput(f"frame {number} is not on the review list: it was named or thrown away, or became one with "
                           "a frame like it", LIST)
        return found[0]

    def _cluster(self, number: int) -> tuple[list[int], dict[int, FrameAnswer]]:
        """The numbers of the frames of a cluster, the most typical first. Raises BadInput."""
        parts, answers = self._parts()
        with self._lock:
            standing = self._gathered.standing(number)
        for part in parts:
            if standing in part:
                return part, answers
        raise BadInput(f"cluster {number} is not on the review list: it was named or thrown away, or is known by now",
                       LIST)

    def _parts(self) -> tuple[list[list[int]], dict[int, FrameAnswer]]:
        """The clusters of the frames that are uncertain by what serves now, as numbers, the most typical first."""
        with self._lock:
            gathered, serving = self._gathered, self._serving
            key = self._version, serving, gathered.spread, self._below
            if self._found[0] == key:
                return self._found[1:]
            numbers, squared = [frame.number for frame in gathered.frames], gathered.squared
            features, unit = gathered.features, gathered.unit
        answers: dict[int, FrameAnswer] = {}
        if serving is not None and numbers and len(features) == len(numbers):
            probabilities, unknown = serving.head(features)
            best = probabilities.argmax(1)
            for place, number in enumerate(numbers):
                label = serving.head.labels[int(best[place])]
                answers[number] = FrameAnswer(None if label == NOTHING else label, float(probabilities[place].max()),
                                           unknown is not None and bool(unknown[place]))
        chosen = [place for place, number in enumerate(numbers) if number not in answers
                  or (answers[number].label is not None and self._uncertain(answers[number]))]
        parts = [[numbers[place] for place in sorted(each, key=lambda place: (squared[place, each].mean(), place))]
                 for each in clusters(squared, unit, chosen)]
        with self._lock:
            self._found = key, parts, answers
        return parts, answers

    # deciding -----------------------------------------------------------------------------------

    def name(self, number: int, label: str, only: Sequence[int] | None, teach: Teach) -> dict[str, Any]:
        """Teach a cluster as one class, and take its frames off the list; what `teach` returns. only: these frames
        instead of all. Raises BadInput, also if one is being taught, and what `teach` raises; then they stay."""
        chosen = self._cluster(number)[0] if only is None else self._numbers(only)
        with self._lock:
            self._check_free(chosen)
            self._taught |= {*chosen}
        try:
            samples = [Sample(frame.sample(), frame.source, frame.source) for frame in map(self.frame, chosen)]
            learned = teach(samples, label)
            self._remove(chosen)
        finally:
            with self._lock:
                self._taught -= {*chosen}
        return learned

    def drop(self, number: int) -> int:
        """Throw a cluster away; how many frames. Raises BadInput if it is not there any more, or is being taught."""
        return self._dropped(self._cluster(number)[0])

    def drop_frames(self, numbers: Sequence[int]) -> int:
        """Throw single frames away; how many. Raises BadInput if one is not there any more, or is being taught; then
        none is gone."""
        return self._dropped(self._numbers(numbers))

    def _dropped(self, numbers: list[int]) -> int:
        with self._lock:
            self._check_free(numbers)
        return self._remove(numbers)

    def _check_free(self, numbers: Iterable[int]) -> None:
        """Raises BadInput if one of these frames is being taught: it would be in two classes, or taught and thrown
        away."""
        if taught := self._taught.intersection(numbers):
            raise BadInput(f"frame {min(taught)} is being taught at this moment", f"wait, then {LIST}")

    def _numbers(self, numbers: Sequence[int]) -> list[int]:
        """The numbers of frames, each once. Raises BadInput if one is not there, or none was given."""
        if not numbers or not all(type(number) is int for number in numbers):
            raise BadInput(f"frames are {str(numbers)[:SHOWN]!r}", "give the numbers of at least one, such as [3, 5]")
        return [self.frame(number).number for number in dict.fromkeys(numbers)]

    def clear(self) -> int:
        """Throw all frames away; how many."""
        with self._lock:
            numbers = [frame.number for frame in self._gathered.frames]
        return self._remove(numbers)

    def _remove(self, numbers: Iterable[int]) -> int:
        gone = set(numbers)
        left = {number: rest[0] for part in self._parts()[0] if (rest := [n for n in part if n not in gone])
                for number in part if number in gone}
        with self._lock:
            before = len(self._gathered.frames)
            for number in sorted(gone):
                self._gathered.remove([number], left.get(number))
            self._version += 1
            return before - len(self._gathered.frames)

    # the file -----------------------------------------------------------------------------------

    def load(self, store: Store) -> None:
        """Take up what an earlier daemon has written. A damaged file costs what is in it, and is said."""
        if not self._keeps:
            return
        try:
            if data := read_gathered(store.path):
                about = self._gathered.load(data)
                if about.get("state") != store.meta.get("id"):
                    self._gathered.remove([frame.number for frame in self._gathered.frames])
                    raise StateError(f"{store.path / GATHERED_FILE} is of another state", "it is left out")
                self._forgotten = int(about.get("forgotten") or 0)
        except StateError as error:
            self.problem, self._version = str(error), self._version + 1

    def save(self, store: Store, at_once: bool = False) -> None:
        """Write the file, if a frame has come or gone since it was written last: an hour later, or at once. To be
        called in the thread that owns the learner. What can't be written is said in `problem`."""
        with self._lock:
            version, frames = self._version, len(self._gathered.frames)
            same = version == self._saved and (not at_once or not frames or (store.path / GATHERED_FILE).exists())
            if not self._keeps or same or (not at_once and time.monotonic() < self._due):
                return
            about = {"state": store.meta.get("id"), "forgotten": self._forgotten}
            content = self._gathered.to_bytes(about) if frames else b""
        self._due = time.monotonic() + SAVE_SECONDS
        try:
            write_gathered(store, content, None if at_once else 0)
            self._saved, self.problem = version, ""
        except (EdgeclError, OSError) as error:
            self.problem = f"what is gathered for review is not on the disk: {error}"
            if at_once or isinstance(error, BudgetError):   # an old one may hold what was thrown away
                with suppress(OSError):
                    discard_gathered(store.path)


def review_of(learner: Learner, below: float) -> Review:
    """The list of a state that no daemon serves, as the last one has left it. below: see `Review`."""
    made = Review(below, learner.settings.quota, learner.settings.memory != "statistics" and learner.store.writable)
    made.load(learner.store)
    serving = None
    with suppress(StateError):
        serving = learner.serving()
    made.follow(serving, learner, forgotten_last((g.id, g.action) for g in learner.history()))
    return made


def forgotten_last(generations: Iterable[tuple[int, str]]) -> int:
    """The newest generation that has forgotten a class, 0 if there is none. generations: number and action of each."""
    return max((number for number, action in generations if action == "forget"), default=0)
