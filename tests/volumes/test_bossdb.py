"""Real intern against a Boss on loopback: what it gives, what it survives, what it says."""

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
from kasthuri_ray.volumes import boss_requests, bossdb
from kasthuri_ray.volumes.boss_requests import BossServer, RetryPolicy, request_with_retries
from kasthuri_ray.volumes.bossdb import open_bossdb
from kasthuri_ray.volumes.opening import open_volume

QUICK = RetryPolicy(tries=3, first_pause_s=0.01, longest_pause_s=0.02, timeout_s=0.4, deadline_s=1.0)
OFFSET = (3, 100, 50)


def noise(shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.fixture
def patient(monkeypatch):
    """`open_volume` with quick tries."""
    monkeypatch.setattr(bossdb, "RETRY_POLICY", QUICK)


@pytest.fixture
def em(boss_server):
    """A small volume's URI and the array behind it."""
    voxels = noise((20, 60, 70))
    return boss_server.add("Kasthuri/ac4/em", voxels), voxels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint64])
def test_a_cutout_equals_the_array_behind_it_whatever_the_box_and_dtype(boss_server, dtype):
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


def test_a_large_box_takes_requests_of_a_cuboid_each_and_several_at_once(boss_server):
    volume = open_volume(boss_server.add("a/b/c", noise((32, 1024, 1024))), boss=boss_server.options)
    boss_server.delay_s = 0.2
    began = time.monotonic()
    volume.read(volume.bounds)
    assert time.monotonic() - began < 8 * 0.2
    assert len(boss_server.cutouts) == 8
    assert {tuple(b - a for a, b in request.box) for request in boss_server.cutouts} == {(16, 512, 512)}


def test_a_thin_box_takes_few_requests(boss_server):
    volume = open_volume(boss_server.add("a/b/c", noise((1, 3000, 3000))), boss=boss_server.options)
    volume.read(Box((0, 100, 100), (1, 356, 356)))
    assert len(boss_server.cutouts) == 1
    volume.read(volume.bounds)
    assert len(boss_server.cutouts) - 1 == 3


def test_intern_never_forks(boss_server, monkeypatch):
    def fork(*_, **__):
        raise AssertionError("a pool of processes was forked")

    monkeypatch.setattr(multiprocessing, "Pool", fork)
    voxels = np.tile(noise((1, 2048, 2048)), (16, 1, 1))
    volume = open_volume(boss_server.add("a/b/c", voxels), boss=boss_server.options)
    np.testing.assert_array_equal(
        volume.read(volume.bounds), voxels
    )  # 67 million voxels: intern's single way forks too


@pytest.mark.parametrize(("unit", "nanometers"), [("nanometers", 1.0), ("micrometers", 1e3), ("millimeters", 1e6)])
def test_the_voxel_size_is_in_nanometers(boss_server, unit, nanometers):
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


def test_a_coarse_resolution_ends_where_the_boss_gives_no_more(boss_server):
    """The Boss checks coarse cutouts against the native frame: 100..160, halved to 50..80, is out of reach."""
    fine, coarse = noise((4, 60, 300)), noise((4, 30, 150))
    uri = boss_server.add("a/b/c", {0: fine, 1: coarse}, offset=(0, 0, 100))
    volume = open_volume(uri, mip=1, boss=boss_server.options)
    assert volume.bounds == Box((0, 0, 100), (4, 30, 200))
    np.testing.assert_array_equal(volume.read(volume.bounds), coarse[:, :, 50:150])
    uri = boss_server.add("a/e/d", fine[:, :, :60], offset=(0, 0, 100))
    with pytest.raises(ValueError, match=r"gives no voxels at resolution 1.*100:160"):
        open_volume(uri, mip=1, boss=boss_server.options)


@pytest.mark.parametrize("mip", [3, -1])
def test_a_resolution_that_is_not_there_is_named(boss_server, em, mip):
    with pytest.raises(ValueError, match=rf"no resolution {mip}; it has 0 to 2"):
        open_volume(em[0], mip=mip, boss=boss_server.options)


@pytest.mark.parametrize(
    "uri", ["bossdb://a/b", "bossdb://a/b/c/x", "bossdb://a/b/c/0/1", "bossdb:///b/c", "bossdb://"]
)
def test_a_malformed_name_is_shown_the_right_form(uri):
    with pytest.raises(ValueError, match=r"bossdb://collection/experiment/channel\[/resolution\]"):
        open_volume(uri)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hosst": "x"}, "no 'hosst'; they are protocol, host, token"),
        ({"protocol": "ftp"}, "'ftp' is neither https nor http"),
        ({"host": "https://api.bossdb.io"}, "'https://api.bossdb.io' is not a name with an optional port"),
        ({"token": ""}, "token is empty"),
        ({"token": "two words"}, "token is empty or holds characters"),
    ],
)
def test_options_that_are_none_are_refused(options, words):
    with pytest.raises(ValueError, match=words) as caught:
        open_volume("bossdb://a/b/c", boss=options)
    assert "two words" not in str(caught.value)


def test_the_token_comes_from_the_options_or_else_from_the_environment(monkeypatch):
    monkeypatch.setenv("BOSSDB_TOKEN", "of-the-environment")
    assert BossServer.of(None) == BossServer("https", "api.bossdb.io", "of-the-environment")
    assert BossServer.of({}) == BossServer("https", "api.bossdb.io", "public")
    assert BossServer.of({"token": "mine"}).token == "mine"
    monkeypatch.delenv("BOSSDB_TOKEN")
    assert BossServer.of(None).token == "public"


@pytest.mark.parametrize("seed", range(3))
def test_one_failing_answer_in_five_changes_nothing(boss_server, monkeypatch, seed):
    monkeypatch.setattr(bossdb, "RETRY_POLICY", replace(QUICK, tries=10))
    monkeypatch.setattr(bossdb, "METADATA_TRIES", 10)
    monkeypatch.setattr(bossdb, "REQUEST_VOXELS", 16 * 32 * 32)
    monkeypatch.setattr(bossdb, "CUBOID", (16, 32, 32))
    voxels = noise((48, 160, 160))
    uri = boss_server.add("a/b/c", voxels)
    boss_server.befall(0.2, seed=seed)
    volume = open_volume(uri, boss=boss_server.options)
    np.testing.assert_array_equal(volume.read(volume.bounds), voxels)
    assert len({request.fault for request in boss_server.requests}) >= 6


@pytest.mark.parametrize(
    "fault", ["500", "503", "429", "reset", "truncated", "html", "short", "fewer", "empty", "hang", "drip"]
)
def test_what_passes_is_asked_again(boss_server, em, patient, fault):
    uri, voxels = em
    volume = open_volume(uri, boss=boss_server.options)
    boss_server.next_faults = [fault, fault]
    np.testing.assert_array_equal(volume.read(volume.bounds), voxels)
    assert [request.fault for request in boss_server.cutouts] == [fault, fault, None]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("500", 'HTTP 500, "An unexpected server error occurred"'),
        ("503", 'HTTP 503, "Service unavailable"'),
        ("429", r'HTTP 429, "User quota exceeded. Expected available tomorrow": the quota .* is used up; go on later'),
        ("reset", "no connection"),
        ("truncated", "IncompleteRead"),
        ("html", "not a whole blosc buffer"),
        ("short", "not a whole blosc buffer"),
        ("empty", ""),
        ("fewer", r"cannot reshape array of size 7 into shape \(20,60,70\)"),
    ],
)
def test_what_stays_broken_names_the_cutout_the_tries_and_the_cause(boss_server, em, patient, fault, words):
    volume = open_volume(em[0], boss=boss_server.options)
    boss_server.fault = fault
    host = boss_server.options["host"]
    expected = rf"cutout 0:20,0:60,0:70 \(z,y,x\) of {em[0]}/0 did not come from {host} in 3 tries.*{words}"
    with pytest.raises(VolumeError, match=expected):
        volume.read(volume.bounds)
    assert len(boss_server.cutouts) == 3


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("400", ValueError, 'HTTP 400, "Incorrect cutout arguments".*check the box and the resolution'),
        ("401", PermissionError, 'HTTP 401, "Invalid token.".*BOSSDB_TOKEN or by --boss'),
        ("403", PermissionError, 'HTTP 403, "User does not have the permission.*BOSSDB_TOKEN or by --boss'),
        ("404", FileNotFoundError, 'HTTP 404, "Collection does not exist".*check the collection'),
        ("413", ValueError, 'HTTP 413, "Cutout request is over 500 MB.*ask for less at once'),
    ],
)
@pytest.mark.parametrize("of", ["metadata", "cutout"])
def test_what_is_final_is_said_at_once(boss_server, em, patient, fault, kind, words, of):
    volume = open_volume(em[0], boss=boss_server.options)
    boss_server.fault = fault
    boss_server.requests.clear()
    with pytest.raises(kind, match=words) as caught:
        _ = volume.read(volume.bounds) if of == "cutout" else open_volume(em[0], boss=boss_server.options)
    assert len(boss_server.requests) == 1
    assert boss_server.options["host"] in str(caught.value)
    assert em[0] in str(caught.value)
    assert of in str(caught.value)


def test_after_a_final_answer_no_more_requests_are_begun(boss_server, monkeypatch, patient):
    monkeypatch.setattr(bossdb, "REQUEST_VOXELS", 16 * 32 * 32)
    monkeypatch.setattr(bossdb, "CUBOID", (16, 32, 32))
    volume = open_volume(boss_server.add("a/b/c", noise((48, 320, 320))), boss=boss_server.options)
    boss_server.fault = "403"
    with pytest.raises(PermissionError):
        volume.read(volume.bounds)
    time.sleep(0.1)
    assert 1 <= len(boss_server.cutouts) <= 3 * bossdb.PARALLEL_REQUESTS, "of 300"


@pytest.mark.parametrize(("name", "words"), [("a/b/x", "Channel x"), ("x/b/c", "Channel c"), ("a/x/c", "Channel c")])
def test_a_name_that_leads_nowhere_is_named(boss_server, patient, name, words):
    boss_server.add("a/b/c", noise((2, 4, 4)))
    uri = f"bossdb://{name}"
    with pytest.raises(FileNotFoundError, match=f"{words}.* does not exist"):
        open_volume(uri, boss=boss_server.options)


@pytest.mark.parametrize("fault", ["hang", "drip", "drip header"])
def test_a_silent_or_dripping_server_is_given_up_at_the_deadline(boss_server, em, fault):
    patience = replace(QUICK, tries=2, timeout_s=0.3, deadline_s=0.6)
    volume = open_bossdb(em[0], boss=boss_server.options, patience=patience)
    boss_server.fault = fault
    began = time.monotonic()
    with pytest.raises(VolumeError, match=r"in 2 tries; the last one: .*(timed out|within 0.6 s)"):
        volume.read(volume.bounds)
    assert time.monotonic() - began < 2.5


@pytest.mark.parametrize("fault", ["500", "html", "fewer", "empty", "truncated", "reset", "hang"])
def test_broken_metadata_are_asked_for_again_and_then_named(boss_server, em, patient, fault):
    boss_server.fault = fault
    with pytest.raises(VolumeError, match=rf"the metadata of channel 'em' of {em[0]}/0 did not come .* in 3 tries"):
        open_volume(em[0], boss=boss_server.options)
    assert len(boss_server.requests) == 3


def test_metadata_that_intern_does_not_know_are_final(boss_server, patient):
    uri = boss_server.add("a/b/c", noise((2, 4, 4)), datatype="uint32")
    with pytest.raises(ValueError, match="intern cannot read its channel 'c': uint32 is not a valid data type"):
        open_volume(uri, boss=boss_server.options)
    assert len(boss_server.requests) == 1


def test_a_host_that_is_down_is_said_to_be(boss_server_class, patient):
    server = boss_server_class()
    uri, options = server.add("a/b/c", noise((2, 4, 4))), server.options
    server.close()
    with pytest.raises(VolumeError, match=r"Connection refused.*is the host up"):
        open_volume(uri, boss=options)


def test_a_wrong_box_is_refused_without_a_request(boss_server, em):
    volume = open_volume(em[0], boss=boss_server.options)
    with pytest.raises(ValueError, match=r"outside the volume: 0:21,0:60,0:70 is not within 0:20,0:60,0:70"):
        volume.read(Box((0, 0, 0), (21, 60, 70)))
    assert not boss_server.cutouts


def test_a_token_opens_the_door_and_is_never_shown(boss_server, em, patient):
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


def test_a_server_that_repeats_the_token_is_blotted_out():
    assert BossServer(token="s3cret").without_token("no user for s3cret") == "no user for [token]"


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


def test_a_forked_process_opens_connections_of_its_own(boss_server, em):
    volume = open_volume(em[0], boss=boss_server.options)
    volume.read(volume.bounds)
    here = bossdb._remote(volume.boss, volume.patience.timeout_s, os.getpid())
    assert bossdb._remote(volume.boss, volume.patience.timeout_s, os.getpid()) is here
    assert bossdb._remote(volume.boss, volume.patience.timeout_s, os.getpid() + 1) is not here


def test_the_environment_names_the_proxy(boss_server, em, patient, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(VolumeError, match="proxy"):
        open_volume(em[0], boss=boss_server.options)
    bossdb._remote.cache_clear()
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
    asked = []

    def local(bucket, path):
        asked.append(bucket_url(bucket, path))
        return f"file://{tmp_path}{path}/|neuroglancer-precomputed:"

    bucket_url = bossdb.bucket_url
    monkeypatch.setattr(bossdb, "bucket_url", local)
    kept = {"storage_type": "cloudvol", "bucket": "bossdb-open-data", "cv_path": "/a/b/c"}
    uri = boss_server.add("a/b/c", np.zeros((9, 99, 99), np.uint8), **kept)
    volume = open_volume(uri, boss=boss_server.options)
    np.testing.assert_array_equal(volume.read(volume.bounds), voxels)
    assert asked == ["s3://bossdb-open-data/a/b/c/|neuroglancer-precomputed:"]
    assert (volume.uri, volume.bounds.start, volume.voxel_size_nm) == ("bossdb://a/b/c/0", (2, 4, 8), (30, 6, 6))
    half = open_volume(f"{uri}/1", boss=boss_server.options)
    np.testing.assert_array_equal(half.read(half.bounds), coarse)
    assert len({volume.identity, half.identity, uri}) == 3
    assert not boss_server.cutouts


def test_a_cloudvolume_channel_without_a_bucket_is_an_error(boss_server):
    uri = boss_server.add("a/b/c", noise((2, 4, 4)), storage_type="cloudvol")
    with pytest.raises(ValueError, match="its metadata name no bucket"):
        open_volume(uri, boss=boss_server.options)


def test_whoever_waits_for_long_is_told_by_a_line_what_is_tried_again(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    monkeypatch.setattr(boss_requests, "_last_reported", float("-inf"))
    monkeypatch.setattr(boss_requests, "call_with_timeout", lambda seconds, call: call())

    def call():
        raise TimeoutError("no answer to a-secret-token")

    patience = RetryPolicy(tries=6, first_pause_s=0.5, longest_pause_s=4.0)
    with pytest.raises(VolumeError):
        request_with_retries(call, "the metadata of channel 'em'", BossServer(token="a-secret-token"), patience)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition("trying again ")[2] for line in lines] == [
        "in 1 s (3 of 6)",
        "in 2 s (4 of 6)",
        "in 4 s (5 of 6)",
        "in 4 s (6 of 6)",
    ]
    assert lines[0].startswith("the metadata of channel 'em': TimeoutError: no answer to [token]; ")
    caplog.clear()
    now[0] += 60
    with pytest.raises(VolumeError):  # what fails side by side is told of once
        request_with_retries(
            call, "a cutout", BossServer(), RetryPolicy(tries=3, first_pause_s=0.2, longest_pause_s=0.2)
        )
    assert caplog.records == []
