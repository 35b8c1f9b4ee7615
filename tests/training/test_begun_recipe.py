"""A run, a sweep or folds that were begun with an earlier recipe of the package's network files continue with it."""

import json
from pathlib import Path

import pytest

from kasthuri_ray.config.config_files import PACKAGE_FOLDER
from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.config.settings import Settings
from kasthuri_ray.errors import InputError
from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.training.begun_recipe import EARLIER, keep_begun_recipe
from kasthuri_ray.training.preflight import check_run_resumable
from kasthuri_ray.training.run_folder import RunFolder


def settings_of(network: str = "UNet_2D", *assignments: str) -> Settings:
    return resolve_settings(GivenSettings("membrane", network, assignments=assignments))


@pytest.fixture
def begun(tmp_path: Path) -> RunFolder:
    """A run that was begun with the earlier recipe."""
    folder = RunFolder(open_storage(str(tmp_path / "run")))
    record = settings_of().training_record()
    folder.write_settings({**record, "network": {**record["network"], **EARLIER}})
    return folder


def test_a_run_of_the_earlier_recipe_continues_with_it_and_a_line_says_so(begun):
    with pytest.raises(InputError, match=r"network\.optimizer: \"AdamW\" -> \"Muon\""):
        check_run_resumable(begun, settings_of())
    kept, notes = keep_begun_recipe(settings_of(), begun.storage.path)
    check_run_resumable(begun, kept)
    assert len(notes) == 1
    assert "network.optimizer AdamW" in notes[0]


def test_a_sweep_of_the_earlier_recipe_continues_with_it(begun):
    record = json.loads(begun.storage.read_bytes("settings.json"))
    networks = {"UNet_2D": record.pop("network")}
    begun.write_settings({**record, "sweep": {"networks": networks}})
    kept, _ = keep_begun_recipe(settings_of(), begun.storage.path)
    assert {key: getattr(kept.network, key) for key in EARLIER} == EARLIER


@pytest.mark.parametrize("network", ["own file", "--set"])
def test_what_a_person_gives_is_not_replaced(begun, tmp_path, network):
    settings = settings_of("UNet_2D", "network.optimizer=Muon", "network.momentum=0.95", "network.ema=0.99")
    if network == "own file":
        own = tmp_path / "UNet_2D.json"
        own.write_text((PACKAGE_FOLDER / "networkconfig/UNet_2D.json").read_text())
        settings = settings_of(str(own))
    assert keep_begun_recipe(settings, begun.storage.path) == (settings, [])


def test_new_runs_and_other_networks_have_the_recipe_of_today(begun, tmp_path):
    for settings, path in (
        (settings_of("UNet_2D_depth"), begun.storage.path),
        (settings_of(), str(tmp_path / "none")),
        (settings_of(), None),
    ):
        assert keep_begun_recipe(settings, path) == (settings, [])
    begun.write_settings(settings_of().training_record())
    assert keep_begun_recipe(settings_of(), begun.storage.path) == (settings_of(), [])
