"""What the tests share: the real data where it is there, and small arrays to read from."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real EM (`KASTHURI_TEST_DATA`, by default ../shared/data beside the checkout)."""
    folder = Path(os.environ.get("KASTHURI_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "vnc.zarr").is_dir():
        pytest.skip(f"no test data: {folder / 'vnc.zarr'} is not there; KASTHURI_TEST_DATA names its folder")
    return folder


@pytest.fixture(scope="session")
def s3_server() -> Iterator[dict[str, str]]:
    """The environment that leads to an S3 on loopback, which has the bucket `lab`."""
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
    """A client of an S3 on loopback with the empty bucket `some-bucket`, which the environment points to."""
    import boto3

    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", region_name="us-east-1", endpoint_url=s3_server["AWS_ENDPOINT_URL"])
    client.create_bucket(Bucket="some-bucket")
    yield client
    for item in client.list_objects_v2(Bucket="some-bucket").get("Contents", []):
        client.delete_object(Bucket="some-bucket", Key=item["Key"])
    client.delete_bucket(Bucket="some-bucket")


@pytest.fixture(scope="session")
def boss_server_class() -> type:
    """`BossServer` of tests/boss_server.py: a Boss on loopback, with faults on demand."""
    spec = importlib.util.spec_from_file_location("boss_server", ROOT / "tests" / "boss_server.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["boss_server"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module.BossServer


@pytest.fixture
def boss_server(boss_server_class: type) -> Iterator[Any]:
    """A Boss server without channels, for one test: `add` gives it some, `options` reaches it."""
    server = boss_server_class()
    yield server
    server.close()


@pytest.fixture(scope="session")
def array_volume() -> Any:
    """`array_volume(array, ...)`: a Volume of an array in memory, whose `reads` are the boxes that were asked for."""
    import dataclasses
    import time

    import numpy as np

    from kasthuri_ray.geometry import Box
    from kasthuri_ray.volumes.volume import Volume

    # In here, so that Ray carries the class itself: its workers cannot import the tests.
    @dataclasses.dataclass(kw_only=True)
    class ArrayVolume(Volume):
        array: np.ndarray
        seconds: float = 0.0  # that a read takes
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


@pytest.fixture(scope="session")
def ray_here() -> Iterator[Any]:
    """A Ray of two CPUs on this machine, which lives as long as the tests."""
    import ray

    from kasthuri_ray.ray_cluster.connection import connect_ray

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setattr("kasthuri_ray.hardware.usable_cpus", lambda: 2)
        connect_ray()
    yield ray
    ray.shutdown()
