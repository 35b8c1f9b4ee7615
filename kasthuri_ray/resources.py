"""Ray: attach to a cluster or start one here, and say before any work whether it is large enough."""

from __future__ import annotations

import logging
import math
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kasthuri_ray.nodes import check_same_package, living_nodes

OBJECT_STORE_BYTES = 512 * 2**20  # of a Ray that we start: tiles pass through it, none stay
STARTS = 3
_REFUSED = re.compile("unauthenticated|authentication token", re.IGNORECASE)  # how Ray says that a token is wrong
WORKER_CPUS = 0.5  # logical: two fit on a CPU, and the tasks that read beside them
# Ray is told these before it is imported; a person's own setting wins.
ENVIRONMENT = {
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


@dataclass(frozen=True)
class Cluster:
    """What Ray has: logical CPUs, GPUs and living nodes."""

    cpus: float
    gpus: float
    nodes: int


def set_environment() -> None:
    """Tell Ray in this process what we want of it; a person's own setting wins."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def attach_or_start(verbose: bool = False) -> Cluster:
    """Attach to the cluster of `RAY_ADDRESS`, or start Ray on this machine; gives what it holds.

    Raises ValueError if nothing answers at that address, if the token is not the cluster's, and if a node of it runs
    another package than this process; TimeoutError if this machine is too busy to start Ray.
    """
    found = attach(verbose)
    if found.nodes > 1:
        check_same_package(living_nodes())
    return found


def attach(verbose: bool = False) -> Cluster:
    """The same, whatever the nodes run."""
    set_environment()
    address = os.environ.get("RAY_ADDRESS", "")
    settle_token(attach=bool(address))
    if not verbose:
        os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # what Ray prints by itself when a process died
    import ray

    if not ray.is_initialized():
        level = logging.INFO if verbose else logging.ERROR
        if address:
            check_answers(address)
            _attach(address, verbose, level)
        else:
            _start(verbose, level)
    return cluster()


TOKEN_VARIABLES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


def settle_token(attach: bool) -> None:
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


def check_answers(address: str, seconds: float = 5.0) -> None:
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

    from kasthuri_ray.device import usable_cpus

    cpus = usable_cpus()
    _say(f"starting Ray on this machine ({_counted(cpus, 'CPU')})")
    for left in reversed(range(STARTS)):
        try:
            with _inherited(NO_DASHBOARD):
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
                    f"Ray did not come up on this machine, {STARTS} times in a row: it is too busy, or short of "
                    "memory. Look who is at work (top) and type the same command again when it is quieter; or set "
                    "RAY_ADDRESS=HOST:PORT to work on a Ray that is running"
                ) from error
            _say(f"Ray did not come up in time; trying again ({STARTS - left + 1} of {STARTS})")
            ray.shutdown()


@contextmanager
def _inherited(variables: Mapping[str, str]) -> Iterator[None]:
    """Inside, processes that are started are told these, and what they start in turn; a person's own setting wins."""
    before = dict(os.environ)
    os.environ.update({**variables, **before})
    try:
        yield
    finally:
        for name in variables.keys() - before.keys():
            del os.environ[name]


def _say(line: str) -> None:
    """A sign of life before a job's first line, which belongs to its path and to scripts."""
    print(line, file=sys.stderr, flush=True)


def _counted(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'s' * (number != 1)}"


def cluster() -> Cluster:
    """What the cluster that we are attached to holds now."""
    import ray

    found = ray.cluster_resources()
    alive = sum(node["Alive"] for node in ray.nodes())
    return Cluster(found.get("CPU", 0.0), found.get("GPU", 0.0), alive)


def free() -> Cluster:
    """What of it nobody holds."""
    import ray

    found = ray.available_resources()
    return Cluster(found.get("CPU", 0.0), found.get("GPU", 0.0), cluster().nodes)


@dataclass(frozen=True)
class Demand:
    """What a job needs at once: so many processes of so many logical CPUs and GPUs each, and CPUs beside them.

    noun: what they are called; `flag` says how many of them there are, and `cards` that they want GPUs.
    """

    number: int
    cpus_each: float
    gpus_each: float = 0.0
    reading_cpus: float = 0.0
    noun: str = "workers"
    flag: str = "--num-workers"
    cards: str = "--device cuda"

    @property
    def cpus(self) -> float:
        return self.number * self.cpus_each + self.reading_cpus

    @property
    def gpus(self) -> float:
        return self.number * self.gpus_each

    def unmet(self, cluster: Cluster, free: str = "") -> str:
        """What the cluster lacks, in words with both numbers; empty if it has enough. free: "free" if it is busy."""
        lacks, who = [], _counted(self.number, self.noun.removesuffix("s"))
        if self.gpus > cluster.gpus:
            need = "needs" if self.number == 1 else "need"
            lacks.append(f"{who} {need} {_counted(self.gpus, 'GPU')}, the cluster has {cluster.gpus:g} {free}".strip())
        if self.cpus > cluster.cpus:
            reading = f" and {'its' if self.number == 1 else 'their'} reading" if self.reading_cpus else ""
            need = "needs" if self.number == 1 and not reading else "need"
            lacks.append(
                f"{who}{reading} {need} {_counted(self.cpus, 'CPU')}, the cluster has {cluster.cpus:g} {free}".strip()
            )
        return "; ".join(lacks)

    def advice(self, cluster: Cluster, waited: bool = False) -> str:
        """What to type where the cluster is too small; `waited` if that has been waited for in vain."""
        grow = "wait longer" if waited else "let --wait-for-resources SECONDS wait for the cluster to grow"
        if self.gpus and not cluster.gpus:
            return (
                f"What there is: {_counted(cluster.cpus, 'CPU')}, and no card. Leave {self.cards} out to compute on "
                f"CPUs, attach to a cluster with GPUs (RAY_ADDRESS=HOST:PORT), or {grow}"
            )
        fewer = f"Give fewer with {self.flag}" if self.number > 1 else "Attach to a larger one (RAY_ADDRESS=HOST:PORT)"
        return f"{fewer}, or {grow}"


FREED_AFTER_S = 60.0  # how long what others hold is waited for: a run that was killed lets go within seconds


def check_demand(demand: Demand, wait_seconds: float | None, say: Callable[[str], None]) -> None:
    """Come back once the cluster holds what is needed, and holds it free.

    Raises ValueError with both numbers if it is too small, at once, or after `wait_seconds` in which the autoscaler is
    asked for it and what is missing is said; and if others keep it busy for as long.
    """
    found = cluster()
    unmet = demand.unmet(found)
    if unmet and not wait_seconds:
        raise ValueError(f"{unmet}. {demand.advice(found)}")
    limit, asked = wait_seconds or FREED_AFTER_S, bool(unmet)
    if asked:
        _ask_autoscaler(demand)
    try:
        unmet = _wait(demand, limit, say)
    finally:
        if asked:
            _ask_autoscaler(None)
    if unmet:
        raise ValueError(f"{unmet} (waited {limit:g} s). {demand.advice(cluster(), waited=True)}")


def _ask_autoscaler(demand: Demand | None) -> None:
    """Ask for so much; None takes the wish back, which would outlive this process and keep idle nodes at a price."""
    from ray.autoscaler.sdk import request_resources

    if demand is None:
        request_resources(num_cpus=0, bundles=[])
        return
    bundle = {"CPU": demand.cpus_each} | ({"GPU": demand.gpus_each} if demand.gpus_each else {})
    request_resources(num_cpus=math.ceil(demand.cpus), bundles=[bundle] * demand.number)


def _wait(demand: Demand, seconds: float, say: Callable[[str], None]) -> str:
    """What is lacking after at most so many seconds; empty once nothing is."""
    deadline, said = time.monotonic() + seconds, ""
    while True:
        unmet = demand.unmet(cluster()) or demand.unmet(free(), "free")
        left = deadline - time.monotonic()
        if not unmet or left <= 0:
            return unmet
        if unmet != said:
            say(f"waiting up to {left:.0f} s for resources: {unmet}")
            said = unmet
        time.sleep(min(1.0, left))


def root_cause(error: BaseException) -> str:
    """What was wrong at the bottom of the errors that Ray wraps around it."""
    found = bottom(error)
    message = str(found).strip()
    plain = isinstance(found, ValueError | OSError | FloatingPointError) and message
    return message if plain else f"{type(found).__name__}: {message}"


def bottom(error: BaseException) -> BaseException:
    """The error that a person's code raised, inside whatever Ray wraps around it."""
    for _ in range(20):
        failures = getattr(error, "worker_failures", None)
        inner = next(iter(failures.values()), None) if failures else None
        for name in ("controller_failure", "health_check_failure", "_base_exc", "cause", "__cause__"):
            inner = inner or getattr(error, name, None)
        if inner is None:
            break
        error = inner
    return error
