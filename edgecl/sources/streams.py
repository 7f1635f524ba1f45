"""Streams: `serial:`, `udp:` and `csv:` sources. Rows with device time in, windows as samples out."""
from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl

import numpy as np

from edgecl.errors import BadInput
from edgecl.samples import Refusal, Sample
from edgecl.sources.timeline import Gap, Timeline

if TYPE_CHECKING:
    from edgecl.sources.spec import Item, Spec
    from firmware_bridge.link import Link

FRAMES = {"width", "height", "fps"}
OPTIONS = {"serial": {"baud", "channel"}, "udp": {"channel", "listen"}, "csv": {"rate", "time"},
           "camera": FRAMES, "csi": FRAMES, "fake": {"fps"}}
BAUD = 921600    # a 6-axis int16 IMU at 1 kHz does not fit 115200
ANSWER = 5.0     # seconds for a device to say hello: opening a port resets many boards
SILENCE = 10.0   # seconds without a sample after which a stream of --seconds N has ended
ROWS = 256       # of a .csv read at a time
# Called when the link to a device is open, with its frame counts by result, which go on counting.
LinkWatch = Callable[[Mapping[str, int]], None]


@dataclass(frozen=True)
class Stream:
    """`KIND:ADDRESS?OPTIONS` taken apart."""

    text: str
    kind: str
    address: str
    options: dict[str, str]


class Block(NamedTuple):
    """Samples that were stamped by one clock. times: device seconds float64 [n]; values float32 [n, channels]; rate:
    Hz; follows: False where the clock or the device is another than before."""

    times: np.ndarray
    values: np.ndarray
    rate: float
    follows: bool = True


def parse_stream(text: str) -> Stream:
    """The parts of a stream's name. Raises BadInput where the kind or an option is not known.

    pathlib makes one slash of the two in `csi://0`.
    """
    kind, _, rest = text.partition(":")
    address, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    known = OPTIONS.get(kind)
    if known is None or not address:
        raise BadInput(f"{text} names no stream",
                       "give serial:/dev/ttyACM0, udp:HOST:PORT, udp:PORT, csv:FILE or csv:- for standard input, "
                       "camera:/dev/video0, csi://0 or fake:FOLDER")
    wrong = [name for name in options if name not in known]
    wrong += [part for part in query.split("&") if part and "=" not in part]
    if wrong:
        takes = " and ".join(f"?{name}=" for name in sorted(known))
        raise BadInput(f"{text} has an option {wrong[0]!r}", f"{kind}: takes {takes}")
    return Stream(text, kind, address, options)


def number_option(stream: Stream, name: str, default: int, most: int, text: str | None = None) -> int:
    """A whole number among a stream's options. Raises BadInput outside 1..most."""
    text = stream.options.get(name, str(default)) if text is None else text
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise BadInput(f"{stream.text}: the {name} is {text!r}", f"give a whole number from 1 to {most}")
    return int(text)


def read_stream(text: str, spec: Spec, label: str | None, watch: LinkWatch | None = None) -> Iterator[Item]:
    """Windows (or rows, where rows are feature vectors) as they come, and a Refusal for each gap that cost windows.

    Ends after spec.seconds of signal by device time, gaps left out; with it, also where nothing comes any more. Raises
    BadInput, LinkError.
    """
    stream = parse_stream(text)
    if not spec.vectors and (spec.rate is None or spec.window is None):
        raise BadInput(f"{text} is a stream and this state has no rate and window",
                       "create the state with `edgecl init --rate 50 --window 3`")
    blocks = _csv_blocks(stream, spec) if stream.kind == "csv" else _device_blocks(stream, spec, watch)
    return _vectors(blocks, stream, spec, label) if spec.vectors else _windows(blocks, stream, spec, label)


def _vectors(blocks: Iterator[Block | Refusal], stream: Stream, spec: Spec, label: str | None) -> Iterator[Item]:
    begin: float | None = None
    for block in blocks:
        if isinstance(block, Refusal):
            yield block
            continue
        for time, row in zip(block.times, block.values):
            begin = float(time) if begin is None else begin
            if spec.seconds is not None and time - begin >= spec.seconds:
                return
            yield Sample(row, f"{stream.text}@{time:.3f}s", label=label)


def _windows(blocks: Iterator[Block | Refusal], stream: Stream, spec: Spec, label: str | None) -> Iterator[Item]:
    assert spec.rate is not None and spec.window is not None
    timeline: Timeline | None = None
    for block in blocks:
        if isinstance(block, Refusal):
            yield block
            continue
        if timeline is None:
            timeline = Timeline(spec.rate, spec.window, spec.hop or spec.window / 2, block.rate)
        elif not block.follows:
            yield from _gap(timeline.cut(float(block.times[0])), stream)
        most = len(block.times)
        if spec.seconds is not None:
            most = max(1, math.ceil((spec.seconds - timeline.taken) * block.rate - 1e-6))
        for made in timeline.push(block.times[:most], block.values[:most]):
            if isinstance(made, Gap):
                yield from _gap(made, stream)
            else:
                yield Sample(made.data, f"{stream.text}@{made.start:.2f}s", f"{stream.text}#{made.segment}", label)
        if spec.seconds is not None and timeline.taken >= spec.seconds - 0.5 / spec.rate:
            return
    if timeline is None:
        raise BadInput(f"{stream.text} gave no samples", "check that the channel is being measured")
    if spec.seconds is not None and stream.kind != "csv":
        yield Refusal(stream.text, f"silent after {timeline.taken:.1f} s of the {spec.seconds:g} s asked for")


def _gap(gap: Gap, stream: Stream) -> Iterator[Item]:
    if gap.dropped:
        lasts = f"{gap.after - gap.before:.3g} s" if gap.after > gap.before else "unknown length"
        yield Refusal(stream.text, f"a gap of {lasts} at {gap.before:.2f} s of device time: "
                                   f"{gap.dropped} begun {'window' if gap.dropped == 1 else 'windows'} dropped")


# devices -----------------------------------------------------------------------------------------


def open_link(stream: Stream) -> Link:
    """The link to the device that a stream names. Raises LinkError, BadInput."""
    from firmware_bridge.link import Link
    from firmware_bridge.wires import SerialWire, UdpWire

    wanted = {stream.options["channel"]} if stream.options.get("channel") else None
    if stream.kind == "serial":
        baud = number_option(stream, "baud", BAUD, 4_000_000)
        return Link(lambda: SerialWire(stream.address, baud), wanted)
    host, _, port = stream.address.rpartition(":")
    number = number_option(stream, "port", 0, 65535, port)
    return Link(lambda: UdpWire(number, host or None, stream.options.get("listen", "127.0.0.1")), wanted)


def _device_blocks(stream: Stream, spec: Spec, watch: LinkWatch | None = None) -> Iterator[Block | Refusal]:
    from firmware_bridge.reader import Reader
    from firmware_bridge.session import Connected, Samples

    link = open_link(stream)
    if watch is not None:
        watch(link.session.decoder.counts)
    with Reader(link) as reader:
        reader.wait_hello(ANSWER)
        chosen = _channel(stream, link)
        follows = here = True
        for event in reader.events(None if spec.seconds is None else SILENCE):
            if here and not link.connected:
                yield Refusal(stream.text, "the device has gone; waiting for it to come back")
            here = link.connected
            if isinstance(event, Connected):
                follows = follows and not event.restarted
            elif isinstance(event, Samples) and event.channel.name == chosen and len(event.values):
                rate = event.channel.rate or spec.rate or 1.0
                times = event.time / 1e6 + np.arange(len(event.values)) / rate
                yield Block(times, event.values, rate, follows)
                follows = True


def _channel(stream: Stream, link: Link) -> str:
    """The channel that is read. Raises BadInput where that is not clear."""
    assert link.session.hello is not None
    names = [channel.name for channel in link.session.hello.channels if channel.dtype is not None]
    wanted = stream.options.get("channel")
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted not in names:
        shown = ", ".join(names) or "none"
        raise BadInput(f"{stream.text}: " + (f"the device has no channel {wanted!r}" if wanted else
                                             f"the device has {len(names)} channels"),
                       f"name one with ?channel=; the device has {shown}")
    return wanted


# tables ------------------------------------------------------------------------------------------


def _csv_blocks(stream: Stream, spec: Spec) -> Iterator[Block]:
    """Rows of a table as they are written: a file, or standard input."""
    from edgecl.sources.recordings import CLOCKS

    rate_text = stream.options.get("rate", "")
    try:
        rate = float(rate_text) if rate_text else spec.rate or 1.0
        if not 0 < rate < 1e6:
            raise ValueError
    except ValueError:
        raise BadInput(f"{stream.text}: the rate is {rate_text!r}", "give samples a second, as ?rate=100") from None
    try:
        file = sys.stdin if stream.address == "-" else open(stream.address, encoding="utf-8-sig")
    except OSError as error:
        raise BadInput(f"{stream.address} can't be read ({error.strerror})",
                       "name a .csv file, or - for standard input") from error
    with file:
        header: list[str] | None = None
        clock: int | None = None
        rows: list[list[float]] = []
        count, width, live = 0, 0, stream.address == "-"
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            cells = [cell.strip() for cell in line.replace(";", ",").replace("\t", ",").split(",")]
            try:
                rows.append([float(cell) for cell in cells])
            except ValueError:
                if header is None and not count and not rows:
                    header = cells
                    clock = _clock(stream, header, CLOCKS)
                    continue
                raise BadInput(f"{stream.text}: line {number} is {line.strip()[:60]!r}",
                               "give a row per sample, all numbers") from None
            width = width or len(rows[-1])
            if len(rows[-1]) != width or not np.isfinite(rows[-1]).all():
                raise BadInput(f"{stream.text}: line {number} holds {len(rows[-1])} numbers, not {width}, or one that "
                               "is not finite", "give the same number of finite columns in each row")
            if len(rows) >= (8 if live else ROWS):
                yield _csv_block(rows, clock, count, rate, rate_text)
                count += len(rows)
                rows = rows[:0]
        if rows:
            yield _csv_block(rows, clock, count, rate, rate_text)


def _clock(stream: Stream, header: list[str], clocks: set[str]) -> int | None:
    wanted = stream.options.get("time")
    if wanted is not None and wanted not in header:
        raise BadInput(f"{stream.text} has no column {wanted!r}", f"its columns are {', '.join(header)}")
    return next((i for i, name in enumerate(header) if name == wanted or (not wanted and name.lower() in clocks)), None)


def _csv_block(rows: list[list[float]], clock: int | None, count: int, rate: float, rate_text: str) -> Block:
    table = np.array(rows)
    if clock is None:
        return Block((count + np.arange(len(rows))) / rate, table.astype(np.float32), rate)
    times = table[:, clock]
    steps = np.diff(times)
    if not rate_text and len(steps) and (period := float(np.median(steps))) > 0:
        rate = 1 / period
    return Block(times, np.delete(table, clock, 1).astype(np.float32), rate)
