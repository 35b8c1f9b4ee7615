"""What may be at the path of an output: nothing, or the same segmentation; another one only with --overwrite."""

import json
from types import SimpleNamespace

import pytest

from kasthuri_ray.output import existing_output
from kasthuri_ray.output.ledger import Ledger
from kasthuri_ray.output.ome_zarr import OmeZarrOutput
from kasthuri_ray.output.precomputed import PrecomputedCopy
from kasthuri_ray.segmentation import resume


@pytest.fixture(scope="module")
def image(stores):
    return stores.image((2, 64, 64))


@pytest.fixture
def job(tmp_path, run, em, make_job):
    return make_job(run, tmp_path / "out.zarr", image=em, copy=str(tmp_path / "copy"), shard=[2, 32, 32])


def start_output(job):
    ledger = Ledger.beside(job.output)
    ledger.start(job.record)
    OmeZarrOutput.create(job.output, job.spec)
    return ledger


def test_nothing_is_resumed_where_nothing_is(job):
    assert resume.read_existing_record(job.output, False) is None


def test_the_same_settings_resume_and_differences_are_shown(job, run, em, make_job, tmp_path):
    start_output(job)
    record = resume.read_existing_record(job.output, False)
    resume.check_same_settings(record, job)
    other = make_job(run, tmp_path / "out.zarr", image=em, shard=[2, 16, 32], box="0:1,:,:")
    with pytest.raises(ValueError, match=r"was started with other settings:\n  block: \[2, 64, 64\]") as caught:
        resume.check_same_settings(record, other)
    assert 'box: "0:2,0:64,0:64" -> "0:1,0:64,0:64"' in str(caught.value)
    assert "shard: [2, 32, 32] -> [1, 16, 32]" in str(caught.value)
    assert resume.read_existing_record(job.output, True) is None


def test_another_zarr_folder_or_file_is_never_overwritten(job, em, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for path in (em, tmp_path / "folder", tmp_path / "file"):
        for overwrite in (False, True):
            with pytest.raises(ValueError, match="choose another --output"):
                resume.read_existing_record(str(path), overwrite)


def test_an_output_without_its_ledger_or_a_ledger_without_its_output_is_an_error(job):
    ledger = start_output(job)
    ledger.storage.delete("settings.json")
    with pytest.raises(ValueError, match=r"ledger, .*out\.zarr\.ledger, is gone"):
        resume.read_existing_record(job.output, False)
    ledger.start(job.record)
    existing_output.remove_output(job.output)
    assert resume.read_existing_record(job.output, False) == job.record  # no block was done
    ledger.record("s0", "0_0_0")
    with pytest.raises(ValueError, match="lists finished blocks, but"):
        resume.read_existing_record(job.output, False)


def test_a_setting_that_an_older_record_does_not_name_had_its_default(job):
    older = json.loads(json.dumps(job.record))
    del older["network"]["pool_z"], older["task"]["ignore_label"], older["skip_blank"]
    del older["arithmetic"]["tta"], older["arithmetic"]["fold"]
    resume.check_same_settings(older, job)
    older["network"]["start_filters"] += 1
    message = r"other settings:\n  network\.start_filters: \d+ -> \d+\nGive another --output"
    with pytest.raises(ValueError, match=message):
        resume.check_same_settings(older, job)


def test_versions_are_reported_and_not_compared(job, run, em, make_job, tmp_path):
    start_output(job)
    PrecomputedCopy.create(job.precomputed, job.spec)
    other = make_job(run, tmp_path / "out.zarr", image=em, copy=job.precomputed, shard=[2, 32, 32])
    other.record["versions"]["torch"] = "99.0"
    record = resume.read_existing_record(job.output, False)
    resume.check_same_settings(record, other)
    resume.check_precomputed_copy(other, False)
    before = job.record["versions"]["torch"]
    assert resume.version_changes(record, other) == f"versions since the start of this output: torch {before} -> 99.0"
    assert resume.version_changes(record, job) == resume.version_changes(None, job) == ""


def test_all_files_of_an_earlier_segmentation_are_removed_but_its_lock_and_files_of_others(job, tmp_path, read_files):
    ledger = start_output(job)
    ledger.record("s0", "0_0_0")
    ledger.set_aside("s0", "0_0_1", {})
    ledger.storage.write_bytes("lock.json", b"{}")
    PrecomputedCopy.create(job.precomputed, job.spec)
    for name in ("out.zarr.progress.json", "out.zarr.synapses.csv", "other.txt"):
        (tmp_path / name).write_text("{}")
    resume.remove_segmentation(job)
    assert set(read_files(tmp_path)) == {"out.zarr.ledger/lock.json", "other.txt"}


def make_inputs(**settings):
    defaults = dict.fromkeys(("device", "precision", "compile", "fold"), "auto")
    defaults |= {"tile": None, "batch": None, "tta": False}
    return SimpleNamespace(settings=SimpleNamespace(segment=SimpleNamespace(**defaults | settings)))


def test_inference_settings_of_the_record_are_kept_unless_others_are_requested(job):
    record = json.loads(json.dumps(job.record))
    for same in ({}, {"device": "cpu"}, {"precision": "float32"}, {"compile": "on"}, {"tile": job.inference.tile}):
        assert resume.restore_inference_settings(record, make_inputs(**same)) == job.inference
    others = ({"device": "cuda"}, {"precision": "bf16"}, {"fold": "on"}, {"batch": 4}, {"tta": True})
    for other in (*others, {"tile": [1, 32, 32]}):
        assert resume.restore_inference_settings(record, make_inputs(**other)) != job.inference
    with pytest.raises(ValueError, match="another version"):
        resume.restore_inference_settings({"arithmetic": {"speed": 3}}, make_inputs())


def test_a_copy_at_another_path_or_one_that_is_gone_is_written_again(job, changed, tmp_path):
    ledger = start_output(job)
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


def test_the_copy_of_another_output_is_not_overwritten(job, run, em, make_job, tmp_path):
    resume.check_precomputed_copy(job, False)
    PrecomputedCopy.create(job.precomputed, job.spec)
    resume.check_precomputed_copy(job, False)
    other = make_job(run, tmp_path / "out.zarr", image=em, copy=job.precomputed, threshold=0.9)
    with pytest.raises(ValueError, match="with other settings; choose another path for --precomputed"):
        resume.check_precomputed_copy(other, False)
    resume.check_precomputed_copy(other, True)
    no_copy = make_job(run, tmp_path / "out.zarr", image=em, copy=em)
    with pytest.raises(ValueError, match="choose another path for --precomputed"):
        resume.check_precomputed_copy(no_copy, True)
