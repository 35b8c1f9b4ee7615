"""Show volumes, outputs, runs and evaluations in Neuroglancer: `view` opens what is named and starts the server."""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from kasthuri_ray.config.view_settings import ViewSettings
from kasthuri_ray.errors import InputError, missing_is_bad_input
from kasthuri_ray.geometry import Nm
from kasthuri_ray.output.reviewed_file import reviewed_path
from kasthuri_ray.progress import Reporter
from kasthuri_ray.storage.local_storage import LocalStorage
from kasthuri_ray.viewer.data_server import ANY_ADDRESS, ViewerServer
from kasthuri_ray.viewer.evaluation_scene import OUTCOMES, open_evaluation_parts
from kasthuri_ray.viewer.layer_maker import LayerMaker
from kasthuri_ray.viewer.layers import BoxLayer, PointLayer, Scene, VoxelLayer
from kasthuri_ray.viewer.object_table import best_row, place_of
from kasthuri_ray.viewer.output_scene import OutputParts, open_output_parts
from kasthuri_ray.viewer.public_sources import public_link
from kasthuri_ray.viewer.review import Review, ReviewFile
from kasthuri_ray.viewer.run_scene import open_run_parts, with_position_in
from kasthuri_ray.viewer.scene_view import (
    check_window,
    first_layer,
    fitting_zoom,
    middle_of,
    move_inside,
    parse_position,
)
from kasthuri_ray.viewer.screenshot import find_browser, take_screenshot
from kasthuri_ray.viewer.viewer_keys import PointWalk
from kasthuri_ray.viewer.viewer_state import OBJECTS, viewer_state
from kasthuri_ray.volumes.opening import VolumeOpener
from kasthuri_ray.volumes.volume import Volume

NO_SHIFT: Nm = (0.0, 0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Viewing:
    """What `view` returns.

    Parameters
    ----------
    url : str
        Address of the viewer; of a screenshot the path of the picture.
    server : ViewerServer or None
        The server, which runs until `close`; None for a screenshot and a link.
    """

    url: str
    server: ViewerServer | None = None

    def close(self) -> None:
        """Stop the server."""
        if self.server is not None:
            self.server.close()


@dataclass(frozen=True, eq=False)
class _Parts:
    """Layers and what else is known, from any source."""

    image: Volume | None
    voxel_layers: tuple[VoxelLayer, ...]
    point_layers: tuple[PointLayer, ...] = ()
    box_layers: tuple[BoxLayer, ...] = ()
    output: OutputParts | None = None
    position: str | None = None


@missing_is_bad_input()
def view(settings: ViewSettings, reporter: Reporter, *, opens_browser: bool = True) -> Viewing:
    """Show what the settings name.

    Parameters
    ----------
    settings : ViewSettings
        What is shown, and how.
    reporter : Reporter
        Shows lines for people.
    opens_browser : bool
        Whether a browser is opened where there is a display.

    Returns
    -------
    Viewing
        The address, and the server behind it.

    Raises
    ------
    InputError
        For bad input, before the server starts.
    WorkFailed
        If a screenshot fails.
    """
    window = check_window(settings.size)
    browser = _check_screenshot(settings)
    maker = LayerMaker(VolumeOpener(settings.boss, settings.cache, settings.cache_size))
    parts = _open_parts(settings, maker, reporter)
    scene = _make_scene(settings, parts, window)
    review = _open_review(settings, parts)
    for note in maker.notes:
        reporter.print_line(note)
    if settings.link:
        return Viewing(public_link(scene))
    server = ViewerServer(settings.bind, settings.port)
    try:
        server.serve(scene)
        server.viewer.set_state(viewer_state(scene, server.data_url))
        if browser is not None:
            picture = take_screenshot(server, browser, window)
            path = os.path.abspath(str(settings.screenshot))
            LocalStorage(os.path.dirname(path)).write_bytes(os.path.basename(path), picture)
            server.close()
            return Viewing(path)
        _bind_keys(server, scene, parts, review, settings)
    except BaseException:
        server.close()
        raise
    if review is not None and settings.review is not None:
        reporter.print_line(
            f"each verdict is written to {review.path}: K keep, R reject, U unsure; then evaluate.py --prediction "
            f"{settings.output} --reviewed {review.path} prints the precision"
        )
    if opens_browser:
        _invite(server, settings, reporter)
    return Viewing(server.url, server)


def _check_screenshot(settings: ViewSettings) -> str | None:
    """Return the browser of a screenshot, after a check that its file can be written; None without `--screenshot`."""
    if settings.screenshot is None:
        return None
    folder = os.path.dirname(os.path.abspath(settings.screenshot))
    if not settings.screenshot.lower().endswith(".png"):
        raise InputError(f"--screenshot {settings.screenshot}: the picture is a PNG; give a name that ends with .png")
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        raise InputError(f"--screenshot {settings.screenshot}: the folder {folder} does not exist or is not writable")
    return find_browser(settings.browser)


def _open_parts(settings: ViewSettings, maker: LayerMaker, reporter: Reporter) -> _Parts:
    volumes = settings.image, settings.annotation
    if settings.output is not None:
        output = open_output_parts(settings.output, *volumes, maker)
        return _Parts(output.frame, output.voxel_layers, output.point_layers, output=output)
    if settings.evaluation is not None:
        result = open_evaluation_parts(settings.evaluation, *volumes, maker)
        frame = result.output.frame if result.output else result.image
        return _Parts(frame, result.voxel_layers, result.point_layers, output=result.output)
    if settings.run is not None:
        run = open_run_parts(settings.run, *volumes, maker, reporter.print_line)
        return _Parts(run.image, run.voxel_layers, box_layers=run.box_layers, position=with_position_in(run.box))
    assert settings.image is not None
    image, layer = maker.image_layer(settings.image)
    annotation = () if settings.annotation is None else (maker.annotation_layer(settings.annotation, image),)
    return _Parts(image, (layer, *annotation))


def _make_scene(settings: ViewSettings, parts: _Parts, window: tuple[int, int]) -> Scene:
    main = first_layer(parts.voxel_layers)
    finest = main.levels[0]
    volume = parts.image or finest.volume
    overview = fitting_zoom(main, window)
    best = best_row(parts.output.rows) if parts.output else None
    text = settings.position or parts.position
    if settings.position is None and best is not None:
        position, zoom = place_of(best, parts.output.shift if parts.output else NO_SHIFT), min(1.0, overview)
        if settings.review is None:  # its first object stays where the lines cross
            panel = window if settings.layout == "xy" else (window[0] // 2, window[1] // 2)
            position = move_inside(position, finest, panel, zoom)
    elif text is not None:
        position, zoom = parse_position(text, volume), 1.0
    else:
        position, zoom = middle_of(finest), overview
    return Scene(
        title=os.path.basename((settings.output or settings.evaluation or settings.run or volume.uri).rstrip("/")),
        voxel_layers=parts.voxel_layers if settings.review is None else _judged_layers(parts.voxel_layers),
        point_layers=tuple(
            replace(layer, is_visible=layer.is_visible and settings.review is None) for layer in parts.point_layers
        ),
        box_layers=parts.box_layers,
        voxel_size=finest.size,
        has_size=volume.voxel_size_nm is not None,
        position=position,
        zoom=min(zoom, overview),
        layout=settings.layout,
        is_review=settings.review is not None,
    )


def _judged_layers(layers: Sequence[VoxelLayer]) -> tuple[VoxelLayer, ...]:
    """Hide all but image and objects: a verdict is on what the image shows."""
    return tuple(each if each.name in ("image", OBJECTS) else replace(each, is_visible=False) for each in layers)


def _open_review(settings: ViewSettings, parts: _Parts) -> ReviewFile | None:
    """Return the verdicts on the objects of an output; None if it has no table of objects."""
    if parts.output is None or not parts.output.rows:
        if settings.review is not None:
            raise InputError(
                "--review needs the table of objects of an output that has some: segment with --objects first (the "
                "same command with --objects adds it to a finished output)"
            )
        return None
    return ReviewFile(reviewed_path(parts.output.output.path), parts.output.rows, settings.review)


def _bind_keys(
    server: ViewerServer, scene: Scene, parts: _Parts, review: ReviewFile | None, settings: ViewSettings
) -> None:
    if settings.evaluation is not None:
        for layer in parts.point_layers:
            if layer.name in OUTCOMES:
                PointWalk(server, scene, f"key{layer.name[0]}", layer.name, layer.points)
    if review is not None and parts.output is not None:
        rows, shift = {int(row["id"]): row for row in parts.output.rows}, parts.output.shift
        Review(server, scene, review, lambda number: place_of(rows[number], shift), settings.review is not None)


def _invite(server: ViewerServer, settings: ViewSettings, reporter: Reporter) -> None:
    """Open a browser; on a remote machine say how to reach the server from one's own."""
    if is_remote(os.environ):
        if settings.bind not in ANY_ADDRESS:
            reporter.print_line(f"on your own machine, before you open the address: {ssh_command(server.port)}")
        return
    if settings.browser is not None:
        subprocess.Popen(
            [find_browser(settings.browser), server.url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    else:
        webbrowser.open(server.url)


def is_remote(environment: Any) -> bool:
    """Return whether this machine has no display of the person who types: a session of ssh, or no display at all.

    Parameters
    ----------
    environment : mapping
        Such as `os.environ`.
    """
    has_display = sys.platform == "darwin" or environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY")
    return bool(environment.get("SSH_CONNECTION")) or not has_display


def ssh_command(port: int) -> str:
    """Return the command that makes a port of this machine one of the own machine."""
    try:
        user = f"{getpass.getuser()}@"
    except (OSError, KeyError):  # a container may have no names of users
        user = ""
    return f"ssh -L {port}:127.0.0.1:{port} {user}{socket.gethostname()}"
