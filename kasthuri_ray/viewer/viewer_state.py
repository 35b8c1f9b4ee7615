"""Neuroglancer's state from plain descriptions: pure functions.

The viewer's axes are x, y, z with the voxel of the image as their unit, at their place in nm: a position times the
unit is the place in nm that volumes and tables state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kasthuri_ray.geometry import Nm
from kasthuri_ray.viewer.layers import BoxLayer, Point, PointLayer, Scene, VoxelLayer
from kasthuri_ray.viewer.precomputed_info import offset_remainder

MAX_POINTS = 20_000  # in the state; more are served
FAINT = 0.08  # opacity of objects that are not the one under review
OBJECTS = "objects"  # layer of the objects, whose selection follows the review

IMAGE_SHADER = "#uicontrol invlerp normalized\nvoid main() { emitGrayscale(normalized()); }\n"
OVERLAY_SHADER = """#uicontrol vec3 color color(default="{color}")
#uicontrol float lowest slider(min=0, max=1, default=0.3)
void main() {{
  float p = toNormalized(getDataValue());
  emitRGBA(vec4(color, p < lowest ? 0.0 : p));
}}
"""
POINT_SHADER = """#uicontrol vec3 color color(default="{color}")
#uicontrol float diameter slider(min=2, max=30, default=9)
void main() {{ setColor(color); setPointMarkerSize(diameter); setPointMarkerBorderColor(vec3(0.0, 0.0, 0.0)); }}
"""


def viewer_state(scene: Scene, data_url: str) -> dict[str, Any]:
    """Return the state that shows a scene.

    Parameters
    ----------
    scene : Scene
        What is shown.
    data_url : str
        Address of the voxels, without a slash at its end.

    Returns
    -------
    dict
        JSON object, as after `#!` in the address of any Neuroglancer.
    """
    layers = [voxel_layer_json(layer, scene, data_url) for layer in scene.voxel_layers]
    layers += [box_layer_json(layer, scene) for layer in scene.box_layers]
    layers += [point_layer_json(layer, scene, data_url) for layer in scene.point_layers]
    return {
        "title": scene.title,
        "dimensions": dimensions(scene.voxel_size, scene.has_size),
        "position": to_viewer(scene.position, scene),
        "crossSectionScale": scene.zoom * scene.voxel_size[2] / min(scene.voxel_size),
        "projectionScale": scene.zoom * scene.voxel_size[2] / min(scene.voxel_size) * 1024,
        "prefetch": False,  # of the sections before and after: it would fetch many times what is visible
        "showAxisLines": scene.is_review,
        "showSlices": True,
        "layers": layers,
        "layout": scene.layout,
    }


def dimensions(size: Nm, has_size: bool) -> dict[str, list[Any]]:
    """Return axes x, y, z whose unit is a voxel of a size in nm."""
    scales = [round(length * 1e-9, 18) for length in size[::-1]] if has_size else list(size[::-1])
    return {axis: [scale, "m" if has_size else ""] for axis, scale in zip("xyz", scales, strict=True)}


def to_viewer(position: Nm, scene: Scene) -> list[float]:
    """Return a place in nm, z, y, x, as the viewer counts: x, y, z in voxels of the image."""
    return [round(place / size, 4) for place, size in zip(position[::-1], scene.voxel_size[::-1], strict=True)]


def voxel_layer_json(layer: VoxelLayer, scene: Scene, data_url: str) -> dict[str, Any]:
    """Return the JSON of a layer of voxels."""
    source: dict[str, Any] = {"url": layer.public_url or f"precomputed://{data_url}/{url_name(layer.name)}"}
    remainder = offset_remainder(layer.levels[0])
    if layer.public_url is None and (any(remainder) or not scene.has_size):
        own = dimensions(layer.levels[0].size, scene.has_size)
        rows = [[float(row == column) for column in range(3)] + [remainder[2 - row]] for row in range(3)]
        source["transform"] = {"matrix": rows, "inputDimensions": own, "outputDimensions": own}
    common = {"name": layer.name, "source": source, "visible": layer.is_visible}
    if layer.style == "segmentation":
        return {**common, "type": "segmentation", **_segmentation_json(layer, scene)}
    if layer.style == "overlay":
        shader = OVERLAY_SHADER.format(color=layer.color)
        return {**common, "type": "image", "shader": shader, "opacity": 0.6, "blend": "default"}
    controls = {"normalized": {"range": list(layer.grey_range)}} if layer.grey_range else {}
    return {**common, "type": "image", "shader": IMAGE_SHADER, "shaderControls": controls, "opacity": 1.0}


def _segmentation_json(layer: VoxelLayer, scene: Scene) -> dict[str, Any]:
    selected = [str(number) for number in scene.selected] if layer.name == OBJECTS else []
    colors: dict[str, Any] = {"segmentDefaultColor": layer.color} if layer.color else {}
    if layer.id_colors:
        colors["segmentColors"] = {str(number): color for number, color in layer.id_colors.items()}
    others = FAINT if scene.is_review else 0.2
    return {"selectedAlpha": 0.45, "notSelectedAlpha": others, "segments": selected, "tab": "segments", **colors}


def point_layer_json(layer: PointLayer, scene: Scene, data_url: str) -> dict[str, Any]:
    """Return the JSON of a layer of points; of more than 20,000 it holds the best and names where all are served."""
    common = {
        "type": "annotation",
        "name": layer.name,
        "visible": layer.is_visible,
        "shader": POINT_SHADER.format(color=layer.color),
        "tab": "annotations",
    }
    if len(layer.points) > MAX_POINTS:
        spacing = {"crossSectionAnnotationSpacing": 1, "projectionAnnotationSpacing": 1}  # pixels: draw nearly all
        return {**common, **spacing, "source": f"precomputed://{data_url}/{url_name(layer.name)}"}
    space = dimensions(scene.voxel_size, scene.has_size)
    source = {"url": "local://annotations", "transform": {"outputDimensions": space}}
    names = property_names(layer.points)
    properties = [{"id": name, "type": "float32"} for name in names]
    annotations = [_point_json(point, names, scene) for point in layer.points]
    return {**common, "source": source, "annotationProperties": properties, "annotations": annotations}


def box_layer_json(layer: BoxLayer, scene: Scene) -> dict[str, Any]:
    """Return the JSON of a layer of boxes."""
    source = {
        "url": "local://annotations",
        "transform": {"outputDimensions": dimensions(scene.voxel_size, scene.has_size)},
    }
    boxes = [
        {
            "type": "axis_aligned_bounding_box",
            "id": f"{name} {number}",
            "description": name,
            "pointA": to_viewer(low, scene),
            "pointB": to_viewer(high, scene),
        }
        for number, (name, low, high) in enumerate(layer.boxes)
    ]
    common = {"type": "annotation", "name": layer.name, "tab": "annotations", "annotationColor": layer.color}
    return {**common, "source": source, "annotations": boxes}


def property_names(points: Sequence[Point]) -> list[str]:
    """Return the names of the properties that points have; all have the same."""
    return list(points[0].properties) if points else []


def _point_json(point: Point, names: Sequence[str], scene: Scene) -> dict[str, Any]:
    values = [point.properties[name] for name in names]
    place = {"type": "point", "id": str(point.id), "point": to_viewer(point.position, scene), "props": values}
    return {**place, "description": point.description} if point.description else place


def url_name(name: str) -> str:
    """Return the part of a URL that names a layer."""
    return name.replace(" ", "_")
