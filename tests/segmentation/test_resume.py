"""What may be at the place of an output: nothing, or the same segmentation; another only if it is to go."""

import json
from types import SimpleNamespace

import pytest

from kasthuri_ray import cli
from kasthuri_ray.output import existing_output
from kasthuri_ray.output.ledger import Ledger
from kasthuri_ray.output.ome_zarr import OmeZarrOutput
from kasthuri_ray.output.precomputed import PrecomputedCopy
from kasthuri_ray.segmentation import resume
from kasthuri_ray.segmentation import segment as segment_module
from kasthuri_ray.segmentation.plan import TileTiming, bytes_written, plan_segmentation
from kasthuri_ray.volumes.opening import open_volume


@pytest.fixture(scope="module")
def run(tmp_path_factory, write_run):
    return write_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def em(tmp_path_factory, stores):
    return stores.zarr(tmp_path_factory.mktemp("em") / "em.zarr", stores.image((2, 64, 64)))


@pytest.fixture
def job(tmp_path, run, em, job_of):
    return job_of(run, tmp_path / "out.zarr", image=em, copy=str(tmp_path / "copy"), shard=[2, 32, 32])


def begin(job):
    ledger = Ledger.beside(job.output)
    ledger.begin(job.record)
    OmeZarrOutput.create(job.output, job.spec)
    return ledger


def test_nothing_is_begun_where_nothing_is(job):
    assert resume.read_begun_record(job.output, False) is None


def test_the_same_goes_on_and_other_settings_are_shown(job, run, em, job_of, tmp_path):
    begin(job)
    begun = resume.read_begun_record(job.output, False)
    resume.check_same_settings(begun, job)
    other = job_of(run, tmp_path / "out.zarr", image=em, shard=[2, 16, 32], box="0:1,:,:")
    with pytest.raises(ValueError, match=r"was begun with other settings:\n  block: \[2, 64, 64\]") as caught:
        resume.check_same_settings(begun, other)
    assert 'box: "0:2,0:64,0:64" -> "0:1,0:64,0:64"' in str(caught.value)
    assert "shard: [2, 32, 32] -> [1, 16, 32]" in str(caught.value)
    assert resume.read_begun_record(job.output, True) is None


def test_a_foreign_zarr_folder_or_file_is_never_written_over(job, em, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place in (em, tmp_path / "folder", tmp_path / "file"):
        for overwrite in (False, True):
            with pytest.raises(ValueError, match="choose another --output"):
                resume.read_begun_record(str(place), overwrite)


def test_half_of_a_segmentation_is_said(job, tmp_path):
    ledger = begin(job)
    ledger.storage.delete("settings.json")
    with pytest.raises(ValueError, match=r"ledger, .*out\.zarr\.ledger, is gone"):
        resume.read_begun_record(job.output, False)
    ledger.begin(job.record)
    existing_output.remove_output(job.output)
    assert resume.read_begun_record(job.output, False) == job.record  # it had not done anything yet
    ledger.record("s0", "0_0_0")
    with pytest.raises(ValueError, match="says that blocks are done, and"):
        resume.read_begun_record(job.output, False)


def test_a_setting_that_is_newer_than_the_record_had_its_default(job):
    older = json.loads(json.dumps(job.record))
    del older["network"]["pool_z"], older["task"]["ignore_label"]
    resume.check_same_settings(older, job)
    older["network"]["start_filters"] += 1
    with pytest.raises(
        ValueError, match=r"other settings:\n  network\.start_filters: \d+ -> \d+\nGive another --output"
    ):
        resume.check_same_settings(older, job)


def test_all_of_an_earlier_one_goes_but_the_lock_and_what_others_put_there(job, tmp_path, content_of):
    ledger = begin(job)
    ledger.record("s0", "0_0_0")
    ledger.set_aside("s0", "0_0_1", {})
    ledger.storage.write_bytes("lock.json", b"{}")
    PrecomputedCopy.create(job.precomputed, job.spec)
    for name in ("out.zarr.progress.json", "out.zarr.synapses.csv", "other.txt"):
        (tmp_path / name).write_text("{}")
    resume.remove_segmentation(job)
    assert set(content_of(tmp_path)) == {"out.zarr.ledger/lock.json", "other.txt"}


def asked(**more):
    given = {"device": "auto", "precision": "auto", "compile": "auto", "tile": None, "batch": None, "tta": False}
    return SimpleNamespace(settings=SimpleNamespace(segment=SimpleNamespace(**given | more)))


def test_the_arithmetic_of_the_ledger_is_kept_unless_another_is_asked_for(job):
    begun = json.loads(json.dumps(job.record))
    for same in ({}, {"device": "cpu"}, {"precision": "float32"}, {"compile": "on"}, {"tile": job.arithmetic.tile}):
        assert resume.resumed_inference_settings(begun, asked(**same)) == job.arithmetic
    for other in ({"device": "cuda"}, {"precision": "bf16"}, {"tile": [1, 32, 32]}, {"batch": 4}, {"tta": True}):
        assert resume.resumed_inference_settings(begun, asked(**other)) != job.arithmetic
    with pytest.raises(ValueError, match="another version"):
        resume.resumed_inference_settings({"arithmetic": {"speed": 3}}, asked())


def test_a_copy_that_is_elsewhere_or_gone_is_made_again(job, changed, tmp_path):
    ledger = begin(job)
    resume.prepare_copy_ledger(job, ledger)
    PrecomputedCopy.create(job.precomputed, job.spec)
    ledger.record("precomputed-s0", "0_0_0")
    ledger.record("s0", "0_0_0")
    resume.prepare_copy_ledger(job, ledger)
    assert ledger.done("precomputed-s0") == {"0_0_0": True}
    resume.prepare_copy_ledger(changed(job, precomputed=str(tmp_path / "other")), ledger)
    assert ledger.done("precomputed-s0") == {}
    resume.prepare_copy_ledger(job, ledger)
    ledger.record("precomputed-s0", "0_0_0")
    existing_output.remove_output(job.precomputed)
    resume.prepare_copy_ledger(job, ledger)
    assert ledger.done("precomputed-s0") == {}
    assert ledger.done("s0") == {"0_0_0": True}


def test_a_copy_of_something_else_is_not_written_over(job, run, em, job_of, tmp_path):
    resume.check_precomputed_copy(job, False)
    PrecomputedCopy.create(job.precomputed, job.spec)
    resume.check_precomputed_copy(job, False)
    other = job_of(run, tmp_path / "out.zarr", image=em, copy=job.precomputed, threshold=0.9)
    with pytest.raises(ValueError, match="with other settings; choose another place for --precomputed"):
        resume.check_precomputed_copy(other, False)
    resume.check_precomputed_copy(other, True)
    foreign = job_of(run, tmp_path / "out.zarr", image=em, copy=em)
    with pytest.raises(ValueError, match="choose another place for --precomputed"):
        resume.check_precomputed_copy(foreign, True)


@pytest.mark.parametrize("copy", ["out.zarr", "out.zarr/copy", "out.zarr.ledger/copy", "."])
def test_an_output_and_its_copy_have_folders_of_their_own(tmp_path, copy):
    output = f"{tmp_path}/out.zarr/"
    with pytest.raises(ValueError, match=r"would lie in one another; .* such as .*/out\.zarr\.precomputed$"):
        resume.check_output_places(output, f"{tmp_path}/{copy}")
    for other in (None, f"{tmp_path}/out.zarr.precomputed", f"{tmp_path}/out", "s3://bucket/out.zarr"):
        resume.check_output_places(output, other)


def test_places_that_keep_no_files_are_refused_before_ray_starts(run, em, segment_main, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(segment_module, "connect_ray", lambda verbose: pytest.fail("Ray was started"))
    given = ["--weights", str(run), "--image", em, "--cache", "none"]
    assert cli.run_job(segment_main, [*given, "--output", "http://server/out.zarr"]) == 2
    assert "files are kept on a disk or on S3" in capsys.readouterr().err
    places = ["--output", str(tmp_path / "out.zarr"), "--precomputed", str(tmp_path / "out.zarr")]
    assert cli.run_job(segment_main, [*given, *places]) == 2
    assert "would lie in one another" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("timing", "takes"), [(None, r"at most 0\.00 GB"), (TileTiming(1.0, 1000, 2.5), r"about 0\.00 GB, compressed")]
)
def test_a_disk_without_room_is_said_with_both_numbers(
    job, prepared_for, run, em, monkeypatch, tmp_path, timing, takes
):
    plan = plan_segmentation(job, prepared_for(run, image=em).network, 0, 1, 0.0, None, timing)
    usage = SimpleNamespace(free=resume.RESERVED_BYTES + plan.bytes_written)
    monkeypatch.setattr(resume.shutil, "disk_usage", lambda path: usage)
    assert f"{tmp_path} has room for" in resume.check_free_space(job, plan)
    usage.free -= 1
    words = rf"{tmp_path} has room for 0\.00 GB, and what is left to write takes {takes}"
    with pytest.raises(ValueError, match=words):
        resume.check_free_space(job, plan)


def test_a_disk_that_holds_all_of_it_as_it_is_needs_no_sample(job, changed, monkeypatch):
    usage = SimpleNamespace(free=resume.RESERVED_BYTES + bytes_written(job))
    monkeypatch.setattr(resume.shutil, "disk_usage", lambda path: usage)
    assert resume.fits_uncompressed(job)
    usage.free -= 1
    assert not resume.fits_uncompressed(job)
    assert resume.fits_uncompressed(changed(job, output="s3://bucket/out.zarr"))


def test_a_folder_that_cannot_be_written_to(job, prepared_for, run, em, monkeypatch):
    plan = plan_segmentation(job, prepared_for(run, image=em).network, 0, 1, 0.0, None, None)
    monkeypatch.setattr(resume.os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="cannot be written to; choose another --output"):
        resume.check_free_space(job, plan)


@pytest.mark.parametrize("place", ["em", "em/out.zarr", "em/s0/out.zarr", "link/out.zarr"])
@pytest.mark.parametrize("flag", ["--output", "--precomputed"])
def test_a_place_in_the_folder_of_what_is_read_is_refused_before_ray_starts(
    run, stores, segment_main, tmp_path, content_of, monkeypatch, capsys, place, flag
):
    monkeypatch.setattr(segment_module, "connect_ray", lambda verbose: pytest.fail("Ray was started"))
    em = stores.zarr(tmp_path / "em", stores.image((2, 64, 64)))
    (tmp_path / "link").symlink_to(em)
    before = content_of(tmp_path)
    given = {"--weights": str(run), "--image": f"file://{em}/|zarr3:", "--output": str(tmp_path / "out.zarr")}
    given |= {flag: str(tmp_path / place), "--cache": str(tmp_path / "cache")}
    assert cli.run_job(segment_main, [word for pair in given.items() for word in pair]) == 2
    error = capsys.readouterr().err
    assert f"error: {flag} {tmp_path / place} lies in the folder of the image, {em}; choose another {flag}" in error
    assert content_of(tmp_path) == before


def test_places_beside_what_is_read_are_taken(run, stores, prepared_for, tmp_path):
    em = stores.zarr(tmp_path / "group/em", stores.image((2, 64, 64)))
    image = prepared_for(run, image=em).image
    for place in (f"{tmp_path}/group/out.zarr", f"{em}.out", "s3://bucket/em", f"{tmp_path}/out.zarr"):
        resume.check_output_outside_volumes(place, None, {"image": image, "mask": None})
    there = stores.zarr(tmp_path / "mask", stores.image((2, 64, 64)))
    mask = prepared_for(run, image=em, mask=there).mask
    with pytest.raises(ValueError, match=r"--output .*/mask/out\.zarr lies in the folder of the mask"):
        resume.check_output_outside_volumes(f"{there}/out.zarr", None, {"image": image, "mask": mask})
    resume.check_output_outside_volumes("out.zarr", None, {"image": open_volume("phantom://em?shape=4,64,64")})


def test_the_command_that_goes_on_does_not_begin_anew():
    given = ["--weights", "a run", "--output", "x.zarr", "--overwrite", "--tta"]
    assert (
        cli.segment_resume_command("jobs/segment.py", given)
        == "python jobs/segment.py --weights 'a run' --output x.zarr --tta"
    )


def test_tables_are_named_by_what_they_hold(job, changed):
    assert resume.table_path(job) == f"{job.output}.synapses.csv"
    assert resume.table_path(changed(job, task_type="membrane")) == f"{job.output}.objects.csv"
