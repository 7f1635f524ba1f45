#!/usr/bin/env python
"""Takes screenshots of the daemon's page for the README: desktop and phone, light and dark, with real photos.

    python tools/screenshots.py GROCERY OUT     # GROCERY: {train,test}/CLASS/*.jpg, such as the Grocery Store Dataset

Needs Chromium and its driver: apt-get install chromium chromium-driver. A learning round runs first.
"""
from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from itertools import islice
from pathlib import Path
from urllib.request import urlopen

from browser import browser
from PIL import Image
from selenium import webdriver

from edgecl.learner import Learner
from edgecl.rounds.run import RoundRequest
from edgecl.settings import Settings
from edgecl.sources import read
from edgecl.sources.spec import Spec

CLASSES = ("Royal-Gala", "Red-Delicious", "Golden-Delicious", "Granny-Smith", "Lemon", "Orange", "Oatly-Oat-Milk",
           "Avocado")
PHOTOS_PER_CLASS, ROUND_SECONDS = 15, 300
SHOWN_CLASSES = (*CLASSES, "Mango", "Kiwi")   # the last ones are unknown to the state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grocery", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds", type=float, default=20, help="seconds before the first screenshot")
    options = parser.parse_args()
    options.out.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config, url = prepared(folder, options.grocery)
        daemon = subprocess.Popen([sys.executable, "-m", "edgecl.cli", "daemon", "--config", str(config)])
        try:
            wait_for(url, daemon)
            time.sleep(options.seconds)
            for scheme in ("light", "dark"):
                for device, width, height in (("desktop", 1280, 900), ("phone", 390, 844)):
                    with browser(width, height, scheme) as driver:
                        photograph(driver, url, options.out / f"page-{device}-{scheme}.webp", width)
        finally:
            daemon.terminate()
            daemon.wait(10)


def prepared(folder: Path, grocery: Path) -> tuple[Path, str]:
    """A state that knows CLASSES, a folder for the camera, and the daemon's configuration."""
    learner = Learner.create(folder / "state", Settings(backbone="efficientnet-lite0", quota=64 * 10**6,
                                                        exemplars=4 * 10**6, codec="jpeg"))
    for name in CLASSES:
        photos = islice(read(grocery / "train" / name, Spec(), name), PHOTOS_PER_CLASS)
        learner.learn(photos, name.replace("-", " ").lower())  # type: ignore[arg-type]
    learner.round(RoundRequest(seconds=ROUND_SECONDS, memory=800 * 10**6, epochs=2))
    learner.close()
    shown = folder / "photos"
    shown.mkdir()
    for place, name in enumerate(SHOWN_CLASSES):
        for number, photo in enumerate(sorted((grocery / "test" / name).glob("*.jpg"))[:4]):
            shutil.copy(photo, shown / f"{number}-{place}.jpg")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "daemon.toml"
    config.write_text(f'state = "{folder / "state"}"\nhttp_listen = "127.0.0.1:{port}"\nrounds = "off"\n'
                      f'[[source]]\nname = "camera"\nuri = "fake:{shown}?fps=3"\n')
    return config, f"http://127.0.0.1:{port}/"


def wait_for(url: str, daemon: subprocess.Popen[bytes]) -> None:
    """Wait until the page is available."""
    for _ in range(200):
        try:
            urlopen(url, timeout=1).close()
            return
        except OSError:
            if daemon.poll() is not None:
                raise SystemExit("the daemon has ended") from None
            time.sleep(0.1)


def photograph(driver: webdriver.Chrome, url: str, path: Path, width: int) -> None:
    """Save the whole page as a WebP file."""
    driver.get(url)
    time.sleep(3)
    height = driver.execute_script("return document.documentElement.scrollHeight")
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                           {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500})
    time.sleep(1)
    with Image.open(BytesIO(driver.get_screenshot_as_png())) as image:
        image.convert("RGB").save(path, quality=72, method=6)
    print(path, path.stat().st_size, "bytes", (width, height))


if __name__ == "__main__":
    main()
