"""Ways to train, compared on real EM: `python -m kasthuri_ray.benchmarks.accuracy_study --data FOLDER --out FOLDER`.

Each run trains a fold of VNC and appends a line to OUT/TASK.jsonl; what is there already is not run again. A run that
the time limit interrupts continues with the same command. Needs torch and numpy alone, neither Ray nor pydantic;
--convert needs zarr. --table prints what is there, pooled over the folds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kasthuri_ray import process_resources
from kasthuri_ray.benchmarks.accuracy_changes import CHANGES
from kasthuri_ray.benchmarks.accuracy_fold import NUM_FOLDS, TILES_PER_EPOCH, FoldRun, FoldTraining
from kasthuri_ray.benchmarks.accuracy_variants import VARIANTS
from kasthuri_ray.benchmarks.vnc_dataset import DOWNLOAD_HINT
from kasthuri_ray.errors import InputError, InputNotFound
from kasthuri_ray.progress import Reporter

NOT_FINISHED = 75  # exit status, EX_TEMPFAIL: the same command continues
TASKS = ("synapse", "membrane")
KEY = ("variant", "fold", "seed", "tiles")


def convert_store(store: str, folder: Path) -> None:
    """Write em, synapse and membrane of vnc.zarr as .npy files."""
    import zarr

    folder.mkdir(parents=True, exist_ok=True)
    for name in ("em", *TASKS):
        try:
            array: Any = zarr.open_array(f"{store}/{name}", mode="r")
        except FileNotFoundError:
            raise InputNotFound(f"{store} holds no {name}. {DOWNLOAD_HINT}") from None
        np.save(folder / f"{name}.npy", np.asarray(array[:]))


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Return the records of the runs that are finished."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def planned_runs(options: argparse.Namespace) -> Iterator[FoldRun]:
    """Yield the runs that the options ask for: all folds of a seed of a variant, then the next."""
    for name, seed, fold in itertools.product(options.variant, options.seeds, options.folds):
        yield FoldRun(VARIANTS[name], options.task, fold, seed, options.tiles)


def train_runs(runs: Iterable[FoldRun], options: argparse.Namespace, reporter: Reporter) -> bool:
    """Train what is not finished; return False if the time limit came first."""
    file = Path(options.out) / f"{options.task}.jsonl"
    stop = time.monotonic() + 60 * options.minutes
    for run in runs:
        if any(all(line[key] == run.key[key] for key in KEY) for line in read_lines(file)):
            continue
        training = FoldTraining(run, Path(options.data), Path(options.state))
        reporter.print_line(f"{run.name}: {len(training.history)} of {run.epochs} epochs are done")
        last = 0.0
        while not training.is_trained:
            start = time.monotonic()
            if start + last > stop:
                return False
            row = training.train_epoch()
            last = time.monotonic() - start
            scores = "  ".join(f"{key} {value:.3f}" for key, value in row.items())
            reporter.print_line(f"  epoch {len(training.history)} of {run.epochs}: {scores}")
        changes = CHANGES if options.changes else ()
        record = {**training.results(options.tta, changes), "commit": current_commit()}
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as lines:
            lines.write(json.dumps(record) + "\n")
        training.state_file.unlink()
        reporter.print_line(f"  val AP {record['val']['ap']:.3f}, test {json.dumps(record['test'])}")
    return True


def current_commit() -> str:
    """Return the commit of this package's checkout; empty outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def f1_of(tp: int, wrong: int, missed: int) -> float:
    """Return the F1 of counts."""
    return 2 * tp / (2 * tp + wrong + missed) if tp else 0.0


def pooled_row(lines: Sequence[Mapping[str, Any]], split: str = "test") -> dict[str, Any]:
    """Return the figures of the folds of one variant together: counts are summed, average precisions averaged."""
    voxels = [line[split] for line in lines if split in line]
    row: dict[str, Any] = {
        "folds": " ".join(str(line["fold"]) for line in lines),
        "val AP": float(np.mean([line["val"]["ap"] for line in lines])),
        "val F1": float(np.mean([line["val"]["f1"] for line in lines])),
    }
    if not voxels:
        return row
    tp, fp, fn = (sum(each[key] for each in voxels) for key in ("tp", "fp", "fn"))
    row |= {"AP": float(np.mean([each["ap"] for each in voxels])), "F1": f1_of(tp, fp, fn)}
    row["F1 of folds"] = " ".join(f"{each['f1']:.3f}" for each in voxels)
    if "objects" in voxels[0]:
        counts = {key: sum(each["objects"][key] for each in voxels) for key in voxels[0]["objects"]}
        right, found, true = counts["tp_overlap"], counts["predicted"], counts["true"]
        row["objects F1"] = f1_of(right, found - right, true - right)
        row["right/marked/true"] = f"{right}/{found}/{true}"
    return row


def study_table(lines: Sequence[Mapping[str, Any]], split: str = "test") -> str:
    """Return the figures of all variants as a table in Markdown, those of each number of tiles together."""

    def group(line: Mapping[str, Any]) -> tuple[int, str, int]:
        return line["tiles"], line["variant"], line["seed"]

    rows = []
    for (tiles, name, seed), members in itertools.groupby(sorted(lines, key=group), group):
        together = sorted(members, key=lambda line: line["fold"])
        seconds = sum(line["training_seconds"] for line in together) / len(together)
        row = {"tiles": tiles, "variant": name, "seed": seed, **pooled_row(together, split)}
        rows.append({**row, "s": round(seconds), "parameters": together[0]["parameters"]})
    names = list(dict.fromkeys(key for row in rows for key in row))
    header = [f"| {' | '.join(names)} |", f"| {' | '.join('---' for _ in names)} |"]
    return "\n".join(header + [f"| {' | '.join(_cell(row.get(name, '')) for name in names)} |" for row in rows])


def _cell(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line."""
    parser = argparse.ArgumentParser(prog="kasthuri_ray.benchmarks.accuracy_study", description=__doc__)
    parser.add_argument("--data", default="vnc_npy", help="folder of em.npy, synapse.npy and membrane.npy")
    parser.add_argument("--convert", metavar="VNC.ZARR", help="write that folder from vnc.zarr, and end")
    parser.add_argument("--out", default="docs/accuracy", help="folder of the lines; default: %(default)s")
    parser.add_argument("--state", default="build/accuracy", help="folder of runs in progress; default: %(default)s")
    parser.add_argument("--task", choices=TASKS, default="synapse", help="default: %(default)s")
    parser.add_argument("--variant", nargs="+", choices=sorted(VARIANTS), default=["baseline"], metavar="NAME")
    parser.add_argument("--folds", nargs="+", type=int, choices=range(NUM_FOLDS), default=list(range(NUM_FOLDS)))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--tiles", type=int, default=8 * TILES_PER_EPOCH, help="of 256 x 256; default: %(default)s")
    parser.add_argument("--minutes", type=float, default=8, help="time limit of this command; default: %(default)s")
    parser.add_argument("--tta", action="store_true", help="segment with test-time augmentation too")
    parser.add_argument("--changes", action="store_true", help="segment the test box after changes of the image too")
    parser.add_argument("--table", action="store_true", help="print the pooled figures, and end")
    return parser.parse_args(arguments)


def run_study(arguments: Sequence[str]) -> int:
    """Run the study with the options of a command line; return its exit status."""
    options, reporter = parse_options(arguments), Reporter()
    if options.convert:
        convert_store(options.convert, Path(options.data))
        return 0
    if options.table:
        lines = read_lines(Path(options.out) / f"{options.task}.jsonl")
        for split in ("test", "segmentation", "segmentation_tta"):
            of_split = [line for line in lines if split in line]
            if of_split:
                reporter.print_result(f"\n{split}\n\n{study_table(of_split, split)}")
        return 0
    if options.tiles % TILES_PER_EPOCH:
        raise InputError(f"--tiles {options.tiles}: give a multiple of {TILES_PER_EPOCH}, whole epochs")
    process_resources.configure_allocator()
    process_resources.set_threads(1)
    if not train_runs(planned_runs(options), options, reporter):
        reporter.print_line("not finished: give the same command again")
        return NOT_FINISHED
    return 0


if __name__ == "__main__":
    try:
        sys.exit(run_study(sys.argv[1:]))
    except InputError as error:
        sys.exit(f"kasthuri_ray.benchmarks.accuracy_study: {error}")
