"""What the network of a run learns from and learnt from before, and which parts of its own boxes that covers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from kasthuri_ray.models.checkpoints import Checkpoint
from kasthuri_ray.reports.learnt_text import learnt_percent
from kasthuri_ray.tiles.sampling import TileSource
from kasthuri_ray.tiles.splits import TaskTiles
from kasthuri_ray.training.run_folder import RunFolder
from kasthuri_ray.volumes.learnt_from import LearntFrom, LearntPart, LearntRun
from kasthuri_ray.volumes.recorded_image import NUM_ROWS, RecordedImage, record_image

MAX_ROWS = 64  # of a run with many images


@dataclass(frozen=True)
class LearningHistory:
    """What a network learnt from.

    Parameters
    ----------
    learnt_from : LearntFrom
        This run, and those whose weights it started from.
    test : tuple of LearntPart
        The part of each test box that was learnt from, this run's boxes of train and val included.
    val : tuple of LearntPart
        The part of each validation box that earlier runs learnt from.
    test_share, val_share : float
        Share of the voxels of all these boxes.
    """

    learnt_from: LearntFrom = field(default_factory=LearntFrom)
    test: tuple[LearntPart, ...] = ()
    val: tuple[LearntPart, ...] = ()
    test_share: float = 0.0
    val_share: float = 0.0

    @classmethod
    def of(cls, tiles: TaskTiles, learnt_from: LearntFrom) -> LearningHistory:
        """Return the history of a run with these tiles; `learnt_from` has the run itself first."""
        earlier = replace(learnt_from, runs=learnt_from.runs[1:])
        test = _find_parts(learnt_from, tiles.test.sources if tiles.test else ())
        val = _find_parts(earlier, tiles.val.sources)
        shares = (_mean_share(*pair) for pair in ((test, tiles.test), (val, tiles.val)))
        return cls(learnt_from, test, val, *shares)

    def of_run(self, path: str) -> LearningHistory:
        """Return the history of the run with this folder, which gives the run its name."""
        first, name = self.learnt_from.runs[:1], path.rstrip("/").rpartition("/")[2]
        named = tuple(replace(run, name=name) for run in first) + self.learnt_from.runs[1:]
        return replace(self, learnt_from=replace(self.learnt_from, runs=named))

    @property
    def test_part(self) -> LearntPart:
        """What is known of all test boxes together; without boxes, which count the voxels of several images."""
        return LearntPart(
            is_known=self.learnt_from.is_complete,
            is_same_image=bool(self.test) and all(part.is_same_image for part in self.test),
            images=tuple(dict.fromkeys(image.image for image in self.learnt_from.images)),
        )

    def notes(self) -> list[str]:
        """Return lines about boxes of test and val that were learnt from."""
        shares = {"test": self.test_share, "val": self.val_share}
        return [
            f"{learnt_percent(share)} of the {split} box was learnt from before: by {self._runs_text(split)}"
            for split, share in shares.items()
            if share
        ]

    def _runs_text(self, split: str) -> str:
        names = [run.name for run in self.learnt_from.runs[1:]]
        return " or ".join(f"the run {name}" for name in names) or f"this run, under another name of the {split} image"


def read_learning_history(
    folder: RunFolder | None, tiles: TaskTiles, weights: str | None, checkpoint: Checkpoint | None
) -> LearningHistory:
    """Return what the network of a run will have learnt from; a resumed run keeps its record.

    Parameters
    ----------
    folder : RunFolder or None
        Folder of the run, which need not exist; None for a new run.
    tiles : TaskTiles
        Its tiles.
    weights, checkpoint : str, Checkpoint or None
        As of `record_learning`.

    Returns
    -------
    LearningHistory
        The record, and which parts of the boxes of val and test were learnt from.
    """
    record = folder.read_learnt_from() if folder and folder.storage.exists("checkpoint/last.pt") else None
    if record is not None:
        return LearningHistory.of(tiles, LearntFrom.from_plain(record))
    return LearningHistory.of(tiles, record_learning(tiles, weights, checkpoint))


def record_learning(tiles: TaskTiles, weights: str | None, checkpoint: Checkpoint | None) -> LearntFrom:
    """Return what a run that is about to start will have learnt from; read some voxels of each image.

    Parameters
    ----------
    tiles : TaskTiles
        Its tiles: val counts as learnt from, since it chooses the epoch and the threshold.
    weights : str or None
        Where its weights come from; None if they are random.
    checkpoint : Checkpoint or None
        These weights, if they could be read.

    Returns
    -------
    LearntFrom
        The run itself, not yet named, and the runs before it.
    """
    own = LearntRun("", _record_images(tiles))
    if weights is None:
        return LearntFrom((own,), is_complete=True)
    before = LearntFrom.from_plain(checkpoint and checkpoint.learnt_from)
    return replace(before, runs=(own, *before.runs))


def _record_images(tiles: TaskTiles) -> tuple[RecordedImage, ...]:
    splits = {"train": tiles.train.sources, "val": tiles.val.sources}
    sources = list(itertools.chain.from_iterable(splits.values()))
    images = {source.image.identity: source.image for source in sources}
    num_rows = max(1, min(NUM_ROWS, MAX_ROWS // len(images)))
    return tuple(
        record_image(
            image,
            {split: [s.box for s in each if s.image.identity == identity] for split, each in splits.items()},
            num_rows,
        )
        for identity, image in images.items()
    )


def _find_parts(learnt_from: LearntFrom, sources: Sequence[TileSource]) -> tuple[LearntPart, ...]:
    found = {source.image.identity: source.image for source in sources}
    parts = {identity: learnt_from.find_in(image) for identity, image in found.items()}
    return tuple(parts[source.image.identity].within(source.box) for source in sources)


def _mean_share(parts: Sequence[LearntPart], tiles: object) -> float:
    sources: Sequence[TileSource] = getattr(tiles, "sources", ())
    voxels = sum(source.box.num_voxels for source in sources)
    covered = sum(
        part.share_of(source.box) * source.box.num_voxels for part, source in zip(parts, sources, strict=True)
    )
    return covered / voxels if voxels else 0.0
