"""One interface to a state for the commands: the learner itself, or the daemon that serves the state."""
from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

from edgecl.commands import check_memory, opened, socket_path
from edgecl.errors import BadInput
from edgecl.learning.foundation import spec_for
from edgecl.results import Learned, Prediction
from edgecl.runtime.client import Client, NoDaemon
from edgecl.samples import Place
from edgecl.sources.spec import Spec

if TYPE_CHECKING:
    from edgecl.learner import Learner
    from edgecl.samples import Sample

NO_PLACE = Place("")


class Direct:
    """The learner itself."""

    def __init__(self, learner: Learner) -> None:
        self.learner, self.quota, self.memory = learner, learner.settings.quota, learner.settings.memory
        self._before = 0    # the newest generation before the last `learn`

    def spec(self, seconds: float | None = None) -> Spec:
        """How sources become samples of the state."""
        return spec_for(self.learner.settings, self.learner.foundation, seconds)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of a window or vector; None for photos, and before the first `learn`."""
        foundation = self.learner.foundation
        return None if foundation is None or foundation.kind == "image" else foundation.input_shape

    @property
    def kind(self) -> str | None:
        """The kind of sample; None before the first `learn`."""
        return self.learner.foundation.kind if self.learner.foundation else None

    def learn(self, samples: Iterable[Sample], label: str, progress: Callable[[int], None],
              again: bool = False, distinct: bool = False) -> Learned:
        """See `Learner.learn`."""
        self._before = self.learner.store.newest.id
        return self.learner.learn(samples, label, progress=progress, again=again, distinct=distinct)

    def predict(self, batch: np.ndarray, why: bool = False) -> list[Prediction]:
        """See `Learner.predict`."""
        return self.learner.predict(batch, why)

    @property
    def known(self) -> list[str]:
        """Names of the known classes."""
        return self.learner.labels

    def stored(self, label: str) -> bool:
        """Whether the last `learn`, which was interrupted, stored what it learned."""
        return any(each.id > self._before and each.action == "learn" and each.detail.get("class") == label
                   for each in self.learner.history())

    @property
    def damage(self) -> list[str]:
        """See `Learner.damage`."""
        return self.learner.damage


class ViaDaemon:
    """The daemon: samples are read here, and learned or classified there."""

    damage: tuple[str, ...] = ()   # the daemon logs it

    def __init__(self, client: Client) -> None:
        self._client = client
        status = client.ask("status")
        self.quota: int = status["quota_bytes"]
        self.memory: str = status["memory"]

    def spec(self, seconds: float | None = None) -> Spec:
        """How sources become samples of the state."""
        return Spec(**{**self._client.ask("info")["spec"], "seconds": seconds})

    @property
    def shape(self) -> tuple[int, ...] | None:
        """The shape of a window or vector; None for photos, and before the first `learn`."""
        info = self._client.ask("info")
        return None if info["kind"] in (None, "image") else tuple(info["input_shape"])

    @property
    def kind(self) -> str | None:
        """The kind of sample; None before the first `learn`."""
        kind: str | None = self._client.ask("info")["kind"]
        return kind

    @property
    def known(self) -> list[str]:
        """Names of the known classes."""
        names: list[str] = self._client.ask("info")["classes"]
        return names

    def stored(self, label: str) -> bool:
        """False: the daemon may still be at it when `learn` is interrupted, and its answer is lost."""
        return False

    def learn(self, samples: Iterable[Sample], label: str, progress: Callable[[int], None],
              again: bool = False, distinct: bool = False) -> Learned:
        """See `Learner.learn`. Raises the error that the daemon answers with."""
        with Parcel() as parcel:
            for sample in samples:
                parcel.add(sample.data, sample.group, sample.place, sample.session)
                progress(1)
            if not parcel.count:
                raise BadInput(f"there are no samples of {label!r}", "give at least one photo, recording or array")
            return Learned(**self._client.ask("learn", parcel.seal(), label=label, groups=parcel.groups,
                                              sessions=parcel.sessions, again=again, distinct=distinct))

    def predict(self, batch: np.ndarray, why: bool = False) -> list[Prediction]:
        """See `Learner.predict`. Raises the error that the daemon answers with."""
        asked = {"why": True} if why else {}    # which an older daemon does not take
        with Parcel() as parcel:
            for data in batch:
                parcel.add(data)
            return [*map(Prediction.from_json, self._client.ask("predict", parcel.seal(), **asked))]


class Parcel:
    """Samples of one shape as an .npy file in anonymous memory, written one by one, and behind it their places, if they
    are known. groups: [[number of a recording, or "", samples of it]]; sessions: number -> name of its session, of
    those that are part of a named one."""

    def __init__(self) -> None:
        self._file = open(os.memfd_create("samples", os.MFD_CLOEXEC), "w+b")
        self._form: dict[str, Any] | None = None
        self.count, self.groups, self.sessions = 0, list[list[Any]](), dict[str, str]()
        self._names: dict[tuple[str, str], int] = {}
        self._places, self._named, self._end = bytearray(), False, 0

    def add(self, data: np.ndarray, group: str = "", place: Place = NO_PLACE, session: str = "") -> None:
        """Add a sample. Raises BadInput if its shape or dtype differs from those before."""
        form = npy.header_data_from_array_1_0(np.ascontiguousarray(data[None]))
        if self._form is None:
            self._form = form
            self._header()
        if form != {**self._form}:
            raise BadInput(f"a sample of shape {list(data.shape)} among samples of {list(self._form['shape'][1:])}",
                           "give samples of one shape")
        self._file.write(np.ascontiguousarray(data).tobytes())
        self._end = self._file.tell()
        self.count += 1
        self._places += json.dumps(place).encode() + b"\n"
        self._named = self._named or place != NO_PLACE
        both = group, session
        name = str(self._names.setdefault(both, len(self._names) + 1)) if any(both) else ""
        if session:
            self.sessions[name] = session
        if self.groups and self.groups[-1][0] == name:
            self.groups[-1][1] += 1
        else:
            self.groups.append([name, 1])

    def seal(self) -> int:
        """Complete the file; its descriptor."""
        self._header()
        if self._named:
            self._file.seek(self._end)
            self._file.write(self._places)
            self._file.flush()
        return self._file.fileno()

    def _header(self) -> None:
        """Write the header; its length does not depend on the number of samples, see numpy.lib.format."""
        assert self._form is not None
        self._file.seek(0)
        npy.write_array_header_1_0(self._file, {**self._form, "shape": (self.count, *self._form["shape"][1:])})
        self._file.flush()

    def __enter__(self) -> Parcel:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@contextmanager
def direct_or_daemon(options: argparse.Namespace) -> Iterator[Direct | ViaDaemon]:
    """The daemon that serves the state in the options, or else the learner itself."""
    client: Client | None = None
    with suppress(NoDaemon):
        client = Client(socket_path(options))
    if client is None:
        with opened(options) as learner:
            yield Direct(learner)
        return
    with client:
        check_memory(options, client.ask("status")["memory"])
        yield ViaDaemon(client)
