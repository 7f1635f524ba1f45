"""`edgecl daemon`: serve, take teaching, learn when idle."""
from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from edgecl.runtime.settings import read_settings

if TYPE_CHECKING:
    from pathlib import Path

    from edgecl.learner import Learner
    from edgecl.runtime.settings import DaemonSettings


def daemon(options: argparse.Namespace) -> int:
    """Run until it is told to end."""
    from edgecl.commands.ask import keep_memory_low
    from edgecl.commands.teach import settings_of
    from edgecl.config import format_size
    from edgecl.learner import Learner
    from edgecl.runtime.daemon import run

    keep_memory_low()
    settings = read_settings(options.config, options.state)

    def opened(state: Path) -> Learner:
        if state.exists() or state != settings.state:
            return Learner.open(state)
        learner = Learner.create(state, settings_of(options))
        print(f"edgecl: created {state} with a quota of {format_size(learner.settings.quota)}", file=sys.stderr)
        return learner

    def again() -> DaemonSettings:
        return read_settings(options.config, options.state)

    os.environ.setdefault("MALLOC_ARENA_MAX", "2")  # of the processes that it starts
    return run(settings, opened, again)
