"""Make what later commits must resume: a finished run, and a run, a sweep and two segmentations that were killed.

    python tests/compatibility/make_artefacts.py NAME [--checkout FOLDER]

NAME is the new folder beside this file, such as 2026-11, and FOLDER a checkout of the commit; by default it is this
one. README.md says what the folder holds. It takes a few minutes, on Linux.
"""

import argparse
import csv
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
ARCHIVE = "artefacts.tar.xz"
SCRATCH = Path("/tmp/kasthuri_ray_artefacts")  # the trials of a sweep record where they are
ATTEMPTS = 10  # until a job was killed at the wanted moment
TIMEOUT_S = 900  # of one job, which takes half a minute on an idle machine

# No GPU, no bf16 and no compiler, so that all processors compute nearly the same numbers.
PORTABLE = ["--device", "cpu", "--precision", "float32", "--compile", "off", "--cache", "none"]
SETTINGS = {
    **{"task.xrange_vol": "0,256", "task.yrange_vol": "0,256", "task.tile_size": "64,64"},
    **{"task.z_train": "0,8", "task.z_val": "64,65", "task.z_test": "70,71"},
    **{"network.n_blocks": 2, "network.start_filters": 4, "network.batch_size": 4, "network.tiles_per_epoch": 64},
    **{"network.learning_rate": 0.01, "network.ema": 0.9},
}
ASSIGNMENTS = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]
TASK = ["--task", "phantom_synapse", "--num-workers", "1", "--storage", "runs", *PORTABLE, *ASSIGNMENTS]
TRAIN = ["train", *TASK, "--set", "network.epochs=4"]
SEARCH = ["--networks", "UNet_2D", "--space", "space.json", "--search", "random", "--scheduler", "none"]
SEARCH += ["--samples", "3", "--concurrent", "1", "--set", "network.epochs=3"]
SPACE = {"network.weight_decay": {"loguniform": [1e-4, 1e-1]}}
BLOCKS = ["--shard", "2,32,32", "--chunk", "2,16,32", "--block", "2,32,32", "--actors", "1"]
EXTRAS = ["--threshold", "0.5", "--save-mask", "--objects", "--no-skip-blank"]
IMAGE = ["--image", "phantom://em?shape=80,2048,2048&seed=7", "--box", "70:72,0:128,0:256"]  # 32 blocks
SEGMENT = ["segment", "--weights", "runs/finished", *IMAGE, *BLOCKS, *EXTRAS, *PORTABLE]
COMMANDS = {
    "finished": [*TRAIN, "--name", "finished"],
    "killed": [*TRAIN, "--name", "killed"],
    "sweep": ["tune", *TASK, *SEARCH, "--name", "sweep"],
    "half": [*SEGMENT, "--output", "half.zarr"],
    "labelled": [*SEGMENT, "--output", "labelled.zarr"],
}
TRIAL_KEYS = ("number", "network", "values", "state", "epochs", "score")
KEPT_SUFFIXES = {".json", ".csv", ".pt"}  # of the files of a run; no page, pictures and events


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--checkout", type=Path, default=HERE.parents[1])
    arguments = parser.parse_args()
    target = HERE / arguments.name
    target.mkdir()
    SCRATCH.mkdir()
    jobs = Jobs(SCRATCH, arguments.checkout.resolve())
    write_json(target / "commands.json", COMMANDS)
    write_json(target / "trials.json", make_artefacts(jobs))
    pack(jobs, target / ARCHIVE)
    shutil.rmtree(SCRATCH)
    print(f"{target}: {sum(path.stat().st_size for path in target.iterdir()) / 1e3:.0f} kB")


def write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


class Jobs:
    """The jobs of a checkout, which work in a scratch folder."""

    def __init__(self, folder: Path, checkout: Path) -> None:
        self.folder, self.checkout, self.log = folder, checkout, folder / "log.txt"

    def start(self, job: str, *flags: str) -> subprocess.Popen:
        command = [sys.executable, str(self.checkout / f"jobs/{job}.py"), *flags]
        env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "KASTHURI_"))}
        env["PYTHONPATH"] = str(self.checkout)
        with self.log.open("a") as log:
            return subprocess.Popen(command, cwd=self.folder, env=env, stdout=log, stderr=log, start_new_session=True)

    def run(self, job: str, *flags: str) -> None:
        if self.start(job, *flags).wait(TIMEOUT_S):
            sys.exit(f"{job} failed:\n{self.log.read_text()}")

    def kill(self, name: str, progress: Callable[[], int], wanted: range) -> None:
        """Start a job, and kill it once `progress()` is in the range; start over if it was too fast."""
        before = set(self.folder.rglob("*"))
        for _ in range(ATTEMPTS):
            process, end = self.start(*COMMANDS[name]), time.monotonic() + TIMEOUT_S
            while progress() < wanted.start and process.poll() is None and time.monotonic() < end:
                time.sleep(0.001)
            kill_session(process)
            if progress() in wanted:
                return
            for path in sorted(set(self.folder.rglob("*")) - before, reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
        sys.exit(f"{name} was not killed in time:\n{self.log.read_text()}")


def make_artefacts(jobs: Jobs) -> list[dict[str, object]]:
    """Run and kill all jobs; return the trials of a sweep that was not killed."""
    write_json(jobs.folder / "space.json", SPACE)
    runs = jobs.folder / "runs"
    jobs.run(*COMMANDS["finished"])
    jobs.kill("killed", lambda: count_epochs(runs / "killed"), range(2, 3))
    jobs.run(*COMMANDS["sweep"], "--name", "whole")
    leaderboard = json.loads((runs / "whole/leaderboard.json").read_text())
    shutil.rmtree(runs / "whole")
    jobs.kill("sweep", lambda: count_epochs(runs / "sweep/trials/0001"), range(1, 3))
    for name, phase in (("half", "s0"), ("labelled", "objects")):
        ledger = jobs.folder / f"{name}.zarr.ledger" / phase
        jobs.kill(name, lambda ledger=ledger: len(list(ledger.glob("*.json"))), range(10, 28))
    trials = sorted(leaderboard["trials"], key=lambda trial: trial["number"])
    return [{key: trial[key] for key in TRIAL_KEYS} for trial in trials]


def count_epochs(run: Path) -> int:
    try:
        with (run / "history.csv").open() as file:
            return len(list(csv.DictReader(file)))
    except FileNotFoundError:
        return 0


def kill_session(leader: subprocess.Popen) -> None:
    """Kill a job and the Ray that it started; all are stopped first, so that none works on."""
    for number, ended_states in ((signal.SIGSTOP, "ZXT"), (signal.SIGKILL, "ZX")):
        while alive := session_processes(leader.pid, ended_states):
            for pid in alive:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
            leader.poll()


def session_processes(session: int, ended_states: str) -> list[int]:
    pids = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, session_id = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session_id) == session and state not in ended_states:
            pids.append(int(stat.parent.name))
    return pids


def pack(jobs: Jobs, archive: Path) -> None:
    """Write what resuming needs to an archive; exit if a file names this machine or a path on it.

    A lock names its machine, and others wait until it is stale: one is kept, under another name, and no other.
    """
    lock = json.loads((jobs.folder / "runs/killed/lock.json").read_text())
    machine = [str(jobs.checkout), str(Path.home()), f'"{socket.gethostname()}"']
    with tarfile.open(archive, "w:xz") as tar:
        add_file(tar, "lock.json", json.dumps({**lock, "host": "another", "machine": "another"}).encode())
        for path in sorted(jobs.folder.rglob("*")):
            if not path.is_file() or path.name == "lock.json":
                continue
            if ".zarr" not in str(path) and path.suffix not in KEPT_SUFFIXES:
                continue
            name, data = str(path.relative_to(jobs.folder)), path.read_bytes()
            if found := [text for text in machine if text.encode() in data]:
                sys.exit(f"{name} holds {found}")
            add_file(tar, name, data)


def add_file(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file without owner and time."""
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


if __name__ == "__main__":
    main()
