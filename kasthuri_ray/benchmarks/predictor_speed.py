"""How fast the predictor is on this device: `python -m kasthuri_ray.benchmarks.predictor_speed`, without Ray and pydantic.

For each of our five networks: voxels/s of the network alone and of `Predictor.predict`, against what the device copies
and multiplies, measured beside it. Each network runs in a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from kasthuri_ray.benchmarks.harness import BenchmarkLine, report_lines, run_part

MODULE = "kasthuri_ray.benchmarks.predictor_processes"
FIVE = ("UNet_2D", "UNet_2D_attention", "UNet_2D_residual", "UNet_2D_depth", "UNet_3D")
SECONDS = 8.0  # of each measurement, once it is warm
QUICK_BLOCKS = {2: [2, 128, 128], 3: [16, 64, 64]}
MVOXELS, GB, TERA = 1e6, 1e9, 1e12


def run_predictor_benchmark(
    device: str = "auto",
    networks: Sequence[str] = FIVE,
    quick: bool = False,
    out: str = "benchmark_predictor.json",
    verbose: bool = False,
) -> list[BenchmarkLine]:
    """Measure the networks, print the table and write the JSON. device: auto, cpu or cuda."""
    import torch

    from kasthuri_ray.hardware import choose_precision

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, and torch finds no CUDA card here; use cpu")
    seconds, precision = 0.1 if quick else SECONDS, choose_precision("auto", torch.device(device))
    found: dict[str, Any] = {}
    before, _ = run_part(
        "ceilings", {"device": device, "precision": precision, "seconds": seconds / 2}, verbose=verbose, module=MODULE
    )
    print(f"  copies {before['copy'] / GB:.1f} GB/s, multiplies {_fastest(before) / TERA:.2f} TFLOP/s", flush=True)
    for name in networks:
        how: dict[str, Any] = {"name": name, "device": device, "seconds": seconds}
        if quick:
            how |= {"block": QUICK_BLOCKS[3 if "3D" in name else 2], "compile": "off"}
        given, usage = run_part("measure", how, verbose=verbose, module=MODULE)
        found[name] = given | {"host_peak": usage.trainer_peak}
        print(f"  {name}: {statistics.median(given['resident']) / MVOXELS:.3g} Mvoxels/s", flush=True)
    lines = predictor_lines(before, found, precision)
    report_lines("predictor", lines, {"device": device, "quick": quick, "ceilings": before, "networks": found}, out)
    return lines


def _fastest(ceilings: dict[str, Any]) -> float:
    return max(ceilings["products"].values())


def predictor_lines(ceilings: dict[str, Any], found: dict[str, Any], precision: str) -> list[BenchmarkLine]:
    """The figures of each network beside the ceilings."""
    copy, multiply = ceilings["copy"], _fastest(ceilings)
    sizes = ", ".join(ceilings["products"])
    lines = [
        BenchmarkLine("copy", copy / GB, "GB/s", note="read and written together"),
        BenchmarkLine("matrix products", multiply / TERA, "TFLOP/s", note=f"{precision}, the fastest of {sizes}"),
    ]
    for name, given in found.items():
        lines += _of_network(name, given, copy, multiply)
    return lines


def _of_network(name: str, given: dict[str, Any], copy: float, multiply: float) -> list[BenchmarkLine]:
    how, layers = given["arithmetic"], given["layers"]
    flop, moved = (sum(layer[column] for layer in layers) for column in (1, 2))
    least = sum(max(flop / multiply, moved / copy) for _, flop, moved in layers)
    alone, whole = (statistics.median(given[key]) for key in ("resident", "predict"))
    tile = " x ".join(map(str, how["tile"]))
    about = f"{how['precision']}{', compiled' if how['compile'] else ''}, tiles {tile}, batch {how['batch']}"
    peak = given["card_peak"] or given["host_peak"]
    return [
        BenchmarkLine(name, alone / MVOXELS, "Mvoxels/s", note=f"the network alone: {about}"),
        BenchmarkLine("  by products alone", multiply / flop / MVOXELS, "Mvoxels/s", note=f"{flop:,.0f} FLOP a voxel"),
        BenchmarkLine("  by copies alone", copy / moved / MVOXELS, "Mvoxels/s", note=f"{moved:,.0f} bytes a voxel"),
        BenchmarkLine("  share of products", alone * flop / multiply),
        BenchmarkLine("  share of both", alone * least, note="each layer taken by the slower of the two"),
        BenchmarkLine(
            "  predict", whole / MVOXELS, "Mvoxels/s", note="a block in memory: voxels computed, margins too"
        ),
        BenchmarkLine("  of the network alone", whole / alone),
        BenchmarkLine("  until its first answer", given["first_seconds"], "s"),
        BenchmarkLine("  peak memory", None if peak is None else peak / GB, "GB", note="of the card, or the process"),
    ]


def main(given: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="kasthuri_ray.benchmarks.predictor_speed", description=__doc__)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: a card if there is")
    parser.add_argument("--networks", nargs="+", choices=FIVE, default=list(FIVE), metavar="NAME", help=", ".join(FIVE))
    parser.add_argument("--quick", action="store_true", help="small blocks: shows that it works, says little")
    parser.add_argument("--out", metavar="FILE", default="benchmark_predictor.json", help="default: %(default)s")
    parser.add_argument("--verbose", action="store_true", help="show what the parts print")
    try:
        run_predictor_benchmark(**vars(parser.parse_args(given)))
    except ValueError as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
