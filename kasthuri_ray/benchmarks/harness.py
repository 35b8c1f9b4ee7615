"""Processes of a benchmark: each part runs in its own, watched from outside for memory and CPU, and is ended with all
that it started.

Resident memory counts the pages that a process maps; proportional memory (PSS) divides each page among the processes
that map it, so that sums count it once. Both as Linux tells them in /proc; elsewhere nothing is measured.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

PERIOD_S = 2.0  # for a minute, and then five times as long: reading the maps of twenty processes takes some 80 ms
TRAINER, DRIVER, READER, RAY = "trainer", "driver", "reader", "ray"
COMPUTES = ("ray::RayTrainWorker", "ray::BlockWorker")
PARTS = "kasthuri_ray.benchmarks.training_processes"
DRIVES = ("pipeline", "job", "schedule", "sweep", "fits")  # parts that have Ray's workers do the work
PROC = Path("/proc")


@dataclass
class Usage:
    """What the processes of a part used, in bytes and seconds.

    trainer_peak: resident memory of the largest process that trains or segments (or is the part itself, where it has no
    Ray).
    driver_peak: proportional memory of the part itself, where it drives Ray. others_peak: of all further processes
    together. store_peak: of the shared memory of all, which is Ray's object store. total_peak: of everything.
    cpu_seconds: by role. None where it cannot be measured.
    """

    trainer_peak: int | None = None
    driver_peak: int | None = None
    others_peak: int | None = None
    store_peak: int | None = None
    total_peak: int | None = None
    processes: int = 0
    cpu_seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class ProcessSample:
    """One process at one moment, bytes and seconds. peak: the most it ever had resident; shared: its part of store."""

    pid: int
    role: str
    peak: int
    proportional: int
    shared: int
    cpu_seconds: float


def descendants(pid: int) -> dict[int, str]:
    """`pid` and all that it started and that lives, each with its command line."""
    children: dict[int, list[int]] = {}
    for folder in PROC.glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    found, waiting = {}, [pid]
    while waiting:
        each = waiting.pop()
        waiting += children.get(each, [])
        with suppress(OSError):
            found[each] = (PROC / str(each) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return found


def role_of(command: str, is_part: bool, trains_itself: bool) -> str:
    """What a process is for, by its command line: Ray's workers carry their work's name."""
    if is_part:
        return TRAINER if trains_itself else DRIVER
    if command.startswith(COMPUTES):
        return TRAINER
    return READER if command.startswith("ray::MapBatches") else RAY


def sample_process(pid: int, role: str) -> ProcessSample:
    """What the process uses now. Raises OSError if it has gone."""
    rollup = _fields((PROC / str(pid) / "smaps_rollup").read_text())
    status = _fields((PROC / str(pid) / "status").read_text())
    ticks = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[11:13]
    seconds = sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    return ProcessSample(pid, role, status.get("VmHWM", 0), rollup.get("Pss", 0), rollup.get("Pss_Shmem", 0), seconds)


def _fields(text: str) -> dict[str, int]:
    """The lines `Name: 12 kB`, in bytes."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[2] == "kB":
            found[words[0].rstrip(":")] = int(words[1]) * 1024
    return found


class ProcessWatch:
    """Looks at a process and all below it every PERIOD_S; `usage` is what they came to."""

    def __init__(self, pid: int, trains_itself: bool) -> None:
        self.pid, self.trains_itself = pid, trains_itself
        self.usage = Usage()
        self.seen: dict[int, str] = {}  # every process that ever was below, and when it began
        self._cpu: dict[int, tuple[str, float]] = {}
        self._roles: dict[int, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> ProcessWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        began = time.monotonic()
        while PROC.joinpath("self/smaps_rollup").exists():
            self.look()
            if self._stop.wait(PERIOD_S if time.monotonic() - began < 60 else 5 * PERIOD_S):
                return

    def look(self) -> None:
        """Take one sample of every process."""
        samples = []
        for pid, command in descendants(self.pid).items():
            with suppress(OSError, IndexError):
                self.seen.setdefault(pid, process_start_time(pid))
                samples.append(sample_process(pid, self._role(pid, command)))
        if samples:
            self._add(samples)

    def _role(self, pid: int, command: str) -> str:
        now = role_of(command, pid == self.pid, self.trains_itself)
        if now != RAY or pid not in self._roles:
            self._roles[pid] = now  # a reader that idles is still one
        return self._roles[pid]

    def _add(self, samples: list[ProcessSample]) -> None:
        usage = self.usage
        trainers = [each.peak for each in samples if each.role == TRAINER]
        drivers = sum(each.proportional - each.shared for each in samples if each.role == DRIVER)
        others = sum(each.proportional - each.shared for each in samples if each.role not in (TRAINER, DRIVER))
        store = sum(each.shared for each in samples)
        usage.trainer_peak = max([usage.trainer_peak or 0, *trainers])
        usage.driver_peak = max(usage.driver_peak or 0, drivers)
        usage.others_peak = max(usage.others_peak or 0, others)
        usage.store_peak = max(usage.store_peak or 0, store)
        usage.total_peak = max(usage.total_peak or 0, sum(each.proportional for each in samples))
        usage.processes = max(usage.processes, len(samples))
        self._cpu.update({each.pid: (each.role, each.cpu_seconds) for each in samples})
        usage.cpu_seconds = {}
        for role, seconds in self._cpu.values():
            usage.cpu_seconds[role] = usage.cpu_seconds.get(role, 0.0) + seconds


def process_start_time(pid: int) -> str:
    """When a process began, in ticks since boot: with its id, what tells it from a later one of the same id."""
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]


class PartFailed(RuntimeError):
    """A part of a benchmark ended with an error; the message holds the end of what it printed."""


def run_part(
    part: str,
    arguments: dict[str, Any],
    environment: Mapping[str, str] | None = None,
    verbose: bool = False,
    module: str = PARTS,
) -> tuple[dict[str, Any], Usage]:
    """Run the part of that name of `module` with these arguments in a process of its own.

    module: one that ends in `be_a_part`. environment: variables besides ours. Gives what the part returned, and what
    its processes used. Raises PartFailed.
    """
    with tempfile.TemporaryDirectory(prefix="kasthuri_ray_") as folder:
        given, found, log = (Path(folder) / name for name in ("given.json", "found.json", "log"))
        given.write_text(json.dumps(arguments))
        command = [sys.executable, "-m", module, part, str(given), str(found)]
        with log.open("wb") as output:
            target = None if verbose else output
            process = subprocess.Popen(
                command,
                env={**_environment(), **(environment or {})},
                stdout=target,
                stderr=target,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
            watch = ProcessWatch(process.pid, trains_itself=part not in DRIVES)
            try:
                with watch:
                    code = process.wait()
            finally:
                watch.look()
                end_process(process, watch.seen)
        if code or not found.exists():
            raise PartFailed(f"the part {part} ended with {code}:\n{log.read_text(errors='replace')[-2000:]}")
        return json.loads(found.read_text()), watch.usage


def run_as_part(parts: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """What a module of parts ends in: `python -m MODULE PART GIVEN.json FOUND.json`, as `run_part` starts it."""
    part, given, found = sys.argv[1:]
    result = parts[part](**json.loads(Path(given).read_text()))
    Path(found).write_text(json.dumps(result))


def _environment() -> dict[str, str]:
    """Ours, without what would change an allocator or the number of threads."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MALLOC_") and name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAY_ADDRESS")
    }


def end_process(process: subprocess.Popen, seen: Mapping[int, str], patience_s: float = 15.0) -> None:
    """End a part and whatever of its processes is left: asked first, then killed."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
    deadline = time.monotonic() + (5.0 if process.poll() is not None else 0.0)
    while (left := _living(seen)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 5.0
    while _living(seen) and time.monotonic() < deadline:
        time.sleep(0.05)


def _living(seen: Mapping[int, str]) -> list[int]:
    living = []
    for pid, start in seen.items():
        with suppress(OSError, IndexError):
            if (
                process_start_time(pid) == start
                and (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            ):
                living.append(pid)
    return living


@dataclass(frozen=True)
class BenchmarkLine:
    """One figure. at_least, at_most: its goal, None where it has none. note: how it was come by."""

    name: str
    figure: float | None  # None: could not be measured here, the note says why
    unit: str = ""
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""

    @property
    def ok(self) -> bool | None:
        """Whether the goal is reached; None without a goal or a figure."""
        if self.figure is None or (self.at_least is None and self.at_most is None):
            return None
        enough = self.at_least is None or self.figure >= self.at_least
        return enough and (self.at_most is None or self.figure <= self.at_most)

    @property
    def goal(self) -> str:
        parts = [f"at least {self.at_least:g}"] if self.at_least is not None else []
        parts += [f"at most {self.at_most:g}"] if self.at_most is not None else []
        return " and ".join(parts)

    @property
    def verdict(self) -> str:
        return {True: "ok", False: "missed", None: ""}[self.ok]


def lines_table(lines: Sequence[BenchmarkLine]) -> str:
    """The lines under one another: what, figure, goal, verdict, note."""
    rows = [("what", "figure", "goal", "", "")]
    rows += [(line.name, _number(line), line.goal, line.verdict, line.note) for line in lines]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    text = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) for row in rows]
    return "\n".join(line.rstrip() for line in [text[0], "-" * (sum(widths) + 6), *text[1:]])


def _number(line: BenchmarkLine) -> str:
    return "-" if line.figure is None else f"{line.figure:.4g} {line.unit}".strip()


def benchmark_record(name: str, lines: Sequence[BenchmarkLine], more: dict[str, Any]) -> dict[str, Any]:
    """What the JSON holds: the machine, every line with its verdict, and whatever else was found."""
    shown = [{**asdict(line), "ok": line.ok} for line in lines]
    return {"benchmark": name, "machine": machine_description(), "lines": shown, **more}


def machine_description() -> dict[str, Any]:
    """What it was measured on."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpus": cpus, "processor": _processor(), "system": platform.platform(), "python": platform.python_version()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def report_lines(name: str, lines: Sequence[BenchmarkLine], more: dict[str, Any], out: str) -> None:
    """Print the table and write the JSON to `out`."""
    print(f"\n{lines_table(lines)}")
    missed = [line.name for line in lines if line.ok is False]
    print(f"\n{len(missed)} missed: {'; '.join(missed)}" if missed else "\nevery goal is reached")
    write_json(out, benchmark_record(name, lines, more))


def write_json(out: str, content: dict[str, Any]) -> None:
    """The JSON, and a line that says where it is."""
    Path(out).write_text(json.dumps(content, indent=2) + "\n")
    print(out)
