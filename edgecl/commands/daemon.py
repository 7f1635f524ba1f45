"""`edgecl daemon`: serve, take teaching, learn when idle."""
from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edgecl.errors import BadInput
from edgecl.runtime.settings import read_settings

if TYPE_CHECKING:
    from edgecl.learner import Learner
    from edgecl.runtime.settings import DaemonSettings


def daemon(options: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT."""
    from edgecl.commands import check_memory, keep_memory_low
    from edgecl.learner import Learner
    from edgecl.runtime.daemon import run
    from edgecl.settings import format_size

    keep_memory_low()
    settings = checked(options)

    def opened(state: Path) -> Learner:
        if state.exists() or state != settings.state:
            learner = Learner.open(state)
            check_memory(options, learner.settings.memory)
            return learner
        learner = Learner.create(state, settings.learner)
        print(f"edgecl: created {state} with a quota of {format_size(learner.settings.quota)}", file=sys.stderr)
        return learner

    def again() -> DaemonSettings:
        return checked(options)

    os.environ.setdefault("MALLOC_ARENA_MAX", "2")  # for child processes
    return run(settings, opened, again)


def checked(options: argparse.Namespace) -> DaemonSettings:
    """The settings. Raises BadInput for a source that is not a stream, file or folder; a camera that is unplugged is
    tried again later."""
    from edgecl.sources import is_stream
    from edgecl.sources.streams import parse_stream

    settings = read_settings(options.config, options.state)
    for source in settings.sources:
        if is_stream(Path(source.uri)):
            parse_stream(source.uri)
        elif not Path(source.uri).exists():
            raise BadInput(f"source {source.name}: {source.uri} does not name a stream, file or folder",
                           "give camera:/dev/video0, csi://0, fake:FOLDER, serial:PORT, udp:HOST:PORT, csv:FILE or a "
                           "folder that is there")
    return settings
