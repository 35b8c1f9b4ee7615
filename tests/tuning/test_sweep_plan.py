"""What a sweep is made of before it begins: networks, space, trials at once, and what may change when it goes on."""

import json

import pytest

from kasthuri_ray.config.loading import override_settings
from kasthuri_ray.config.settings import TuneSettings
from kasthuri_ray.ray_cluster.resources import ClusterResources
from kasthuri_ray.training.preflight import choose_batch_size
from kasthuri_ray.tuning import sweep_plan
from kasthuri_ray.tuning.leaderboard import FINISHED, OUT_OF_TIME, Leaderboard, TrialRecord
from kasthuri_ray.tuning.search_space import SearchDomain
from kasthuri_ray.tuning.sweep_plan import (
    check_sweep_resumable,
    command_record,
    fixed_settings,
    num_concurrent,
    num_samples,
    plan_sweep,
    read_search_space,
    resolve_networks,
    sweep_differences,
)

PHANTOM = ["task.image_chan=phantom://em?shape=16,64,64", "task.annotation_chan=phantom://membrane?shape=16,64,64"]
PHANTOM += ["task.xrange_vol=0,64", "task.yrange_vol=0,64", "task.z_train=0,8", "task.z_val=8,12", "task.z_test=null"]
PHANTOM += ["task.tile_size=64,64", "network.start_filters=2"]


def layers(*assignments: str, config: str | None = None, **tune) -> dict:
    return {"config": config, "assignments": list(assignments), "flags": {"tune": tune} if tune else {}}


def test_the_four_networks_of_2d_are_tried_or_that_of_3d_or_those_that_are_named(tmp_path):
    assert list(resolve_networks("synapse", layers())) == list(sweep_plan.NETWORKS_2D)
    assert list(resolve_networks("synapse", layers("task.volume_z=16"))) == ["UNet_3D"]
    (tmp_path / "mine.json").write_text('{"start_filters": 5}')
    found = resolve_networks("synapse", layers(networks=["UNet_2D_depth", str(tmp_path / "mine.json")]))
    assert list(found) == ["UNet_2D_depth", "mine"]
    assert found["mine"].network.start_filters == 5
    assert list(resolve_networks("synapse", layers("tune.networks=UNet_2D"))) == ["UNet_2D"]
    with pytest.raises(ValueError, match="names UNet_2D twice"):
        resolve_networks("synapse", layers(networks=["UNet_2D", "UNet_2D.json"]))
    with pytest.raises(FileNotFoundError, match="no network 'UNet_4D'"):
        resolve_networks("synapse", layers(networks=["UNet_4D"]))


def test_a_config_of_a_network_is_the_only_network(tmp_path):
    config = {"network": {"model_type": "residual", "n_blocks": 3, "outweightfilename": "best"}}
    (tmp_path / "best.json").write_text(json.dumps(config))
    found = resolve_networks("synapse", layers(config=str(tmp_path / "best.json")))
    assert list(found) == ["best"]
    assert found["best"].network.model_type == "residual"


def test_what_the_command_line_sets_is_not_searched_and_a_space_file_that_has_it_is_refused(tmp_path):
    bases = resolve_networks("synapse", layers(networks=["UNet_2D", "UNet_2D_depth"]))
    whole = read_search_space(bases, 1, set())
    assert whole["network"] == SearchDomain("choice", ("UNet_2D", "UNet_2D_depth"))
    fixed = fixed_settings(layers("network.learning_rate=1e-3", "network.epochs=5"))
    assert whole.keys() - read_search_space(bases, 1, fixed).keys() == {"network.learning_rate"}
    (tmp_path / "space.json").write_text('{"network.learning_rate": {"choice": [0.1]}}')
    file = str(tmp_path / "space.json")
    bases = resolve_networks("synapse", layers(space=file, networks=["UNet_2D"]))
    assert list(read_search_space(bases, 1, set())) == ["network.learning_rate"]
    with pytest.raises(ValueError, match="searched there and set on the command line"):
        read_search_space(bases, 1, fixed)


def test_there_must_be_something_to_search_and_a_grid_has_an_end(tmp_path):
    (tmp_path / "space.json").write_text("{}")
    one = layers(space=str(tmp_path / "space.json"), networks=["UNet_2D"])
    with pytest.raises(ValueError, match="there is nothing to search"):
        read_search_space(resolve_networks("synapse", one), 1, set())
    grid = layers(search="grid", networks=["UNet_2D"])
    with pytest.raises(
        ValueError, match=r"the default space: network\.learning_rate, task\.foreground_share has no end"
    ):
        read_search_space(resolve_networks("synapse", grid), 1, set())


@pytest.mark.parametrize(
    ("tune", "samples"),
    [
        ({}, 6),
        ({"samples": 4}, 4),
        ({"search": "grid"}, 6),
        ({"search": "grid", "samples": 4}, 4),
        ({"search": "random", "hours": 1.0}, 6),
    ],
)
def test_there_are_no_more_trials_than_combinations(tune, samples):
    assert (
        num_samples(TuneSettings(**tune), {"a": SearchDomain("int", (1, 3)), "b": SearchDomain("choice", (1, 2))})
        == samples
    )


def test_where_there_is_no_end_of_combinations_it_is_20_or_as_many_as_there_is_time_for():
    space = {"a": SearchDomain("uniform", (0.0, 1.0))}
    assert [
        num_samples(TuneSettings(**tune), space) for tune in ({}, {"hours": 1.0}, {"hours": 1.0, "samples": 5})
    ] == [
        20,
        None,
        5,
    ]


@pytest.mark.parametrize(
    ("concurrent", "workers", "gpu", "cluster", "expected"),
    [
        (None, 1, False, ClusterResources(2, 0, 1), 1),
        (None, 1, False, ClusterResources(64, 0, 8), 8),
        (None, 1, True, ClusterResources(64, 8, 2), 8),
        (None, 3, True, ClusterResources(64, 8, 2), 2),
        (None, 4, True, ClusterResources(64, 2, 1), 1),  # which the cluster then has not
        (7, 1, False, ClusterResources(2, 0, 1), 7),
    ],
)
def test_as_many_trials_run_at_once_as_there_are_gpus_or_nodes(concurrent, workers, gpu, cluster, expected):
    assert num_concurrent(TuneSettings(concurrent=concurrent), workers, gpu, cluster) == expected


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """`planned(*assignments, **tune)` gives a plan on a cluster of four CPUs, and what was said."""
    monkeypatch.setattr(sweep_plan, "connect_ray", lambda verbose: ClusterResources(4, 0, 1))
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)

    def plan(*assignments: str, **tune):
        said: list[str] = []
        place = (f"train.storage={tmp_path}", "train.name=sweep")
        given = layers(*PHANTOM, *place, *assignments, **{"networks": ["UNet_2D"], **tune})
        return plan_sweep("membrane", given, "python jobs/tune.py --task membrane --name {}".format, said.append), said

    return plan


def test_a_plan_knows_its_place_its_demand_and_the_command_that_goes_on(planned, tmp_path):
    plan, said = planned(concurrent=3)
    assert plan.path == str(tmp_path / "sweep")
    assert plan.again == "python jobs/tune.py --task membrane --name sweep"
    assert (plan.concurrent, plan.sharing, plan.workers) == (3, 3, (1, 1))
    assert plan.demand.cpus == pytest.approx(3 * 0.75)
    unmet = planned(concurrent=8)[0].demand.unmet(ClusterResources(4, 0, 1))
    assert unmet == "8 workers of 8 trials and their reading need 6 CPUs, the cluster has 4"
    assert any("network.normalization is searched" in line for line in said)
    assert not list(tmp_path.iterdir())


def test_a_norm_by_the_tile_is_warned_of(planned):
    _, said = planned("network.normalization=group")
    assert [line for line in said if "normalizes by the tile (group norm)" in line and "--block" in line]


def begin(plan, *trials: TrialRecord, finished: bool = True, seconds: float = 10.0) -> None:
    board = Leaderboard(plan.storage, plan.metric, list(trials), seconds, finished=finished)
    board.write()
    plan.storage.write_bytes("settings.json", json.dumps(plan.description).encode())


def trial(number: int, state: str = FINISHED) -> TrialRecord:
    return TrialRecord(number, "UNet_2D", {}, state, score=0.5)


def test_a_finished_sweep_is_refused_and_says_how_to_search_on(planned):
    begin(planned(samples=2)[0], trial(0), trial(1))
    with pytest.raises(ValueError, match=r"is finished: 2 trials have been made\. To search on, add --samples 4"):
        check_sweep_resumable(planned(samples=2)[0])
    assert len(check_sweep_resumable(planned(samples=3)[0]).trials) == 2
    begin(planned(samples=2, hours=1.0)[0], trial(0), trial(1, OUT_OF_TIME), seconds=3600.0)
    with pytest.raises(ValueError, match=r"its 1 hours are over\. To search on, give more --hours, such as 2"):
        check_sweep_resumable(planned(samples=2, hours=1.0)[0])
    check_sweep_resumable(planned(samples=2, hours=1.5)[0])
    begin(planned(samples=2)[0], trial(0), trial(1), finished=False)  # killed before its page
    check_sweep_resumable(planned(samples=2)[0])


def test_other_settings_are_refused_and_the_difference_is_shown(planned, tmp_path):
    begin(planned(samples=2)[0], trial(0), finished=False)
    with pytest.raises(ValueError, match="the sweep sweep was begun with other settings:\n") as caught:
        check_sweep_resumable(planned("network.ema=0.9", "task.z_gap=1", samples=2, scheduler="none")[0])
    told = ("task.z_gap: 0 -> 1", 'tune.scheduler: "asha" -> "none"', "networks.UNet_2D.ema: 0.0 -> 0.9")
    assert all(f"\n  {line}\n" in str(caught.value) for line in told)
    with pytest.raises(ValueError, match=r'space\.network\.loss: \{"choice"'):
        check_sweep_resumable(planned("network.loss=focal", samples=2)[0])
    check_sweep_resumable(planned("train.cache=none", samples=9, concurrent=2, keep=1, hours=3.0)[0])
    (tmp_path / "sweep/settings.json").write_text('{"task": {}, "network": {}, "train": {}}')
    with pytest.raises(ValueError, match="is not that of a sweep; give another --name"):
        check_sweep_resumable(planned(samples=2)[0])


def test_the_same_description_differs_in_nothing(planned):
    plan = planned()[0]
    assert sweep_differences(json.loads(json.dumps(plan.description)), plan.description) == []


def test_a_setting_that_is_newer_than_the_sweep_had_its_default(planned):
    plan = planned()[0]
    older = json.loads(json.dumps(plan.description))
    del older["sweep"]["networks"]["UNet_2D"]["metric"], older["tune"]["keep"], older["tune"]["grace"]
    assert sweep_differences(older, plan.description) == []
    older["sweep"]["networks"]["UNet_3D"] = {}
    assert sweep_differences(older, plan.description) == ["networks: UNet_2D, UNet_3D -> UNet_2D"]


def test_networks_whose_trials_cannot_be_compared_are_refused(planned, tmp_path):
    own = tmp_path / "short.json"
    own.write_text('{"epochs": 3}')
    with pytest.raises(
        ValueError, match=r"network\.epochs is 30 of UNet_2D, 3 of short: .* --set network\.epochs=\.\.\."
    ):
        planned(networks=["UNet_2D", str(own)])
    planned("network.epochs=5", networks=["UNet_2D", str(own)])
    with pytest.raises(ValueError, match=r"--grace 30: a trial has 30 epochs .* or --scheduler none"):
        planned(grace=30)
    planned(grace=30, scheduler="none")


def test_a_sweep_that_is_only_named_is_the_one_that_was_begun(planned, tmp_path):
    plan, _ = planned("network.epochs=7", samples=5, hours=2.0)
    assert command_record("a", {"flags": {"task": {"image_chan": "https://h/x?key=1"}}})["flags"] == {
        "task": {"image_chan": "https://h/x"}
    }
    begin(plan, trial(0), finished=False)
    named = {"config": None, "assignments": [], "flags": {"train": {"storage": str(tmp_path), "name": "sweep"}}}
    again = plan_sweep(None, named, "jobs/tune.py --name {}".format, print)
    assert again.description == plan.description | {"sweep": again.description["sweep"]}
    assert (again.samples, again.tune.hours, again.settings.network.epochs) == (5, 2.0, 7)
    assert len(check_sweep_resumable(again).trials) == 1
    longer = {**named, "flags": {**named["flags"], "tune": {"samples": 9}}}
    assert plan_sweep(None, longer, "jobs/tune.py --name {}".format, print).samples == 9
    named["flags"]["train"]["name"] = "other"
    with pytest.raises(ValueError, match="no task: give --task"):
        plan_sweep(None, named, "jobs/tune.py --name {}".format, print)


def test_where_the_loss_is_set_for_all_it_is_not_searched(planned):
    assert "network.loss" in planned()[0].space
    assert "network.loss" not in planned("task.loss=tversky")[0].space
    assert "network.loss" not in planned("network.metric=val.loss")[0].space  # losses are no measure of each other


def test_a_batch_size_that_a_trial_leaves_open_is_that_of_its_workers(planned):
    plan, _ = planned()
    open_size = override_settings(plan.settings, {"network.batch_size": None}, "trial 0000")
    assert [choose_batch_size(open_size, workers).network.batch for workers in (1, 2, 8)] == [2, 2, 8]
