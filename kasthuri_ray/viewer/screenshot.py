"""A picture of the viewer by an installed browser without a window: no display and no GPU is needed."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from threading import Event
from typing import Any

import numpy as np
from PIL import Image

from kasthuri_ray.errors import InputError, WorkFailed
from kasthuri_ray.viewer.data_server import ViewerServer

TIMEOUT_S = 120.0
NAMES = (
    *("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome"),
    *("microsoft-edge", "microsoft-edge-stable"),
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
)
# Without a GPU, a display, and a kernel that lets users have sandboxes; the only page is that of our own server.
FLAGS = (
    *("--headless=new", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"),
    *("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars"),
)
INSTALL_ADVICE = (
    "--screenshot needs Chromium, Chrome or Edge: install one (such as: sudo apt-get install chromium), or name it "
    "with --browser PATH"
)
SCALE_BAR_PIXELS = 6000  # at most, and frames of a few pixels' width around the volumes: they are no content
FRAME_WIDTH = 4


def find_browser(path: str | None) -> str:
    """Return the program of a browser.

    Parameters
    ----------
    path : str or None
        `--browser`; None looks for an installed one.

    Returns
    -------
    str
        Path of the program.

    Raises
    ------
    InputError
        If there is none; the message says what to install.
    """
    if path is not None:
        found = shutil.which(os.path.expanduser(path))
        if found is None:
            raise InputError(f"--browser {path} is not a program. {INSTALL_ADVICE}")
        return found
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise InputError(f"no browser was found. {INSTALL_ADVICE}")
    return found


def take_screenshot(server: ViewerServer, browser: str, size: tuple[int, int], timeout_s: float = TIMEOUT_S) -> bytes:
    """Return a picture of the viewer once all that is visible is drawn.

    Parameters
    ----------
    server : ViewerServer
        Serves a scene, and its state is set.
    browser : str
        Program of the browser.
    size : tuple of int
        Width and height in pixels.
    timeout_s : float
        Limit.

    Returns
    -------
    bytes
        PNG.

    Raises
    ------
    WorkFailed
        If it takes longer, a source fails, the browser ends, or nothing but one colour is visible.
    """
    replies: list[Any] = []
    finished = Event()

    def receive(reply: Any) -> None:
        replies.append(reply)
        finished.set()

    with server.viewer.config_state.txn() as config:
        config.show_ui_controls = False
        config.show_panel_borders = False
        config.viewer_size = list(size)
    server.viewer.async_screenshot(receive)
    with tempfile.TemporaryDirectory(prefix="kasthuri_ray_browser_", ignore_cleanup_errors=True) as profile:
        window = f"--window-size={size[0]},{size[1]}"
        command = [browser, *FLAGS, f"--user-data-dir={profile}", window, server.url]
        with open(os.path.join(profile, "log.txt"), "wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            _wait(finished, process, server.failures, timeout_s, lambda: _tail(os.path.join(profile, "log.txt")))
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    png = bytes(replies[0].screenshot.image)
    if is_empty(np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))):
        raise WorkFailed("the picture is empty: there is nothing to see at this position; give another --position")
    return png


def _wait(
    finished: Event,
    process: subprocess.Popen[bytes],
    failures: Sequence[str],
    timeout_s: float,
    last_lines: Callable[[], str],
) -> None:
    """Return when the picture is there; raise WorkFailed for anything that keeps it from coming."""
    deadline = time.monotonic() + timeout_s
    while not finished.wait(0.1):
        if failures:
            raise WorkFailed(f"a layer cannot be read: {failures[0]}")
        if process.poll() is not None:
            raise WorkFailed(f"the browser ended with exit code {process.returncode}: {last_lines()}")
        if time.monotonic() > deadline:
            raise WorkFailed(f"not all that is visible was drawn within {timeout_s:.0f} s")


def _tail(path: str) -> str:
    """Return the last lines of a file."""
    with open(path, errors="replace") as file:
        return " | ".join(file.read().strip().splitlines()[-3:])


def is_empty(pixels: np.ndarray) -> bool:
    """Return whether all pixels, y, x, rgb, have one colour, but for the scale bar and the frames of volumes."""
    packed = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    _, counts = np.unique(packed, return_counts=True)
    no_content = SCALE_BAR_PIXELS + FRAME_WIDTH * sum(packed.shape)
    return packed.size - counts.max() <= min(no_content, 0.8 * packed.size)
