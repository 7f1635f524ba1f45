"""Cameras: a folder that stands for one, GStreamer's pipe, V4L2 frames in their pixel formats, and what goes wrong."""
from __future__ import annotations

import io
import os
import stat
import sys
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers_needs import need_module
from PIL import Image

from edgecl.cli import main
from edgecl.errors import BadInput, LinkError
from edgecl.samples import Refusal, Sample
from edgecl.sources import endless, is_stream, read
from edgecl.sources.cameras import CSI_ELEMENTS, picture, pipeline, read_camera
from edgecl.sources.spec import Spec

SPEC = Spec(32, 32)


class Time:
    """A clock that only sleep moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def photo(path: Path, colour: tuple[int, int, int]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), colour).save(path)
    return path


def colours(items) -> list[tuple[int, ...]]:
    return [tuple(int(v) for v in item.data[16, 16]) for item in items]


def test_a_folder_stands_for_a_camera_at_its_pace_and_for_ever(tmp_path):
    photo(tmp_path / "a.png", (250, 0, 0))
    photo(tmp_path / "b.png", (0, 250, 0))
    time = Time()
    frames = read_camera(f"fake:{tmp_path}?fps=4", SPEC, "mug", time.clock, time.sleep)
    first = list(islice(frames, 5))
    assert colours(first) == [(250, 0, 0), (0, 250, 0)] * 2 + [(250, 0, 0)]
    assert time.now == pytest.approx(101.0)
    assert {item.label for item in first} == {"mug"}
    (tmp_path / "a.png").unlink()
    photo(tmp_path / "c.png", (0, 0, 250))
    assert colours(islice(frames, 3)) == [(0, 250, 0), (0, 250, 0), (0, 0, 250)]


def test_seconds_end_it_and_a_bad_photo_is_named(tmp_path):
    photo(tmp_path / "a.png", (250, 0, 0))
    (tmp_path / "b.png").write_bytes(b"no photo")
    time = Time()
    items = list(read_camera(f"fake:{tmp_path}?fps=10", Spec(32, 32, seconds=0.55), None, time.clock, time.sleep))
    assert [type(item) for item in items] == [Sample, Refusal] * 3
    assert "b.png" in items[1].source


def test_an_empty_folder_is_waited_for(tmp_path):
    time = Time()
    frames = read_camera(f"fake:{tmp_path}", SPEC, None, time.clock, lambda s: (time.sleep(s), photo(
        tmp_path / "late.png", (9, 9, 9))))
    assert colours(islice(frames, 1)) == [(9, 9, 9)]


@pytest.mark.parametrize(("text", "says"), [
    ("fake:nowhere", "is not a folder"), ("fake:.?fps=0", "fps is '0'"), ("fake:.?speed=1", "option 'speed'"),
    ("csi://left", "sensor is 'left'"), ("csi://0?width=641", "width is 641"), ("camera:/dev/x?width=many", "'many'")])
def test_a_camera_that_is_named_wrongly_is_refused(text, says):
    with pytest.raises(BadInput, match=says):
        next(read_camera(text, SPEC, None))


def test_cameras_are_streams_without_end():
    for name in ("camera:", "camera:/dev/video0", "csi://0", "fake:photos"):
        assert is_stream(Path(name))
        assert endless(Path(name))
    assert not endless(Path("csv:a.csv"))


def test_a_missing_camera_is_an_error_with_the_cure(tmp_path, capsys):
    assert main(["learn", "--state", str(tmp_path / "s"), "--class", "mug", "camera:/dev/video97"]) == 1
    assert "--seconds 20" in capsys.readouterr().err
    need_module("linuxpy", "camera")
    with pytest.raises(LinkError, match="edgecl doctor"):
        next(read(Path("camera:/dev/video97"), SPEC))


def test_a_camera_teaches_and_is_answered(tmp_path, capsys):
    state = str(tmp_path / "s")
    for name, colour in (("red", (250, 20, 20)), ("blue", (20, 20, 250))):
        photo(tmp_path / name / "a.png", colour)
        assert main(["learn", "--state", state, "--class", name, f"fake:{tmp_path / name}?fps=50", "--seconds",
                     "0.2"]) == 0
    capsys.readouterr()
    assert main(["predict", "--state", state, f"fake:{tmp_path / 'blue'}?fps=50", "--seconds", "2",
                 "--debounce", "2"]) == 0
    assert capsys.readouterr().out.count('"label": "blue"') == 1


# pixel formats -----------------------------------------------------------------------------------


def test_pixels_of_every_form_come_out_alike():
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[:24] = (200, 60, 30)
    pixels[24:] = (20, 90, 180)
    form = (64, 48)
    wanted = picture(pixels.tobytes(), ("RGB", *form), "cam", SPEC).astype(int)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    assert np.abs(picture(file.getvalue(), ("MJPEG", *form), "cam", SPEC) - wanted).mean() < 4
    full = np.asarray(Image.fromarray(pixels).convert("YCbCr"))
    packed = np.empty((48, 64, 2), np.uint8)
    packed[..., 0], packed[:, ::2, 1], packed[:, 1::2, 1] = full[..., 0], full[:, ::2, 1], full[:, ::2, 2]
    assert np.abs(picture(packed.tobytes(), ("YUYV", *form), "cam", SPEC) - wanted).max() <= 3


@pytest.mark.parametrize(("form", "data"), [("YUYV", b"12"), ("RGB", b""), ("MJPEG", b"\xff\xd8 half a photo")])
def test_half_a_frame_is_refused(form, data):
    with pytest.raises(BadInput, match="frame of cam"):
        picture(data, (form, 64, 48), "cam", SPEC)


class Usb:
    """Stands for linuxpy's Device and VideoCapture: frames come through a pipe, as a device becomes readable."""

    def __init__(self, frames: list[bytes], form: str) -> None:
        self.read_end, self.write_end = os.pipe()
        os.write(self.write_end, b"." * (len(frames) + 1))
        self.frames, self.form, self.wishes = frames, form, []

    def __enter__(self) -> Usb:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.read_end)
        os.close(self.write_end)

    def fileno(self) -> int:
        return self.read_end

    def capture(self, _device: Usb) -> SimpleNamespace:
        usb = self

        class Capture:
            def set_format(self, *wish: object) -> None:
                usb.wishes.append(wish)

            def get_format(self) -> SimpleNamespace:
                return SimpleNamespace(pixel_format=SimpleNamespace(name=usb.form), width=64, height=48)

            def set_fps(self, fps: int) -> None:
                raise OSError(25, "no such speed")

            def __enter__(self) -> Capture:
                return self

            def __exit__(self, *_: object) -> None:
                usb.wishes.append("closed")

            def __iter__(self):
                for frame in usb.frames:
                    os.read(usb.read_end, 1)
                    yield frame
                raise OSError(19, "No such device")

        return Capture()


def plug(monkeypatch, usb: Usb) -> None:
    module = SimpleNamespace(Device=lambda _: usb, VideoCapture=usb.capture)
    for name in ("linuxpy", "linuxpy.video"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "linuxpy.video.device", module)


def test_v4l2_frames_come_until_the_camera_is_pulled(monkeypatch):
    usb = Usb([b"\x80" * (64 * 48 * 2), b"short", b"\x80" * (64 * 48 * 2)], "YUYV")
    plug(monkeypatch, usb)
    frames = read_camera("camera:/dev/video0?width=64&height=48", SPEC, None)
    assert [type(item) for item in islice(frames, 3)] == [Sample, Refusal, Sample]
    with pytest.raises(LinkError, match="has gone"):
        next(frames)
    assert usb.wishes == [(64, 48, "MJPG"), "closed"]


def test_a_camera_of_another_form_is_refused(monkeypatch):
    plug(monkeypatch, Usb([], "H264"))
    with pytest.raises(BadInput, match="only delivers H264"):
        next(read_camera("camera:/dev/video0", SPEC, None))


# GStreamer ---------------------------------------------------------------------------------------


def gstreamer(folder: Path, monkeypatch, elements: str, body: str) -> None:
    """Programs of GStreamer's names. elements: a pattern of those that exist; body: what gst-launch does."""
    inspect = f'case "$2" in {elements}) exit 0;; esac; exit 1'
    for name, text in (("gst-inspect-1.0", inspect), ("gst-launch-1.0", body)):
        path = folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


@pytest.mark.parametrize("element", list(CSI_ELEMENTS))
def test_the_pipeline_uses_the_element_that_is_there(tmp_path, monkeypatch, element):
    gstreamer(tmp_path, monkeypatch, element, "exit 0")
    words = pipeline("1", 640, 480, 30)
    assert words[2] == element
    assert "video/x-raw,format=RGB,width=640,height=480" in words
    assert words[-2:] == ["fdsink", "fd=1"]


def test_frames_of_a_ribbon_camera_come_whole_and_its_end_is_named(tmp_path, monkeypatch):
    gstreamer(tmp_path, monkeypatch, "libcamerasrc",
              "head -c 3072 /dev/zero; sleep 0.2; head -c 6144 /dev/zero; "
              "head -c 100 /dev/zero; head -c 200000 /dev/zero >&2; echo >&2; echo sensor lost >&2")
    frames = read_camera("csi://0?width=32&height=32", SPEC, None)
    assert [item.data.shape for item in islice(frames, 3)] == [(32, 32, 3)] * 3
    with pytest.raises(LinkError, match="sensor lost"):
        next(frames)


def test_a_ribbon_camera_is_let_go_when_nobody_reads_on(tmp_path, monkeypatch):
    gstreamer(tmp_path, monkeypatch, "libcamerasrc", f"echo $$ > {tmp_path}/pid; exec cat /dev/zero")
    frames = read_camera("csi://0?width=32&height=32", SPEC, None)
    next(frames)
    process = int((tmp_path / "pid").read_text())
    frames.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_without_gstreamer_the_cure_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match="apt install"):
        pipeline("0", 640, 480, 10)
    gstreamer(tmp_path, monkeypatch, "nothing", "exit 0")
    with pytest.raises(BadInput, match="nvarguscamerasrc"):
        pipeline("0", 640, 480, 10)
