"""Benchmark of the predictor on this device: `python -m kasthuri_ray.benchmarks.predictor_speed`.

For each built-in network: voxels/s of the network alone and of `Predictor.predict`, beside the limits of the device for
copies and matrix products, which are measured too. A network whose batch norms are folded is also measured as it was
trained, speed and memory. Each runs in a process of its own. Needs neither Ray nor pydantic.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from kasthuri_ray.benchmarks.benchmark_lines import BenchmarkLine, report_lines
from kasthuri_ray.benchmarks.harness import PartRunner
from kasthuri_ray.errors import InputError
from kasthuri_ray.progress import Reporter

PREDICTOR_PARTS = "kasthuri_ray.benchmarks.predictor_processes"
NETWORKS = ("UNet_2D", "UNet_2D_attention", "UNet_2D_residual", "UNet_2D_depth", "UNet_3D")
MVOXELS, GB, TERA = 1e6, 1e9, 1e12

SECONDS = 8.0  # of each measurement, after a first run
QUICK_BLOCKS = {2: [2, 128, 128], 3: [16, 64, 64]}  # z, y, x, by the dimensions of a network


def run_predictor_benchmark(
    parts: PartRunner,
    device: str = "auto",
    networks: Sequence[str] = NETWORKS,
    quick: bool = False,
    out: str = "benchmark_predictor.json",
) -> list[BenchmarkLine]:
    """Measure the networks, print the table and write the JSON file.

    Parameters
    ----------
    parts : PartRunner
        Runs the networks.
    device : str
        auto, cpu or cuda.
    networks : sequence of str
        Names of built-in networks.
    quick : bool
        Use small blocks, to try whether the benchmark works.
    out : str
        JSON file to write: voxels/s, and the work of each layer.

    Returns
    -------
    list of BenchmarkLine
        Speed of each network, and the limits of the device.

    Raises
    ------
    InputError
        If the device is cuda and there is no CUDA GPU.
    """
    import torch

    from kasthuri_ray.hardware import RULES, processor_kind

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, and torch finds no CUDA GPU on this machine; use cpu")
    seconds, precision = 0.1 if quick else SECONDS, RULES[processor_kind(torch.device(device))].precision
    arguments: dict[str, Any] = {"device": device, "precision": precision, "seconds": seconds / 2}
    ceilings, _ = parts.run("ceilings", arguments, module=PREDICTOR_PARTS)
    copy, products = ceilings["copy"] / GB, _fastest_product(ceilings) / TERA
    parts.show(f"  copies {copy:.1f} GB/s, matrix products {products:.2f} TFLOP/s")
    results: dict[str, Any] = {}
    for name in networks:
        arguments = {"name": name, "device": device, "seconds": seconds}
        if quick:
            arguments |= {"block": QUICK_BLOCKS[3 if "3D" in name else 2], "compile": "off"}
        results[name] = _measure_network(parts, name, arguments)
        if results[name]["arithmetic"]["fold"]:
            plain = _measure_network(parts, f"{name}, not folded", arguments | {"fold": "off"})
            results[name]["not_folded"] = plain
    lines = predictor_lines(ceilings, results, precision)
    more = {"device": device, "quick": quick, "ceilings": ceilings, "networks": results}
    report_lines("predictor", lines, more, out, parts.reporter)
    return lines


def _measure_network(parts: PartRunner, title: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    result, usage = parts.run("measure", dict(arguments), module=PREDICTOR_PARTS)
    parts.show(f"  {title}: {statistics.median(result['resident']) / MVOXELS:.3g} Mvoxels/s")
    return result | {"host_peak": usage.trainer_peak}


def _fastest_product(ceilings: Mapping[str, Any]) -> float:
    return max(ceilings["products"].values())


def predictor_lines(
    ceilings: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]], precision: str
) -> list[BenchmarkLine]:
    """Return the figures of each network beside the limits of the device."""
    copy, product = ceilings["copy"], _fastest_product(ceilings)
    sizes = ", ".join(ceilings["products"])
    lines = [
        BenchmarkLine("copy", copy / GB, "GB/s", note="read and written together"),
        BenchmarkLine("matrix products", product / TERA, "TFLOP/s", note=f"{precision}, the fastest of {sizes}"),
    ]
    for name, result in results.items():
        lines += _network_lines(name, result, copy, product)
    return lines


def _network_lines(name: str, result: Mapping[str, Any], copy: float, product: float) -> list[BenchmarkLine]:
    settings, layers = result["arithmetic"], result["layers"]
    flop, num_bytes = (sum(layer[column] for layer in layers) for column in (1, 2))
    min_seconds = sum(max(flop / product, num_bytes / copy) for _, flop, num_bytes in layers)
    network, predict = (statistics.median(result[key]) for key in ("resident", "predict"))
    tile = " x ".join(map(str, settings["tile"]))
    compiled = ", compiled" if settings["compile"] else ""
    folded = ", norms folded" if settings["fold"] else ""
    how = f"{settings['precision']}{compiled}{folded}, tiles {tile}, batch {settings['batch']}"
    return [
        BenchmarkLine(name, network / MVOXELS, "Mvoxels/s", note=f"the network alone: {how}"),
        BenchmarkLine("  limit by products", product / flop / MVOXELS, "Mvoxels/s", note=f"{flop:,.0f} FLOP a voxel"),
        BenchmarkLine(
            "  limit by copies", copy / num_bytes / MVOXELS, "Mvoxels/s", note=f"{num_bytes:,.0f} bytes a voxel"
        ),
        BenchmarkLine("  share of the limit by products", network * flop / product),
        BenchmarkLine("  share of both limits", network * min_seconds, note="the slower of the two for each layer"),
        BenchmarkLine(
            "  predict", predict / MVOXELS, "Mvoxels/s", note="a block in memory: voxels computed, with margins"
        ),
        BenchmarkLine("  of the network alone", predict / network),
        BenchmarkLine("  until its first result", result["first_seconds"], "s"),
        BenchmarkLine("  peak memory", _peak_gb(result), "GB", note="of the GPU, or of the process"),
        *_not_folded_lines(result.get("not_folded"), network),
    ]


def _not_folded_lines(result: Mapping[str, Any] | None, folded_rate: float) -> list[BenchmarkLine]:
    """Return speed and memory of the same network as it was trained, beside the rate with folded norms."""
    if result is None:
        return []
    network = statistics.median(result["resident"])
    return [
        BenchmarkLine("  not folded", network / MVOXELS, "Mvoxels/s", note="the network alone, as it was trained"),
        BenchmarkLine("  folded, of not folded", folded_rate / network),
        BenchmarkLine("  peak memory, not folded", _peak_gb(result), "GB"),
    ]


def _peak_gb(result: Mapping[str, Any]) -> float | None:
    """Return the peak memory of the GPU, or of the process; None if it is not known."""
    peak = result["card_peak"] or result["host_peak"]
    return None if peak is None else peak / GB


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark with the options of a command line."""
    parser = argparse.ArgumentParser(prog="kasthuri_ray.benchmarks.predictor_speed", description=__doc__)
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: a GPU if there is one"
    )
    names = ", ".join(NETWORKS)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME", help=names)
    parser.add_argument("--quick", action="store_true", help="small blocks, to try whether it works")
    parser.add_argument("--out", metavar="FILE", default="benchmark_predictor.json", help="default: %(default)s")
    parser.add_argument("--verbose", action="store_true", help="show the output of the parts")
    try:
        options = vars(parser.parse_args(arguments))
        run_predictor_benchmark(PartRunner(Reporter(), options.pop("verbose")), **options)
    except ValueError as error:
        sys.exit(f"{parser.prog}: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
