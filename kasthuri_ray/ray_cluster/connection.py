"""Connecting to Ray: its environment variables, its token, and attaching to a cluster or starting Ray here."""

from __future__ import annotations

import getpass
import logging
import os
import re
import secrets
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from kasthuri_ray.errors import InputError
from kasthuri_ray.module_path import FOLDER_VARIABLE, is_searched_first, search_working_folder_last
from kasthuri_ray.progress import Reporter
from kasthuri_ray.ray_cluster.nodes import living_nodes
from kasthuri_ray.ray_cluster.package_versions import check_same_package
from kasthuri_ray.ray_cluster.resources import (
    ClusterResources,
    ResourceDemand,
    cluster_resources,
    format_resource,
)
from kasthuri_ray.ray_cluster.temporary_folder import default_ray_folder, find_fault, private_ray_folder
from kasthuri_ray.storage.uris import in_ray_job

OBJECT_STORE_BYTES = 512 * 2**20  # of a local Ray: tiles pass through it, none stay
START_ATTEMPTS = 3
WORKER_CPUS = 0.5  # logical: two workers fit on a CPU, beside the Ray Data tasks that read tiles

# Set before Ray is imported. A value that the user has set wins.
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Otherwise a thread that calls Ray after its shutdown attaches to any Ray that it finds on the machine.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    # A preempted node is noticed when it is gone: a run resumes from its last epoch either way.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray starts workers with niceness 15: otherwise any busy process is preferred over Ray's workers. Applies to a
    # local Ray.
    "RAY_worker_niceness": "0",
    # Waiting threads yield their core, but not at once: that would cost a sixth of the speed on an idle machine.
    "GOMP_SPINCOUNT": "30000",
    # One heap for all threads: otherwise glibc gives each its own, which keeps nothing above 64 MB, and page faults of
    # large activations cost a quarter of the speed (process_resources.configure_allocator would come too late here).
    "MALLOC_ARENA_MAX": "1",
}

# For a local Ray, which has no dashboard. A helper of Ray Train looks for the dashboard's address for 20 s, and
# a run that ends earlier waits 12 s for the helper. With this value the helper gives up at once.
NO_DASHBOARD = {"RAY_API_SERVER_ADDRESS": "none://none"}

NO_HOME = "/nonexistent"  # as Debian calls it; nothing is written there

_own_nodes: set[str] = set()  # ids of the nodes of every Ray that this process has started

TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
WRONG_TOKEN = re.compile("unauthenticated|authentication token", re.IGNORECASE)  # in Ray's message


def set_ray_environment() -> None:
    """Set Ray's environment variables in this process; a value that the user has set wins.

    In a container a user id may have no name and no home folder. Ray Train and torch.compile fail without them.
    """
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not os.path.isabs(os.path.expanduser("~")):
        os.environ["HOME"] = NO_HOME
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = f"uid{os.getuid()}"


def worker_runtime_env() -> dict[str, Any]:
    """Return the option `runtime_env` of actors, which sets Ray's environment variables in them.

    Returns
    -------
    dict
        Empty for a Ray that this process has started: its processes have inherited the variables, and actors take the
        idle processes that Ray starts beforehand, which saves seconds.
    """
    return {} if is_own_ray() else {"env_vars": RAY_ENVIRONMENT}


def is_own_ray() -> bool:
    """Return whether this process has started the Ray that it works with, which then is this machine alone.

    Returns
    -------
    bool
        False if it has attached to a cluster, or another part of the program had started Ray before.
    """
    import ray

    return ray.get_runtime_context().get_node_id() in _own_nodes


def connect_ray(reporter: Reporter, verbose: bool = False) -> ClusterResources:
    """Attach to the cluster of `RAY_ADDRESS`, or start Ray on this machine.

    Parameters
    ----------
    reporter : Reporter
        Shows that Ray is started.
    verbose : bool
        Whether to print the log of Ray and of its workers.

    Returns
    -------
    ClusterResources
        What the cluster has.

    Raises
    ------
    InputError
        If nothing answers at the address, if the cluster rejects the token, or if a node has other versions of the
        package or of its libraries than this process.
    TimeoutError
        If this machine is too busy to start Ray.
    """
    total = attach_ray(reporter, verbose)
    if total.nodes > 1:
        check_same_package(living_nodes())
    return total


def attach_ray(reporter: Reporter, verbose: bool = False) -> ClusterResources:
    """Attach to Ray or start it as `connect_ray` does, but do not compare the packages of the nodes."""
    set_ray_environment()
    address = os.environ.get("RAY_ADDRESS", "")
    choose_auth_token(attach=bool(address))
    if not verbose:
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # Ray's own lines about processes that died
    import ray

    if not ray.is_initialized():
        level = logging.INFO if verbose else logging.ERROR
        if address:
            check_port_answers(address)
            _attach(address, verbose, level)
        else:
            _start(reporter, verbose, level)
    return cluster_resources()


def check_local_gpu(device: str, precision: str) -> None:
    """Check, before Ray starts, that this machine has the GPU that is needed, if Ray will start on it alone.

    Parameters
    ----------
    device, precision : str
        Settings: `cuda` and `float16` need a GPU.

    Raises
    ------
    InputError
        If it has none that torch can use, or if the device is `cpu` and the precision `float16`.
    """
    flag = "--device cuda" if device == "cuda" else "--precision float16" if precision == "float16" else ""
    if not flag or (_has_cluster() and device != "cpu"):
        return
    import torch

    if device == "cpu":
        raise InputError("--precision float16 needs a GPU, and --device is cpu; use bf16 or float32")
    if not torch.cuda.is_available():
        raise InputError(
            f"{flag}: this machine has no GPU that torch can use. Leave it out to compute on CPUs, or attach to a "
            "cluster with GPUs (RAY_ADDRESS=HOST:PORT)"
        )


def check_local_cpus(demand: ResourceDemand, wait_s: float | None, device: str) -> None:
    """Check, before Ray starts, that this machine has the CPUs that are needed, if Ray will start on it alone.

    Parameters
    ----------
    demand : ResourceDemand
        What is needed on CPUs.
    wait_s : float or None
        As of `require_resources`.
    device : str
        Setting: nothing is checked where GPUs may be used.

    Raises
    ------
    InputError
        If it has too few. The message shows both numbers.
    """
    if _has_cluster() or device == "cuda":
        return
    import torch

    from kasthuri_ray.process_resources import usable_cpus

    if device == "cpu" or not torch.cuda.is_available():
        demand.check(ClusterResources(usable_cpus(), 0.0, 1), wait_s)


def _has_cluster() -> bool:
    """Return whether this process attaches to a cluster, or has a Ray already."""
    return bool(os.environ.get("RAY_ADDRESS")) or ("ray" in sys.modules and sys.modules["ray"].is_initialized())


def choose_auth_token(attach: bool) -> None:
    """Set the token for Ray, unless the environment decides.

    A local Ray obeys this process alone: its token is generated here and written to no file. To attach, Ray
    reads the token from ~/.ray/auth_token; if there is no such file, the cluster must be one without a token.

    Parameters
    ----------
    attach : bool
        Whether this process attaches to a cluster instead of starting Ray.
    """
    is_set = any(os.environ.get(name) for name in TOKEN_VARIABLES)
    if attach:
        has_token = is_set or os.path.exists(os.path.expanduser("~/.ray/auth_token"))
        os.environ.setdefault("RAY_AUTH_MODE", "token" if has_token else "disabled")
        return
    if "ray" not in sys.modules:  # a Ray that is imported has read its settings, and needs a token by default
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ.get("RAY_AUTH_MODE", "token") == "token" and not is_set:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def check_port_answers(address: str, timeout_s: float = 5.0) -> None:
    """Raise an InputError if nothing answers at HOST:PORT; Ray itself would try for many minutes."""
    if address.startswith(("http://", "https://")):
        raise InputError(
            f"RAY_ADDRESS={address} is the address of the dashboard, which only `ray job submit` uses. Set HOST:6379 "
            "as printed by `ray start`, or unset it."
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto" or "local": Ray finds the address
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout_s).close()
    except OSError as error:
        raise InputError(
            f"RAY_ADDRESS is {address}, and no Ray answers there ({error}): start it (ray start --head), or unset "
            "RAY_ADDRESS to work on this machine alone"
        ) from None


def _attach(address: str, verbose: bool, level: int) -> None:
    """Attach to a cluster; explain the errors of a wrong machine and of a wrong token."""
    import ray

    is_client = address.startswith("ray://")  # whose folder Ray leaves out anyway
    options = {} if is_client else _module_path_options(attach=True)
    try:
        ray.init(log_to_driver=verbose, logging_level=level, **options)
    except Exception as error:
        if "No node info found" in str(error):
            raise InputError(
                f"this machine is not a node of the Ray cluster at {address}: submit the job (ray job submit --address "
                "http://HEAD:8265 ...), or type the command on one of its nodes"
            ) from error
        if not isinstance(error, ray.exceptions.AuthenticationError) and not WRONG_TOKEN.search(str(error)):
            raise
        raise InputError(
            f"the Ray cluster at {address} rejects this process's token: put the cluster's token into a file that only "
            "you can read (chmod 600) and name it by RAY_AUTH_TOKEN_PATH, with RAY_AUTH_MODE=token"
        ) from error


def _start(reporter: Reporter, verbose: bool, level: int) -> None:
    """Start Ray on this machine. Ray gives up after 30 s, which can be too short on a busy machine: retry."""
    import ray

    from kasthuri_ray.process_resources import usable_cpus

    cpus = usable_cpus()
    reporter.print_stderr(f"starting Ray on this machine ({format_resource(cpus, 'CPU')})")
    folder = _ray_folder(reporter)
    for attempts_left in reversed(range(START_ATTEMPTS)):
        try:
            with _inherited_environment(NO_DASHBOARD):
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    log_to_driver=verbose,
                    logging_level=level,
                    _temp_dir=folder,
                    **_module_path_options(attach=False),
                )
            _own_nodes.add(ray.get_runtime_context().get_node_id())
            return
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
            if attempts_left == 0:
                raise TimeoutError(
                    f"Ray did not start on this machine in {START_ATTEMPTS} attempts: the machine is too busy, or out "
                    "of memory. See what is running (top) and type the same command again later; or set "
                    "RAY_ADDRESS=HOST:PORT to use a Ray that is running"
                ) from error
            attempt = START_ATTEMPTS - attempts_left + 1
            reporter.print_stderr(f"Ray did not start in time; retrying (attempt {attempt} of {START_ATTEMPTS})")
            ray.shutdown()


def _ray_folder(reporter: Reporter) -> str:
    """Return the folder for the temporary files of Ray: its own choice, or a private one where that would fail."""
    folder = default_ray_folder()
    if fault := find_fault(folder):
        folder = private_ray_folder()
        reporter.print_stderr(f"Ray keeps its temporary files in {folder}, because {fault}")
    return folder


def _module_path_options(attach: bool) -> dict[str, Any]:
    """Return options of `ray.init` with which no file in the current folder hides a library in the workers.

    Ray's workers search the current folder of the driver first. Ray leaves that out for a driver that is a client; a
    network there is found through `add_working_folder`. In a notebook the driver itself searches the folder first, and
    the workers do as well. In a Ray job the folder is a copy on PYTHONPATH, which the workers move.
    """
    import ray

    if in_ray_job():
        hook = search_working_folder_last
        return {"runtime_env": {"worker_process_setup_hook": f"{hook.__module__}.{hook.__name__}"}}
    folder = os.getcwd()
    if is_searched_first(folder):
        return {}
    options: dict[str, Any] = {"job_config": ray.job_config.JobConfig(_client_job=True)}
    if attach:  # workers of a local Ray stand where the driver does
        options["runtime_env"] = {"env_vars": {FOLDER_VARIABLE: folder}}
    return options


@contextmanager
def _inherited_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that are started inside; a value that the user has set wins."""
    before = dict(os.environ)
    os.environ.update({**variables, **before})
    try:
        yield
    finally:
        for name in variables.keys() - before.keys():
            del os.environ[name]
