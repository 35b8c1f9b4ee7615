"""Shared fixtures: real EM data, S3 and BossDB servers on this machine, volumes in memory, and a local Ray."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY_PACKAGES = {"torch", "ray", "numpy", "pydantic", "tensorstore", "optuna"}


def import_file(path: Path) -> ModuleType:
    """Import a Python file that belongs to no package."""
    name = f"{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


def is_run_of_the_suite(config: pytest.Config) -> bool:
    """Return whether slow tests are left out, as `make test` and pytest without `-m` do."""
    return "not slow" in config.option.markexpr


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # one of several processes of pytest-xdist, which share the cores
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch when it is imported; jobs set their own number
    if "KASTHURI_CACHE" not in os.environ:  # one for all processes of the run; squares of the phantom are painted once
        os.environ["KASTHURI_CACHE"] = tempfile.mkdtemp(prefix="kasthuri_ray_test_cache_")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop("KASTHURI_CACHE"), ignore_errors=True))
    plugin = import_file(ROOT / "tests" / "room_budgets.py").RoomBudgets(is_run_of_the_suite(config))
    config.pluginmanager.register(plugin, "room_budgets")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Group the tests for pytest-xdist by file; in the suite also the tests of a room that use one Ray.

    Groups of several files come first, because they take longest.
    """
    if not hasattr(config, "workerinput"):
        return  # one process
    groups = {item: group_of(item, is_run_of_the_suite(config)) for item in items}
    for item, group in groups.items():
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: groups[item].endswith(".py"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuse to run where pytest-xdist does not see the groups: each process would start each Ray."""
    if hasattr(session.config, "workerinput") and not all("@" in item.nodeid for item in session.items):
        raise pytest.UsageError("this version of pytest-xdist does not group the tests under this version of pytest")


def group_of(item: pytest.Item, in_suite: bool) -> str:
    """Return the Ray and the room of a test that uses one in the suite, the group of the hosts, or a test's file.

    A process of pytest-xdist starts each Ray once, however many groups it gets.
    """
    rays = {"local_ray", "cluster"} & set(getattr(item, "fixturenames", ()))
    file = item.nodeid.partition("::")[0]
    if in_suite and rays:
        return f"{min(rays)} {'/'.join(file.split('/')[:-1])}"
    return "hosts" if file.startswith("tests/cluster/") else file


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of decisions, which take a `machine`, under every row of the table of processors."""
    if "machine" in metafunc.fixturenames:
        from kasthuri_ray.hardware import RULES

        metafunc.parametrize("machine", RULES, indirect=True)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Return the folder of real EM data: `KASTHURI_TEST_DATA`, by default ../shared/data beside the checkout."""
    folder = Path(os.environ.get("KASTHURI_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "vnc.zarr").is_dir():
        pytest.skip(f"no test data: {folder / 'vnc.zarr'} does not exist; set KASTHURI_TEST_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def tiny_task() -> dict[str, Any]:
    """Return the contents of a task file: a task on the phantom on which a small network trains in seconds."""
    return {
        "name": "tiny_task",
        "image_chan": "phantom://em?shape=16,128,128&seed=7",
        "annotation_chan": "phantom://membrane?shape=16,128,128&seed=7",
        **{"xrange_vol": [0, 128], "yrange_vol": [0, 128], "z_train": [0, 8], "z_val": [8, 11], "z_test": [11, 16]},
        **{"tile_size": [64, 64], "task_type": "membrane"},
    }


@pytest.fixture(scope="session")
def load_module() -> Callable[[Path], ModuleType]:
    """Return `load_module(path)`, which imports a Python file that belongs to no package."""
    return import_file


@pytest.fixture
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return this machine with a processor of some kind, of which KASTHURI_CPU tells; or a machine with a GPU."""
    from dataclasses import replace

    from kasthuri_ray.hardware import Machine

    if request.param.startswith("cuda"):
        return Machine("cuda", "a GPU", 16 << 30, 8, request.param, True)
    monkeypatch.setenv("KASTHURI_CPU", request.param)
    return replace(Machine.detect("cpu"), compiler=True)


@pytest.fixture(scope="session")
def fault_trials() -> Callable[[int], int]:
    """Return `fault_trials(number)`: how many trials a long test has, by KASTHURI_FAULT_TRIALS at most."""
    return lambda number: min(number, int(os.environ.get("KASTHURI_FAULT_TRIALS", number)))


@pytest.fixture(scope="session")
def help_text() -> Callable[[str], str]:
    """Return `help_text(script)`, which runs `SCRIPT --help` and asserts that this imports no heavy package."""

    def run(script: str) -> str:
        code = (
            "import runpy, sys\n"
            f"sys.argv = [{script!r}, '--help']\n"
            "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "except SystemExit as end: assert end.code == 0\n"
            f"heavy = {HEAVY_PACKAGES} & sys.modules.keys()\n"
            "assert not heavy, heavy"
        )
        command = [sys.executable, "-c", code]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert process.returncode == 0, process.stderr
        return process.stdout

    return run


@pytest.fixture(scope="session")
def s3_server() -> Iterator[dict[str, str]]:
    """Start an S3 server on the loopback with the bucket `lab`; yield the environment variables to reach it."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    boto3.client("s3", region_name="us-east-1", endpoint_url=url, **keys).create_bucket(Bucket="lab")
    yield {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    server.stop()


@pytest.fixture
def s3(s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield a client of the S3 server with the empty bucket `some-bucket`; the environment points to the server."""
    import boto3

    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", region_name="us-east-1", endpoint_url=s3_server["AWS_ENDPOINT_URL"])
    client.create_bucket(Bucket="some-bucket")
    yield client
    for item in client.list_objects_v2(Bucket="some-bucket").get("Contents", []):
        client.delete_object(Bucket="some-bucket", Key=item["Key"])
    client.delete_bucket(Bucket="some-bucket")


@pytest.fixture
def put_published(s3_server: dict[str, str]) -> Iterator[Callable[[str, bytes], None]]:
    """Return `put_published(name, data)` for the public bucket of the challenge's weights on the S3 server."""
    import boto3

    from kasthuri_ray.storage.published_files import BUCKET, FOLDER

    keys = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}
    client = boto3.client("s3", region_name="us-east-1", endpoint_url=s3_server["AWS_ENDPOINT_URL"], **keys)
    client.create_bucket(Bucket=BUCKET, ACL="public-read")
    yield lambda name, data: client.put_object(Bucket=BUCKET, Key=f"{FOLDER}{name}", Body=data, ACL="public-read")
    for item in client.list_objects_v2(Bucket=BUCKET).get("Contents", []):
        client.delete_object(Bucket=BUCKET, Key=item["Key"])
    client.delete_bucket(Bucket=BUCKET)


@pytest.fixture
def published_weights(put_published: Callable[[str, bytes], None], s3_server: dict[str, str]) -> dict[str, str]:
    """Publish small networks that the challenge's code made, under its names; return the environment to reach them.

    Nothing answers at the endpoint of volumes and outputs, AWS_ENDPOINT_URL.
    """
    from kasthuri_ray.storage.published_files import KNOWN_NAMES

    for name in KNOWN_NAMES:
        network = name.rpartition("_")[0]
        put_published(f"{name}.pt", (ROOT / "tests" / "models" / "seed_unet" / f"{network}.pt").read_bytes())
    return {"KASTHURI_WEIGHTS_URL": s3_server["AWS_ENDPOINT_URL"], "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}


@pytest.fixture
def strict_s3(s3: Any, load_module: Callable[[Path], ModuleType], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Yield a `StrictS3` of tests/strict_s3.py before the bucket `some-bucket`; the environment points to it."""
    server = load_module(ROOT / "tests" / "strict_s3.py").StrictS3()
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    yield server
    server.close()


@pytest.fixture(scope="session")
def boss_server_class(load_module: Callable[[Path], ModuleType]) -> type:
    """Return `BossServer` of tests/boss_server.py: a BossDB server on the loopback, with faults on demand."""
    return load_module(ROOT / "tests" / "boss_server.py").BossServer


@pytest.fixture
def boss_server(boss_server_class: type) -> Iterator[Any]:
    """Yield a BossDB server without channels: `add` adds one, `options` are the options to reach the server."""
    server = boss_server_class()
    yield server
    server.close()


@pytest.fixture(scope="session")
def array_volume() -> Any:
    """Return `array_volume(array, ...)`, which makes a Volume from an array and lists the boxes read in `reads`."""
    import dataclasses
    import time

    import numpy as np

    from kasthuri_ray.geometry import Box
    from kasthuri_ray.volumes.volume import Volume

    # Defined in the function, so that Ray pickles the class by value: its workers cannot import the tests.
    @dataclasses.dataclass(kw_only=True)
    class ArrayVolume(Volume):
        array: np.ndarray
        seconds: float = 0.0  # duration of a read
        reads: list[Box] = dataclasses.field(default_factory=list)

        def _read(self, box: Box) -> np.ndarray:
            self.reads.append(box)
            time.sleep(self.seconds)
            return np.array(self.array[box.slices(self.bounds.start)])

    def make(array: np.ndarray, *, chunk=(1, 16, 16), uri="array://em", offset=(0, 0, 0), **more: Any) -> ArrayVolume:
        more = {"voxel_size_nm": (30.0, 6.0, 6.0), "chunk_origin": offset, **more}
        return ArrayVolume(
            uri=uri, bounds=Box.at(offset, array.shape), dtype=array.dtype, chunk=chunk, array=array, **more
        )

    return make


@pytest.fixture
def without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take home folder and name away from this user, as in a container."""
    import pwd

    def nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")  # so that it is restored, also if a test sets it
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", nobody)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[Any]:
    """Start Ray with two CPUs on this machine for the whole test session."""
    import ray

    from kasthuri_ray.progress import Reporter
    from kasthuri_ray.ray_cluster.connection import connect_ray

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.chdir(ROOT)
        patch.syspath_prepend(str(ROOT))  # workers import the tests, whatever earlier tests did to the module path
        patch.setattr("kasthuri_ray.process_resources.usable_cpus", lambda: 2)
        connect_ray(Reporter())
    yield ray
    ray.shutdown()
