"""Keys in the viewer, the object that is selected, and jumping to an object."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from kasthuri_ray.geometry import Nm
from kasthuri_ray.viewer.data_server import ViewerServer
from kasthuri_ray.viewer.layers import Point, Scene
from kasthuri_ray.viewer.viewer_state import OBJECTS, to_viewer

STATUS = "kasthuri_ray"


def bind_key(server: ViewerServer, key: str, name: str, act: Callable[[Any], None]) -> None:
    """Call a function when a key is pressed.

    Parameters
    ----------
    server : ViewerServer
        Shows the scene.
    key : str
        As Neuroglancer names it, such as `keyk` or `shift+keyk`.
    name : str
        Of the action.
    act : callable
        Gets Neuroglancer's `ActionState`.
    """
    server.viewer.actions.add(name, act)

    def bind(config: Any) -> None:
        config.input_event_bindings.viewer[key] = name
        config.input_event_bindings.data_view[key] = name  # over a section keys may mean something else, such as R

    server.viewer.config_state.retry_txn(bind, lock=True)


def show_status(server: ViewerServer, text: str) -> None:
    """Show a line at the bottom of the viewer."""

    def write(config: Any) -> None:
        config.status_messages[STATUS] = text

    server.viewer.config_state.retry_txn(write, lock=True)


def selected_object(action: Any) -> int | None:
    """Return the id of the one object that is selected, else of the one under the mouse; None if there is none."""
    state = action.viewer_state.to_json()
    layers = [each for each in state.get("layers", []) if each.get("name") == OBJECTS]
    segments = [str(each) for layer in layers for each in layer.get("segments", [])]
    chosen = [each for each in segments if not each.startswith("!")]
    if len(chosen) == 1:
        return int(chosen[0])
    under = (action.to_json().get("selectedValues") or {}).get(OBJECTS, {}).get("value")
    if isinstance(under, dict):
        under = under.get("key") or under.get("value")
    try:
        return int(under) or None
    except (TypeError, ValueError):
        return None


def show_object(server: ViewerServer, scene: Scene, number: int | None, place: Nm) -> None:
    """Move the view to a place, and select an object.

    Parameters
    ----------
    server : ViewerServer
        Shows the scene.
    scene : Scene
        Gives the unit of the viewer.
    number : int or None
        Id of the object; None selects none.
    place : tuple of float
        In nm (voxels), z, y, x.
    """
    state = copy.deepcopy(server.viewer.state.to_json())  # it is the state itself, whose changes nobody would see
    state["position"] = to_viewer(place, scene)
    for layer in state.get("layers", []):
        if layer.get("name") == OBJECTS:
            layer["segments"] = [] if number is None else [str(number)]
    server.viewer.set_state(state)


class PointWalk:
    """Keys that jump from one point of a layer to the next.

    Parameters
    ----------
    server : ViewerServer
        Shows the scene.
    scene : Scene
        What is shown.
    key : str
        For the next one; with shift for the one before.
    name : str
        What the points are, for the line at the bottom.
    points : sequence of Point
        In the order in which they are shown.
    """

    def __init__(self, server: ViewerServer, scene: Scene, key: str, name: str, points: Sequence[Point]) -> None:
        self.server, self.scene, self.name, self.points = server, scene, name, points
        self._at = -1
        bind_key(server, key, f"next-{name}", lambda action: self.step(1))
        bind_key(server, f"shift+{key}", f"previous-{name}", lambda action: self.step(-1))

    def step(self, by: int) -> None:
        """Show the next point, or one before."""
        if not self.points:
            show_status(self.server, f"There are no {self.name} objects")
            return
        self._at = (self._at + by) % len(self.points) if self._at >= 0 else (0 if by > 0 else len(self.points) - 1)
        point = self.points[self._at]
        state = {**self.server.viewer.state.to_json(), "position": to_viewer(point.position, self.scene)}
        self.server.viewer.set_state(state)
        show_status(self.server, f"{self.name} {self._at + 1} of {len(self.points)}: {point.description}")
