"""An evaluation with Ray: its result, its files, where it writes them, and what happens when a worker dies."""

import json
from pathlib import Path

import numpy as np
import pytest

from kasthuri_ray.evaluation import evaluate as evaluate_module
from kasthuri_ray.evaluation import evaluation_report
from kasthuri_ray.evaluation.block_comparison import compare_block
from kasthuri_ray.evaluation.evaluate import EvaluateResult, default_out, evaluate
from kasthuri_ray.progress import Reporter
from kasthuri_ray.ray_cluster.resources import ClusterResources


@pytest.fixture(scope="module")
def evaluated(local_ray, synapses):
    """Evaluate the synapses and return the metrics."""
    return evaluate(synapses.settings, Reporter()).metrics


def test_the_result_equals_that_without_ray(evaluated, synapses, compare):
    assert evaluated == compare(synapses.settings)[0]


def test_an_evaluation_writes_the_result_the_figures_and_the_page(evaluated, synapses):
    folder = Path(synapses.settings.out)
    assert json.loads((folder / "evaluation.json").read_text()) == evaluated
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    assert files == {
        "evaluation.json", "settings.json", "matches.csv", "index.html", "precision_recall.png", "sections.png",
        *(f"slices/slice_{number}.png" for number in range(6)),
    }  # fmt: skip
    page = (folder / "index.html").read_text()
    objects = evaluated["objects"]
    num_found = objects["by"]["overlap"]["true_positives"]
    assert f"The prediction finds {num_found} of {objects['num_true']} synapses" in page
    assert "The best section" in page
    assert "The worst section" in page
    assert "on grey" not in page
    assert f"jobs/view.py --evaluation {folder}<" in page


def test_other_blocks_write_the_same_files(evaluated, synapses, tmp_path, capsys):
    settings = synapses.settings.model_copy(update={"out": str(tmp_path / "other")})
    assert evaluate(settings, Reporter(), block_shape=(5, 128, 90)) == EvaluateResult(settings.out, evaluated)
    for name in ("evaluation.json", "index.html", "matches.csv"):
        other = (tmp_path / "other" / name).read_text().replace(settings.out, synapses.settings.out)  # as in commands
        assert other == (Path(synapses.settings.out) / name).read_text()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == lines[-1] == settings.out


def test_the_warnings_of_the_page_are_printed_too(synapses, write_prediction, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate_module, "connect_ray", lambda *_: ClusterResources(2, 0, 1))
    monkeypatch.setattr(evaluate_module, "require_resources", lambda *demand: None)
    monkeypatch.setattr(
        evaluate_module, "compare_blocks", lambda comparison, blocks, _: (compare_block(comparison, b) for b in blocks)
    )
    ones = write_prediction(tmp_path / "ones.zarr", (synapses.probability > 102).astype(np.uint8))
    evaluate(synapses.settings.model_copy(update={"prediction": ones, "out": str(tmp_path / "evaluation")}), Reporter())
    lines = capsys.readouterr().out.splitlines()
    assert [line[:50] for line in lines[1:4]] == [
        "The largest value in this uint8 prediction is 1 (2",
        "590,940 of 599,040 voxels count (98.65%). The othe",
        "The image that was segmented is not known: the sec",
    ]


def test_the_evaluation_of_one_array_of_an_output_is_written_next_to_the_output(
    synapses, compare, write_volume, tmp_path
):
    settings = synapses.settings.model_copy(update={"out": None})
    group = settings.prediction
    finest = settings.model_copy(update={"prediction": f"{group}/s0"})
    assert default_out(settings) == f"{group}.evaluation"
    assert default_out(finest) == f"{group}.s0.evaluation"
    other = write_volume(tmp_path / "x.zarr/em", np.zeros((1, 8, 8), np.uint8))
    assert default_out(settings.model_copy(update={"prediction": other})) == f"{other}.evaluation"
    progress = Path(f"{group}.progress.json")
    progress.write_text(json.dumps({"state": "running", "done": 1, "blocks": 4}))
    assert compare(finest)[1][0].startswith("The segmentation is not finished (running: 1 of 4 blocks")
    progress.unlink()


@pytest.mark.parametrize("place", [".", "s0", "evaluation"])
def test_an_evaluation_is_never_written_into_the_prediction(synapses, place):
    settings = synapses.settings
    for prediction in (settings.prediction, f"{settings.prediction}/s0"):
        with pytest.raises(ValueError, match=r"is inside the prediction .*; give a folder outside of it"):
            default_out(settings.model_copy(update={"prediction": prediction, "out": f"{settings.prediction}/{place}"}))


def test_labels_that_are_no_class_are_bad_input(local_ray, synapses, write_volume, tmp_path):
    ids = write_volume(tmp_path / "ids.zarr", np.full((12, 300, 280), 12, np.uint16))
    with pytest.raises(ValueError, match=r"ids.zarr .* holds 12 \(100.00%\) among .*; allowed are 0 to 1 and 7"):
        evaluate(synapses.settings.model_copy(update={"annotation": ids, "out": str(tmp_path / "out")}), Reporter())
    assert not (tmp_path / "out").exists()


def test_blocks_of_a_worker_that_dies_are_computed_again(evaluated, synapses, tmp_path, monkeypatch):
    mark = tmp_path / "died"

    def compare_or_die(comparison, block):
        import os

        from kasthuri_ray.evaluation.block_comparison import compare_block

        if block.start[0] > 4 and not mark.exists():
            mark.touch()
            os._exit(1)
        return compare_block(comparison, block)

    monkeypatch.setattr(evaluate_module, "compare_block", compare_or_die)
    monkeypatch.setattr(evaluation_report, "write_evaluation_report", lambda *_: None)
    assert evaluate(synapses.settings, Reporter(), block_shape=(4, 128, 128)).metrics == evaluated
    assert mark.exists()
