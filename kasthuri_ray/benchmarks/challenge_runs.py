"""The runs of the challenge's scoreboard: trainings side by side, then one test after another, each kept as a file.

A training is that of jobs/train.py, in a folder of the board. A test is that of jobs/segment.py and jobs/evaluate.py:
the test box is segmented with the default settings, and compared with its annotation. So networks that are trained
here, weights from elsewhere and the challenge's recipe are measured alike.
"""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from kasthuri_ray.benchmarks.challenge_plan import RECIPE, BoardEntry
from kasthuri_ray.benchmarks.challenge_recipe import WEIGHTS, read_rates, train_recipe
from kasthuri_ray.config.differences import fill_record_defaults, refuse_differences, setting_differences
from kasthuri_ray.config.settings import EvaluateSettings, Settings
from kasthuri_ray.errors import AlreadyFinished, InputError, WorkFailed
from kasthuri_ray.evaluation.evaluate import evaluate
from kasthuri_ray.progress import Reporter, format_count
from kasthuri_ray.ray_cluster.resources import ClusterResources
from kasthuri_ray.segmentation.ensemble import read_trained_networks
from kasthuri_ray.segmentation.segment import segment
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.training.run_folder import RunFolder
from kasthuri_ray.training.train import train
from kasthuri_ray.training.worker_plan import plan_workers, uses_gpus

JOIN_PERIOD_S = 0.2  # between two looks whether the trainings have ended


class EntryReporter(Reporter):
    """Shows the lines of one run below those of the board, each with the name of the run."""

    def __init__(self, name: str, board: Reporter, is_alone: bool) -> None:
        super().__init__()
        self.name, self.board, self.is_alone = name, board, is_alone

    def print_line(self, text: str) -> None:
        self.board.print_line(f"{self.name}: {text}")

    def print_result(self, text: str) -> None:
        """Print nothing: the first and the last line are the path of the board."""

    def show_live(self, text: str) -> None:
        if self.is_alone:
            self.board.show_live(f"{self.name}: {text}")

    def end(self) -> None:
        self.board.end()


def num_concurrent_runs(entries: Sequence[BoardEntry], cluster: ClusterResources) -> int:
    """Return how many trainings run at the same time: one on each GPU, else one on each node, which it keeps busy."""
    return max(1, int(cluster.gpus) if uses_gpus(entries[0].settings, cluster) else cluster.nodes)


def read_result(path: str, entry: BoardEntry) -> dict[str, Any] | None:
    """Return the result of a run that stands; None if there is none.

    Raises an InputError if a run of this name was begun with other settings.
    """
    if entry.seed is not None and entry.contestant != RECIPE:
        folder = RunFolder(open_storage(f"{path}/{entry.name}"))
        before = folder.read_settings()
        now, _ = plan_workers(entry.settings, use_gpu=False, recorded_batch_size=folder.read_batch_size())
        if before is not None:
            advice = "Give another --name, rename the network file, or give the earlier settings"
            differences = setting_differences(before, now.training_record())
            refuse_differences(f"the run {entry.name} of the board", differences, advice)
    result = open_storage(path).read_json(_result_file(entry))
    if result is not None and fill_record_defaults(result["record"], entry.record) != entry.record:
        raise InputError(
            f"{entry.name} of the board {path} was measured with other settings or weights. Give another --name, or "
            "rename the file of the network"
        )
    return result


def _result_file(entry: BoardEntry) -> str:
    return f"results/{entry.name}.json"


@dataclass
class BoardRunner:
    """Runs what is missing of a board.

    Parameters
    ----------
    path : str
        Path or URL of the board's folder.
    cluster : ClusterResources
        Decides how many trainings run at the same time.
    reporter : Reporter
        Shows progress.
    command : str
        What a person types to resume.
    on_result : callable
        Called after each result is written.
    """

    path: str
    cluster: ClusterResources
    reporter: Reporter
    command: str
    on_result: Callable[[], object]
    failures: dict[str, str] = field(default_factory=dict, init=False)

    def run(self, entries: Sequence[BoardEntry]) -> None:
        """Train and test all entries.

        Raises WorkFailed, after the others are measured, if some of them failed.
        """
        entries = [entry.in_folder(self.path) for entry in entries]
        number = num_concurrent_runs(entries, self.cluster)
        if number > 1:
            self._train_together(entries, number)
        for entry in entries:
            if entry.name not in self.failures and (number > 1 or self._try(self._train, entry)):
                self._try(self._test, entry)
        if self.failures:
            lines = "\n  ".join(f"{name}: {reason}" for name, reason in self.failures.items())
            raise WorkFailed(f"{format_count(len(self.failures), 'run')} of the board failed:\n  {lines}")

    def _train_together(self, entries: Sequence[BoardEntry], number: int) -> None:
        """Train so many entries at the same time. Threads of the daemon kind do not keep a stopped job alive."""
        import ray

        waiting: queue.SimpleQueue[BoardEntry] = queue.SimpleQueue()
        for entry in entries:
            waiting.put(entry)

        def work() -> None:
            while True:
                try:
                    entry = waiting.get_nowait()
                except queue.Empty:
                    return
                self._try(self._train, entry, is_alone=False)

        threads = [threading.Thread(target=work, name=f"training {n}", daemon=True) for n in range(number)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(JOIN_PERIOD_S)
        except BaseException:  # Ctrl-C, or SIGTERM: what trains on the cluster ends with this process's Ray
            ray.shutdown()
            raise

    def _try(self, step: Callable[..., None], entry: BoardEntry, is_alone: bool = True) -> bool:
        """Run a step of an entry; return whether it worked, and note the reason if not: the others go on."""
        try:
            step(entry, EntryReporter(entry.name, self.reporter, is_alone))
        except Exception as error:
            kind = "" if isinstance(error, WorkFailed | InputError | OSError) else f"{type(error).__name__}: "
            self.failures[entry.name] = f"{kind}{error}".splitlines()[0]
            self.reporter.print_line(f"{entry.name}: failed: {self.failures[entry.name]}")
            return False
        return True

    def _train(self, entry: BoardEntry, reporter: Reporter) -> None:
        if entry.weights:
            return
        if entry.contestant == RECIPE:
            reporter.print_line("the challenge's recipe is trained")
            use_gpu = uses_gpus(entry.settings, self.cluster)
            return train_recipe(entry.settings, f"{self.path}/{entry.name}", use_gpu)
        try:
            train(entry.settings, reporter, lambda name: self.command)
        except AlreadyFinished:
            reporter.print_line("is trained already")

    def _test(self, entry: BoardEntry, reporter: Reporter) -> None:
        """Segment and evaluate the test box, and write the result: with it, the run stands."""
        scores, learnt_share = self._evaluate(entry, reporter)
        figures = {**self._rates(entry, reporter), **scores}
        result = {
            "task": entry.task,
            "contestant": entry.contestant,
            "seed": entry.seed,
            "figures": {"parameters": entry.num_parameters, **figures},
            "learnt_share": learnt_share,
            "record": entry.record,
        }
        open_storage(self.path).write_bytes(_result_file(entry), (json.dumps(result, indent=2) + "\n").encode())
        self.on_result()

    def _rates(self, entry: BoardEntry, reporter: Reporter) -> dict[str, float | None]:
        """Return the speed of the training, and that of the segmentation as a dry run measures it."""
        if entry.contestant == RECIPE:
            return dict(read_rates(f"{self.path}/{entry.name}"))
        metrics = {} if entry.weights else RunFolder(open_storage(f"{self.path}/{entry.name}")).read_metrics() or {}
        plan = self._segment(entry, reporter, dry_run=True)
        return {
            "tiles_per_second": metrics.get("tiles_per_second"),
            "mvoxels_per_second": plan["mvoxels_per_second"],
        }

    def _evaluate(self, entry: BoardEntry, reporter: Reporter) -> tuple[dict[str, float | None], float]:
        """Return the scores of the test box, and the share of it that the network is known to have learnt from."""
        self._segment(entry, reporter, dry_run=False)
        train_settings, region = entry.settings.train, entry.test_region
        metrics = evaluate(
            EvaluateSettings(
                prediction=self._output(entry),
                annotation=str(region.annotation),
                task=entry.settings.task.model_dump(mode="json"),
                box=region.box_text(),
                voxel_size=train_settings.voxel_size,
                out=f"{self._output(entry)}.evaluation",
                overwrite=True,
                **_access(entry.settings),
            ),
            reporter,
        ).metrics
        objects = metrics.get("objects")
        scores = {
            "voxel_f1": metrics["foreground_f1"],
            "iou": metrics["iou"],
            "average_precision": metrics["average_precision"],
            "object_f1": None if objects is None else objects["by"]["overlap"]["f1"],
        }
        return scores, metrics["learnt_from"]["share"] or 0.0

    def _output(self, entry: BoardEntry) -> str:
        return f"{self.path}/segmentations/{entry.name}.zarr"

    def _segment(self, entry: BoardEntry, reporter: Reporter, dry_run: bool) -> dict[str, Any]:
        """Segment the test box as by default, or only plan it; return the metrics."""
        settings, region = entry.settings, entry.test_region
        weights = entry.weights or f"{self.path}/{entry.name}"
        recipe = {"precision": "float32", "compile": "off"} if entry.contestant == RECIPE else {}
        changes = {
            **{"output": self._output(entry), "image": region.image, "box": region.box_text(), "dry_run": dry_run},
            **{"voxel_size": settings.train.voxel_size, "device": settings.train.device},
            **_access(settings),
            **recipe,
        }
        asked = settings.model_copy(update={"segment": settings.segment.model_copy(update=changes)})
        path = f"{weights}/{WEIGHTS}" if entry.contestant == RECIPE else weights
        result = segment(asked, read_trained_networks([path]), reporter, self.command)
        if result.num_set_aside:
            raise WorkFailed(f"{format_count(result.num_set_aside, 'block')} of the test box could not be segmented")
        return result.metrics


def _access(settings: Settings) -> dict[str, Any]:
    """Return how volumes are read, by the names that all sections share."""
    return settings.train.model_dump(include={"boss", "cache", "cache_size", "wait_for_resources", "verbose"})
