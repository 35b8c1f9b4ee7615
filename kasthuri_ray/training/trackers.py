"""Experiment trackers, MLflow and Weights & Biases: the metrics of every epoch, logged by rank 0."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kasthuri_ray.config.settings import Settings, TrainSettings
from kasthuri_ray.errors import InputError


def check_trackers(train: TrainSettings) -> None:
    """Raise an InputError if the settings name a tracker that is not installed.

    Parameters
    ----------
    train : TrainSettings
        Names the trackers, `mlflow` and `wandb`.
    """
    for name in ("mlflow", "wandb"):
        if getattr(train, name) is not None and importlib.util.find_spec(name) is None:
            raise InputError(f"--{name} needs the package {name}: pip install 'kasthuri_ray[{name}]'")


@dataclass
class Trackers:
    """The open trackers of a run."""

    log_functions: list[Callable[[dict[str, float], int], Any]] = field(default_factory=list)
    close_functions: list[Callable[[], Any]] = field(default_factory=list)

    @classmethod
    def start(cls, settings: Settings, path: str, epoch: int) -> Trackers:
        """Open a run in each tracker that the settings name; if `epoch` is not 0, the earlier one is resumed."""
        trackers, name = cls(), path.rstrip("/").rsplit("/", 1)[-1]
        values = {f"{s}.{k}": v for s, section in settings.training_record().items() for k, v in section.items()}
        if settings.train.mlflow is not None:
            trackers._start_mlflow(settings.train.mlflow, name, values, epoch)
        if settings.train.wandb is not None:
            trackers._start_wandb(settings.train.wandb, name, values)
        return trackers

    def _start_mlflow(self, uri: str, name: str, values: Mapping[str, Any], epoch: int) -> None:
        import mlflow

        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment("kasthuri_ray")
        earlier = (
            mlflow.search_runs(filter_string=f"attributes.run_name = '{name}'", output_format="list") if epoch else []
        )
        mlflow.start_run(run_id=earlier[0].info.run_id if earlier else None, run_name=name)
        if not earlier:
            mlflow.log_params({key: str(value)[:500] for key, value in values.items()})
        self.log_functions.append(lambda metrics, step: mlflow.log_metrics(metrics, step=step))
        self.close_functions.append(mlflow.end_run)

    def _start_wandb(self, project: str, name: str, values: Mapping[str, Any]) -> None:
        import wandb

        run = wandb.init(project=project, name=name, id=name, resume="allow", config=dict(values))
        self.log_functions.append(lambda metrics, step: run.log(metrics, step=step))
        self.close_functions.append(run.finish)

    def log(self, row: Mapping[str, Any]) -> None:
        """Log a row of the history."""
        metrics = {key: float(value) for key, value in row.items() if key != "epoch"}
        for log in self.log_functions:
            log(metrics, int(row["epoch"]))

    def close(self) -> None:
        for close in self.close_functions:
            close()
