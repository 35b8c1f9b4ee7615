"""Processes of a benchmark, their memory and CPU time.

Each part of a benchmark runs in a process of its own. The process and its descendants are monitored from outside, and
ended together. Resident memory counts the pages that a process maps. Proportional memory (PSS) divides each page among
the processes that map it, so that a sum counts the page once. Both come from /proc; without it nothing is measured.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kasthuri_ray.progress import Reporter

PROC = Path("/proc")

# Reading the memory maps of twenty processes takes some 80 ms: after the first minute samples are fewer.
SAMPLE_PERIOD_S = 2.0
LATER_SAMPLE_PERIOD_S = 10.0

TRAINER, DRIVER, READER, RAY = "trainer", "driver", "reader", "ray"  # roles of processes
COMPUTING_ACTORS = ("ray::RayTrainWorker", "ray::BlockWorker")
READING_TASKS = "ray::MapBatches"

TRAINING_PARTS = "kasthuri_ray.benchmarks.training_processes"
RAY_PARTS = ("pipeline", "job", "scale", "sweep", "fits")  # parts that leave the work to workers of Ray


@dataclass
class Usage:
    """Memory in bytes and CPU time in seconds that the processes of a part used; None if not measured.

    trainer_peak: resident memory of the largest process that trains or segments; without Ray that is the part itself.
    driver_peak: proportional memory of the part itself, if it drives Ray.
    others_peak: proportional memory of all further processes together.
    store_peak: shared memory of all processes, which is Ray's object store.
    total_peak: proportional memory of all processes.
    cpu_seconds: by role.
    cores: busy cores by role, in the second half of the part, after everything has started.
    """

    trainer_peak: int | None = None
    driver_peak: int | None = None
    others_peak: int | None = None
    store_peak: int | None = None
    total_peak: int | None = None
    processes: int = 0
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    cores: dict[str, float] = field(default_factory=dict)


def larger_usage(one: Usage | None, other: Usage) -> Usage:
    """Return the usage with the higher total peak; the first of equals."""
    return other if one is None or (other.total_peak or 0) > (one.total_peak or 0) else one


@dataclass(frozen=True)
class ProcessSample:
    """Memory of one process at one moment, in bytes, and its CPU time.

    peak: highest resident memory so far. shared: part of `proportional` that is shared memory.
    """

    pid: int
    role: str
    peak: int
    proportional: int
    shared: int
    cpu_seconds: float


def find_descendants(pid: int) -> dict[int, str]:
    """Return the command lines of `pid` and of all running processes below it."""
    children: dict[int, list[int]] = {}
    for folder in PROC.glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            children.setdefault(int(_stat_fields(int(folder.name))[1]), []).append(int(folder.name))
    commands, waiting = {}, [pid]
    while waiting:
        each = waiting.pop()
        waiting += children.get(each, [])
        with suppress(OSError):
            commands[each] = (PROC / str(each) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return commands


def process_role(command: str, is_part: bool, computes_itself: bool) -> str:
    """Return the role of a process by its command line: Ray writes the name of the task or actor into it."""
    if is_part:
        return TRAINER if computes_itself else DRIVER
    if command.startswith(COMPUTING_ACTORS):
        return TRAINER
    return READER if command.startswith(READING_TASKS) else RAY


def sample_process(pid: int, role: str) -> ProcessSample:
    """Return what the process uses now. Raises OSError if it has ended."""
    rollup = _memory_fields((PROC / str(pid) / "smaps_rollup").read_text())
    status = _memory_fields((PROC / str(pid) / "status").read_text())
    seconds = sum(map(int, _stat_fields(pid)[11:13])) / os.sysconf("SC_CLK_TCK")
    return ProcessSample(pid, role, status.get("VmHWM", 0), rollup.get("Pss", 0), rollup.get("Pss_Shmem", 0), seconds)


def process_start_time(pid: int) -> str:
    """Return when a process started, in ticks since boot; a later process with the same id has another time."""
    return _stat_fields(pid)[19]


def _stat_fields(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name of the program: state, parent, ..."""
    return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def _memory_fields(text: str) -> dict[str, int]:
    """Return the values of lines such as `Name: 12 kB`, in bytes."""
    values = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[2] == "kB":
            values[fields[0].rstrip(":")] = int(fields[1]) * 1024
    return values


class ProcessMonitor:
    """Monitor of a process and its descendants in a thread, as a context manager.

    usage: the peaks of all samples. start_times: of every process that was sampled, by id.
    """

    def __init__(self, pid: int, computes_itself: bool) -> None:
        self.pid, self.computes_itself = pid, computes_itself
        self.usage = Usage()
        self.start_times: dict[int, str] = {}
        self._cpu: dict[int, tuple[str, float]] = {}
        self._history: list[tuple[float, dict[str, float]]] = []
        self._roles: dict[int, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)

    def __enter__(self) -> ProcessMonitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        start = time.monotonic()
        while PROC.joinpath("self/smaps_rollup").exists():
            self.sample()
            if self._stop.wait(SAMPLE_PERIOD_S if time.monotonic() - start < 60 else LATER_SAMPLE_PERIOD_S):
                return

    def sample(self) -> None:
        """Take one sample of every process."""
        samples = []
        for pid, command in find_descendants(self.pid).items():
            with suppress(OSError, IndexError):
                self.start_times.setdefault(pid, process_start_time(pid))
                samples.append(sample_process(pid, self._role(pid, command)))
        if samples:
            self._add(samples)

    def _role(self, pid: int, command: str) -> str:
        role = process_role(command, pid == self.pid, self.computes_itself)
        if role != RAY or pid not in self._roles:
            self._roles[pid] = role  # an idle reader stays a reader
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
        self._history.append((time.monotonic(), usage.cpu_seconds))
        usage.cores = late_cores(self._history)


def late_cores(history: Sequence[tuple[float, Mapping[str, float]]]) -> dict[str, float]:
    """Return the busy cores by role in the second half of a time, from samples of (time, CPU seconds by role)."""
    start, end = history[0][0], history[-1][0]
    middle, before = next(sample for sample in history if sample[0] >= (start + end) / 2)
    if end <= middle:
        return {}
    return {role: (seconds - before.get(role, 0.0)) / (end - middle) for role, seconds in history[-1][1].items()}


class PartFailed(RuntimeError):
    """Failure of a part of a benchmark; the message holds the end of its output."""


@dataclass(frozen=True)
class PartRunner:
    """Runs the parts of a benchmark, each in a process of its own, and shows what a person follows.

    Parameters
    ----------
    reporter : Reporter
        Shows progress and results.
    verbose : bool
        Whether to show what the parts print.
    """

    reporter: Reporter
    verbose: bool = False

    def show(self, text: str) -> None:
        """Show a line, at once."""
        self.reporter.print_line(text)

    def run(
        self,
        part: str,
        arguments: dict[str, Any],
        environment: Mapping[str, str] | None = None,
        module: str = TRAINING_PARTS,
        timeout_s: float | None = None,
    ) -> tuple[dict[str, Any], Usage]:
        """Run a part of `module` with these arguments; return its result and its usage.

        environment: additional variables. module: one that ends in `run_as_part`. Raises PartFailed, also if the part
        takes longer than `timeout_s`.
        """
        with tempfile.TemporaryDirectory(prefix="kasthuri_ray_") as folder:
            arguments_file, result_file, log = (Path(folder) / name for name in ("given.json", "found.json", "log"))
            arguments_file.write_text(json.dumps(arguments))
            with log.open("wb") as log_output:
                output = None if self.verbose else log_output
                process = subprocess.Popen(
                    [sys.executable, "-m", module, part, str(arguments_file), str(result_file)],
                    env={**_environment(), **(environment or {})},
                    stdout=output,
                    stderr=output,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
                monitor = ProcessMonitor(process.pid, computes_itself=part not in RAY_PARTS)
                try:
                    with monitor:
                        code = process.wait(timeout_s)
                except subprocess.TimeoutExpired:
                    raise PartFailed(f"the part {part} took longer than {timeout_s:g} s") from None
                finally:
                    monitor.sample()
                    end_processes(process, monitor.start_times)
            if code or not result_file.exists():
                raise PartFailed(f"the part {part} exited with code {code}:\n{log.read_text(errors='replace')[-2000:]}")
            return json.loads(result_file.read_text()), monitor.usage


def run_as_part(parts: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """Run the part that the command line names; the end of a module of parts.

    `PartRunner` starts it as `python -m MODULE PART GIVEN.json FOUND.json`: GIVEN.json holds the arguments of the part,
    and its result is written to FOUND.json.
    """
    part, arguments_file, result_file = sys.argv[1:]
    result = parts[part](**json.loads(Path(arguments_file).read_text()))
    Path(result_file).write_text(json.dumps(result))


def _environment() -> dict[str, str]:
    """Return the variables of this process, without those that change an allocator or the number of threads."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("MALLOC_") and name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAY_ADDRESS")
    }


def end_processes(process: subprocess.Popen, start_times: Mapping[int, str], timeout_s: float = 15.0) -> None:
    """End a part and what is left of its descendants: by SIGTERM, and after a timeout by SIGKILL."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
    deadline = time.monotonic() + (5.0 if process.poll() is not None else 0.0)
    while (running := _find_running(start_times)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in running:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 5.0
    while _find_running(start_times) and time.monotonic() < deadline:
        time.sleep(0.05)


def _find_running(start_times: Mapping[int, str]) -> list[int]:
    """Return the processes that still run; neither zombies nor later processes with the same id."""
    running = []
    for pid, start_time in start_times.items():
        with suppress(OSError, IndexError):
            if process_start_time(pid) == start_time and _stat_fields(pid)[0] != "Z":
                running.append(pid)
    return running
