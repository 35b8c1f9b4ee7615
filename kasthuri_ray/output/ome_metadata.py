"""The metadata of an output in OME-NGFF 0.5 and zarr 3: pure functions to and from JSON.

Format: https://ngff.openmicroscopy.org/0.5/
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from typing import Any

from kasthuri_ray.geometry import AXES, Zyx, ceil_div, per_axis
from kasthuri_ray.output.layout import ArrayLayout
from kasthuri_ray.output.pyramid import PyramidLevel

Json = dict[str, Any]

VERSION = "0.5"
PROVENANCE_KEY = "kasthuri_ray"  # the attribute that holds the provenance
COLORS = ("FF5050", "50C8FF", "FFD750", "78E678", "D278FF", "FFA050")  # of the classes, repeated


def is_node_name(text: str) -> bool:
    """Return whether a zarr node may have this name."""
    return re.fullmatch(r"(?!\.+$)(?!__)[A-Za-z0-9._-]+", text) is not None


def image_json(
    name: str, levels: Sequence[PyramidLevel], nanometers: bool, channels: Sequence[str], record: Mapping[str, Any]
) -> Json:
    """Return the `zarr.json` of the output's group."""
    omero = [
        {
            "active": True,
            "coefficient": 1.0,
            "color": COLORS[number % len(COLORS)],
            "family": "linear",
            "inverted": False,
            "label": channel,
            "window": {"min": 0.0, "max": 255.0, "start": 0.0, "end": 255.0},
        }
        for number, channel in enumerate(channels)
    ]
    scales = _multiscales(name, levels, nanometers, channel=True, method="mean")
    return _group(
        {
            "ome": {"version": VERSION, "multiscales": [scales], "omero": {"channels": omero}},
            PROVENANCE_KEY: dict(record),
        }
    )


def labels_json(names: Sequence[str]) -> Json:
    """Return the `zarr.json` of the group `labels`."""
    return _group({"ome": {"version": VERSION, "labels": list(names)}})


def mask_json(name: str, levels: Sequence[PyramidLevel], nanometers: bool, channels: Sequence[str]) -> Json:
    """Return the `zarr.json` of a label image in `labels`: label 1 is the first channel, and so on."""
    label = {
        "colors": [{"label-value": number + 1, "rgba": _rgba(number)} for number in range(len(channels))],
        "properties": [{"label-value": number + 1, "class": channel} for number, channel in enumerate(channels)],
        "source": {"image": "../../"},
    }
    scales = _multiscales(name, levels, nanometers, channel=False, method="majority, the foreground where even")
    return _group({"ome": {"version": VERSION, "multiscales": [scales], "image-label": label}})


def object_image_json(
    name: str, levels: Sequence[PyramidLevel], nanometers: bool, num_objects: int | None = None
) -> Json:
    """Return the `zarr.json` of a label image in `labels` whose labels are the ids of objects.

    num_objects: how many there are, once all of them are written.
    """
    scales = _multiscales(name, levels, nanometers, channel=False, method="mode, the foreground where even")
    label = {"source": {"image": "../../"}}
    complete = {} if num_objects is None else {PROVENANCE_KEY: {"objects": num_objects}}
    return _group({"ome": {"version": VERSION, "multiscales": [scales], "image-label": label}, **complete})


def array_json(shape: Zyx, layout: ArrayLayout, channels: int | None, dtype: str = "uint8") -> Json:
    """Return the `zarr.json` of an array.

    Its axes are c, z, y, x, with a shard for each channel, or z, y, x if `channels` is None.
    """
    one_channel = [] if channels is None else [1]
    to_bytes: Json = {"name": "bytes"}
    if dtype != "uint8":
        to_bytes["configuration"] = {"endian": "little"}
    codecs = [to_bytes, {"name": "zstd", "configuration": {"level": 1, "checksum": True}}]
    index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    sharding = {
        "chunk_shape": [*one_channel, *layout.chunk],
        "codecs": codecs,
        "index_codecs": index,
        "index_location": "end",
    }
    grid = {"name": "regular", "configuration": {"chunk_shape": [*one_channel, *layout.shard]}}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [*([] if channels is None else [channels]), *shape],
        "data_type": dtype,
        "fill_value": 0,
        "chunk_grid": grid,
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "dimension_names": [*([] if channels is None else ["c"]), *AXES],
        "attributes": {},
    }


def read_layout(array: Json) -> ArrayLayout:
    """Return the layout of an array with channels, from what `array_json` returned."""
    shard = array["chunk_grid"]["configuration"]["chunk_shape"][1:]
    chunk = array["codecs"][0]["configuration"]["chunk_shape"][1:]
    return ArrayLayout(tuple(shard), tuple(chunk))


def read_image(group: Json, shape: Zyx) -> tuple[tuple[PyramidLevel, ...], bool, tuple[str, ...]]:
    """Return levels, whether they are in nm, and channels, from what `image_json` returned and the shape of s0."""
    attributes = group["attributes"]["ome"]
    scales = attributes["multiscales"][0]
    levels: list[PyramidLevel] = []
    for number, dataset in enumerate(scales["datasets"]):
        first, second = dataset["coordinateTransformations"]
        scale, translation = tuple(first["scale"][1:]), tuple(second["translation"][1:])
        finest_scale, factors_before = (levels[0].scale, levels[-1].factors) if levels else (scale, (1, 1, 1))
        factors = per_axis(lambda a, b: round(a / b), scale, finest_scale)
        levels.append(
            PyramidLevel(
                number=number,
                shape=per_axis(ceil_div, shape, factors),
                factors=factors,
                step=per_axis(operator.floordiv, factors, factors_before),
                scale=scale,
                translation=translation,
            )
        )
    nanometers = scales["axes"][-1].get("unit") == "nanometer"
    return tuple(levels), nanometers, tuple(channel["label"] for channel in attributes["omero"]["channels"])


def _group(attributes: Json) -> Json:
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def _rgba(number: int) -> list[int]:
    color = COLORS[number % len(COLORS)]
    return [int(color[i : i + 2], 16) for i in (0, 2, 4)] + [255]


def _multiscales(name: str, levels: Sequence[PyramidLevel], nanometers: bool, channel: bool, method: str) -> Json:
    unit = {"unit": "nanometer"} if nanometers else {}
    axes: list[Json] = [{"name": "c", "type": "channel"}] if channel else []
    axes += [{"name": axis, "type": "space", **unit} for axis in AXES]
    datasets = [
        {
            "path": level.name,
            "coordinateTransformations": [
                {"type": "scale", "scale": [1.0] * channel + [float(n) for n in level.scale]},
                {"type": "translation", "translation": [0.0] * channel + [float(n) for n in level.translation]},
            ],
        }
        for level in levels
    ]
    return {"name": name, "axes": axes, "datasets": datasets, "type": method}
