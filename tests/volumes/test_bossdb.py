"""BossDB through intern, against a Boss server on loopback: voxels, retries and error messages."""

import multiprocessing
import os
import pickle
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from kasthuri_ray.errors import VolumeError
from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes import bossdb
from kasthuri_ray.volumes.boss_requests import RetryPolicy
from kasthuri_ray.volumes.bossdb import open_bossdb
from kasthuri_ray.volumes.opening import open_volume

QUICK = RetryPolicy(tries=3, first_pause_s=0.01, longest_pause_s=0.02, timeout_s=0.4, deadline_s=1.0)
OFFSET = (3, 100, 50)


def noise(shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.fixture
def quick_retries(monkeypatch):
    """Make `open_volume` retry without long pauses."""
    monkeypatch.setattr(bossdb, "RETRY_POLICY", QUICK)


@pytest.fixture
def em(boss_server):
    """Return the URI of a small volume and the array that it holds."""
    voxels = noise((20, 60, 70))
    return boss_server.add("Kasthuri/ac4/em", voxels), voxels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint64])
def test_a_cutout_of_any_box_and_dtype_equals_the_stored_array(boss_server, dtype):
    voxels = noise((20, 450, 550), dtype)
    volume = open_volume(boss_server.add("a/b/c", voxels, offset=OFFSET), boss=boss_server.options)
    assert volume.dtype == dtype
    assert volume.bounds == Box.at(OFFSET, voxels.shape)
    assert (volume.remote, volume.chunk, volume.chunk_origin) == (True, (16, 512, 512), (0, 0, 0))
    whole = volume.bounds
    boxes = [
        whole,
        Box((3, 100, 50), (4, 101, 51)),
        Box((15, 511, 511), (17, 513, 513)),
        Box((7, 101, 53), (8, 544, 99)),
    ]
    for box in boxes:
        np.testing.assert_array_equal(volume.read(box), voxels[box.slices(OFFSET)])


def test_a_large_box_is_read_by_parallel_requests_of_one_cuboid_each(boss_server):
    volume = open_volume(boss_server.add("a/b/c", noise((32, 1024, 1024))), boss=boss_server.options)
    boss_server.delay_s = 0.2
    start = time.monotonic()
    volume.read(volume.bounds)
    assert time.monotonic() - start < 8 * 0.2
    assert len(boss_server.cutouts) == 8
    assert {tuple(b - a for a, b in request.box) for request in boss_server.cutouts} == {(16, 512, 512)}


def test_a_thin_box_is_read_by_few_requests(boss_server):
    volume = open_volume(boss_server.add("a/b/c", noise((1, 3000, 3000))), boss=boss_server.options)
    volume.read(Box((0, 100, 100), (1, 356, 356)))
    assert len(boss_server.cutouts) == 1
    volume.read(volume.bounds)
    assert len(boss_server.cutouts) - 1 == 3


def test_intern_never_forks_processes(boss_server, monkeypatch):
    def fork(*_, **__):
        raise AssertionError("a pool of processes was forked")

    monkeypatch.setattr(multiprocessing, "Pool", fork)
    voxels = np.tile(noise((1, 2048, 2048)), (16, 1, 1))
    volume = open_volume(boss_server.add("a/b/c", voxels), boss=boss_server.options)
    # intern forks for 67 million voxels, even with parallel=False.
    np.testing.assert_array_equal(volume.read(volume.bounds), voxels)


@pytest.mark.parametrize(("unit", "nanometers"), [("nanometers", 1.0), ("micrometers", 1e3), ("millimeters", 1e6)])
def test_the_voxel_size_is_converted_to_nanometers(boss_server, unit, nanometers):
    uri = boss_server.add("a/b/c", noise((4, 8, 8)), voxel_size=(30, 6, 5.5), voxel_unit=unit)
    size = open_volume(uri, boss=boss_server.options).voxel_size_nm
    assert size == pytest.approx((30 * nanometers, 6 * nanometers, 5.5 * nanometers))


@pytest.mark.parametrize(("method", "factor"), [("anisotropic", (1, 4, 4)), ("isotropic", (4, 4, 4))])
def test_a_coarse_resolution_has_larger_voxels_and_smaller_bounds(boss_server, method, factor):
    native = (21, 66, 71)
    coarse = noise([-(-n // f) for n, f in zip(native, factor, strict=True)])
    uri = boss_server.add("a/b/c", {0: noise(native), 2: coarse}, hierarchy_method=method)
    volume = open_volume(f"{uri}/2", boss=boss_server.options)
    assert volume.bounds == Box((0, 0, 0), coarse.shape)
    assert volume.voxel_size_nm == pytest.approx(np.multiply((30, 6, 6), factor))
    np.testing.assert_array_equal(volume.read(volume.bounds), coarse)
    assert volume.uri == "bossdb://a/b/c/2"
    assert open_volume(f"{uri}/0", mip=2, boss=boss_server.options).bounds == volume.bounds


def test_the_bounds_of_a_coarse_resolution_end_where_the_boss_refuses_cutouts(boss_server):
    """The Boss checks coarse cutouts against the native frame: 100..160, halved to 50..80, cannot be read."""
    fine, coarse = noise((4, 60, 300)), noise((4, 30, 150))
    uri = boss_server.add("a/b/c", {0: fine, 1: coarse}, offset=(0, 0, 100))
    volume = open_volume(uri, mip=1, boss=boss_server.options)
    assert volume.bounds == Box((0, 0, 100), (4, 30, 200))
    np.testing.assert_array_equal(volume.read(volume.bounds), coarse[:, :, 50:150])
    uri = boss_server.add("a/e/d", fine[:, :, :60], offset=(0, 0, 100))
    with pytest.raises(ValueError, match=r"has no voxels at resolution 1.*100:160"):
        open_volume(uri, mip=1, boss=boss_server.options)


@pytest.mark.parametrize("mip", [3, -1])
def test_a_missing_resolution_is_refused_with_those_that_exist(boss_server, em, mip):
    with pytest.raises(ValueError, match=rf"no resolution {mip}; it has 0 to 2"):
        open_volume(em[0], mip=mip, boss=boss_server.options)


@pytest.mark.parametrize(
    "uri", ["bossdb://a/b", "bossdb://a/b/c/x", "bossdb://a/b/c/0/1", "bossdb:///b/c", "bossdb://"]
)
def test_a_malformed_uri_is_refused_with_the_right_form(uri):
    with pytest.raises(ValueError, match=r"bossdb://collection/experiment/channel\[/resolution\]"):
        open_volume(uri)


@pytest.mark.parametrize("seed", range(3))
def test_one_failing_answer_in_five_does_not_change_the_voxels(boss_server, monkeypatch, seed):
    monkeypatch.setattr(bossdb, "RETRY_POLICY", replace(QUICK, tries=10))
    monkeypatch.setattr(bossdb, "MAX_METADATA_TRIES", 10)
    monkeypatch.setattr(bossdb, "REQUEST_VOXELS", 16 * 32 * 32)
    monkeypatch.setattr(bossdb, "CUBOID", (16, 32, 32))
    voxels = noise((48, 160, 160))
    uri = boss_server.add("a/b/c", voxels)
    boss_server.inject_faults(0.2, seed=seed)
    volume = open_volume(uri, boss=boss_server.options)
    np.testing.assert_array_equal(volume.read(volume.bounds), voxels)
    assert len({request.fault for request in boss_server.requests}) >= 6


@pytest.mark.parametrize(
    "fault", ["500", "503", "429", "reset", "truncated", "html", "short", "fewer", "empty", "hang", "drip"]
)
def test_a_failure_that_may_pass_is_retried(boss_server, em, quick_retries, fault):
    uri, voxels = em
    volume = open_volume(uri, boss=boss_server.options)
    boss_server.next_faults = [fault, fault]
    np.testing.assert_array_equal(volume.read(volume.bounds), voxels)
    assert [request.fault for request in boss_server.cutouts] == [fault, fault, None]


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("500", 'HTTP 500, "An unexpected server error occurred"'),
        ("503", 'HTTP 503, "Service unavailable"'),
        (
            "429",
            r'HTTP 429, "User quota exceeded. Expected available tomorrow": the quota .* is used up; try again later',
        ),
        ("reset", "no connection"),
        ("truncated", "IncompleteRead"),
        ("html", "not a whole blosc buffer"),
        ("short", "not a whole blosc buffer"),
        ("empty", ""),
        ("fewer", r"cannot reshape array of size 7 into shape \(20,60,70\)"),
    ],
)
def test_a_failure_that_stays_is_an_error_with_cutout_tries_and_cause(boss_server, em, quick_retries, fault, cause):
    volume = open_volume(em[0], boss=boss_server.options)
    boss_server.fault = fault
    host = boss_server.options["host"]
    expected = rf"cutout 0:20,0:60,0:70 \(z,y,x\) of {em[0]}/0 could not be read from {host} in 3 tries.*{cause}"
    with pytest.raises(VolumeError, match=expected):
        volume.read(volume.bounds)
    assert len(boss_server.cutouts) == 3


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("400", ValueError, 'HTTP 400, "Incorrect cutout arguments".*check the box and the resolution'),
        ("401", PermissionError, 'HTTP 401, "Invalid token.".*BOSSDB_TOKEN or by --boss'),
        ("403", PermissionError, 'HTTP 403, "User does not have the permission.*BOSSDB_TOKEN or by --boss'),
        ("404", FileNotFoundError, 'HTTP 404, "Collection does not exist".*check the collection'),
        ("413", ValueError, 'HTTP 413, "Cutout request is over 500 MB.*the request is too large for the server'),
    ],
)
@pytest.mark.parametrize("requested", ["metadata", "cutout"])
def test_a_final_failure_is_an_error_at_once(boss_server, em, quick_retries, fault, kind, message, requested):
    volume = open_volume(em[0], boss=boss_server.options)
    boss_server.fault = fault
    boss_server.requests.clear()
    with pytest.raises(kind, match=message) as caught:
        _ = volume.read(volume.bounds) if requested == "cutout" else open_volume(em[0], boss=boss_server.options)
    assert len(boss_server.requests) == 1
    assert boss_server.options["host"] in str(caught.value)
    assert em[0] in str(caught.value)
    assert requested in str(caught.value)


def test_no_more_requests_start_after_a_final_failure(boss_server, monkeypatch, quick_retries):
    monkeypatch.setattr(bossdb, "REQUEST_VOXELS", 16 * 32 * 32)
    monkeypatch.setattr(bossdb, "CUBOID", (16, 32, 32))
    volume = open_volume(boss_server.add("a/b/c", noise((48, 320, 320))), boss=boss_server.options)
    boss_server.fault = "403"
    with pytest.raises(PermissionError):
        volume.read(volume.bounds)
    time.sleep(0.1)
    assert 1 <= len(boss_server.cutouts) <= 3 * bossdb.PARALLEL_REQUESTS, "of 300"


@pytest.mark.parametrize(("name", "missing"), [("a/b/x", "Channel x"), ("x/b/c", "Channel c"), ("a/x/c", "Channel c")])
def test_a_missing_channel_is_named(boss_server, quick_retries, name, missing):
    boss_server.add("a/b/c", noise((2, 4, 4)))
    uri = f"bossdb://{name}"
    with pytest.raises(FileNotFoundError, match=f"{missing}.* does not exist"):
        open_volume(uri, boss=boss_server.options)


@pytest.mark.parametrize("fault", ["hang", "drip", "drip header"])
def test_a_server_that_hangs_or_drips_is_an_error_at_the_deadline(boss_server, em, fault):
    policy = replace(QUICK, tries=2, timeout_s=0.3, deadline_s=0.6)
    volume = open_bossdb(em[0], boss=boss_server.options, retry_policy=policy)
    boss_server.fault = fault
    start = time.monotonic()
    with pytest.raises(VolumeError, match=r"in 2 tries; the last failed with: .*(timed out|within 0.6 s)"):
        volume.read(volume.bounds)
    assert time.monotonic() - start < 2.5


@pytest.mark.parametrize("fault", ["500", "html", "fewer", "empty", "truncated", "reset", "hang"])
def test_broken_metadata_are_requested_again_and_then_an_error(boss_server, em, quick_retries, fault):
    boss_server.fault = fault
    expected = rf"the metadata of channel 'em' of {em[0]}/0 could not be read .* in 3 tries"
    with pytest.raises(VolumeError, match=expected):
        open_volume(em[0], boss=boss_server.options)
    assert len(boss_server.requests) == 3


def test_metadata_that_intern_cannot_read_are_an_error_at_once(boss_server, quick_retries):
    uri = boss_server.add("a/b/c", noise((2, 4, 4)), datatype="uint32")
    with pytest.raises(ValueError, match="intern cannot read its channel 'c': uint32 is not a valid data type"):
        open_volume(uri, boss=boss_server.options)
    assert len(boss_server.requests) == 1


def test_a_host_that_is_down_is_reported_as_such(boss_server_class, quick_retries):
    server = boss_server_class()
    uri, options = server.add("a/b/c", noise((2, 4, 4))), server.options
    server.close()
    with pytest.raises(VolumeError, match=r"Connection refused.*is the host up"):
        open_volume(uri, boss=options)


def test_a_box_outside_the_bounds_is_refused_without_a_request(boss_server, em):
    volume = open_volume(em[0], boss=boss_server.options)
    with pytest.raises(ValueError, match=r"outside the volume: 0:21,0:60,0:70 is not within 0:20,0:60,0:70"):
        volume.read(Box((0, 0, 0), (21, 60, 70)))
    assert not boss_server.cutouts


def test_the_token_is_sent_and_never_shown(boss_server, em, quick_retries):
    secret = "%c0ffee%(x)s-secret"
    boss_server.token = secret
    volume = open_volume(em[0], boss=boss_server.options)
    np.testing.assert_array_equal(volume.read(volume.bounds), em[1])
    assert {request.token for request in boss_server.requests} == {secret}
    assert secret not in repr(volume) + str(volume.boss) + volume.identity
    refused = {**boss_server.options, "token": "wrong-secret"}
    with pytest.raises(PermissionError) as caught:
        open_volume(em[0], boss=refused)
    assert "wrong-secret" not in str(caught.value)
    boss_server.fault = "reset"
    with pytest.raises(VolumeError) as broken:
        volume.read(volume.bounds)
    assert secret not in str(broken.value)


def test_a_volume_pickles_and_reads_from_many_threads(boss_server):
    voxels = noise((40, 300, 300))
    uri = boss_server.add("a/b/c", voxels)
    pickled = pickle.dumps(open_volume(uri, boss=boss_server.options))
    assert len(pickled) < 5000
    volume = pickle.loads(pickled)
    wrong = []

    def read(z: int) -> None:
        if not np.array_equal(volume.read(Box((z, 0, 0), (z + 1, 300, 300)))[0], voxels[z]):
            wrong.append(z)

    threads = [threading.Thread(target=read, args=(z,)) for z in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_another_process_uses_another_client(boss_server, em):
    volume = open_volume(em[0], boss=boss_server.options)
    volume.read(volume.bounds)
    timeout_s, process = volume.retry_policy.timeout_s, os.getpid()
    client = bossdb._boss_client(volume.boss, timeout_s, process)
    assert bossdb._boss_client(volume.boss, timeout_s, process) is client
    assert bossdb._boss_client(volume.boss, timeout_s, process + 1) is not client


def test_requests_use_the_proxy_of_the_environment(boss_server, em, quick_retries, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(VolumeError, match="proxy"):
        open_volume(em[0], boss=boss_server.options)
    bossdb._boss_client.cache_clear()
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    np.testing.assert_array_equal((volume := open_volume(em[0], boss=boss_server.options)).read(volume.bounds), em[1])


def test_a_cloudvolume_channel_is_read_from_its_bucket(boss_server, tmp_path, monkeypatch):
    import tensorstore as ts

    voxels, coarse = noise((6, 40, 50)), noise((6, 20, 25), seed=1)
    for level, array in enumerate((voxels, coarse)):
        scale = {"resolution": [6 << level, 6 << level, 30], "voxel_offset": [8 >> level, 4 >> level, 2]}
        spec = {
            "driver": "neuroglancer_precomputed",
            "kvstore": {"driver": "file", "path": f"{tmp_path}/a/b/c"},
            "multiscale_metadata": {"type": "image", "data_type": "uint8", "num_channels": 1},
            "scale_metadata": {**scale, "encoding": "raw", "chunk_size": [16, 16, 4], "size": [*array.shape[::-1]]},
        }
        ts.open(spec, create=True).result()[..., 0].write(array.T).result()
    urls = []

    def local_url(bucket, path):
        urls.append(bucket_url(bucket, path))
        return f"file://{tmp_path}{path}/|neuroglancer-precomputed:"

    bucket_url = bossdb.bucket_url
    monkeypatch.setattr(bossdb, "bucket_url", local_url)
    metadata = {"storage_type": "cloudvol", "bucket": "bossdb-open-data", "cv_path": "/a/b/c"}
    uri = boss_server.add("a/b/c", np.zeros((9, 99, 99), np.uint8), **metadata)
    volume = open_volume(uri, boss=boss_server.options)
    np.testing.assert_array_equal(volume.read(volume.bounds), voxels)
    assert urls == ["s3://bossdb-open-data/a/b/c/|neuroglancer-precomputed:"]
    assert (volume.uri, volume.bounds.start, volume.voxel_size_nm) == ("bossdb://a/b/c/0", (2, 4, 8), (30, 6, 6))
    half = open_volume(f"{uri}/1", boss=boss_server.options)
    np.testing.assert_array_equal(half.read(half.bounds), coarse)
    assert len({volume.identity, half.identity, uri}) == 3
    assert not boss_server.cutouts


def test_a_cloudvolume_channel_without_a_bucket_is_refused(boss_server):
    uri = boss_server.add("a/b/c", noise((2, 4, 4)), storage_type="cloudvol")
    with pytest.raises(ValueError, match="its metadata name no bucket"):
        open_volume(uri, boss=boss_server.options)
