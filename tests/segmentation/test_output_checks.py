"""Checks of an output before anything is written: its folders, and the free space on its disk."""

from types import SimpleNamespace

import pytest

from kasthuri_ray import cli
from kasthuri_ray.errors import InputError
from kasthuri_ray.segmentation import output_checks
from kasthuri_ray.segmentation import segment as segment_module
from kasthuri_ray.segmentation.plan import TileTiming, bytes_written, plan_segmentation
from kasthuri_ray.segmentation.trained_network import build_trained_network
from kasthuri_ray.volumes.opening import open_volume


@pytest.fixture(scope="module")
def image(stores):
    return stores.image((2, 32, 96))


@pytest.fixture
def job(tmp_path, run, em, make_job):
    return make_job(run, tmp_path / "out.zarr", image=em, shard=[2, 32, 32])


@pytest.fixture
def without_ray(monkeypatch):
    """Fail if the test starts Ray."""
    monkeypatch.setattr(segment_module, "connect_ray", lambda verbose: pytest.fail("Ray was started"))


@pytest.mark.parametrize("copy", ["out.zarr", "out.zarr/copy", "out.zarr.ledger/copy", "."])
def test_an_output_and_its_copy_must_not_be_in_one_another(tmp_path, copy):
    output = f"{tmp_path}/out.zarr/"
    with pytest.raises(ValueError, match=r"must not be nested.* such as .*/out\.zarr\.precomputed$"):
        output_checks.check_output_paths(output, f"{tmp_path}/{copy}")
    for other in (None, f"{tmp_path}/out.zarr.precomputed", f"{tmp_path}/out", "s3://bucket/out.zarr"):
        output_checks.check_output_paths(output, other)


def test_the_name_of_a_file_is_refused_for_an_output_unless_one_of_that_name_is_resumed(tmp_path):
    output = f"{tmp_path}/out.TIF"
    with pytest.raises(InputError, match=r"give --output NAME\.zarr.* with --export .*/out\.TIF$"):
        output_checks.check_output_paths(output, None)
    (tmp_path / "out.TIF").mkdir()
    (tmp_path / "out.TIF" / "zarr.json").write_text("{}")
    output_checks.check_output_paths(output, None)


@pytest.mark.usefixtures("without_ray")
def test_paths_where_no_files_can_be_stored_are_refused_before_ray_starts(run, em, segment_main, tmp_path, capsys):
    arguments = ["--weights", str(run), "--image", em, "--cache", "none"]
    assert cli.run_job(segment_main, [*arguments, "--output", "http://server/out.zarr"]) == 2
    assert "files are stored on a disk or on S3" in capsys.readouterr().err
    paths = ["--output", str(tmp_path / "out.zarr"), "--precomputed", str(tmp_path / "out.zarr")]
    assert cli.run_job(segment_main, [*arguments, *paths]) == 2
    assert "must not be nested" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize("place", ["em", "em/out.zarr", "em/s0/out.zarr", "link/out.zarr"])
@pytest.mark.parametrize("flag", ["--output", "--precomputed"])
def test_a_path_in_the_folder_of_the_image_is_refused_before_ray_starts(
    run, stores, segment_main, tmp_path, read_files, capsys, place, flag
):
    em = stores.zarr(tmp_path / "em", stores.image((2, 64, 64)))
    (tmp_path / "link").symlink_to(em)
    before = read_files(tmp_path)
    flags = {"--weights": str(run), "--image": f"file://{em}/|zarr3:", "--output": str(tmp_path / "out.zarr")}
    flags |= {flag: str(tmp_path / place), "--cache": str(tmp_path / "cache")}
    assert cli.run_job(segment_main, [word for pair in flags.items() for word in pair]) == 2
    error = capsys.readouterr().err
    assert f"error: {flag} {tmp_path / place} is in the folder of the image, {em}; choose another {flag}" in error
    assert read_files(tmp_path) == before


def test_paths_beside_the_volumes_are_accepted(run, stores, prepare, tmp_path):
    em = stores.zarr(tmp_path / "group/em", stores.image((2, 64, 64)))
    image = prepare(run, image=em).image
    for path in (f"{tmp_path}/group/out.zarr", f"{em}.out", "s3://bucket/em", f"{tmp_path}/out.zarr"):
        output_checks.check_outside_volumes(path, None, {"image": image, "mask": None})
    mask_path = stores.zarr(tmp_path / "mask", stores.image((2, 64, 64)))
    mask = prepare(run, image=em, mask=mask_path).mask
    with pytest.raises(ValueError, match=r"--output .*/mask/out\.zarr is in the folder of the mask"):
        output_checks.check_outside_volumes(f"{mask_path}/out.zarr", None, {"image": image, "mask": mask})
    output_checks.check_outside_volumes("out.zarr", None, {"image": open_volume("phantom://em?shape=4,64,64")})


@pytest.mark.parametrize(
    ("timing", "takes"), [(None, r"at most 0\.00 GB"), (TileTiming(1.0, 1000, 2.5), r"about 0\.00 GB")]
)
def test_a_disk_with_too_little_space_is_an_error_with_both_numbers(job, monkeypatch, tmp_path, timing, takes):
    plan = plan_segmentation(job, build_trained_network(job.settings, job.trained), 0, 1, 0.0, timing)
    usage = SimpleNamespace(free=output_checks.RESERVED_BYTES + plan.bytes_written)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert f"{tmp_path}: 0.00 GB free, " in output_checks.check_free_space(job, plan)
    usage.free -= 1
    message = rf"{tmp_path}: 0\.00 GB free, {takes} still to write"
    with pytest.raises(ValueError, match=message):
        output_checks.check_free_space(job, plan)


def test_a_disk_with_room_for_uncompressed_probabilities_needs_no_sample(job, changed, monkeypatch):
    usage = SimpleNamespace(free=output_checks.RESERVED_BYTES + bytes_written(job))
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    assert output_checks.fits_uncompressed(job)
    usage.free -= 1
    assert not output_checks.fits_uncompressed(job)
    assert output_checks.fits_uncompressed(changed(job, output="s3://bucket/out.zarr"))


def test_a_folder_that_cannot_be_written_to_is_an_error(job, monkeypatch):
    plan = plan_segmentation(job, build_trained_network(job.settings, job.trained), 0, 1, 0.0, None)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="cannot be written to; choose another --output"):
        output_checks.check_free_space(job, plan)
