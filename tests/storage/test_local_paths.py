"""Local paths that do not exist: what is said about them, and what was probably meant."""

import pytest

from kasthuri_ray.errors import InputError, InputNotFound, named_input
from kasthuri_ray.storage.local_paths import describe_missing, find_near_path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("data/em.zarr/s0", "data/annotation.zarr", "outputs/run_1/checkpoint"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "mine.json").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("data/em.zar", "data/em.zarr"),
        ("dta/em.zarr/s0", "data/em.zarr/s0"),
        ("outputs/run1", "outputs/run_1"),
        ("configs/mine.json", "mine.json"),
        ("data/volume.h5", None),
        ("boss.json", None),
        ("nowhere/at/all", None),
    ],
)
def test_a_missing_path_is_named_absolutely_with_the_nearest_that_exists(folder, typed, near):
    end = f"; did you mean {folder}/{near}?" if near else ""
    assert describe_missing(typed) == f"there is no {folder}/{typed}{end}"


def test_a_folder_that_cannot_be_listed_gives_no_advice(folder):
    assert find_near_path(f"{folder}/mine.json/x") is None


@pytest.mark.parametrize(
    ("value", "message", "named"),
    [
        ("/d/em.zarr", "/d/em.zarr is a file", "--image /d/em.zarr is a file"),
        ("em.zarr", "there is no /d/em.zarr", "--image: there is no /d/em.zarr"),
        ("em.zarr", "its metadata is broken", "--image em.zarr: its metadata is broken"),
        ("em.zarr", "--image em.zarr has no size", "--image em.zarr has no size"),
        ("", "it is empty", "--image: it is empty"),
    ],
)
def test_an_error_begins_with_the_flag_and_names_the_value_once(value, message, named):
    with pytest.raises(InputNotFound) as caught, named_input("--image", value):
        raise InputNotFound(message)
    assert str(caught.value) == named
    with pytest.raises(InputError) as caught, named_input("", value):
        raise InputError(message)
    assert str(caught.value) == message
