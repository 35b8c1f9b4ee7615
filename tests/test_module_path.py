"""The module path: the folder where the user stands is searched last."""

import os
import sys

import pytest

from kasthuri_ray import cli, module_path
from kasthuri_ray.models.unet import build_network

NETWORK = """
from torch import nn

class MyNet(nn.Conv2d):
    def __init__(self):
        super().__init__(1, 2, 1)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Stand in an empty folder, with a module path of Python and its libraries alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry and os.path.realpath(entry) != os.getcwd()])
    monkeypatch.delenv(module_path.FOLDER_VARIABLE, raising=False)
    return tmp_path


def test_a_network_of_the_current_folder_is_found_and_the_folder_comes_last(folder, monkeypatch):
    (folder / "nets_of_this_folder.py").write_text(NETWORK)
    (folder / "queue.py").write_text("")
    before = list(sys.path)
    assert cli.run_job(lambda arguments: None, []) == 0
    assert sys.path == before, "a job without a network of one's own does not search the folder at all"
    monkeypatch.delitem(sys.modules, "queue")
    network = build_network({"model": "nets_of_this_folder.MyNet", "dim": 2})
    assert type(network).__name__ == "MyNet"
    assert sys.path == [*before, str(folder)]
    import queue

    assert hasattr(queue, "Queue")
    build_network({"model": "nets_of_this_folder.MyNet", "dim": 2})
    assert sys.path == [*before, str(folder)], "it is added once"


def test_a_worker_that_stands_elsewhere_searches_the_folder_of_the_driver(folder, monkeypatch):
    (folder / "there").mkdir()
    (folder / "there/nets_of_the_driver.py").write_text(NETWORK)
    monkeypatch.setenv(module_path.FOLDER_VARIABLE, str(folder / "there"))
    assert type(build_network({"model": "nets_of_the_driver.MyNet", "dim": 2})).__name__ == "MyNet"
    assert sys.path[-1] == str(folder / "there")


def test_a_ray_job_searches_its_copy_of_the_working_folder_last(folder, monkeypatch):
    before = list(sys.path)
    (folder / "link").symlink_to(folder)
    sys.path[:0] = [str(folder / "link"), str(folder)]  # from PYTHONPATH
    assert cli.run_job(lambda arguments: None, []) == 0
    assert sys.path[0] == str(folder / "link"), "PYTHONPATH of a person who submits nothing"
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert cli.run_job(lambda arguments: None, []) == 0
    assert sys.path == [*before, str(folder)]


def test_a_folder_is_searched_first_in_a_notebook_and_not_in_a_job(folder):
    assert not module_path.is_searched_first(str(folder))
    sys.path.append(str(folder))
    assert not module_path.is_searched_first(str(folder))
    sys.path.insert(0, "")
    assert module_path.is_searched_first(str(folder))
    assert not module_path.is_searched_first(str(folder.parent))
