"""The table of seconds and budgets that is printed after the tests, and how tests are chosen for `make test`."""

import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def plugin(load_module):
    return load_module(ROOT / "tests" / "room_budgets.py")


def report(nodeid: str, seconds: float, when: str = "call", cpu_s: float = 0.0) -> SimpleNamespace:
    return SimpleNamespace(nodeid=nodeid, duration=seconds, when=when, user_properties=[("cpu_s", cpu_s)])


def test_seconds_are_added_by_room_and_a_room_over_its_budget_is_named(plugin, monkeypatch):
    monkeypatch.setattr(plugin, "BUDGETS_S", {"jobs": 10.0, "models": 10.0})
    monkeypatch.setattr(plugin, "OTHER_S", 25.0)
    budgets = plugin.RoomBudgets(has_budgets=True)
    for each in (
        report("tests/jobs/test_train.py::test_a[tests/models]@cluster", 9.0),
        report("tests/jobs/test_train.py::test_a[tests/models]@cluster", 2.0, "teardown", 3.5),
        report("tests/models/test_unet.py::test_b", 9.5),
        report("tests/test_cli.py::test_c", plugin.OTHER_S + 1),
    ):
        budgets.pytest_runtest_logreport(each)
    lines = list(budgets.table())
    assert [line.split()[:3] for line in lines[1:-1]] == [
        ["tests", f"{plugin.OTHER_S + 1:.1f}", f"{plugin.OTHER_S:.0f}"], ["jobs", "11.0", "10"], ["models", "9.5", "10"]
    ]  # fmt: skip
    assert [line.endswith("over its budget") for line in lines[1:]] == [True, True, False, False]
    assert lines[2].split()[3] == "3.5"


def test_chosen_tests_have_no_budget(plugin):
    budgets = plugin.RoomBudgets(has_budgets=False)
    budgets.pytest_runtest_logreport(report("tests/jobs/test_train.py::test_a", 9999.0))
    assert "over" not in "".join(budgets.table())


def test_budgets_are_of_rooms_and_fit_eight_minutes_on_two_cores(plugin):
    rooms = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()} | {"tests"}
    assert plugin.BUDGETS_S.keys() <= rooms
    assert sum(plugin.BUDGETS_S.get(room, plugin.OTHER_S) for room in rooms - {"__pycache__"}) <= 2 * 8 * 60


def test_make_test_and_make_test_all_run_each_test_once():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    (left_out,) = re.findall(r"-m '([^']*)'", options["addopts"])
    (chosen,) = re.findall(r"^test-all:.*\n\t.* -m '([^']*)'", (ROOT / "Makefile").read_text(), re.MULTILINE)
    marks = [mark.partition(":")[0] for mark in options["markers"]]
    assert left_out == " and ".join(f"not {mark}" for mark in marks)
    assert set(marks) == {"slow", "browser", "faults", "cluster"}
    assert chosen == "(slow or browser or faults) and not cluster"  # by hand: make test-cluster
    assert "KASTHURI_FAULT_TRIALS:-4" in (ROOT / "Makefile").read_text(), "long trials in a short form"


def test_tests_of_a_room_with_one_ray_are_one_group_of_the_suite_and_tests_on_several_hosts_always(load_module):
    conftest = load_module(ROOT / "tests" / "conftest.py")

    def group(file: str, *fixtures: str, in_suite: bool = True) -> str:
        item = SimpleNamespace(nodeid=f"{file}::test_a[x]", fixturenames=("tmp_path", *fixtures))
        return conftest.group_of(item, in_suite)

    train, segment, hosts = (f"tests/{name}.py" for name in ("jobs/test_train", "jobs/test_segment", "cluster/test_a"))
    assert group(train, "cluster") == group(segment, "start_job", "cluster") == "cluster tests/jobs"
    assert group("tests/test_api.py", "local_ray") == "local_ray tests"
    assert group(train, "local_ray") == "local_ray tests/jobs"
    assert (group(train), group(train, "cluster", in_suite=False)) == (train, train)
    assert group(hosts) == group(hosts, "cluster", in_suite=False) == "hosts"
