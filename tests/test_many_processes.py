"""Many processes on one state of a disk, killed at random: nothing that was acknowledged is lost or made twice."""
from __future__ import annotations

from collections import Counter

import many_processes
import pytest
from oracle import Oracle

KILLS, GENERATIONS = 6, 60


@pytest.mark.slow
def test_processes_that_are_killed_leave_what_was_acknowledged(disk):
    campaign = many_processes.Campaign(disk, processes=4, quota=300_000, seed=0)
    found = campaign.run(lambda found: found.kills >= KILLS and len(found.changes) >= GENERATIONS)
    assert found.wrong == []
    assert found.kills >= KILLS
    assert len(found.changes) >= GENERATIONS
    assert found.largest <= 300_000
    assert {"learn", "forget", "rollback", "classes"} <= found.commands.keys()


def test_the_oracle_follows_every_kind_of_change():
    oracle = Oracle(1, {})
    oracle.apply(2, {"do": "learn", "class": "ant", "count": 5, "seed": 0})
    oracle.apply(3, {"do": "learn", "class": "ant", "count": 5, "seed": 0})
    oracle.apply(5, {"do": "merge", "taught": [["ant", 1, 2], ["bee", 4, 1]]})
    assert oracle.counts() == {"ant": 11, "bee": 4}
    oracle.apply(6, {"do": "forget", "class": "ant"})
    assert oracle.counts() == {"bee": 4}
    oracle.apply(7, {"do": "rollback", "to": 3})
    assert oracle.counts() == {"ant": 10}
    assert oracle.known == {"ant": Counter({(5, 0): 2})}
    assert [oracle.counts(number) for number in (1, 2, 6)] == [{}, {"ant": 5}, {"bee": 4}]
    with pytest.raises(ValueError, match="7 came after 7"):
        oracle.apply(7, {"do": "forget", "class": "ant"})
    with pytest.raises(ValueError, match="back to 4, which never was"):
        oracle.apply(8, {"do": "rollback", "to": 4})


def judged(tmp_path, *changes, seen=()):
    """What a campaign finds wrong that was told of changes which the state has not made."""
    campaign = many_processes.Campaign(tmp_path, processes=0, quota=300_000, seed=0)
    for number, change in changes:
        campaign.found.changes.setdefault(number, []).append(change)
    campaign.found.seen += seen
    campaign.compare()
    return campaign.found.wrong


LEARNED = {"do": "learn", "class": "class 0", "count": 1, "seed": 0}


def test_a_campaign_tells_what_was_lost_and_what_was_made_twice(tmp_path):
    assert judged(tmp_path / "a") == []
    assert judged(tmp_path / "b", (3, LEARNED)) == ["class 'class 0': 12 samples, not 13"]
    twice = judged(tmp_path / "c", (3, LEARNED), (3, LEARNED))
    assert twice[0].startswith("generation 3 was acknowledged 2 times")
    look = {"from": 2, "until": 2, "known": {"class 0": 13}}
    assert judged(tmp_path / "d", seen=[look])[0].startswith("seen between generations 2 and 2, but never known")


def test_a_generation_of_nobody_is_told(tmp_path):
    campaign = many_processes.Campaign(tmp_path, processes=0, quota=300_000, seed=0)
    row = {"do": "learn", "class": "class 1", "samples": 3}
    campaign.unsure.append({"do": "forget", "class": "class 1"})
    campaign.settle({3: row, 4: {"do": "forget"}})
    assert campaign.found.wrong == [f"generation 3 is nobody's: {row}"]
    assert campaign.found.changes[4] == [{"do": "forget", "class": "class 1", "to": None}]
    assert campaign.found.unacknowledged == 1
