"""The weights that a training starts from, and whether its images look like those that they learnt from."""

from __future__ import annotations

from kasthuri_ray.config.settings import Settings
from kasthuri_ray.errors import InputError, named_input
from kasthuri_ray.models.checkpoints import Checkpoint, check_finite_weights, find_weights_file, read_checkpoint
from kasthuri_ray.models.unet import build_network, load_weights
from kasthuri_ray.storage.folder import read_uri
from kasthuri_ray.tiles.sampling import TrainTiles
from kasthuri_ray.volumes.grey_range import describe_range_mismatch, sample_grey_levels


def read_initial_weights(settings: Settings) -> Checkpoint | None:
    """Read the weights to start from, and check that they fit the network.

    Parameters
    ----------
    settings : Settings
        Settings of the run, with `train.weights`.

    Returns
    -------
    Checkpoint or None
        The weights, and what is known about them; None without `--weights`.

    Raises
    ------
    InputError
        If they are weights of another network, or not finite.
    InputNotFound
        If there is no such file.
    """
    path = settings.train.weights
    if path is None:
        return None
    path = find_weights_file(path)
    with named_input(settings.name_of("train.weights"), path):
        checkpoint = read_checkpoint(read_uri(path), path)
        check_finite_weights(checkpoint.weights, path)
    try:
        load_weights(build_network(settings.network.model_dump()), checkpoint.weights)
    except ValueError as error:
        raise InputError(f"--weights {path}: {error}") from None
    return checkpoint


def initial_range_notes(checkpoint: Checkpoint | None, tiles: TrainTiles) -> list[str]:
    """Compare the images with the range of grey levels that the initial weights were trained on.

    Parameters
    ----------
    checkpoint : Checkpoint or None
        The initial weights.
    tiles : TrainTiles
        Tiles of the training boxes.

    Returns
    -------
    list of str
        A line if the images do not fit that range: this run has its own, in which they are not black or white.
    """
    source = tiles.sources[0]
    if checkpoint is None or checkpoint.image_intensity is None:
        return []
    first, last = checkpoint.image_intensity
    levels = sample_grey_levels(source.image, [source.box])
    mismatch = describe_range_mismatch(levels, (first, last), "that the initial weights were trained on")
    if not mismatch:
        return []
    low, high = source.intensity
    return [f"{source.image.uri} {source.box}: {mismatch}; here {low:g} becomes black and {high:g} white"]
