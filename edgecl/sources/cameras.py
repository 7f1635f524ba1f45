"""Cameras: `camera:` via V4L2, `csi:` via gst-launch, `fake:` from a folder of photos. Frames in, photos out."""
from __future__ import annotations

import select
import shutil
import subprocess
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgecl.errors import BadInput, LinkError
from edgecl.samples import Refusal, Sample
from edgecl.sources.streams import Stream, number_option, parse_stream

if TYPE_CHECKING:
    from edgecl.sources.spec import Item, Spec

MAX_STDERR_BYTES = 1000     # of a program's error output that are kept
FRAME_TIMEOUT = 10.0        # seconds without a frame after which a camera counts as gone
WIDTH, HEIGHT, FPS = 640, 480, 10
EMPTY_FOLDER_PAUSE = 0.5    # seconds between two looks into a folder without photos
CSI_ELEMENTS = {  # GStreamer source element -> the rest of its pipeline: Jetson, then Raspberry Pi (libcamera)
    "nvarguscamerasrc": "sensor-id={0} ! video/x-raw(memory:NVMM),width={1},height={2},framerate={3}/1 ! nvvidconv",
    "libcamerasrc": "! video/x-raw,width={1},height={2},framerate={3}/1"}


def read_camera(text: str, spec: Spec, label: str | None, clock: Callable[[], float] = time.monotonic,
                sleep: Callable[[float], None] = time.sleep) -> Iterator[Item]:
    """Frames as they arrive, fitted to the spec, and a Refusal for each unreadable one; for spec.seconds, or for ever.

    The camera drops frames that are not fetched in time. Raises BadInput if the name or its options are invalid,
    LinkError if there is no camera or it has gone.
    """
    stream = parse_stream("camera:/dev/video0" if text == "camera:" else text)
    begin = clock()
    with closing(READERS[stream.kind](stream, spec, clock, sleep)) as frames:
        for frame in frames:
            if spec.seconds is not None and clock() - begin >= spec.seconds:
                return
            yield frame if isinstance(frame, Refusal) else Sample(frame, stream.text, stream.text, label,
                                                                  clock() - begin, "s")


Frames = Generator["np.ndarray | Refusal", None, None]


def _fake(stream: Stream, spec: Spec, clock: Callable[[], float], sleep: Callable[[float], None]) -> Frames:
    """The photos of a folder by name, over and over; files added or removed count from the next turn on."""
    from edgecl.images import read_image
    from edgecl.sources.folders import look
    from edgecl.sources.spec import PHOTOS, shown

    folder, fps = Path(stream.address), number_option(stream, "fps", FPS, 1000)
    if not folder.is_dir():
        raise BadInput(f"{stream.text}: {folder} is not a folder", "name a folder with photos")
    due = clock()
    while True:
        photos = [path for path in look(folder).files if path.suffix.lower() in PHOTOS] if folder.is_dir() else []
        if not photos:
            sleep(EMPTY_FOLDER_PAUSE)
            due = clock()
        for path in photos:
            sleep(max(0.0, due - clock()))
            due = max(due + 1 / fps, clock() - 1.0)     # after a stall, catch up by at most a second
            try:
                yield read_image(path, spec.height, spec.width)
            except BadInput as error:
                if path.exists():
                    yield Refusal(shown(path), error.what)


def _v4l2(stream: Stream, spec: Spec, clock: Callable[[], float], sleep: Callable[[float], None]) -> Frames:
    """A USB camera, in Motion JPEG if it offers that, else in YUYV."""
    try:
        from linuxpy.video.device import Device, VideoCapture
    except ImportError as error:
        raise BadInput(f"{stream.text} needs linuxpy", "pip install 'edgecl[camera]'") from error
    width, height = number_option(stream, "width", WIDTH, 8192), number_option(stream, "height", HEIGHT, 8192)
    fps = number_option(stream, "fps", FPS, 1000)
    with ExitStack() as stack:
        try:
            device = stack.enter_context(Device(stream.address))
            capture = VideoCapture(device)
            form = _agree(stream, capture, width, height)
            with suppress(OSError):     # some cameras have a single frame rate
                capture.set_fps(fps)
            frames = iter(stack.enter_context(capture))
        except OSError as error:
            raise LinkError(f"{stream.address} can't be opened as a camera ({error.strerror or error})",
                            "run `edgecl doctor` to see cameras and who may use them") from error
        while True:
            try:
                ready, _, _ = select.select([device.fileno()], [], [], FRAME_TIMEOUT)
                if not ready:
                    raise LinkError(f"{stream.address} gave no frame in {FRAME_TIMEOUT:g} s", "check the cable")
                data = bytes(next(frames))
            except OSError as error:
                raise LinkError(f"{stream.address} has gone ({error.strerror or error})",
                                "check the cable, or plug it in again") from error
            try:
                yield picture(data, form, stream.text, spec)
            except BadInput as error:
                yield Refusal(stream.text, error.what)


def _agree(stream: Stream, capture: Any, width: int, height: int) -> tuple[str, int, int]:
    """The format that the camera accepted: MJPEG or YUYV, width, height."""
    for wanted in ("MJPG", "YUYV"):
        with suppress(OSError):
            capture.set_format(width, height, wanted)
        form = capture.get_format()
        if form.pixel_format.name in ("MJPEG", "YUYV"):
            return form.pixel_format.name, form.width, form.height
    raise BadInput(f"{stream.text} only delivers {form.pixel_format.name}",
                   "use a camera that delivers Motion JPEG or YUYV, or csi://0 for one on the ribbon cable")


def picture(data: bytes, form: tuple[str, int, int], name: str, spec: Spec) -> np.ndarray:
    """One frame as uint8 [height, width, 3]. form: "MJPEG", "YUYV" or "RGB", width and height of the frame.

    Raises BadInput if the frame is broken or of another size.
    """
    from PIL import Image

    from edgecl.images import decode_image, fit

    kind, width, height = form
    if kind == "MJPEG":
        return decode_image(data, f"a frame of {name}", spec.height, spec.width)
    deep = 2 if kind == "YUYV" else 3
    if len(data) != width * height * deep:
        raise BadInput(f"a frame of {name} has {len(data)} bytes, not {width * height * deep}", "check the cable")
    pixels = np.frombuffer(data, np.uint8).reshape(height, width, deep)
    if kind == "RGB":
        return fit(Image.fromarray(pixels), spec.height, spec.width)
    chroma = pixels[..., 1].reshape(height, width // 2, 2).repeat(2, axis=1)
    full = np.dstack([pixels[..., 0], chroma])
    return fit(Image.fromarray(full, "YCbCr").convert("RGB"), spec.height, spec.width)


def _csi(stream: Stream, spec: Spec, clock: Callable[[], float], sleep: Callable[[float], None]) -> Frames:
    """A camera on a ribbon cable. GStreamer runs in a separate process, which keeps its libraries out of ours."""
    sensor = stream.address.strip("/")
    if not sensor.isdecimal():
        raise BadInput(f"{stream.text}: the sensor is {sensor!r}", "give its number, such as csi://0")
    width, height = number_option(stream, "width", WIDTH, 8192), number_option(stream, "height", HEIGHT, 8192)
    if width % 4:
        raise BadInput(f"{stream.text}: the width is {width}", "give a multiple of 4")
    process = subprocess.Popen(pipeline(sensor, width, height, number_option(stream, "fps", FPS, 1000)),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, bufsize=0)
    assert process.stdout is not None and process.stderr is not None
    errors = bytearray()
    try:
        while data := _next_frame(process, width * height * 3, errors):
            yield picture(data, ("RGB", width, height), stream.text, spec)
        with suppress(subprocess.TimeoutExpired):
            process.wait(1.0)
        silent = process.poll() is None
        process.kill()
        lines = (errors + process.stderr.read()).decode(errors="replace").strip().splitlines() or ["no message"]
        what = f"no frame in {FRAME_TIMEOUT:g} s" if silent else f"gst-launch ended: {lines[-1]}"
        raise LinkError(f"{stream.text}: {what}", "check the ribbon cable and `gst-inspect-1.0`")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


def pipeline(sensor: str, width: int, height: int, fps: int) -> list[str]:
    """The command that writes raw RGB frames to standard output.

    Raises BadInput if GStreamer or a suitable source element is missing.
    """
    if shutil.which("gst-launch-1.0") is None:
        raise BadInput(f"csi://{sensor} needs GStreamer", "sudo apt install gstreamer1.0-tools gstreamer1.0-libcamera")
    for element, rest in CSI_ELEMENTS.items():
        found = subprocess.run(["gst-inspect-1.0", "--exists", element], check=False, capture_output=True)
        if found.returncode == 0:
            words = f"{element} {rest.format(sensor, width, height, fps)} ! videoconvert ! videoscale".split()
            return ["gst-launch-1.0", "-q", *words, "!", f"video/x-raw,format=RGB,width={width},height={height}", "!",
                    "fdsink", "fd=1"]
    raise BadInput(f"GStreamer has none of {', '.join(CSI_ELEMENTS)}",
                   "install gstreamer1.0-libcamera (Raspberry Pi) or JetPack's multimedia packages (Jetson)")


def _next_frame(process: subprocess.Popen[bytes], length: int, errors: bytearray) -> bytes:
    """The next frame of `length` bytes from the pipe; b"" if the process has ended or is silent. errors: receives the
    last of its error output, because a full pipe would block the process."""
    assert process.stdout is not None and process.stderr is not None
    got, pipes = bytearray(), [process.stdout, process.stderr]
    while len(got) < length:
        ready, _, _ = select.select(pipes, [], [], FRAME_TIMEOUT)
        if process.stderr in ready:
            errors += (fresh := process.stderr.read(MAX_STDERR_BYTES))
            del errors[:-MAX_STDERR_BYTES]
            if not fresh:
                pipes.remove(process.stderr)
        if process.stdout in ready or not ready:
            part = process.stdout.read(length - len(got)) if ready else b""
            if not part:
                return b""
            got += part
    return bytes(got)


READERS: dict[str, Callable[..., Frames]] = {"camera": _v4l2, "csi": _csi, "fake": _fake}
