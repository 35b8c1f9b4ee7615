"""What is shown of an output: image, probabilities, mask, objects, annotation, and which blocks are done."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.evaluation.provenance import prediction_place
from kasthuri_ray.geometry import Box, Nm, Zyx, per_axis
from kasthuri_ray.output.block_grid import BlockGrid, block_name
from kasthuri_ray.output.ledger import Ledger
from kasthuri_ray.output.ome_zarr import OmeZarrOutput
from kasthuri_ray.output.output_array import OutputArray
from kasthuri_ray.output.side_files import read_progress
from kasthuri_ray.progress import format_count
from kasthuri_ray.segmentation.phases import NetworkPhase
from kasthuri_ray.storage.uris import absolute_uri
from kasthuri_ray.viewer.layer_maker import LayerMaker, extent_of
from kasthuri_ray.viewer.layers import PointLayer, VoxelLayer
from kasthuri_ray.viewer.object_table import read_rows, table_points
from kasthuri_ray.viewer.output_volumes import ObjectsVolume, level_volumes, objects_volumes
from kasthuri_ray.viewer.served_levels import ServedLevel
from kasthuri_ray.viewer.viewer_state import OBJECTS
from kasthuri_ray.volumes.memory_volume import volume_of_array
from kasthuri_ray.volumes.uri_options import split_uri_options
from kasthuri_ray.volumes.volume import Volume

CONTAINERS = (".zarr", ".n5", ".h5", ".hdf5", ".hdf", "bossdb://", "phantom://")
COLORS = ("#ff3030", "#30a0ff", "#ffb020", "#d050ff", "#40e0c0")
DONE, PENDING, SET_ASIDE = 1, 2, 3  # ids of blocks
BLOCK_NAMES = {DONE: "done", PENDING: "not done yet", SET_ASIDE: "set aside"}
BLOCK_COLORS = {DONE: "#30d070", PENDING: "#909090", SET_ASIDE: "#ff3030"}


@dataclass(frozen=True, eq=False)
class OutputParts:
    """What is known of an output.

    Parameters
    ----------
    output : OmeZarrOutput
        The output.
    image : Volume or None
        The image that was segmented; None if it cannot be opened.
    frame : Volume
        Has the bounds, voxel size and place of the image, as far as the output holds it; its voxels are not read.
    voxel_layers, point_layers : tuple
        In the order in which they are drawn.
    rows : list of dict
        Rows of the table of objects; empty without a table.
    shift : tuple of float
        From the centroids of the table to the middles of the objects.
    """

    output: OmeZarrOutput
    image: Volume | None
    frame: Volume
    voxel_layers: tuple[VoxelLayer, ...]
    point_layers: tuple[PointLayer, ...]
    rows: Sequence[dict[str, Any]]
    shift: Nm


def open_output_parts(path: str, image_uri: str | None, annotation_uri: str | None, maker: LayerMaker) -> OutputParts:
    """Open an output and all that belongs to it.

    Parameters
    ----------
    path : str
        Path or URL of the output.
    image_uri, annotation_uri : str or None
        Image and annotation; None for those that the output names, if they can be opened.
    maker : LayerMaker
        Makes the layers.

    Returns
    -------
    OutputParts
        The layers.

    Raises
    ------
    InputError
        If there is no output, or a volume that was given cannot be opened.
    """
    output = OmeZarrOutput.open(path)
    record, progress = output.spec.record, _progress(output)
    image, image_layer = _open_image(output, image_uri, maker)
    is_done = progress.get("state", "done") == "done"
    finest = level_volumes(output, output.probabilities, 0, 1)[0]
    place = prediction_place(record, finest, image)
    num_levels = len(output.spec.levels) if is_done else 1  # the coarser ones are written last
    make = _OutputLayers(output, place, num_levels, maker)
    layers = [] if image_layer is None else [image_layer]
    layers += make.probabilities()
    if output.labels is not None:
        layers.append(make.labels(output.labels, "mask"))
    rows = read_rows(output)
    if rows:
        layers += make.objects(rows)
    annotation = _annotation_layer(record, image, annotation_uri, maker)
    layers += [] if annotation is None else [annotation]
    if not is_done:
        layers.append(_blocks_layer(output, make, progress, maker))
    is_corner = finest.voxel_size_nm is not None and place is not None and place.anchor == "corner"
    half = per_axis(lambda size: 0.5 * size if is_corner or finest.voxel_size_nm is None else 0.0, make.size)
    points = (PointLayer(_points_name(output), table_points(rows, half)),) if rows else ()
    return OutputParts(output, image, image or make.image_frame(finest), tuple(layers), points, rows or (), half)


def _points_name(output: OmeZarrOutput) -> str:
    return "synapses" if list(output.spec.channels) == ["synapse"] else "centroids"


class _OutputLayers:
    """Makes the layers of the arrays of an output."""

    def __init__(self, output: OmeZarrOutput, place: Any, num_levels: int, maker: LayerMaker) -> None:
        self.output, self.place, self.num_levels, self.maker = output, place, num_levels, maker
        level = output.spec.levels[0]
        self.size: Nm = level.scale if output.spec.nanometers else (1.0, 1.0, 1.0)
        self.start = Box.at([int(part.split(":")[0]) for part in output.spec.record["box"].split(",")], (1, 1, 1)).start

    def serve(self, volumes: Sequence[Volume], content: Any) -> tuple[ServedLevel, ...]:
        """Return what is served of volumes of the output, whose places are those of the output."""
        placed = [replace(volumes[0], place=self.place), *volumes[1:]]
        levels = self.maker.levels(placed, content, size_is_given=True)
        if self.output.spec.nanometers:
            return levels
        corner = per_axis(float, self.start)  # without a voxel size lengths are in voxels of the image
        return tuple(replace(level, corner=corner) for level in levels)

    def image_frame(self, finest: Volume) -> Volume:
        """Return the part of the image that the output covers, in voxels of the image."""
        place = self.place
        if place is not None:
            origin = per_axis(lambda at, start, size: at - start * size, place.origin_nm, self.start, self.size)
            place = replace(place, origin_nm=origin)
        return replace(finest, bounds=finest.bounds.shifted(self.start), place=place)

    def probabilities(self) -> list[VoxelLayer]:
        array, names = self.output.probabilities, self.output.spec.channels
        layers = []
        for channel, name in enumerate(names):
            levels = self.serve(level_volumes(self.output, array, channel, self.num_levels), "probability")
            layers.append(VoxelLayer(name, "overlay", levels, color=COLORS[channel % len(COLORS)]))
        return layers

    def labels(self, array: OutputArray, name: str) -> VoxelLayer:
        levels = self.serve(level_volumes(self.output, array, None, self.num_levels), "labels")
        colors = {number: COLORS[(number - 1) % len(COLORS)] for number in range(1, 1 + len(self.output.spec.channels))}
        return VoxelLayer(name, "segmentation", levels, id_colors=colors, is_visible=False)

    def objects(self, rows: Sequence[dict[str, Any]]) -> list[VoxelLayer]:
        """Return the layer of the objects; none if they can neither be read nor labelled."""
        volumes: Sequence[Volume] = objects_volumes(self.output, self.maker.opener)
        if not volumes:
            labelled = ObjectsVolume.of(self.output)
            if labelled is None:
                self.maker.add_note(
                    "the objects are not shown as voxels: they were not saved, and cannot be labelled here"
                )
                return []
            volumes = [labelled]
        return [VoxelLayer(OBJECTS, "segmentation", self.serve(volumes, "labels"), color="", rows=rows)]


def _open_image(output: OmeZarrOutput, uri: str | None, maker: LayerMaker) -> tuple[Volume | None, VoxelLayer | None]:
    """Return the image of an output; without `uri` None if it cannot be opened, with a note."""
    record = output.spec.record
    size = _recorded_size(record, uri, maker)
    if uri is not None:
        return maker.image_layer(uri, voxel_size_nm=size)
    name = str(record["image"])
    try:
        return maker.image_layer(name, voxel_size_nm=size)
    except (InputError, OSError) as error:
        maker.add_note(f"the image cannot be opened: {error}. --image URI names it")
        return None, None


def _recorded_size(record: dict[str, Any], uri: str | None, maker: LayerMaker) -> Nm | None:
    """Return the voxel size with which the image was segmented; None if the size that the image states counts.

    The latter is so if the image was resampled, if `uri` gives the size, and for another image that states one, such
    as another resolution.
    """
    size = record.get("voxel_size_nm")
    if not size or record.get("resample"):
        return None
    if uri is not None:
        is_given = split_uri_options(uri)[1].voxel_size_nm is not None
        is_other = absolute_uri(uri) != record["image"]
        if is_given or (is_other and maker.opener.open(uri, name="--image").voxel_size_nm is not None):
            return None
    return per_axis(float, size)


def _annotation_layer(
    record: dict[str, Any], image: Volume | None, uri: str | None, maker: LayerMaker
) -> VoxelLayer | None:
    """Return the annotation that is given, else that of the task if it belongs to the image, hidden at first.

    It would lie over what the network found, and tell who reviews the objects what others think of them.
    """
    if uri is not None:
        return maker.annotation_layer(uri, image)
    known = record.get("task", {}).get("annotation_chan")
    if not known or image is None or not have_one_source(str(record["image"]), str(known)):
        return None
    try:
        return replace(maker.annotation_layer(str(known), image), is_visible=False)
    except (InputError, OSError):
        return None


def have_one_source(image: str, annotation: str) -> bool:
    """Return whether two URIs name channels of one experiment, or arrays of one container.

    Parameters
    ----------
    image, annotation : str
        URIs.

    Returns
    -------
    bool
        False for two files of a folder, which need not belong together.
    """

    def source(uri: str) -> str:
        uri = uri.partition("#")[0]
        if uri.startswith("phantom://"):
            return f"phantom://{uri.partition('?')[2]}"
        if uri.startswith("bossdb://"):
            return "/".join(uri.split("/")[:4])
        return uri.rpartition(":" if ".h5:" in uri or ".hdf5:" in uri else "/")[0]

    return source(image) == source(annotation) and any(kind in source(image) for kind in CONTAINERS)


def _progress(output: OmeZarrOutput) -> dict[str, Any]:
    try:
        return read_progress(output.path)
    except (OSError, ValueError):
        return {}


def _blocks_layer(
    output: OmeZarrOutput, make: _OutputLayers, progress: dict[str, Any], maker: LayerMaker
) -> VoxelLayer:
    """Return a layer with a voxel for each block: done, not done, set aside."""
    ledger, shape = Ledger.beside(output.path), per_axis(int, output.spec.record["block"])
    grid = output.probabilities.grid(0, shape)
    states = block_states(grid, set(ledger.done(NetworkPhase.NAME)), set(ledger.blocks_set_aside(NetworkPhase.NAME)))
    num_done = int((states == DONE).sum())
    maker.add_note(
        f"the output is not finished ({progress.get('state', 'unknown')}): {num_done} of "
        f"{format_count(states.size, 'block')} segmented; the layer `blocks` shows which"
    )
    size = per_axis(operator.mul, make.size, shape)
    corner, _ = extent_of(make.probabilities()[0].levels[0])
    volume = volume_of_array(states, f"{output.path}, blocks")
    (level,) = maker.levels([volume], "labels")[:1]
    rows = [{"id": number, "label": name} for number, name in BLOCK_NAMES.items()]
    placed = replace(level, size=size, corner=corner)
    return VoxelLayer("blocks", "segmentation", (placed,), id_colors=BLOCK_COLORS, rows=rows)


def block_states(grid: BlockGrid, done: set[str], aside: set[str]) -> np.ndarray:
    """Return the state of each block, uint8 z, y, x.

    Parameters
    ----------
    grid : BlockGrid
        The blocks.
    done, aside : set of str
        Names of those that are done, and set aside.
    """
    states = np.full(grid.shape, PENDING, np.uint8)
    for index in np.ndindex(grid.shape):
        place: Zyx = (index[0], index[1], index[2])
        name = block_name(place)
        states[place] = DONE if name in done else SET_ASIDE if name in aside else PENDING
    return states
