"""The file for a fault report: versions, machine, settings and the last traceback, without secrets.

`jobs/check.py --report` writes it. Ray is not started, and nothing is read from a network.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from kasthuri_ray.config.settings import CheckSettings
from kasthuri_ray.errors import TRACEBACK_PREFIX, missing_is_bad_input
from kasthuri_ray.ray_cluster.package_versions import NOT_INSTALLED, package_fingerprint
from kasthuri_ray.storage.uris import redact_secrets
from kasthuri_ray.volumes.opening import read_boss_options

HIDDEN = "(hidden)"
SHORTEST_SECRET = 5  # characters; a shorter value is too common to be looked for in the whole text
PUBLIC_TOKEN = "public"  # of BossDB, for data that everybody may read
SECRET_NAME = re.compile("TOKEN|SECRET|PASSW|KEY|CREDENTIAL|SIGNATURE", re.IGNORECASE)
NAMED_VARIABLE = re.compile(r"KASTHURI_|RAY_|AWS_|BOSSDB_|OMP_|MKL_|MALLOC_|CUDA_|PYTORCH_|TORCH|NCCL_|ONEDNN_|CXX$")
SHOWN_VARIABLE = re.compile(
    r"KASTHURI_\w+|RAY_ADDRESS|RAY_AUTH_MODE|AWS_\w*REGION|AWS_ENDPOINT_URL|CUDA_VISIBLE_DEVICES|CXX"
    r"|(OMP|MKL|MALLOC|PYTORCH|TORCH|NCCL|ONEDNN)\w*"
)


@missing_is_bad_input()
def write_fault_report(options: CheckSettings) -> str:
    """Write what a fault report needs to one file.

    Parameters
    ----------
    options : CheckSettings
        `report` is the file; `storage` is searched for the newest settings.json; the token in `boss` is hidden.

    Returns
    -------
    str
        The absolute path of the file.

    Raises
    ------
    InputError
        If the file cannot be written, or the file of BossDB options cannot be read.
    """
    path = Path(options.report or "").absolute()
    secrets = _known_secrets(read_boss_options(options.boss) or {})
    sections: dict[str, Callable[[], str]] = {
        "versions": _describe_versions,
        "machine": _describe_machine,
        "Ray and environment": _describe_environment,
        "free space": lambda: _describe_space(options),
        "newest settings.json in the storage": lambda: _newest_settings(options.storage),
        "last traceback": _last_traceback,
    }
    text = "".join(f"[{title}]\n{_content(describe)}\n\n" for title, describe in sections.items())
    head = f"kasthuri_ray fault report, {time.strftime('%Y-%m-%d %H:%M:%S %z')}. Secrets are left out.\n\n"
    path.write_text(head + _hide_secrets(text, secrets))
    return str(path)


def _hide_secrets(text: str, secrets: set[str]) -> str:
    """Return the text without the secret parts of URLs and without these values."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return redact_secrets(text)


def _known_secrets(boss: Mapping[str, Any]) -> set[str]:
    """Return the values of secret options and environment variables."""
    named = [*boss.items(), *os.environ.items()]
    values = {str(value) for name, value in named if SECRET_NAME.search(name)}
    return {value for value in values if len(value) >= SHORTEST_SECRET and value != PUBLIC_TOKEN}


def _content(describe: Callable[[], str]) -> str:
    """Return a section, or why there is none: what is broken must not keep the rest from being reported."""
    try:
        return describe()
    except Exception as error:
        return f"unknown: {type(error).__name__}: {error}"


def _describe_versions() -> str:
    versions = {**package_fingerprint(), "platform": platform.platform()}
    try:
        lines = [line for line in requires("kasthuri_ray") or [] if "extra ==" not in line]
        needed = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines]
    except PackageNotFoundError:  # a checkout that is not installed
        needed = []
    versions |= {name: _full_version(name) for name in sorted({*needed, "torch"}, key=str.lower)}
    return "\n".join(f"{name} {value}" for name, value in versions.items() if value != NOT_INSTALLED)


def _full_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return NOT_INSTALLED


def _describe_machine() -> str:
    import torch

    from kasthuri_ray.hardware import Machine
    from kasthuri_ray.process_resources import total_memory_bytes

    machine = Machine.detect("cpu")
    gpus = [torch.cuda.get_device_properties(index).name for index in range(torch.cuda.device_count())]
    lines = {
        "processor": _processor_name(),
        "usable CPUs": machine.cpus,
        "kind of processor": machine.kind,
        "C++ compiler": machine.compiler,
        "memory": f"{total_memory_bytes() / 2**30:.1f} GiB",
        "GPUs": ", ".join(gpus) or "none",
    }
    return "\n".join(f"{name}: {value}" for name, value in lines.items())


def _processor_name() -> str:
    try:
        names = re.findall(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _describe_environment() -> str:
    import psutil

    raylets = sum(process.info["name"] == "raylet" for process in psutil.process_iter(["name"]))
    lines = [f"raylets on this machine: {raylets}"]
    for name, value in sorted(os.environ.items()):
        if NAMED_VARIABLE.match(name):
            shown = SHOWN_VARIABLE.fullmatch(name) and not SECRET_NAME.search(name)
            lines.append(f"{name}={value if shown else HIDDEN}")
    return "\n".join(lines)


def _describe_space(options: CheckSettings) -> str:
    folders = {"temporary files": tempfile.gettempdir(), "shared memory": "/dev/shm", "storage": options.storage}
    return "\n".join(
        f"{what}, {folder}: {shutil.disk_usage(folder).free / 1e9:.1f} GB"
        for what, folder in folders.items()
        if Path(folder).is_dir()
    )


def _newest_settings(storage: str) -> str:
    return _newest_file(Path(storage), "*/settings.json")


def _last_traceback() -> str:
    return _newest_file(Path(tempfile.gettempdir()), f"{TRACEBACK_PREFIX}*.txt")


def _newest_file(folder: Path, pattern: str) -> str:
    """Return the path and the text of the newest file that can be read."""
    for path in sorted(folder.glob(pattern), key=lambda each: each.stat().st_mtime, reverse=True):
        if os.access(path, os.R_OK):
            return f"{path}\n{path.read_text()}"
    return f"none in {folder}"
