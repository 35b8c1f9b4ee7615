"""MLflow and Weights & Biases, for who asks for them: every epoch's figures, from rank 0."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kasthuri_ray.config.settings import Settings, TrainSettings


def check_trackers(train: TrainSettings) -> None:
    """Raise a ValueError if a tracker is asked for that is not installed."""
    for name in ("mlflow", "wandb"):
        if getattr(train, name) is not None and importlib.util.find_spec(name) is None:
            raise ValueError(f"--{name} needs the package {name}: pip install 'kasthuri_ray[{name}]'")


@dataclass
class Trackers:
    """The trackers of a run that is under way."""

    logs: list[Callable[[dict[str, float], int], Any]] = field(default_factory=list)
    ends: list[Callable[[], Any]] = field(default_factory=list)

    @classmethod
    def start(cls, settings: Settings, path: str, epoch: int) -> Trackers:
        """Open a run in each tracker that the settings name; a run that goes on from `epoch` opens its own again."""
        trackers, name = cls(), path.rstrip("/").rsplit("/", 1)[-1]
        values = {f"{s}.{k}": v for s, section in settings.model_dump().items() for k, v in section.items()}
        if settings.train.mlflow is not None:
            trackers._start_mlflow(settings.train.mlflow, name, values, epoch)
        if settings.train.wandb is not None:
            trackers._start_wandb(settings.train.wandb, name, values)
        return trackers

    def _start_mlflow(self, uri: str, name: str, values: Mapping[str, Any], epoch: int) -> None:
        import mlflow

        mlflow.set_tracking_uri(uri)
        mlflow.set_experiment("kasthuri_ray")
        found = (
            mlflow.search_runs(filter_string=f"attributes.run_name = '{name}'", output_format="list") if epoch else []
        )
        mlflow.start_run(run_id=found[0].info.run_id if found else None, run_name=name)
        if not found:
            mlflow.log_params({key: str(value)[:500] for key, value in values.items()})
        self.logs.append(lambda figures, step: mlflow.log_metrics(figures, step=step))
        self.ends.append(mlflow.end_run)

    def _start_wandb(self, project: str, name: str, values: Mapping[str, Any]) -> None:
        import wandb

        run = wandb.init(project=project, name=name, id=name, resume="allow", config=dict(values))
        self.logs.append(lambda figures, step: run.log(figures, step=step))
        self.ends.append(run.finish)

    def log(self, row: Mapping[str, Any]) -> None:
        """An epoch's row of the history."""
        figures = {key: float(value) for key, value in row.items() if key != "epoch"}
        for log in self.logs:
            log(figures, int(row["epoch"]))

    def close(self) -> None:
        for end in self.ends:
            end()
