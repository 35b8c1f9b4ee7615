"""Plain descriptions of what the viewer shows: layers, where the view is, and how it is laid out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from kasthuri_ray.geometry import Nm
from kasthuri_ray.viewer.served_levels import ServedLevel

Style = Literal["image", "overlay", "segmentation"]
Color = str  # such as "#ff5500"


@dataclass(frozen=True, eq=False)
class VoxelLayer:
    """Voxels that are shown.

    Parameters
    ----------
    name : str
        Name of the layer; letters, digits, spaces and _.
    style : {"image", "overlay", "segmentation"}
        Grey levels, a colour whose opacity is the value, or a colour for each id.
    levels : tuple of ServedLevel
        The resolutions, finest first.
    grey_range : tuple of float, optional
        Of an image: what becomes black and white.
    color : str
        Of an overlay, and of the ids of a segmentation that have none of their own; "" for one by chance.
    id_colors : mapping
        Colours of ids.
    rows : sequence of mapping
        Of a segmentation: what is known of its objects, by the columns of the table.
    is_visible : bool
        Whether it is shown at first.
    public_url : str, optional
        Source as Neuroglancer names it, if a browser can read it without this server.
    """

    name: str
    style: Style
    levels: tuple[ServedLevel, ...]
    grey_range: tuple[float, float] | None = None
    color: Color = "#ff3030"
    id_colors: Mapping[int, Color] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()
    is_visible: bool = True
    public_url: str | None = None


@dataclass(frozen=True)
class Point:
    """A place that is marked. position: in nm, z, y, x (in voxels without a voxel size). properties: by name."""

    id: int
    position: Nm
    description: str = ""
    properties: Mapping[str, float] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, eq=False)
class PointLayer:
    """Points that are shown, best first."""

    name: str
    points: Sequence[Point]
    color: Color = "#ffe600"
    is_visible: bool = True


@dataclass(frozen=True, eq=False)
class BoxLayer:
    """Boxes that are shown. boxes: name, lower and upper corner in nm (voxels), z, y, x."""

    name: str
    boxes: Sequence[tuple[str, Nm, Nm]]
    color: Color = "#40c0ff"


@dataclass(frozen=True, eq=False)
class Scene:
    """What the viewer shows.

    Parameters
    ----------
    title : str
        Of the page.
    voxel_layers, point_layers, box_layers : tuple
        In the order in which they are drawn.
    voxel_size : tuple of float
        Unit of the viewer's axes z, y, x: the image's voxel, in nm; 1 without a size.
    has_size : bool
        Whether the voxel size is known.
    position : tuple of float
        Middle of the view, in nm (voxels), z, y, x.
    zoom : float
        Voxels of the image for a pixel.
    layout : str
        As of `--layout`.
    selected : tuple of int
        Ids of the objects that are selected.
    is_review : bool
        Whether one object after the other is judged: lines cross at its middle, and all others are faint.
    """

    title: str
    voxel_layers: tuple[VoxelLayer, ...]
    point_layers: tuple[PointLayer, ...]
    voxel_size: Nm
    has_size: bool
    position: Nm
    zoom: float
    layout: str = "xy"
    box_layers: tuple[BoxLayer, ...] = ()
    selected: tuple[int, ...] = ()
    is_review: bool = False
