"""jobs/view.py as a process: what it shows and says, and verdicts that jobs/evaluate.py turns into a precision."""

import csv
import io
import json
import re
import signal
import urllib.request

import numpy as np
import pytest
from PIL import Image

SCRIPT = "jobs/view.py"
IMAGE = "phantom://em?shape=16,256,256&seed=7"
ANNOTATION = "phantom://membrane?shape=16,256,256&seed=7"


@pytest.fixture(scope="module")
def output(start_job, tiny_flags, tmp_path_factory):
    """Return an output with a mask and objects, and the folder of the run whose network made it."""
    folder = tmp_path_factory.mktemp("viewed")
    run = start_job(*tiny_flags, "--storage", folder, "--name", "run").wait()
    assert run.code == 0, run.out + run.err
    path = folder / "out.zarr"
    arguments = ["--weights", folder / "run", "--output", path, "--box", "2:14,32:224,16:240", "--image", IMAGE]
    job = start_job(*arguments, "--save-mask", "--objects", script="jobs/segment.py").wait()
    assert job.code == 0, job.out + job.err
    return path


def read_json(url):
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.loads(answer.read())


def test_help_is_quick_and_lists_the_flags(help_text):
    text = help_text(SCRIPT)
    for flag in (
        *("--output", "--run", "--evaluation", "--image", "--annotation", "--position", "--size", "--layout"),
        *("--screenshot", "--link", "--review", "--port", "--bind", "--browser", "--boss", "--cache", "--verbose"),
    ):
        assert flag in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to show: give --output, --run, --evaluation or --image"),
        (("--output", "none.zarr"), "none.zarr"),
        (("--output", "a.zarr", "--run", "b"), "one of them is shown at a time"),
        (("--image", IMAGE, "--position", "5,5"), "not three voxels z,y,x"),
        (("--image", IMAGE, "--position", "5,5,5000"), "outside of phantom"),
        (("--image", IMAGE, "--size", "wide"), "not width and height"),
        (("--image", IMAGE, "--screenshot", "a.jpg"), "ends with .png"),
        (("--image", IMAGE, "--screenshot", "a.png", "--browser", "/none/at/all"), "install one"),
        (("--image", IMAGE, "--review", "5"), "--review needs --output"),
        (("--image", IMAGE, "--link"), "not so of: image"),
        (("--image", IMAGE, "--port", "70000"), "--port 70000"),
    ],
)
def test_bad_input_is_an_error_before_anything_is_served(start_job, tmp_path, arguments, message):
    job = start_job(*arguments, script=SCRIPT, cwd=tmp_path).wait()
    assert job.code == 2, job.out + job.err
    assert message in job.err
    assert "Traceback" not in job.err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_output_is_served_with_all_its_layers_until_ctrl_c(start_job, output):
    arguments = ["--output", output, "--annotation", ANNOTATION]
    job = start_job(*arguments, script=SCRIPT, env={"SSH_CONNECTION": "1 2 3 4", "DISPLAY": ""})
    url = job.wait_for_line("http://127.0.0.1:")
    port, token = re.match(r"http://127\.0\.0\.1:(\d+)/v/(\w+)/", url).groups()
    assert any(f"ssh -L {port}:127.0.0.1:{port} " in line for line in job.lines)
    for layer in ("image", "membrane", "mask", "objects", "annotation"):
        assert read_json(f"http://127.0.0.1:{port}/data/{token}/{layer}/info")["scales"], layer
    job.process.send_signal(signal.SIGINT)
    job.wait()
    assert job.code == 0, job.err


@pytest.mark.slow
def test_the_voxels_of_the_objects_are_those_of_the_table(start_job, output):
    import tensorstore as ts

    job = start_job("--output", output, script=SCRIPT)
    url = job.wait_for_line("http://127.0.0.1:").replace("/v/", "/data/")
    spec = {"driver": "neuroglancer_precomputed", "kvstore": f"{url}objects/"}
    store = ts.open(spec, read=True).result()
    ids = np.asarray(store[ts.d["channel"][0]].read().result()).transpose()
    with open(f"{output}.objects.csv") as file:
        rows = list(csv.DictReader(file))
    assert rows
    sizes = np.bincount(ids.ravel().astype(int), minlength=len(rows) + 1)
    assert sizes[1:].tolist() == [int(row["size_voxels"]) for row in rows]
    # A place in nm: the middle of a voxel of an image without an offset is half a voxel after its index.
    offset = np.array(store.domain.inclusive_min[:3])[::-1]
    middle = (np.argwhere(ids == 1).mean(0) + offset) * (30, 6, 6)
    np.testing.assert_allclose(middle, [float(rows[0][f"centroid_{axis}_nm"]) for axis in "zyx"], atol=1e-2)
    properties = read_json(f"{url}objects/segment_properties/info")["inline"]
    assert properties["ids"] == [row["id"] for row in rows]


@pytest.mark.slow
def test_an_unfinished_output_shows_which_blocks_are_done(start_job, output, tmp_path):
    import shutil

    import tensorstore as ts

    copy = tmp_path / "part.zarr"
    for suffix in ("", ".ledger", ".progress.json", ".objects.csv"):
        source = output.with_name(output.name + suffix)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / f"part.zarr{suffix}")
    (record,) = (tmp_path / "part.zarr.ledger" / "s0").iterdir()
    record.unlink()
    progress = tmp_path / "part.zarr.progress.json"
    progress.write_text(json.dumps({**json.loads(progress.read_text()), "state": "failed"}))
    job = start_job("--output", copy, script=SCRIPT)
    url = job.wait_for_line("http://127.0.0.1:").replace("/v/", "/data/")
    assert any("the output is not finished (failed): 0 of 1 block segmented" in line for line in job.lines)
    store = ts.open({"driver": "neuroglancer_precomputed", "kvstore": f"{url}blocks/"}, read=True).result()
    assert np.asarray(store.read().result()).ravel().tolist() == [2]
    names = read_json(f"{url}blocks/segment_properties/info")["inline"]
    assert names["ids"] == ["1", "2", "3"]


@pytest.mark.browser
def test_a_screenshot_shows_image_and_result(start_job, output, tmp_path):
    arguments = ["--output", output, "--screenshot", tmp_path / "out.png", "--size", "400,300"]
    job = start_job(*arguments, script=SCRIPT).wait()
    assert job.code == 0, job.out + job.err
    assert job.lines[-1] == str(tmp_path / "out.png")
    pixels = np.asarray(Image.open(io.BytesIO((tmp_path / "out.png").read_bytes())).convert("RGB")).astype(int)
    assert pixels.shape == (300, 400, 3)
    is_colored = np.ptp(pixels, axis=-1) > 30
    assert 0.02 < is_colored.mean() < 0.95
    assert len(np.unique(pixels[~is_colored][:, 0])) > 50  # grey levels of the image


@pytest.mark.browser
def test_a_run_and_an_evaluation_are_shown(start_job, output, tmp_path):
    arguments = ["--prediction", output, "--annotation", ANNOTATION, "--out", tmp_path / "evaluation"]
    job = start_job(*arguments, script="jobs/evaluate.py").wait()
    assert job.code == 0, job.out + job.err
    assert "jobs/view.py --evaluation" in re.sub("<.*?>", "", (tmp_path / "evaluation" / "index.html").read_text())
    run = output.with_name("run")
    assert "jobs/view.py --run" in re.sub("<.*?>", "", (run / "index.html").read_text())
    for flag, path in (("--run", run), ("--evaluation", tmp_path / "evaluation")):
        picture = tmp_path / f"{flag[2:]}.png"
        job = start_job(flag, path, "--screenshot", picture, "--size", "400,300", script=SCRIPT).wait()
        assert job.code == 0, job.out + job.err
        pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
        assert (np.ptp(pixels, axis=-1) > 30).mean() > 0.02


@pytest.mark.slow
def test_verdicts_become_a_precision_with_an_interval(start_job, output, tmp_path):
    from dataclasses import replace

    from kasthuri_ray.output.reviewed_file import KEEP, REJECT, UNSURE, write_reviewed
    from kasthuri_ray.output.side_files import read_object_table
    from kasthuri_ray.viewer.review_sample import draw_objects

    rows = read_object_table(f"{output}.objects.csv")
    drawn = draw_objects(rows, 30)
    verdicts = [KEEP, KEEP, KEEP, REJECT, UNSURE]
    reviewed = [replace(each, verdict=verdicts[number % 5]) for number, each in enumerate(drawn)]
    path = tmp_path / "out.reviewed.csv"
    write_reviewed(str(path), reviewed)
    job = start_job("--prediction", output, "--reviewed", path, script="jobs/evaluate.py").wait()
    assert job.code == 0, job.out + job.err
    assert job.lines[0] == job.lines[-1] == str(tmp_path / "out.reviewed.evaluation")
    result = json.loads((tmp_path / "out.reviewed.evaluation" / "reviewed.json").read_text())
    found = result["precision"]
    assert 0 <= found["low"] <= found["precision"] <= found["high"] <= 1
    assert f"precision {found['precision']:.3f} (95% interval {found['low']:.3f} to {found['high']:.3f})" in job.out
    assert result["unsure_as_wrong"]["precision"] < found["precision"] < result["unsure_as_right"]["precision"]
    assert result["objects"] == len(rows)
    wrong = start_job("--prediction", output, "--reviewed", path, "--annotation", ANNOTATION, script="jobs/evaluate.py")
    assert wrong.wait().code == 2
    write_reviewed(str(path), [replace(reviewed[0], size_voxels=reviewed[0].size_voxels + 1)])
    other = start_job("--prediction", output, "--reviewed", path, script="jobs/evaluate.py").wait()
    assert other.code == 2
    assert f"is not of {output}" in other.err


@pytest.mark.slow
def test_a_review_begins_with_image_and_objects_alone(output):
    from kasthuri_ray.config.view_settings import ViewSettings
    from kasthuri_ray.progress import Reporter
    from kasthuri_ray.viewer.view import view

    viewing = view(ViewSettings(output=str(output), review=2), Reporter(), opens_browser=False)
    layers = viewing.server.viewer.state.to_json()["layers"]
    viewing.close()
    assert [layer["name"] for layer in layers if layer.get("visible", True)] == ["image", "objects"]
