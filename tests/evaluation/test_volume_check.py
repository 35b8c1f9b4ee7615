"""The check of a volume: the text and the page that it leaves, what is to be corrected, and what is refused."""

import html
import io
import re
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import zarr

from kasthuri_ray.config.settings import CheckSettings
from kasthuri_ray.errors import InputError
from kasthuri_ray.evaluation.volume_check import check_volume
from kasthuri_ray.progress import Reporter
from kasthuri_ray.reports.volume_page import PAGE_MARK

NONE = 2**64 - 1  # CREMI's label where there is no cleft


@pytest.fixture
def check(tmp_path, monkeypatch, capsys):
    """Return `check(volume, annotation, ...)`: its result, rows of the text by table, other lines, and the page."""
    monkeypatch.chdir(tmp_path)

    def call(volume, annotation=None, **settings) -> SimpleNamespace:
        lines = io.StringIO()
        given = {"volume": str(volume), "cache": "none", **settings}
        given |= {"annotation": str(annotation)} if annotation else {}
        is_fit = check_volume(CheckSettings(**given), Reporter(lines))
        assert set(capsys.readouterr().out.split()) == {str(tmp_path / settings.get("out", "volume_check"))}
        tables, others, caption = {}, [], ""
        for line in lines.getvalue().splitlines():
            if line.startswith("  "):
                name, _, value = line.strip().partition("  ")
                tables[caption][name] = value.strip()
            elif line.startswith(("note", "fix")):
                others.append(line)
            else:
                caption = line.partition(" ")[0]
                tables[caption] = {}
        page = (tmp_path / settings.get("out", "volume_check") / "index.html").read_text()
        return SimpleNamespace(is_fit=is_fit, **tables, lines=others, page=page)

    return call


@pytest.fixture
def em(tmp_path):
    """An image of 30 x 6 x 6 nm at z 300 nm."""
    voxels = np.random.default_rng(0).integers(1, 256, (12, 80, 90), np.uint8)
    stored = zarr.create_array(tmp_path / "em.zarr", data=voxels, chunks=(4, 32, 32))
    stored.attrs.update({"resolution": [30, 6, 6], "offset": [300, 0, 0]})
    return tmp_path / "em.zarr"


def write_labels(path, labels, offset=(360, 60, 120), size=(30, 6, 6)):
    with h5py.File(path, "w") as file:
        stored = file.create_dataset("labels", data=labels, compression="gzip")
        stored.attrs["resolution"], stored.attrs["offset"] = np.array(size, float), np.array(offset, float)
    return path


def shown_boxes(page: str) -> list[str]:
    text = html.unescape(page).replace("<wbr>", "")
    return re.findall(r"Section z \d+\.</b> Box ([\d:,]+) in voxels", text)


def test_an_annotation_is_laid_on_its_image_and_its_foreground_is_counted(check, em, tmp_path):
    labels = np.zeros((6, 40, 50), np.uint32)
    labels[0, 5:9, 10:20], labels[2, :2, :2], labels[5, 0, 0] = 8, 8, 9
    checked = check(em, write_labels(tmp_path / "labels.h5", labels))
    assert checked.is_fit
    (line,) = checked.lines  # a training takes labels 8 and 9 for neither
    assert line.startswith("note  a training takes labels 0 and 1 alone.")
    assert "--set task.threshold=true" in line
    assert checked.alignment["overlap"] == "2:8,10:50,20:70 in voxels of the image (z,y,x)"
    assert checked.alignment["covered"].startswith("100% of the annotation, 13.9% of the image")
    assert checked.alignment["remainder"] == "none: whole voxels lie on whole voxels"
    assert checked.annotation["foreground"].startswith(f"{100 * 45 / labels.size:.3g}% of the sample; without --task")
    assert checked.annotation["distinct values"].startswith("0 (99.6%), 8 (")
    # Of each third of the overlap the section with the most foreground.
    assert shown_boxes(checked.page) == [f"{z}:{z + 1},10:50,20:70" for z in (2, 4, 7)]
    assert checked.page.count('alt="image,') == checked.page.count('alt="annotation,') == 3
    assert "foreground (blue)" in checked.page


def test_the_rule_of_a_task_says_what_is_foreground(check, em, tmp_path):
    labels = np.random.default_rng(0).integers(0, 4, (6, 40, 50)).astype(np.uint8)
    path = write_labels(tmp_path / "labels.h5", labels)
    task = {"threshold": True, "threshold_value": 1, "ignore_label": 3}
    (tmp_path / "mine.json").write_text(str({**RANGES, **task}).replace("'", '"').replace("True", "true"))
    checked = check(em, path, task=str(tmp_path / "mine.json"))
    share = (labels == 2).sum() / (labels != 3).sum()
    expected = (
        f"{100 * share:.3g}% of the labelled voxels of the sample; by the task mine: labels above 1 are foreground"
    )
    assert checked.annotation["foreground"] == expected
    assert checked.annotation["ignored"] == f"{100 * (labels == 3).mean():.3g}% of the sample"
    assert "ignored (yellow)" in checked.page
    classes = check(em, path, task="membrane")
    assert classes.annotation["foreground"].endswith("1 to 3 are foreground (network.classes=4)")


RANGES = {"name": "mine", "xrange_vol": [0, 9], "yrange_vol": [0, 9], "z_train": [0, 1], "z_val": [1, 2]}


def test_labels_that_a_task_refuses_are_to_be_corrected(check, em, tmp_path):
    ids = np.full((6, 40, 50), 5000, np.uint32)
    checked = check(em, write_labels(tmp_path / "ids.h5", ids), task="membrane")
    assert not checked.is_fit
    assert checked.annotation["foreground"] == "unknown: the labels do not fit the task"
    (line,) = checked.lines
    assert line.startswith("fix ")
    assert "--set task.threshold=true" in line
    assert "1 problem to correct before these volumes can be used." in checked.page


def test_labels_without_background_are_noted(check, em, tmp_path):
    ids = np.arange(1, 6 * 40 * 50 + 1, dtype=np.uint32).reshape(6, 40, 50)
    checked = check(em, write_labels(tmp_path / "ids.h5", ids))
    assert any("no voxel of the sample is background" in line for line in checked.lines)


def test_a_background_of_cremi_is_found_out(check, em, tmp_path):
    labels = np.full((6, 40, 50), NONE, np.uint64)
    labels[3, :10, :10] = 0
    checked = check(em, write_labels(tmp_path / "labels.h5", labels))
    assert checked.is_fit
    assert checked.annotation["foreground"].startswith("0.833% of the sample")
    assert f"every label but {NONE} is foreground" in checked.annotation["foreground"]
    assert len(checked.lines) == 1


def test_volumes_that_do_not_align_are_shown_alone_with_the_reason(check, em, tmp_path):
    labels = write_labels(tmp_path / "labels.h5", np.ones((6, 40, 50), np.uint8), size=(30, 12, 12))
    checked = check(em, labels)
    assert not checked.is_fit
    assert "voxel sizes differ" in checked.alignment["refused"]
    assert "30 x 12 x 12 nm" in checked.alignment["refused"]
    assert len(shown_boxes(checked.page)) == 6
    far = check(em, write_labels(tmp_path / "far.h5", np.ones((6, 40, 50), np.uint8), offset=(9000, 0, 0)))
    assert "do not overlap" in far.alignment["refused"]
    between = check(em, write_labels(tmp_path / "b.h5", np.ones((6, 40, 50), np.uint8), offset=(360, 62, 120)))
    assert between.is_fit
    assert "moved to whole voxels, by 0.00,0.33,0.00 voxel" in between.alignment["remainder"]


def test_an_image_of_which_nothing_is_stored_is_to_be_corrected(check, tmp_path):
    zarr.create_array(tmp_path / "x.zarr", shape=(20, 400, 500), chunks=(4, 64, 64), dtype="u1", fill_value=0)
    checked = check(tmp_path / "x.zarr")
    assert not checked.is_fit
    assert any("no chunk of" in line for line in checked.lines)
    assert checked.image["absent chunks"] == "280 of 280 chunks"


def test_of_large_sections_a_part_is_shown_where_the_annotation_has_foreground(check, tmp_path):
    image = zarr.create_array(tmp_path / "em.zarr", shape=(9, 3000, 3000), chunks=(1, 500, 500), dtype="u1")
    image[...] = 100
    labels = zarr.create_array(tmp_path / "labels.zarr", shape=(9, 3000, 3000), chunks=(1, 500, 500), dtype="u1")
    labels[4, 2900:2950, 100:140] = 1
    checked = check(tmp_path / "em.zarr", tmp_path / "labels.zarr")
    parts = [[range(*map(int, side.split(":"))) for side in box.split(",")] for box in shown_boxes(checked.page)]
    assert all(max(map(len, part)) <= 512 for part in parts)
    assert any(4 in z and 2920 in y and 120 in x for z, y, x in parts)


def test_the_range_of_grey_levels_is_that_of_the_task_or_of_the_sample(check, tmp_path):
    image = np.random.default_rng(0).normal(1000, 50, (5, 60, 60)).astype(np.float32)
    zarr.create_array(tmp_path / "x.zarr", data=image)
    low, high = np.percentile(image, (0.5, 99.5), method="inverted_cdf")
    text = check(tmp_path / "x.zarr").image["black and white"]
    assert text.startswith(
        f"{low:g} and {high:g}, the percentiles 0.5 and 99.5 of the sample; an image of floats needs"
    )
    dark = zarr.create_array(tmp_path / "dark.zarr", data=(image > 1000).astype(np.uint8) + 1)
    checked = check(dark.store.root)
    assert checked.image["black and white"] == "0 and 255, those of uint8"
    assert any(line.startswith("note") and "of the grey levels 0 to 255" in line for line in checked.lines)


def test_an_earlier_page_is_replaced_and_any_other_page_is_not(check, em, tmp_path):
    first = check(em, out="here").page
    assert PAGE_MARK in first
    (tmp_path / "here" / "mine.txt").write_text("mine")
    assert check(f"{em}?voxel_size_nm=30,5,5", out="here").page != first
    assert (tmp_path / "here" / "mine.txt").read_text() == "mine"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "index.html").write_text("<html>mine</html>")
    with pytest.raises(InputError, match="is another page, which is not replaced; choose another --out"):
        check(em, out="other")
    assert (tmp_path / "other" / "index.html").read_text() == "<html>mine</html>"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"volume": "none.zarr"}, "none.zarr"),
        ({"annotation": "none.h5"}, "--annotation none.h5: there is no "),
        ({"task": "synapses"}, "did you mean synapse?"),
        ({"mip": 2}, "mip 2 does not exist"),
        ({"out": "em.zarr/check"}, "is in the folder of"),
        ({"volume": "em.zarr?axes=zy"}, "axes=zy"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(check, em, tmp_path, settings, message):
    before = sorted(path.name for path in tmp_path.rglob("*"))
    with pytest.raises(InputError, match=re.escape(message)):
        check(**{"volume": em, **settings})
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"annotation": "x.zarr"}, "--annotation: there is no volume"),
        ({"out": "x"}, "--out: there is no volume"),
        ({"volume": "x.zarr", "gpus": 2, "storage": "s"}, "--storage, --gpus: not with --volume"),
        ({"volume": "x.zarr", "report": "r.txt"}, "--report: not with --volume"),
    ],
)
def test_flags_of_a_cluster_and_of_a_volume_exclude_each_other(settings, message):
    with pytest.raises(ValueError, match=message):
        CheckSettings(**settings)


def test_a_page_on_s3(check, em, s3, tmp_path, capsys):
    settings = CheckSettings(volume=str(em), out="s3://some-bucket/check", cache="none")
    assert check_volume(settings, Reporter(io.StringIO()))
    page = s3.get_object(Bucket="some-bucket", Key="check/index.html")["Body"].read().decode()
    assert PAGE_MARK in page
    assert capsys.readouterr().out.split() == ["s3://some-bucket/check"] * 2
