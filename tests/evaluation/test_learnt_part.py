"""Scores of the part that the network did not learn from equal those of that part alone."""

import numpy as np
import pytest

from kasthuri_ray.evaluation.comparison_inputs import prepare_comparison
from kasthuri_ray.evaluation.evaluation_report import evaluation_summary, learnt_line
from kasthuri_ray.geometry import Box

IGNORED = 7  # the task's ignore_label


def with_learnt(example, write_prediction, tmp_path, **learnt):
    """Return settings whose prediction records what was learnt from, in voxels of the image."""
    record = {"known": True, "same_image": True, "images": ["em"], "boxes": [], **learnt}
    path = write_prediction(tmp_path / "out.zarr", example.probability, start=example.start, learnt_from=record)
    return replace_settings(example.settings, prediction=path)


def replace_settings(settings, **changes):
    return settings.model_copy(update=changes)


@pytest.mark.parametrize("block", [None, (3, 40, 56)])
def test_the_unseen_part_is_scored_like_an_annotation_that_ignores_the_rest(
    synapses, compare, write_prediction, write_volume, tmp_path, block
):
    (z, y, x), shape = synapses.start, synapses.probability.shape
    learnt = [Box.at((z - 2, y, x), (4, *shape[1:])), Box.at((z, y, x), (shape[0], 20, 30))]
    settings = with_learnt(synapses, write_prediction, tmp_path, boxes=[str(box) for box in learnt])
    result, _ = compare(settings, block)
    inputs = prepare_comparison(settings)
    assert inputs.comparison.learnt.share_of(inputs.comparison.box) < 1
    annotation = inputs.comparison.annotation
    labels = np.array(annotation.read(annotation.bounds))
    for box in learnt:
        labels[box.intersect(annotation.bounds).slices(annotation.bounds.start)] = IGNORED
    ignored = write_volume(tmp_path / "ignored.zarr", labels)
    alone, _ = compare(replace_settings(synapses.settings, annotation=ignored), block)
    scored, expected = ({**each["objects"]} for each in (result["unseen"], alone))
    # The annotation is known where the network learnt, so that objects which continue there are cut.
    assert scored.pop("whole")["num_true"] < expected.pop("whole")["num_true"]
    assert scored == expected
    assert {**result["unseen"], "objects": {}} == {**{key: alone[key] for key in result["unseen"]}, "objects": {}}
    whole, _ = compare(synapses.settings, block)
    assert {key: result[key] for key in ("foreground_f1", "voxels", "objects", "sections")} == {
        key: whole[key] for key in ("foreground_f1", "voxels", "objects", "sections")
    }
    assert result["learnt_from"]["share"] == 1 - alone["voxels"] / whole["voxels"]
    summary = evaluation_summary(result)
    assert summary.startswith(f"F1 {alone['foreground_f1']:.3f} at threshold")
    assert f"(whole: {whole['foreground_f1']:.3f})" in summary


def test_all_nothing_and_unknown(synapses, compare, write_prediction, tmp_path):
    everything = str(Box.at(synapses.start, synapses.probability.shape))
    result, _ = compare(with_learnt(synapses, write_prediction, tmp_path / "a", boxes=[everything]))
    assert (result["learnt_from"]["share"], result["unseen"]) == (1, None)
    assert result["warnings"][0].startswith("The network learnt from all of what is compared")
    assert learnt_line(result) == ""
    result, _ = compare(with_learnt(synapses, write_prediction, tmp_path / "b"))
    assert learnt_line(result) == "The network never saw what is compared."
    assert result["unseen"]["foreground_f1"] == result["foreground_f1"]
    result, _ = compare(with_learnt(synapses, write_prediction, tmp_path / "c", same_image=False))
    assert learnt_line(result).startswith("The network learnt from other images, em: as far as image, place")
    result, _ = compare(synapses.settings)  # an output of an earlier version
    assert learnt_line(result).startswith("It is not known what the network learnt from")
    assert (result["unseen"], result["learnt_from"]["known"]) == (None, False)
    assert not any("learnt" in warning for warning in result["warnings"])


def test_a_coarser_level_is_learnt_from_where_the_finest_is(synapses, compare, write_prediction, tmp_path):
    coarse = synapses.probability[:, ::2, ::2]
    size = prepare_comparison(synapses.settings).comparison.prediction.voxel_size_nm
    learnt = Box.at(synapses.start, (2, *synapses.probability.shape[1:]))
    record = {"known": True, "same_image": True, "images": ["em"], "boxes": [str(learnt)]}
    path = write_prediction(
        tmp_path / "out.zarr",
        coarse,
        start=tuple(a // b for a, b in zip(synapses.start, (1, 2, 2), strict=True)),
        size=(size[0], 2 * size[1], 2 * size[2]),
        voxel_size_nm=list(size),
        learnt_from=record,
        box=",".join(f"{a}:{a + n}" for a, n in zip(synapses.start, synapses.probability.shape, strict=True)),
    )
    annotation = f"{synapses.settings.annotation}?offset_nm=0,0,0"
    settings = replace_settings(synapses.settings, prediction=path, annotation=annotation, resample=True)
    (box,) = prepare_comparison(settings).comparison.learnt.boxes
    assert (box.start[0], box.shape[0]) == (synapses.start[0], 2)
