"""The link on a bad wire: commands once, cables pulled, resets, garbage, other schemas."""
from __future__ import annotations

import contextlib
import os
import time
import tracemalloc
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers_bridge import APP_COUNT, link_to, ramp, u32
from helpers_needs import need

from edgecl.errors import LinkError
from firmware_bridge.link import REOPEN_PAUSE
from firmware_bridge.schema import SCHEMA
from firmware_bridge.session import Connected, Samples
from firmware_bridge.simulator import Simulator
from firmware_bridge.wires import SerialWire

COMMANDS = int(os.environ.get("EDGECL_COMMANDS", "10000"))    # in all, on four wires at once
UNPLUGGED = float(os.environ.get("EDGECL_UNPLUGGED", "1"))  # seconds; 30 by hand


@pytest.fixture
def board(tmp_path):
    """Starts simulated boards, each in a folder of its own, and ends them."""
    need("gcc", "gcc")
    ramp(tmp_path / "ramp.csv")
    with contextlib.ExitStack() as stack:
        def start(*options, folder=tmp_path):
            folder.mkdir(exist_ok=True)
            return stack.enter_context(Simulator(
                folder, [tmp_path / "ramp.csv"], "--rate", "100", "--gap", "0", "--repeat", *options))
        yield start


@pytest.mark.slow
def test_ten_thousand_commands_are_executed_once_each_whatever_the_wire_does(board, tmp_path):
    """The wires are independent: most of the time each waits for a repetition."""
    def start(number):
        folder = tmp_path / str(number)
        return board("--batch", "5", "--flips", "1e-4", "--drops", "1e-4", "--doubles", "1e-4", "--delay", "0.002",
                     "--split", "--seed", str(7 + number), "--effects", str(folder / "effects"), folder=folder)
    boards = [start(number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(executed_once, boards)) >= COMMANDS


def executed_once(simulator):
    """A quarter of the commands; their number."""
    count = -(-COMMANDS // 4)
    with contextlib.closing(link_to(simulator)) as link:
        session, answered = link.session, []
        resets = iter(range(count // 20, count, count // 10))
        next_reset = next(resets)
        for number in range(count):
            answered.append(session.submit(APP_COUNT, u32(number)))
            if len(session.commands.queue) >= 50:
                link.wait(lambda: len(session.commands.queue) < 10, 240)
            if number >= next_reset:
                simulator.tell("reset")
                next_reset = next(resets, count)
        link.wait(lambda: all(p.status for p in answered), 240)
        damage = simulator.stats()
    executed = Counter(np.fromfile(simulator.port.with_name("effects"), "<u4").tolist())
    told = Counter(p.status for p in answered)
    assert told["ok"] + told["interrupted"] == count  # interrupted: killed within a command, and said so
    assert told["interrupted"] <= 1
    assert max(executed.values()) == 1
    assert all(executed[number] for number, p in enumerate(answered) if p.status == "ok")
    assert session.counts["restarts"] == 10
    assert session.commands.retransmitted > count // 100
    assert min(damage["up"]["flips"], damage["down"]["flips"], damage["up"]["drops"], damage["up"]["doubles"]) > 0
    return count


@pytest.mark.slow
def test_a_pulled_cable_is_back_by_itself_and_costs_no_memory(board):
    simulator = board("--batch", "5")
    with contextlib.closing(link_to(simulator)) as link:
        link.wait(lambda: link.session.clock.synchronised, 240)
        tracemalloc.start()  # not the resident set: other tests of this process have theirs in it
        before, connected = tracemalloc.get_traced_memory()[0], []
        simulator.tell(f"unplug {UNPLUGGED}")
        link.wait(lambda: not link.connected, 240)
        while not simulator.port.exists():
            connected += link.pump(0.05)
        replugged = time.monotonic()
        after = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        while not (connected := [event for event in connected if isinstance(event, Connected)]):
            connected = link.pump(0.05)
            assert time.monotonic() - replugged < 240   # on a quiet machine, a few times REOPEN_PAUSE
        assert REOPEN_PAUSE <= 0.2
        assert not connected[0].restarted  # the board kept its power
        assert link.counts["reconnects"] == 1
        events = link.wait(lambda: any(isinstance(e, Samples) for e in link.pump(0.05)), 240)
        assert all(isinstance(e, (Samples, Connected)) for e in events)
    assert after - before < 50_000


@pytest.mark.slow
def test_a_flood_of_garbage_passes(board):
    simulator = board("--batch", "5")
    with contextlib.closing(link_to(simulator)) as link:
        link.wait(lambda: link.connected, 240)
        simulator.tell("flood 100000")
        link.wait(lambda: link.session.decoder.counts["malformed"] > 100, 240)
        assert link.command(SCHEMA.COMMAND_ECHO, b"x", timeout=240).data == b"x"
        assert len(link.session.decoder._rest) <= 2048


@pytest.mark.slow
def test_a_board_without_power_for_a_moment_forgets_and_says_so(board):
    simulator = board("--batch", "5")
    with contextlib.closing(link_to(simulator)) as link:
        assert link.command(APP_COUNT, u32(1), timeout=240).status == "ok"
        simulator.tell("unplug 0.3")
        link.wait(lambda: not link.connected, 240)
        flying = link.session.submit(APP_COUNT, u32(2))
        flying.sent = None
        simulator.tell("power")
        link.wait(lambda: link.connected, 240)
        assert link.session.counts["restarts"] == 1
        assert link.command(APP_COUNT, u32(3), timeout=240).data == u32(2)  # it counts afresh, from the waiting one
        assert flying.status == "ok"  # it was never sent before


@pytest.mark.slow
def test_the_baud_rate_changes_and_comes_back_where_it_does_not_work(board):
    simulator = board("--batch", "5")
    with contextlib.closing(link_to(simulator)) as link:
        link.wait(lambda: link.connected, 240)
        assert link.set_baud(230400)
        assert link.command(SCHEMA.COMMAND_ECHO, b"fast", timeout=240).data == b"fast"
        assert not link.set_baud(300)  # the board refuses it
        assert link.command(SCHEMA.COMMAND_ECHO, b"back", timeout=240).data == b"back"


@pytest.mark.slow
def test_another_schema_is_refused_with_the_cure(board, monkeypatch):
    simulator = board()
    monkeypatch.setattr(SCHEMA, "hash", SCHEMA.hash ^ 1)
    with contextlib.closing(link_to(simulator)) as link, pytest.raises(LinkError, match=r"schema .* flash firmware"):
        link.wait(lambda: link.connected, 240)


@pytest.mark.slow
def test_a_port_has_one_reader_and_names_it(board):
    simulator = board()
    with contextlib.closing(link_to(simulator)), pytest.raises(LinkError, match="in use"):
        SerialWire(str(simulator.port), 921600)


def test_a_missing_port_names_those_that_are_there(tmp_path):
    with pytest.raises(LinkError, match=r"does not exist.*ports on this machine"):
        SerialWire(str(tmp_path / "ttyACM9"), 115200)
