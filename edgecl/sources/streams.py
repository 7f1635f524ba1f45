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

FRAME_OPTIONS = {"width", "height", "fps"}
OPTIONS = {"serial": {"baud", "channel"}, "udp": {"channel", "listen"}, "csv": {"rate", "time"},
           "camera": FRAME_OPTIONS, "csi": FRAME_OPTIONS, "fake": {"fps"}}
DEFAULT_BAUD = 921600   # a 6-axis int16 IMU at 1 kHz does not fit into 115200
HELLO_TIMEOUT = 5.0     # seconds for a device to say hello: opening a port resets many boards
SILENCE_TIMEOUT = 10.0  # seconds without a sample after which a stream with --seconds N ends
ROWS_PER_READ = 256     # of a .csv file
# Called when the link to a device is open, with its live frame counts by result
LinkWatch = Callable[[Mapping[str, int]], None]


@dataclass(frozen=True)
class Stream:
    """The parts of `KIND:ADDRESS?OPTIONS`."""

    text: str
    kind: str
    address: str
    options: dict[str, str]


class Block(NamedTuple):
    """Samples stamped by one clock. times: device seconds, float64 [n]; values float32 [n, channels]; rate: Hz;
    follows: False if the clock or the device is not the same as before."""

    times: np.ndarray
    values: np.ndarray
    rate: float
    follows: bool = True


def parse_stream(text: str) -> Stream:
    """The parts of a stream's name. Raises BadInput if the kind or an option is unknown.

    The address of `csi://0` may come with one slash: pathlib merges the two.
    """
    kind, _, rest = text.partition(":")
    address, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    known = OPTIONS.get(kind)
    if known is None or not address:
        raise BadInput(f"{text} does not name a stream",
                       "give serial:/dev/ttyACM0, udp:HOST:PORT, udp:PORT, csv:FILE or csv:- for standard input, "
                       "camera:/dev/video0, csi://0 or fake:FOLDER")
    wrong = [name for name in options if name not in known]
    wrong += [part for part in query.split("&") if part and "=" not in part]
    if wrong:
        takes = " and ".join(f"?{name}=" for name in sorted(known))
        raise BadInput(f"{text} has the unknown option {wrong[0]!r}", f"{kind}: takes {takes}")
    return Stream(text, kind, address, options)


def number_option(stream: Stream, name: str, default: int, most: int, text: str | None = None) -> int:
    """An option of a stream as a whole number. text: parsed instead of the option, if given.

    Raises BadInput unless it is a number from 1 to `most`.
    """
    text = stream.options.get(name, str(default)) if text is None else text
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise BadInput(f"{stream.text}: the {name} is {text!r}", f"give a whole number from 1 to {most}")
    return int(text)


def read_stream(text: str, spec: Spec, label: str | None, watch: LinkWatch | None = None) -> Iterator[Item]:
    """Windows (or rows, if they are feature vectors) as they arrive, and a Refusal for each gap that cost windows.

    Ends after spec.seconds of signal in device time, not counting gaps, or, if spec.seconds is set, when the device
    falls silent. Raises BadInput if the name, its options or the table are invalid, LinkError if the device can't be
    used.
    """
    stream = parse_stream(text)
    if not spec.vectors and (spec.rate is None or spec.window is None):
        raise BadInput(f"{text} is a stream, but this state has no rate and window",
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
            yield Sample(row, stream.text, label=label, at=float(time), unit="ms")


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
        for event in timeline.push(block.times[:most], block.values[:most]):
            if isinstance(event, Gap):
                yield from _gap(event, stream)
            else:
                yield Sample(event.data, stream.text, f"{stream.text}#{event.segment}", label, event.start, "s")
        if spec.seconds is not None and timeline.taken >= spec.seconds - 0.5 / spec.rate:
            return
    if timeline is None:
        raise BadInput(f"{stream.text} sent no samples", "check that the device measures the channel")
    if spec.seconds is not None and stream.kind != "csv":
        yield Refusal(stream.text, f"silent after {timeline.taken:.1f} of the {spec.seconds:g} s requested")


def _gap(gap: Gap, stream: Stream) -> Iterator[Item]:
    if gap.dropped:
        lasts = f"{gap.after - gap.before:.3g} s" if gap.after > gap.before else "unknown length"
        yield Refusal(stream.text, f"a gap of {lasts} at {gap.before:.2f} s of device time: "
                                   f"dropped {gap.dropped} unfinished {'window' if gap.dropped == 1 else 'windows'}")


# devices -----------------------------------------------------------------------------------------


def open_link(stream: Stream) -> Link:
    """The link to the device that a stream names. Raises BadInput if an option is invalid, LinkError if the port can't
    be opened."""
    from firmware_bridge.link import Link
    from firmware_bridge.wires import SerialWire, UdpWire

    wanted = {stream.options["channel"]} if stream.options.get("channel") else None
    if stream.kind == "serial":
        baud = number_option(stream, "baud", DEFAULT_BAUD, 4_000_000)
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
        reader.wait_hello(HELLO_TIMEOUT)
        chosen = _channel(stream, link)
        follows = here = True
        for event in reader.events(None if spec.seconds is None else SILENCE_TIMEOUT):
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
    """The channel to read. Raises BadInput if the device has no such channel, or several and none was named."""
    assert link.session.hello is not None
    names = [channel.name for channel in link.session.hello.channels if channel.dtype is not None]
    wanted = stream.options.get("channel")
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted not in names:
        shown = ", ".join(names) or "none"
        raise BadInput(f"{stream.text}: " + (f"the device has no channel {wanted!r}" if wanted else
                                             f"the device has {len(names)} channel{'s' * (len(names) != 1)}"),
                       f"name one with ?channel=; the device has {shown}")
    return wanted


# tables ------------------------------------------------------------------------------------------


def _csv_blocks(stream: Stream, spec: Spec) -> Iterator[Block]:
    """Rows of a table, from a file or standard input, as they are written."""
    from edgecl.sources.recordings import CLOCK_COLUMNS

    rate_text = stream.options.get("rate", "")
    try:
        rate = float(rate_text) if rate_text else spec.rate or 1.0
        if not 0 < rate < 1e6:
            raise ValueError
    except ValueError:
        raise BadInput(f"{stream.text}: the rate is {rate_text!r}", "give samples per second, as ?rate=100") from None
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
                    clock = _clock(stream, header, CLOCK_COLUMNS)
                    continue
                raise BadInput(f"{stream.text}: line {number} is {line.strip()[:60]!r}",
                               "give a row per sample, all numbers") from None
            width = width or len(rows[-1])
            if len(rows[-1]) != width or not np.isfinite(rows[-1]).all():
                raise BadInput(f"{stream.text}: line {number} has {len(rows[-1])} numbers instead of {width}, or one "
                               "that is not finite", "give the same number of columns in each row, all finite")
            if len(rows) >= (8 if live else ROWS_PER_READ):
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
