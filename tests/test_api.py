"""The Python API: a training, a segmentation and a comparison on arrays, and what it leaves behind."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

import kasthuri_ray
from kasthuri_ray import api
from kasthuri_ray.config import flags
from kasthuri_ray.errors import AlreadyFinished, InputError
from kasthuri_ray.evaluation.evaluate import EvaluateResult
from kasthuri_ray.progress import Reporter
from kasthuri_ray.training.train import TrainResult

ROOT = Path(__file__).resolve().parents[1]
NETWORK = {"start_filters": 4, "n_blocks": 2, "epochs": 1, "tiles_per_epoch": 8, "batch_size": 4}
RANGES = {"xrange_vol": [0, 128], "yrange_vol": [0, 128], "z_train": [0, 8], "z_val": [8, 11], "z_test": [11, 16]}
TASK = {"name": "arrays", "tile_size": [64, 64], "task_type": "membrane", **RANGES}


@pytest.fixture(scope="session")
def voxels():
    """An image and its annotation, as arrays."""
    uri = "phantom://{}?shape=16,128,128&seed=7"
    return tuple(kasthuri_ray.open_volume(uri.format(name))[:] for name in ("em", "membrane"))


def test_importing_the_package_is_quick_and_loads_no_heavy_package():
    code = (
        "import sys, time; start = time.perf_counter(); import kasthuri_ray; seconds = time.perf_counter() - start\n"
        "assert not {'torch', 'ray', 'numpy', 'pydantic', 'tensorstore'} & sys.modules.keys(); assert seconds < 0.2\n"
        "assert set(kasthuri_ray.__all__) < set(dir(kasthuri_ray))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_process_that_starts_a_training_draws_nothing():
    """Matplotlib takes part of a second to import, and prints a warning where there is no home folder."""
    code = "import sys, kasthuri_ray.training.train; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = kasthuri_ray.trian


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (lambda: api.train("synapse", num_worker=2), "did you mean 'num_workers'?"),
        (lambda: api.segment("run", "out.zarr", xyz=1), "it takes actors, allow_empty"),
        (lambda: api.evaluate("p", "a", treshold=0.5), "did you mean 'threshold'?"),
        (lambda: api.tune("synapse", sample=3), "did you mean 'samples'?"),
        (lambda: api.open_volume("x.zarr", cach="none"), "did you mean 'cache'?"),
        (lambda: api.train("synapse", labels="x.zarr"), "did you mean 'annotation'?"),
        (lambda: api.train("synapse", epochs=3), "it is a setting: settings={'network.epochs': 3}"),
        (lambda: api.segment("run", "out.zarr", table=True), "did you mean 'objects'?"),
        (lambda: api.segment("run", "out.zarr", no_skip_blank=True), "did you mean skip_blank=False?"),
    ],
)
def test_an_unknown_keyword_argument_is_refused_with_what_to_write_instead(call, hint):
    with pytest.raises(TypeError) as error:
        call()
    assert hint in str(error.value)


@pytest.mark.parametrize(
    ("job", "keywords", "positional"),
    [
        ("train", flags.TrainFlags, {"task"}),
        ("tune", flags.TuneFlags, {"task"}),
        ("segment", flags.SegmentFlags, {"weights", "output"}),
        ("evaluate", flags.EvaluateFlags, {"prediction", "annotation"}),
        ("view", flags.ViewFlags, {"output"}),
    ],
)
def test_the_keyword_arguments_are_the_flags_of_the_job(load_module, job, keywords, positional):
    parser = load_module(ROOT / "jobs" / f"{job}.py").make_parser()
    of_the_job = {action.dest for action in parser._actions} - {"help", argparse.SUPPRESS}
    assert of_the_job - set(keywords.__annotations__) == positional
    assert set(keywords.__annotations__) - of_the_job <= {
        "network",
        "voxel_size",
        "resample",
        "allow_empty",
    }  # of a sweep


def test_paths_slices_and_nested_settings_are_what_their_texts_are():
    def given(section, **values):
        return api.given_settings(section, values)

    assert given("segment", output=Path("a/b.zarr"), box=np.s_[0:4, :, 5:]) == given(
        "segment", output="a/b.zarr", box="0:4,:,5:"
    )
    nested = given("train", settings={"network": {"epochs": 3}, "task.z_test": (1, 2)})
    assert nested == given("train", settings={"network.epochs": 3, "task.z_test": [1, 2]})
    assert nested.assignments == ["network.epochs=3", "task.z_test=[1, 2]"]
    assert given("train", task=Path("t.json"), network=Path("n.json")).network == "n.json"


class Network:
    """Stands for a network that a person wrote."""


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: api.segment(TrainResult("runs/a", {}), "out.zarr"),
            "weights is a TrainResult; give its path, 'runs/a'",
        ),
        (lambda: api.evaluate(EvaluateResult("e", {}), "a.zarr"), "not EvaluateResult; give its path, 'e'"),
        (lambda: api.segment("run", "out.zarr", box=np.s_[0:4]), "box is slice(0, 4, None); expected text such as"),
        (lambda: api.segment("run", "out.zarr", box=np.s_[::2, :, :]), "or three slices z, y, x"),
        (lambda: api.train(TASK, network=Network()), f'network={{"model": "{__name__}.Network"}}'),
        (lambda: api.train(TASK, network={"model": Network}), f'network={{"model": "{__name__}.Network"}}'),
        (lambda: api.train(TASK, settings="network.epochs=3"), 'such as settings={"network.epochs": 3}'),
        (lambda: api.train(TASK, settings={"task.image_chan": np.zeros(3)}), "is given as the argument image"),
        (lambda: api.train(TASK, image=api.open_volume("phantom://em?shape=4,64,64")), "image is an opened volume"),
        (lambda: api.train(TASK, annotation=np.zeros((3, 4))), "annotation is an array of float64, shape (3, 4)"),
        (lambda: api.train("phantom_synapse", voxel_size=(30, 6)), "none below 0, such as 30,6,6"),
        (lambda: api.open_volume("phantom://em?shape=4,64,64", voxel_size=6), "such as (30, 6, 6)"),
        (lambda: api.open_volume("phantom://em?shape=4,64,64", voxel_size=(30, 6, 0)), "such as (30, 6, 6)"),
        (lambda: api.open_volume(np.zeros((4, 4, 4))), "by its path or URI, not by a ndarray"),
    ],
)
def test_an_argument_of_another_kind_is_refused_with_what_to_write_instead(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        call()
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_voxel_size_is_a_tuple_or_text():
    for size in ((40, 4, 4), "40,4,4"):
        assert api.open_volume("phantom://em?shape=4,64,64", voxel_size=size).voxel_size_nm == (40.0, 4.0, 4.0)


def test_bad_input_raises_before_any_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"network\.epochs"):
        api.train("phantom_synapse", settings={"network.epochs": "many"})
    with pytest.raises(InputError, match="there is no"):
        api.segment("no_run", "out.zarr")
    with pytest.raises(InputError, match="not list"):
        api.train(TASK, image=[[1]])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_arrays_are_trained_on_segmented_and_compared(voxels, local_ray, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    image, annotation = voxels
    lines = Reporter()
    volumes = {"image": image, "annotation": annotation}
    choices = {"network": NETWORK, "name": "run", "num_workers": 1, "compile": "off", **volumes}
    run = kasthuri_ray.train(TASK, reporter=lines, **choices)
    assert run.path == str(tmp_path / "outputs" / "run")
    assert 0 <= run.metrics["test"]["foreground_f1"] <= 1
    output = kasthuri_ray.segment(
        run.path, "out.zarr", image=image, objects=True, threshold=0.3, actors=1, compile="off"
    )
    assert (output.path, output.num_set_aside) == (str(tmp_path / "out.zarr"), 0)
    probabilities = kasthuri_ray.open_volume(output.path)
    assert probabilities.shape == image.shape
    assert len(output.table) == len((tmp_path / "out.zarr.objects.csv").read_text().splitlines()) - 1
    white, as_bool = annotation * 255, {"task.threshold": True}
    for prediction, labels, settings in (
        (output.path, annotation, None),
        (probabilities[:], annotation, None),
        (output.path, white, as_bool),
        (probabilities[:], white, as_bool),
    ):
        task = TASK if isinstance(prediction, np.ndarray) else None  # else that of the prediction
        flags = {"task": task, "threshold": 0.5, "out": "result", "settings": settings, "overwrite": True}
        result = kasthuri_ray.evaluate(prediction, labels, **flags)
        assert result.path == str(tmp_path / "result")
        confusion = result.metrics["voxels"], result.metrics["foreground_f1"], result.metrics["precision"]
        foreground = probabilities[:] >= 127.5
        assert confusion == (image.size, *map(pytest.approx, scores(foreground, annotation > 0)))
    advice = r"the annotation holds 255 .*mean\? Ids of objects, or 0 and 255: --set task\.threshold"
    with pytest.raises(InputError, match=advice):
        kasthuri_ray.evaluate(output.path, white, out="result")
    with pytest.raises(InputError, match=r"^--set task\.threshold=7: expected true or false"):
        kasthuri_ray.evaluate(output.path, white, out="result", settings={"task.threshold": 7})
    assert local_ray.is_initialized()
    files = times_of_files(tmp_path / "outputs")
    capfd.readouterr()
    again = kasthuri_ray.train(TASK, **{**choices, "image": image.copy()})
    assert again == run
    assert "the run run is finished, after 1 epoch" in "".join(capfd.readouterr())
    with pytest.raises(AlreadyFinished, match="the run run is finished"):
        kasthuri_ray.train(TASK, return_finished=False, **choices)
    with pytest.raises(InputError, match=r"started with other settings:\n  network\.batch_size: 4 -> 2"):
        kasthuri_ray.train(TASK, settings={"network.batch_size": 2}, **choices)
    assert times_of_files(tmp_path / "outputs") == files


def times_of_files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def scores(found: np.ndarray, true: np.ndarray) -> tuple[float, float]:
    """Return F1 and precision of the foreground."""
    both = int((found & true).sum())
    return 2 * both / (int(found.sum()) + int(true.sum())), both / max(1, int(found.sum()))


@pytest.mark.slow
def test_a_sweep_takes_its_space_as_a_dict_and_returns_its_result_again(
    voxels, local_ray, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    choices = {
        **{"image": voxels[0], "annotation": voxels[1], "network": NETWORK, "name": "sweep", "compile": "off"},
        "space": {"network.learning_rate": {"choice": (0.002, 0.02)}},
        "search": "grid",
    }
    sweep = kasthuri_ray.tune(TASK, **choices)
    assert sorted(row["values"]["network.learning_rate"] for row in sweep.leaderboard) == [0.002, 0.02]
    assert sweep.best == sweep.leaderboard[0]
    trial = tmp_path / "outputs" / "sweep" / "trials" / sweep.best["id"]
    assert sweep.metrics == json.loads((trial / "metrics.json").read_text())
    assert sweep.metrics["val"]["average_precision"] == pytest.approx(sweep.best["score"], abs=1e-3)
    assert kasthuri_ray.tune(TASK, **choices) == sweep
    assert kasthuri_ray.tune(name="sweep") == sweep
    with pytest.raises(AlreadyFinished, match="all 2 combinations of its space have been tried"):
        kasthuri_ray.tune(name="sweep", return_finished=False)
    with pytest.raises(InputError, match="started with other settings"):
        kasthuri_ray.tune(TASK, **{**choices, "space": {"network.learning_rate": {"choice": [0.002, 0.01]}}})


@pytest.mark.slow
def test_clefts_of_cremi_are_read_alike_by_training_resuming_segmentation_and_evaluation(
    voxels, local_ray, tmp_path, monkeypatch, capfd
):
    """Their background is 2**64 - 1, and the first cleft has the id 0."""
    monkeypatch.chdir(tmp_path)
    none, clefts = 2**64 - 1, np.full((16, 128, 128), 2**64 - 1, np.uint64)
    for number, start in enumerate((10, 50, 90)):
        clefts[:, start : start + 20, 20:100] = number
    clefts[:, 120:] = 2**64 - 3  # outside
    with h5py.File("sample.hdf", "w") as file:
        for name, array in (("raw", voxels[0]), ("labels/clefts", clefts)):
            stored = file.create_dataset(f"volumes/{name}", data=array, chunks=(1, 64, 64), compression="gzip")
            stored.attrs["resolution"], stored.attrs["offset"] = (40.0, 4.0, 4.0), (0.0, 0.0, 0.0)
    image, annotation = (f"sample.hdf:volumes/{name}" for name in ("raw", "labels/clefts"))
    volumes = {"image": image, "annotation": annotation}
    task = {**TASK, "task_type": "synapse", "threshold": True}
    train = {"network": NETWORK, "name": "run", "num_workers": 1, "compile": "off", **volumes}

    def lines() -> list[str]:
        return [line for line in capfd.readouterr().out.splitlines() if f"the label {none} fills" in line]

    run = kasthuri_ray.train(task, reporter=Reporter(), **train)
    test = clefts[11:16]
    counts = {"background": (test == none).sum(), "foreground": (test < 3).sum()}
    assert [sum(row) for row in run.metrics["test"]["confusion"]] == [counts["background"], counts["foreground"]]
    assert len(lines()) == 1
    kasthuri_ray.train(task, reporter=Reporter(), settings={"network.epochs": 2}, **train)
    assert lines() == []
    recorded = json.loads(Path("outputs/run/settings.json").read_text())["task"]
    assert recorded["background"] == [none]

    kasthuri_ray.segment(run.path, "out.zarr", actors=1, compile="off")
    result = kasthuri_ray.evaluate("out.zarr", annotation, box="11:16,:,:", reporter=Reporter())
    assert lines() == []
    assert result.metrics["background"] == [none]
    assert result.metrics["voxels"] == counts["background"] + counts["foreground"]
    assert result.metrics["objects"]["num_true"] == 3


@pytest.mark.slow
def test_ray_is_stopped_if_it_was_not_running_before(tmp_path):
    code = (
        "import kasthuri_ray, ray\n"
        "for kept in (False, True):\n"
        "    if kept: ray.init('local', num_cpus=1, include_dashboard=False, log_to_driver=False)\n"
        "    kasthuri_ray.evaluate('phantom://synapse?shape=4,64,64&seed=7', 'phantom://synapse?shape=4,64,64&seed=7',\n"
        "                          task='phantom_synapse', out=f'r{kept}')\n"
        "    assert ray.is_initialized() == kept"
    )
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
