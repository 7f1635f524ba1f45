"""A kill at any system call leaves the state as it was before or after the command."""
from __future__ import annotations

from collections import Counter

import pytest
from helpers_needs import need
from helpers_state import JOBS

KILLS = 190
PARTS = 4   # of all commands, a test each, so that several processes share them
BOTH = {"learn, then close", "forget", "rollback", "merge", "round, then statistics rewritten", "round, then rollback"}


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_a_kill_at_any_system_call_leaves_before_or_after(part):
    need("strace", "strace")
    import crash

    wrong: list[str] = []
    every = list(crash.COMMANDS)
    names = every[part::PARTS]
    kills = KILLS * len(names) // len(every)
    commands = crash.campaign(kills, names, JOBS, wrong.append)
    assert not wrong
    total = sum((command.outcomes for command in commands.values()), Counter())
    assert total["before"] + total["after"] >= 0.96 * kills
    assert set(total) <= {"before", "after", "missed"}
    assert set(every) >= BOTH
    for name in BOTH.intersection(names):
        outcomes = commands[name].outcomes
        assert outcomes["before"], name
        assert outcomes["after"], name
