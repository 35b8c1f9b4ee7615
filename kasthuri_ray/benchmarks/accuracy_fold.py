"""One training of the accuracy study: a fold of VNC, trained, validated and tested as a run of the product does it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kasthuri_ray.benchmarks.accuracy_changes import CHANGES, ImageChange
from kasthuri_ray.benchmarks.accuracy_variants import TILE, StudyLearner, Variant, neighbour_sections
from kasthuri_ray.benchmarks.vnc_dataset import VOXEL_SIZE_NM
from kasthuri_ray.errors import InputNotFound
from kasthuri_ray.geometry import Box
from kasthuri_ray.hardware import Machine, count_parameters
from kasthuri_ray.inference.inference_settings import InferenceSettings
from kasthuri_ray.inference.predictor import Predictor
from kasthuri_ray.inference.tiling import VolumePart
from kasthuri_ray.metrics.object_choice import ObjectChoice
from kasthuri_ray.metrics.object_comparison import ObjectComparison
from kasthuri_ray.metrics.object_criteria import ObjectCriteria
from kasthuri_ray.metrics.object_detection import select_objects
from kasthuri_ray.metrics.object_outcomes import ObjectOutcomes
from kasthuri_ray.metrics.object_settings import ObjectSettings
from kasthuri_ray.metrics.one_to_one import FREE
from kasthuri_ray.metrics.thresholds import outcomes_at
from kasthuri_ray.metrics.voxel_counts import VoxelCounts, count_block_voxels
from kasthuri_ray.metrics.voxel_scores import average_precision, best_thresholds, mean_average_precision
from kasthuri_ray.models.receptive_field import find_receptive_field
from kasthuri_ray.models.unet import is_plain_unet
from kasthuri_ray.tiles.fold_plan import QUADRANTS, plan_folds
from kasthuri_ray.tiles.sampling import GridTiles, TileAddress, TileSource, TrainTiles, read_tile
from kasthuri_ray.tiles.streaming import TileBatch
from kasthuri_ray.training.compute_plan import choose_compute_plan
from kasthuri_ray.training.grid_stream import with_context
from kasthuri_ray.training.temperature import choose_temperature, divide_logits
from kasthuri_ray.training.tested_objects import add_block, match_tile_objects, pack_tile
from kasthuri_ray.training.tile_results import foreground_probabilities
from kasthuri_ray.training.val_objects import choose_object_settings
from kasthuri_ray.volumes.memory_volume import MemoryVolume, volume_of_array

TILES_PER_EPOCH = 224  # of TILE x TILE
NUM_FOLDS = QUADRANTS


def open_study_array(folder: Path, name: str) -> MemoryVolume:
    """Return NAME.npy of the folder of the study as a volume. Its chunks, those of vnc.zarr, decide on the tiles."""
    path = folder / f"{name}.npy"
    if not path.exists():
        raise InputNotFound(f"there is no {path}; to write it: --convert vnc.zarr")
    return volume_of_array(np.load(path), str(path), voxel_size_nm=VOXEL_SIZE_NM, chunk=(1, 256, 256))


@dataclass(frozen=True)
class FoldRun:
    """A training of the study.

    Parameters
    ----------
    variant : Variant
        How it is trained.
    task : str
        `synapse` or `membrane`.
    fold, seed, tiles : int
        Quadrant that is tested, seed, and tiles of TILE x TILE to train on.
    """

    variant: Variant
    task: str
    fold: int
    seed: int
    tiles: int

    @property
    def key(self) -> dict[str, Any]:
        """What tells the run apart from all others."""
        return {"variant": self.variant.name, "fold": self.fold, "seed": self.seed, "tiles": self.tiles}

    @property
    def name(self) -> str:
        """Name of its state file."""
        return f"{self.task}-{self.variant.name}-{self.tiles}-fold{self.fold}-seed{self.seed}"

    @property
    def epochs(self) -> int:
        """Number of its epochs."""
        return max(1, round(self.tiles / TILES_PER_EPOCH))


@dataclass
class FoldTraining:
    """A training in progress, and its data.

    Parameters
    ----------
    run : FoldRun
        What is trained.
    data : Path
        Folder of the arrays.
    state : Path
        Folder in which each epoch's state is kept until the run is finished.
    """

    run: FoldRun
    data: Path
    state: Path
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        machine, variant = Machine.detect("cpu"), self.run.variant
        self.batch = variant.settings()["batch_size"]
        tiles_per_epoch = TILES_PER_EPOCH * TILE**2 // variant.tile**2
        sources = self._sources("train")
        tile = (1, variant.tile, variant.tile)
        share = variant.share_on_foreground(self.run.task)
        self.tiles = TrainTiles(sources, tile, self.run.seed, share, tiles_per_epoch).in_whole_batches(self.batch)
        steps = self.tiles.tiles_per_epoch // self.batch
        plan, _ = choose_compute_plan(machine, "auto", "auto", steps, self.run.tiles * TILE**2, 2_000_000)
        torch.manual_seed(self.run.seed)
        self.learner = StudyLearner(variant, self.run.task, self.run.seed, self.run.epochs, plan)
        self.processor = machine.kind
        if self.state_file.exists():
            saved = torch.load(self.state_file, weights_only=False)
            self.learner.load_state_dict(saved["learner"])
            self.history, self.best, self.seconds = saved["history"], saved["best"], saved["seconds"]

    @property
    def state_file(self) -> Path:
        """Where the state is kept."""
        return self.state / f"{self.run.name}.pt"

    @property
    def is_trained(self) -> bool:
        """Whether the last epoch is finished."""
        return len(self.history) >= self.run.epochs

    @cached_property
    def image(self) -> MemoryVolume:
        """The image."""
        return open_study_array(self.data, "em")

    @cached_property
    def annotation(self) -> MemoryVolume:
        """The annotation of the task."""
        return open_study_array(self.data, self.run.task)

    def _sources(self, split: str) -> tuple[TileSource, ...]:
        boxes = plan_folds(self.image.bounds, NUM_FOLDS, "yx")[self.run.fold][split]
        return tuple(TileSource(self.image, self.annotation, box) for box in boxes)

    def grid(self, split: str) -> GridTiles:
        """Return the tiles that cover a split."""
        return GridTiles(self._sources(split), (1, TILE, TILE))

    def train_epoch(self) -> dict[str, float]:
        """Train and validate one epoch, keep it if it is the best, and save the state."""
        start, epoch = time.perf_counter(), len(self.history)
        addresses = (self.tiles.address(epoch, index) for index in range(self.tiles.tiles_per_epoch))
        val_losses = [row["val_loss"] for row in self.history]
        loss = self.learner.train_epoch(epoch, self._batches(self.tiles.sources, addresses, self.batch), val_losses)
        training_seconds = time.perf_counter() - start
        counts, val_loss = self.learner.evaluate(self._grid_batches(self.grid("val")))
        thresholds, f1 = best_thresholds(counts)
        row = {"loss": loss, "val_loss": val_loss, "val_f1": f1, "val_ap": mean_average_precision(counts)}
        self.history.append({**row, "seconds": training_seconds})
        if not self.best or (row["val_ap"], -val_loss) > (self.best["ap"], -self.best["loss"]):
            kept = {"epoch": epoch + 1, "ap": row["val_ap"], "f1": f1, "loss": val_loss, "thresholds": thresholds}
            self.best = {**kept, "weights": self.learner.evaluation_weights()}
        self.seconds += time.perf_counter() - start
        self._save()
        return self.history[-1]

    def _save(self) -> None:
        saved = {"learner": self.learner.state_dict(), "history": self.history}
        self.state.mkdir(parents=True, exist_ok=True)
        written = self.state_file.with_suffix(".new")
        torch.save({**saved, "best": self.best, "seconds": self.seconds}, written)
        written.replace(self.state_file)

    def _batches(
        self, sources: tuple[TileSource, ...], addresses: Iterator[TileAddress], batch: int
    ) -> Iterator[TileBatch]:
        waiting: list[tuple[np.ndarray, np.ndarray, int]] = []
        for number, address in enumerate(addresses):
            image, labels, _ = read_tile(sources, address)
            waiting.append((self._with_neighbours(image, address), labels, number))
            if len(waiting) == batch:
                yield _stack(waiting)
                waiting = []
        if waiting:
            yield _stack(waiting)

    def _with_neighbours(self, image: np.ndarray, address: TileAddress) -> np.ndarray:
        if self.run.variant.sections == 1:
            return image
        _, rows, columns = address.box.slices()
        near = neighbour_sections(self.image.voxels, address.box.start[0], self.run.variant.sections)
        return self.image.voxels[near][:, rows, columns]

    def _grid_batches(self, grid: GridTiles) -> Iterator[TileBatch]:
        return self._batches(grid.sources, (grid.address(number) for number in range(len(grid))), 4)

    def results(self, with_tta: bool = False, changes: Iterable[str] = ()) -> dict[str, Any]:
        """Choose object settings on val, test the best epoch, and return everything that is kept of the run.

        Parameters
        ----------
        with_tta : bool
            Whether the test box is segmented with test-time augmentation too.
        changes : iterable of str
            Changes of the image after which it is segmented too.

        Returns
        -------
        dict
            JSON values: counts that can be pooled, and scores.
        """
        self.learner.load_evaluation_weights(self.best["weights"])
        temperature, thresholds = self._divide_logits()
        choice = self._choose_objects(thresholds)
        test = self._predict_tiles(self.grid("test"), thresholds)
        record = {
            **self.run.key,
            "val": {
                **{key: self.best[key] for key in ("epoch", "ap", "f1")},
                **{"temperature": temperature, "threshold": thresholds[0]},
                **({} if choice is None else _choice_record(choice)),
            },
            "test": self._test_record(*test, thresholds, choice),
        }
        if self.run.variant.sections == 1:
            for key, tta in {"segmentation": False, **({"segmentation_tta": True} if with_tta else {})}.items():
                record[key] = self._segment(thresholds, choice, tta)
            for name in changes:
                record.setdefault("changed", {})[name] = self._segment(thresholds, choice, change=CHANGES[name])
        return {
            **record,
            "seconds": round(self.seconds, 1),
            "training_seconds": round(sum(row["seconds"] for row in self.history), 1),
            "parameters": count_parameters(self.learner.network),
            "processor": self.processor,
            "history": [{key: round(value, 4) for key, value in row.items()} for row in self.history],
        }

    def _divide_logits(self) -> tuple[int, list[float]]:
        """Choose the temperature of the network on val; return it, and the thresholds that are then the best."""
        if self.run.task == "membrane" or self.run.variant.sections > 1 or not is_plain_unet(self.learner.network):
            return 1, self.best["thresholds"]
        grid = with_context(self.grid("val"), self.learner.network)
        temperature, counts = choose_temperature(self.learner, self._grid_batches(grid))
        self.learner.load_evaluation_weights(divide_logits(self.best["weights"], temperature))
        return temperature, best_thresholds(counts)[0]

    def _predict_tiles(
        self, grid: GridTiles, thresholds: list[float]
    ) -> tuple[GridTiles, VoxelCounts, dict[int, bytes]]:
        packed: dict[int, bytes] = {}
        if self.run.variant.sections == 1:
            grid = with_context(grid, self.learner.network)

        def pack(batch: Any, logits: Tensor, labels: Tensor) -> None:
            tiles = zip(batch.number, foreground_probabilities(logits), labels.numpy(), strict=True)
            for number, probability, truth in tiles:
                packed[int(number)] = pack_tile(probability, truth, grid.address(int(number)), min(0.1, *thresholds))

        counts, _ = self.learner.evaluate(self._grid_batches(grid), pack)
        return grid, counts, packed

    def _choose_objects(self, thresholds: list[float]) -> ObjectChoice | None:
        if self.run.task == "membrane":
            return None
        grid, _, packed = self._predict_tiles(self.grid("val"), thresholds)
        return choose_object_settings(grid, packed, self.tiles.sources, [self.run.task], [1], thresholds)

    def _test_record(
        self,
        grid: GridTiles,
        counts: VoxelCounts,
        packed: Mapping[int, bytes],
        thresholds: list[float],
        choice: ObjectChoice | None,
    ) -> dict[str, Any]:
        record = _voxel_record(counts, thresholds)
        if choice is not None:
            found = match_tile_objects(grid, packed, [1], choice.settings, thresholds)
            record["objects"] = _object_record(found.outcomes[1])
        return record

    def _segment(
        self,
        thresholds: list[float],
        choice: ObjectChoice | None,
        tta: bool = False,
        change: ImageChange = CHANGES["none"],
    ) -> dict[str, Any]:
        """Segment the test box as `segment.py` does, with context around it, and compare it with the annotation."""
        box = change.box(self.grid("test").sources[0].box)
        probability = self._predict_box(change.image(self.image.voxels), box, tta)
        truth = change.truth(self.annotation.voxels)[box.slices()]
        marked = probability[0] >= np.rint(255 * thresholds[0])
        record = _voxel_record(count_block_voxels(probability, marked, truth), thresholds)
        if choice is not None:
            record["objects"] = _object_record(compare_objects(probability, truth, box, choice.settings))
        return record

    def _predict_box(self, image: np.ndarray, box: Box, tta: bool) -> np.ndarray:
        field_of_view = find_receptive_field(self.learner.network, 2)
        precision = self.learner.plan.precision
        settings = InferenceSettings("cpu", precision, False, torch.get_num_threads(), (1, 1024, 1024), 1, tta=tta)
        predictor = Predictor(self.learner.network, 2, 2, field_of_view, settings)
        bounds = Box((0, 0, 0), image.shape)
        return predictor.predict(VolumePart(image, bounds, bounds), box)


def compare_objects(probability: np.ndarray, truth: np.ndarray, box: Box, settings: ObjectSettings) -> ObjectOutcomes:
    """Return what became of the objects of a box that is predicted as a whole."""
    select = partial(select_objects, settings=settings, bounds=box, voxel_size_nm=VOXEL_SIZE_NM)
    objects = ObjectComparison(select)
    add_block(objects, settings, [1], box, (box, box, probability, truth))
    return objects.match([1], ObjectCriteria(box, VOXEL_SIZE_NM))[1].outcomes


def _stack(tiles: list[tuple[np.ndarray, np.ndarray, int]]) -> TileBatch:
    images, labels, numbers = zip(*tiles, strict=True)
    return TileBatch(np.stack(images), np.stack(labels), np.array(numbers))


def _voxel_record(counts: VoxelCounts, thresholds: list[float]) -> dict[str, Any]:
    of_class = counts.by_class[0]
    outcomes = outcomes_at(of_class, thresholds[0])
    best, best_f1 = best_thresholds(counts)
    return {
        **{"tp": outcomes.found, "fp": outcomes.wrong, "fn": outcomes.missed, "f1": round(outcomes.f1, 4)},
        "ap": round(average_precision(of_class), 4),
        "best_f1": round(best_f1, 4),
        "best_threshold": round(best[0], 4),
    }


def _object_record(outcomes: ObjectOutcomes) -> dict[str, Any]:
    return {
        "true": len(outcomes.true_is_cut),
        "predicted": len(outcomes.scores),
        **{f"tp_{name}": int((partners != FREE).sum()) for name, partners in outcomes.partners.items()},
    }


def _choice_record(choice: ObjectChoice) -> dict[str, Any]:
    (of_class,) = choice.classes.values()
    settings = choice.settings
    values = {"seed": settings.seed[0], "extent": settings.extent[0], "min_size_nm3": round(settings.min_size[0])}
    return {
        "objects": {
            **values,
            "chosen_from": of_class.source,
            "true": of_class.num_true,
            "predicted": len(of_class.verdicts),
            "tp_overlap": sum(of_class.verdicts),
        }
    }
