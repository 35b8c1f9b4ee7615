"""Settings of a sweep: its networks, what all trials share, and what is recorded to resume it by its name alone."""

import json
from pathlib import Path

import pytest

from kasthuri_ray.config import defaults
from kasthuri_ray.config.loading import GivenSettings
from kasthuri_ray.config.sweep_settings import resolve_sweep


def sweep_of(*assignments: str, config: str | None = None, **tune):
    return resolve_sweep(GivenSettings("synapse", None, config, assignments, {"tune": tune} if tune else {}))


def test_networks_are_those_named_or_the_built_in_ones_of_the_tasks_dimension(files):
    assert list(sweep_of().networks) == list(defaults.NETWORKS_2D)
    assert list(sweep_of("task.volume_z=16").networks) == ["UNet_3D"]
    networks = sweep_of(networks=["UNet_2D_depth", files("mine.json", {"start_filters": 5})]).networks
    assert list(networks) == ["UNet_2D_depth", "mine"]
    assert networks["mine"].network.start_filters == 5
    assert list(sweep_of("tune.networks=UNet_2D").networks) == ["UNet_2D"]
    with pytest.raises(ValueError, match="names UNet_2D twice"):
        sweep_of(networks=["UNet_2D", "UNet_2D.json"])
    with pytest.raises(FileNotFoundError, match="--networks UNet_4D: there is no "):
        sweep_of(networks=["UNet_4D"])


def test_a_config_file_with_a_model_is_the_only_network(files):
    config = {"network": {"model_type": "residual", "n_blocks": 3, "outweightfilename": "best"}}
    networks = sweep_of(config=files("best.json", config)).networks
    assert list(networks) == ["best"]
    assert networks["best"].network.model_type == "residual"


def test_a_network_that_is_given_without_a_list_is_the_only_one(files):
    sweep = resolve_sweep(GivenSettings("synapse", files("mine.json", {"start_filters": 5})))
    assert (list(sweep.networks), sweep.begun["network"]) == (["mine"], "mine.json")


def test_what_flags_and_assignments_set_is_fixed_and_what_a_config_file_sets_is_not(files):
    config = files("c.json", {"network": {"momentum": 0.5}})
    sweep = sweep_of("network.learning_rate=1e-3", "task.loss=focal", config=config, keep=2)
    assert sweep.fixed == {"network.learning_rate", "task.loss", "network.loss", "tune.keep"}


def test_the_record_of_what_was_given_holds_no_secret():
    flags = {"task": {"image_chan": "https://h/x?key=1"}}
    begun = resolve_sweep(GivenSettings("synapse", assignments=["network.seed=1"], flags=flags)).begun
    assert begun == {
        "task": "synapse", "config": None, "assignments": ["network.seed=1"],
        "flags": {"task": {"image_chan": "https://h/x"}},
    }  # fmt: skip


def test_a_sweep_that_is_named_alone_is_resolved_from_what_was_given_first(tmp_path):
    location = {"storage": str(tmp_path), "name": "sweep"}
    flags = {"train": location, "tune": {"samples": 5, "hours": 2.0}}
    first = resolve_sweep(GivenSettings("synapse", assignments=["network.epochs=7"], flags=flags))
    Path(tmp_path, "sweep").mkdir()
    Path(tmp_path, "sweep/settings.json").write_text(json.dumps({"sweep": {"begun": first.begun}}))
    assert resolve_sweep(GivenSettings(flags={"train": location})) == first
    more = GivenSettings(assignments=["network.epochs=9"], flags={"train": location, "tune": {"samples": 9}})
    settings = resolve_sweep(more).networks["UNet_2D"]
    assert (settings.tune.samples, settings.tune.hours, settings.network.epochs) == (9, 2.0, 9)
    with pytest.raises(ValueError, match="no task: give --task"):
        resolve_sweep(GivenSettings(flags={"train": {**location, "name": "other"}}))


def test_a_task_that_is_given_by_its_content_is_recorded_and_resumed(tmp_path, tiny_task):
    location = {"storage": str(tmp_path), "name": "sweep"}
    first = resolve_sweep(GivenSettings(tiny_task, flags={"train": location}))
    Path(tmp_path, "sweep").mkdir()
    Path(tmp_path, "sweep/settings.json").write_text(json.dumps({"sweep": {"begun": first.begun}}))
    assert resolve_sweep(GivenSettings(flags={"train": location})) == first
