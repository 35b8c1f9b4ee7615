"""A pytest plugin: the time of each room of the tests beside its budget, printed at the end.

A room is a folder of tests/. Seconds are those of its tests and fixtures, added over the worker processes of
pytest-xdist; a fixture that several rooms share counts where it is first used. On a busy machine they grow; the
processor time of the test processes, without the Ray that they start, hardly does.
"""

import resource
from collections import Counter
from collections.abc import Iterator

import pytest

# Seconds on two cores with AVX2. A room that is not listed has those of OTHER.
BUDGETS_S: dict[str, float] = {
    "segmentation": 180.0,
    "volumes": 110.0,
    "jobs": 80.0,
    "tests": 75.0,
    "training": 75.0,
    "storage": 70.0,
    "evaluation": 55.0,
    "benchmarks": 50.0,
    "reports": 45.0,
    "tiles": 40.0,
    "inference": 35.0,
    "compatibility": 20.0,
    "metrics": 20.0,
    "models": 20.0,
}
OTHER_S = 10.0
CPU_AT_START = pytest.StashKey[float]()


class RoomBudgets:
    """Adds up the time of each room, and prints the table."""

    def __init__(self, has_budgets: bool) -> None:
        self.has_budgets = has_budgets
        self.seconds: Counter[str] = Counter()
        self.cpu_seconds: Counter[str] = Counter()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        item.stash[CPU_AT_START] = cpu_seconds()
        return (yield)

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        item.user_properties.append(("cpu_s", round(cpu_seconds() - item.stash[CPU_AT_START], 3)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        room = room_of(report.nodeid)
        self.seconds[room] += report.duration
        if report.when == "teardown":
            self.cpu_seconds[room] += dict(report.user_properties).get("cpu_s", 0.0)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.seconds:
            terminalreporter.section("seconds of each room")
            for line in self.table():
                terminalreporter.write_line(line)

    def table(self) -> Iterator[str]:
        """Yield a line for each room, the longest first; in a run of chosen tests without budgets."""
        yield f"{'room':<16}{'seconds':>8}{'budget':>8}{'processor':>11}"
        for room, seconds in self.seconds.most_common():
            budget = BUDGETS_S.get(room, OTHER_S) if self.has_budgets else None
            late = "  over its budget" if budget is not None and seconds > budget else ""
            shown = "-" if budget is None else f"{budget:.0f}"
            yield f"{room:<16}{seconds:>8.1f}{shown:>8}{self.cpu_seconds[room]:>11.1f}{late}"
        yield f"{'all':<16}{self.seconds.total():>8.1f}{'':>8}{self.cpu_seconds.total():>11.1f}"


def room_of(nodeid: str) -> str:
    """Return the folder of tests/ that holds a test; `tests` for a test of no folder."""
    parts = nodeid.partition("::")[0].split("/")
    return parts[1] if len(parts) > 2 else parts[0]


def cpu_seconds() -> float:
    """Return the processor time of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
