"""What is shown of a training run: its volumes, the boxes of its splits, and the network's answer on the test box."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.config.settings import Settings
from kasthuri_ray.config.task import Region, region_box
from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box, ceil_div, per_axis
from kasthuri_ray.hardware import Machine
from kasthuri_ray.inference.inference_settings import InferenceWork, RequestedInference, choose_inference_settings
from kasthuri_ray.inference.predictor import Predictor, prepare_process
from kasthuri_ray.inference.tiling import VolumePart, pooling_phase
from kasthuri_ray.labels import find_not_imaged, to_uint8
from kasthuri_ray.models.receptive_field import find_receptive_field
from kasthuri_ray.segmentation.source_image import image_intensity
from kasthuri_ray.segmentation.trained_network import TrainedNetwork, build_trained_network, read_trained_network
from kasthuri_ray.viewer.layer_maker import LayerMaker
from kasthuri_ray.viewer.layers import BoxLayer, VoxelLayer
from kasthuri_ray.viewer.output_scene import COLORS
from kasthuri_ray.viewer.served_levels import corner_of_first_voxel
from kasthuri_ray.volumes.memory_volume import volume_of_array
from kasthuri_ray.volumes.volume import Volume

MAX_VOXELS = 8 << 20  # of the test box that is segmented, 8 Mvoxels
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class RunParts:
    """What is known of a run.

    Parameters
    ----------
    image : Volume
        Image of the test box.
    box : Box
        What was segmented, in voxels of the image.
    voxel_layers, box_layers : tuple
        In the order in which they are drawn.
    """

    image: Volume
    box: Box
    voxel_layers: tuple[VoxelLayer, ...]
    box_layers: tuple[BoxLayer, ...]


def open_run_parts(
    path: str, image_uri: str | None, annotation_uri: str | None, maker: LayerMaker, show: Callable[[str], None]
) -> RunParts:
    """Open the volumes of a run, and segment its test box (without one, the validation box) in this process.

    Parameters
    ----------
    path : str
        Folder of the run.
    image_uri, annotation_uri : str or None
        Volumes in place of those of the run, for one that was moved.
    maker : LayerMaker
        Makes the layers.
    show : callable
        Takes a line for people.

    Returns
    -------
    RunParts
        The layers.

    Raises
    ------
    InputError
        If there is no run, or its volumes cannot be opened.
    """
    trained = read_trained_network(path, "--run")
    if trained.settings is None:
        raise InputError(f"{trained.where} holds only weights; --run takes the folder of a run, with its settings")
    settings = resolve_settings(GivenSettings(), (trained.where, trained.settings))
    split = "test" if settings.task.regions("test") else "val"
    region = settings.task.regions(split)[0]
    image, image_layer = maker.image_layer(image_uri or str(region.image))
    whole = region_box(region, image.bounds, f"the {split} box", image.uri)
    box = middle_part(whole)
    if box != whole:
        maker.add_note(f"the {split} box {whole} has more than 8 Mvoxels: {box} of it is segmented (z,y,x)")
    show(f"segmenting the {split} box, {box} (z,y,x)")
    layers = [image_layer, *_predicted_layers(settings, trained, image, box, maker)]
    annotation = annotation_uri or region.annotation
    if annotation is not None:
        layers.append(maker.annotation_layer(annotation, image))
    return RunParts(image, box, tuple(layers), (_split_boxes(settings, region, image),))


def middle_part(box: Box, max_voxels: int = MAX_VOXELS) -> Box:
    """Return the middle of a box, of at most `max_voxels`: its longest axis is halved until it fits."""
    while box.num_voxels > max_voxels:
        half = list(box.shape)
        longest = half.index(max(half))
        half[longest] = ceil_div(half[longest], 2)
        box = Box.at(per_axis(lambda start, n, m: start + (n - m) // 2, box.start, box.shape, half), half)
    return box


def _predicted_layers(
    settings: Settings, trained: TrainedNetwork, image: Volume, box: Box, maker: LayerMaker
) -> list[VoxelLayer]:
    probabilities = segment_in_memory(settings, trained, image, box)
    layers = []
    for channel, name in enumerate(settings.class_names):
        uri = f"{trained.where}, {name}"
        volume = volume_of_array(probabilities[channel], uri, box.start, image.voxel_size_nm, image.place)
        layers.append(VoxelLayer(name, "overlay", maker.levels([volume], "probability"), color=COLORS[channel % 5]))
    return layers


def segment_in_memory(settings: Settings, trained: TrainedNetwork, image: Volume, box: Box) -> np.ndarray:
    """Segment a box of an image in this process.

    Parameters
    ----------
    settings : Settings
        Sections `task` and `network` of the run.
    trained : TrainedNetwork
        The weights.
    image : Volume
        The image.
    box : Box
        In voxels of the image.

    Returns
    -------
    ndarray of uint8, (c, z, y, x)
        Probabilities, 255 is 1.
    """
    network, dim = build_trained_network(settings, trained), settings.network.dim
    receptive_field = find_receptive_field(network, dim, settings.network.in_channels)
    intensity, _ = image_intensity(image, settings, trained)
    work = InferenceWork(
        box.shape, box.num_voxels, pooling_phase(box.start, image.bounds.start, receptive_field.factors)
    )
    requested = RequestedInference(compile="off")
    inference = choose_inference_settings(network, dim, receptive_field, Machine.detect(), work, requested)
    prepare_process(inference)
    predictor = Predictor(network, dim, settings.network.classes, receptive_field, inference)
    grown = box.grown(receptive_field.margin).intersect(image.bounds)
    voxels = image.read(grown)
    part = VolumePart(to_uint8(voxels, intensity), grown, image.bounds)
    probabilities = predictor.predict(part, box)
    missing = find_not_imaged(voxels[box.slices(grown.start)])
    if missing is not None:
        probabilities[:, missing] = 0
    return probabilities


def _split_boxes(settings: Settings, shown: Region, image: Volume) -> BoxLayer:
    """Return the boxes of all splits in the image that is shown."""
    size, corner = image.voxel_size_nm or (1.0, 1.0, 1.0), corner_of_first_voxel(image)
    first = image.bounds.start
    boxes = []
    for split in SPLITS:
        for region in settings.task.regions(split):
            if region.image != shown.image:
                continue
            box = region_box(region, image.bounds, f"the {split} box", image.uri)
            low, high = (
                per_axis(lambda c, p, a, n: c + (p - a) * n, corner, place, first, size)
                for place in (box.start, box.stop)
            )
            boxes.append((split, low, high))
    return BoxLayer("boxes", boxes)


def with_position_in(box: Box) -> str:
    """Return the middle voxel of a box as `--position` names it."""
    return ",".join(str((start + stop) // 2) for start, stop in zip(box.start, box.stop, strict=True))
