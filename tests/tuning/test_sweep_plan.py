"""The plan of a sweep: networks, search space, number of trials, and which settings may differ when it resumes."""

import json

import pytest

from kasthuri_ray.config.loading import GivenSettings
from kasthuri_ray.config.settings import TuneSettings
from kasthuri_ray.config.sweep_settings import resolve_sweep
from kasthuri_ray.progress import Reporter
from kasthuri_ray.ray_cluster.resources import ClusterResources
from kasthuri_ray.training.worker_plan import WorkerPlan
from kasthuri_ray.tuning import sweep_plan
from kasthuri_ray.tuning.leaderboard import Leaderboard
from kasthuri_ray.tuning.search_space import SearchDomain
from kasthuri_ray.tuning.sweep_plan import (
    check_sweep_resumable,
    choose_num_concurrent,
    choose_num_trials,
    plan_sweep,
    read_search_space,
    sweep_differences,
)
from kasthuri_ray.tuning.trial_record import FINISHED, OUT_OF_TIME, TrialRecord

PHANTOM = ["task.image_chan=phantom://em?shape=16,64,64", "task.annotation_chan=phantom://membrane?shape=16,64,64"]
PHANTOM += ["task.xrange_vol=0,64", "task.yrange_vol=0,64", "task.z_train=0,8", "task.z_val=8,12", "task.z_test=null"]
PHANTOM += ["task.tile_size=64,64", "network.start_filters=2"]


def sweep_of(*assignments: str, task: str = "synapse", **tune):
    """Return the settings of a sweep with these assignments and settings of the section `tune`."""
    return resolve_sweep(GivenSettings(task, assignments=assignments, flags={"tune": tune}))


def test_settings_of_the_command_line_are_not_searched_and_refused_in_a_space_file(tmp_path):
    networks = ["UNet_2D", "UNet_2D_depth"]
    whole = read_search_space(sweep_of(networks=networks))
    assert whole["network"] == SearchDomain("choice", ("UNet_2D", "UNet_2D_depth"))
    fixed = read_search_space(sweep_of("network.learning_rate=1e-3", "network.epochs=5", networks=networks))
    assert whole.keys() - fixed.keys() == {"network.learning_rate"}
    (tmp_path / "space.json").write_text('{"network.learning_rate": {"choice": [0.1]}}')
    file = str(tmp_path / "space.json")
    assert list(read_search_space(sweep_of(space=file, networks=["UNet_2D"]))) == ["network.learning_rate"]
    with pytest.raises(ValueError, match="searched here and set on the command line"):
        read_search_space(sweep_of("network.learning_rate=1e-3", space=file, networks=["UNet_2D"]))


def test_an_empty_space_and_a_grid_over_a_continuous_range_are_refused(tmp_path):
    (tmp_path / "space.json").write_text("{}")
    with pytest.raises(ValueError, match="there is nothing to search"):
        read_search_space(sweep_of(space=str(tmp_path / "space.json"), networks=["UNet_2D"]))
    with pytest.raises(
        ValueError,
        match=r"the default space: a grid search needs a list of values, but network\.learning_rate, "
        r"task\.foreground_share has a continuous range",
    ):
        read_search_space(sweep_of(search="grid", networks=["UNet_2D"]))


@pytest.mark.parametrize(
    ("tune", "num_trials"),
    [
        ({}, 6),
        ({"samples": 4}, 4),
        ({"search": "grid"}, 6),
        ({"search": "grid", "samples": 4}, 4),
        ({"search": "random", "hours": 1.0}, 6),
    ],
)
def test_there_are_no_more_trials_than_combinations(tune, num_trials):
    space = {"a": SearchDomain("int", (1, 3)), "b": SearchDomain("choice", (1, 2))}
    assert choose_num_trials(TuneSettings(**tune), space) == num_trials


@pytest.mark.parametrize(("tune", "num_trials"), [({}, 20), ({"hours": 1.0}, None), ({"hours": 1.0, "samples": 5}, 5)])
def test_a_continuous_space_has_20_trials_or_as_many_as_the_hours_allow(tune, num_trials):
    assert choose_num_trials(TuneSettings(**tune), {"a": SearchDomain("uniform", (0.0, 1.0))}) == num_trials


@pytest.mark.parametrize(
    ("concurrent", "num_workers", "use_gpu", "cluster", "expected"),
    [
        (None, 1, False, ClusterResources(2, 0, 1), 1),
        (None, 1, False, ClusterResources(64, 0, 8), 8),
        (None, 1, True, ClusterResources(64, 8, 2), 8),
        (None, 3, True, ClusterResources(64, 8, 2), 2),
        (None, 4, True, ClusterResources(64, 2, 1), 1),  # more GPUs than the cluster has
        (7, 1, False, ClusterResources(2, 0, 1), 7),
    ],
)
def test_one_trial_runs_on_each_gpu_or_node(concurrent, num_workers, use_gpu, cluster, expected):
    workers = WorkerPlan(num_workers, num_workers, use_gpu)
    assert choose_num_concurrent(TuneSettings(concurrent=concurrent), workers, cluster) == expected


@pytest.fixture
def plan_phantom_sweep(tmp_path, monkeypatch):
    """Return `plan_phantom_sweep(*assignments, **tune)`: a plan for a cluster of four CPUs."""
    monkeypatch.setattr(sweep_plan, "connect_ray", lambda *_: ClusterResources(4, 0, 1))
    monkeypatch.setenv("RAY_ADDRESS", "cluster:6379")  # else the CPUs of this machine are asked for
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)

    def plan(*assignments: str, **tune):
        location = (f"train.storage={tmp_path}", "train.name=sweep")
        tune = {"networks": ["UNet_2D"], **tune}
        return plan_sweep(sweep_of(*PHANTOM, *location, *assignments, task="membrane", **tune), Reporter(), str)

    return plan


def test_a_plan_has_a_folder_a_demand_and_workers(plan_phantom_sweep, tmp_path):
    plan = plan_phantom_sweep(concurrent=3)
    assert plan.path == str(tmp_path / "sweep")
    assert (plan.num_concurrent, plan.workers) == (3, WorkerPlan(1, 1, per_node=3))
    assert plan.demand.cpus == pytest.approx(3 * 0.75)
    shortage = plan_phantom_sweep(concurrent=8).demand.describe_shortage(ClusterResources(4, 0, 1))
    assert shortage == "8 workers of 8 trials and their data loading need 6 CPUs, the cluster has 4"
    assert any("network.normalization is searched" in note for note in plan.notes)
    assert not list(tmp_path.iterdir())


def test_a_network_that_normalizes_by_the_tile_causes_a_warning(plan_phantom_sweep):
    notes = plan_phantom_sweep("network.normalization=group", networks=["UNet_2D", "UNet_2D_depth"]).notes
    warnings = [note for note in notes if "uses group normalization, whose statistics" in note and "--block" in note]
    assert [warning.partition(":")[0] for warning in warnings] == ["UNet_2D", "UNet_2D_Depth"]


def write_sweep(plan, *trials: TrialRecord, finished: bool = True, seconds: float = 10.0) -> None:
    Leaderboard(plan.storage, plan.metric, list(trials), seconds, finished=finished).write()
    plan.storage.write_bytes("settings.json", json.dumps(plan.description).encode())


def trial(number: int, state: str = FINISHED) -> TrialRecord:
    return TrialRecord(number, "UNet_2D", {}, state, score=0.5)


def test_a_finished_sweep_is_refused_with_the_flag_that_continues_it(plan_phantom_sweep):
    write_sweep(plan_phantom_sweep(samples=2), trial(0), trial(1))
    with pytest.raises(
        ValueError, match=r"is finished: 2 trials have been run\. To continue the search, add --samples 4"
    ):
        check_sweep_resumable(plan_phantom_sweep(samples=2))
    assert len(check_sweep_resumable(plan_phantom_sweep(samples=3)).trials) == 2
    write_sweep(plan_phantom_sweep(samples=3, hours=1.0), trial(0), trial(1, OUT_OF_TIME), seconds=3600.0)
    with pytest.raises(
        ValueError, match=r"its 1 hours are used up\. To continue the search, give more --hours, such as 2"
    ):
        check_sweep_resumable(plan_phantom_sweep(samples=2, hours=1.0))
    check_sweep_resumable(plan_phantom_sweep(samples=2, hours=1.5))
    write_sweep(plan_phantom_sweep(samples=2), trial(0), trial(1), finished=False)  # killed before its page
    check_sweep_resumable(plan_phantom_sweep(samples=2))


def test_other_settings_are_refused_with_the_differences(plan_phantom_sweep, tmp_path):
    write_sweep(plan_phantom_sweep(samples=2), trial(0), finished=False)
    with pytest.raises(ValueError, match="the sweep sweep was started with other settings:\n") as error:
        check_sweep_resumable(plan_phantom_sweep("network.ema=0.9", "task.z_gap=1", samples=2, scheduler="none"))
    differences = ("task.z_gap: 0 -> 1", 'tune.scheduler: "asha" -> "none"', "networks.UNet_2D.ema: 0.99 -> 0.9")
    assert all(f"\n  {line}\n" in str(error.value) for line in differences)
    with pytest.raises(ValueError, match=r'space\.network\.loss: \{"choice"'):
        check_sweep_resumable(plan_phantom_sweep("network.loss=focal", samples=2))
    check_sweep_resumable(plan_phantom_sweep("train.cache=none", samples=9, concurrent=2, keep=1, hours=3.0))
    (tmp_path / "sweep/settings.json").write_text('{"task": {}, "network": {}, "train": {}}')
    with pytest.raises(ValueError, match="is not that of a sweep; give another --name"):
        check_sweep_resumable(plan_phantom_sweep(samples=2))


def test_equal_descriptions_have_no_differences(plan_phantom_sweep):
    plan = plan_phantom_sweep()
    assert sweep_differences(json.loads(json.dumps(plan.description)), plan.description) == []


def test_a_setting_that_an_older_sweep_does_not_record_had_its_default(plan_phantom_sweep):
    plan = plan_phantom_sweep()
    older = json.loads(json.dumps(plan.description))
    del older["sweep"]["networks"]["UNet_2D"]["metric"], older["tune"]["keep"], older["tune"]["grace"]
    assert sweep_differences(older, plan.description) == []
    older["sweep"]["networks"]["UNet_3D"] = {}
    assert sweep_differences(older, plan.description) == ["networks: UNet_2D, UNet_3D -> UNet_2D"]


def test_networks_whose_trials_cannot_be_compared_are_refused(plan_phantom_sweep, tmp_path):
    short = tmp_path / "short.json"
    short.write_text('{"epochs": 3}')
    with pytest.raises(
        ValueError, match=r"network\.epochs is 30 for UNet_2D, 3 for short: .* --set network\.epochs=\.\.\."
    ):
        plan_phantom_sweep(networks=["UNet_2D", str(short)])
    plan_phantom_sweep("network.epochs=5", networks=["UNet_2D", str(short)])
    with pytest.raises(ValueError, match=r"--grace 30: a trial has 30 epochs .* or --scheduler none"):
        plan_phantom_sweep(grace=30)
    plan_phantom_sweep(grace=30, scheduler="none")


def test_a_sweep_can_be_resumed_by_its_name_alone(plan_phantom_sweep, tmp_path):
    plan = plan_phantom_sweep("network.epochs=7", samples=5, hours=2.0)
    write_sweep(plan, trial(0), finished=False)
    named = {"storage": str(tmp_path), "name": "sweep"}
    resumed = plan_sweep(resolve_sweep(GivenSettings(flags={"train": named})), Reporter(), str)
    assert sweep_differences(plan.description, resumed.description) == []
    assert (resumed.num_trials, resumed.tune.hours, resumed.settings.network.epochs) == (5, 2.0, 7)
    assert len(check_sweep_resumable(resumed).trials) == 1
    longer = GivenSettings(flags={"train": named, "tune": {"samples": 9}})
    assert plan_sweep(resolve_sweep(longer), Reporter(), str).num_trials == 9


def test_the_loss_is_not_searched_if_it_is_set_or_is_the_metric(plan_phantom_sweep):
    assert "network.loss" in plan_phantom_sweep().space
    assert "network.loss" not in plan_phantom_sweep("task.loss=tversky").space
    # Values of different losses cannot be compared.
    assert "network.loss" not in plan_phantom_sweep("network.metric=val.loss").space
