"""Ray: attach to a cluster or start one here, and say before any work whether it is large enough."""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kasthuri_ray.ray_cluster.nodes import check_same_package, living_nodes
from kasthuri_ray.ray_cluster.resources import ClusterResources, _format_resource, cluster_resources

OBJECT_STORE_BYTES = 512 * 2**20  # of a Ray that we start: tiles pass through it, none stay
START_ATTEMPTS = 3
_REFUSED = re.compile("unauthenticated|authentication token", re.IGNORECASE)  # how Ray says that a token is wrong
WORKER_CPUS = 0.5  # logical: two fit on a CPU, and the tasks that read beside them
# Ray is told these before it is imported; a person's own setting wins.
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Else a thread that still asks for something after Ray was ended attaches to whatever Ray it finds on the machine.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    # A node that is taken away is seen when it is gone: a run goes on from its last epoch either way.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Ray lets its workers give way to everything else (15), also to what idles in a loop; of a Ray that we start.
    "RAY_worker_niceness": "0",
    # Threads that wait give their core away, but not at once, which would cost a sixth of the speed where it is quiet.
    "GOMP_SPINCOUNT": "30000",
    # Threads take from one heap: glibc gives each its own, which holds nothing above 64 MB, and a large activation is
    # faulted in anew every time, for a quarter of the speed (see device.keep_memory, which comes too late here).
    "MALLOC_ARENA_MAX": "1",
}

# Of a Ray that we start, which has no dashboard: a helper of Ray Train looks for its address for 20 s, and a run that
# ends before waits 12 s for the helper. With this one it gives up at once.
NO_DASHBOARD = {"RAY_API_SERVER_ADDRESS": "none://none"}


TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def set_ray_environment() -> None:
    """Tell Ray in this process what we want of it; a person's own setting wins."""
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def connect_ray(verbose: bool = False) -> ClusterResources:
    """Attach to the cluster of `RAY_ADDRESS`, or start Ray on this machine; gives what it holds.

    Raises ValueError if nothing answers at that address, if the token is not the cluster's, and if a node of it runs
    another package than this process; TimeoutError if this machine is too busy to start Ray.
    """
    found = attach_ray(verbose)
    if found.nodes > 1:
        check_same_package(living_nodes())
    return found


def attach_ray(verbose: bool = False) -> ClusterResources:
    """The same, whatever the nodes run."""
    set_ray_environment()
    address = os.environ.get("RAY_ADDRESS", "")
    choose_auth_token(attach=bool(address))
    if not verbose:
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # what Ray prints by itself when a process died
    import ray

    if not ray.is_initialized():
        level = logging.INFO if verbose else logging.ERROR
        if address:
            check_port_answers(address)
            _attach(address, verbose, level)
        else:
            _start(verbose, level)
    return cluster_resources()


def choose_auth_token(attach: bool) -> None:
    """Decide by which token Ray is spoken to, where the environment leaves it open.

    A Ray that we start takes orders from nobody but this process: its token is made here, and lies in no file. To
    attach, Ray finds the token in ~/.ray/auth_token; where none is, the cluster must be one without.
    """
    given = any(os.environ.get(name) for name in TOKEN_VARIABLES)
    if attach:
        has_token = given or (Path.home() / ".ray" / "auth_token").exists()
        os.environ.setdefault("RAY_AUTH_MODE", "token" if has_token else "disabled")
        return
    if "ray" not in sys.modules:  # else it has read its settings already, and asks for a token unless told not to
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ.get("RAY_AUTH_MODE", "token") == "token" and not given:
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _attach(address: str, verbose: bool, level: int) -> None:
    """Attach to a cluster; a token that it does not take is said in words."""
    import ray

    try:
        ray.init(log_to_driver=verbose, logging_level=level)
    except Exception as error:
        if "No node info found" in str(error):
            raise ValueError(
                f"this machine is no node of the Ray at {address}: submit the job (ray job submit --address "
                "http://HEAD:8265 ...), or type the command on one of its nodes"
            ) from error
        if not isinstance(error, ray.exceptions.AuthenticationError) and not _REFUSED.search(str(error)):
            raise
        raise ValueError(
            f"the Ray at {address} does not take this process's token: put the cluster's into a file that only you "
            "can read (chmod 600) and name it by RAY_AUTH_TOKEN_PATH, with RAY_AUTH_MODE=token"
        ) from error


def check_port_answers(address: str, seconds: float = 5.0) -> None:
    """Raise a ValueError if nothing answers at HOST:PORT; Ray itself would try for many minutes."""
    if address.startswith(("http://", "https://")):
        raise ValueError(
            f"RAY_ADDRESS is {address}, a dashboard, which takes jobs (ray job submit); to attach to its cluster from "
            "here, give HOST:PORT as ray start printed it, or unset RAY_ADDRESS"
        )
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # auto or local: Ray looks for itself
    try:
        socket.create_connection((host.strip("[]"), int(port)), seconds).close()
    except OSError as error:
        raise ValueError(
            f"RAY_ADDRESS is {address}, and no Ray answers there ({error}): start it (ray start --head), or unset "
            "RAY_ADDRESS to work on this machine alone"
        ) from None


def _start(verbose: bool, level: int) -> None:
    """Start Ray on this machine; Ray itself gives up after 30 s, which a busy machine can take."""
    import ray

    from kasthuri_ray.hardware import usable_cpus

    cpus = usable_cpus()
    _print_progress(f"starting Ray on this machine ({_format_resource(cpus, 'CPU')})")
    for left in reversed(range(START_ATTEMPTS)):
        try:
            with _inherited_environment(NO_DASHBOARD):
                ray.init(
                    address="local",
                    num_cpus=cpus,
                    include_dashboard=False,
                    object_store_memory=OBJECT_STORE_BYTES,
                    log_to_driver=verbose,
                    logging_level=level,
                )
            return
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
            if left == 0:
                raise TimeoutError(
                    f"Ray did not come up on this machine, {START_ATTEMPTS} times in a row: it is too busy, or short of "
                    "memory. Look who is at work (top) and type the same command again when it is quieter; or set "
                    "RAY_ADDRESS=HOST:PORT to work on a Ray that is running"
                ) from error
            _print_progress(
                f"Ray did not come up in time; trying again ({START_ATTEMPTS - left + 1} of {START_ATTEMPTS})"
            )
            ray.shutdown()


@contextmanager
def _inherited_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Inside, processes that are started are told these, and what they start in turn; a person's own setting wins."""
    before = dict(os.environ)
    os.environ.update({**variables, **before})
    try:
        yield
    finally:
        for name in variables.keys() - before.keys():
            del os.environ[name]


def _print_progress(line: str) -> None:
    """A sign of life before a job's first line, which belongs to its path and to scripts."""
    print(line, file=sys.stderr, flush=True)
