"""A kill at any system call leaves the state as it was before or after the command."""
from __future__ import annotations

import os
from collections import Counter

import pytest
from helpers_needs import need

KILLS = 156


@pytest.mark.slow
def test_a_kill_at_any_system_call_leaves_before_or_after():
    need("strace", "strace")
    import crash

    wrong: list[str] = []
    commands = crash.campaign(KILLS, list(crash.COMMANDS), os.cpu_count() or 1, wrong.append)
    assert not wrong
    total = sum((command.outcomes for command in commands.values()), Counter())
    assert total["before"] + total["after"] >= 150
    assert set(total) <= {"before", "after", "missed"}
    for name in ("learn, then close", "forget", "rollback", "merge", "round, then statistics rewritten",
                 "round, then rollback"):
        outcomes = commands[name].outcomes
        assert outcomes["before"], name
        assert outcomes["after"], name
