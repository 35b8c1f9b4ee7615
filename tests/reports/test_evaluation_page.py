"""The page of an evaluation says what its figures say, in one file."""

import re

import numpy as np
import pytest

from kasthuri_ray.metrics import voxel_counts
from kasthuri_ray.reports.evaluation_page import EvaluationReport, evaluation_page, section_score_chart
from kasthuri_ray.reports.section_images import SectionResult


def report(task_type="synapse", threshold=0.5, **changes):
    rng = np.random.default_rng(0)
    truth = (rng.random((6, 48, 48)) < 0.1).astype(np.uint8)
    noise = rng.normal(0, 0.12, truth.shape) + np.linspace(-0.1, 0.1, 6)[:, None, None]
    probability = np.clip(0.3 + 0.35 * truth + noise, 0, 1)
    counts = voxel_counts.VoxelCounts.zeros()
    counts.add(probability, probability >= threshold, truth)
    image = rng.integers(0, 255, truth.shape, dtype=np.uint8)
    gallery = [
        SectionResult(90 + z, image[z], truth[z], probability[z], f"{90 + z}:{91 + z},0:48,0:48") for z in range(6)
    ]
    precision, recall = voxel_counts.precision_recall_at(counts, threshold)
    best, best_f1 = voxel_counts.best_threshold(counts)
    result = {
        "box": "90:96,0:48,0:48", "threshold": threshold, "foreground_f1": voxel_counts.foreground_f1(counts, threshold),
        "precision": precision, "recall": recall, "iou": 0.51234, "best_threshold": best, "best_foreground_f1": best_f1,
        "average_precision": voxel_counts.average_precision(counts),
    }  # fmt: skip
    if task_type == "synapse":
        result["objects"] = {"precision": 0.75, "recall": 0.6, "f1": 2 / 3, "num_true": 20, "num_predicted": 16}
        result["objects"]["matching_iou"] = 0.5
    sections = [(90 + z, 0.1 * z, 40 * z) for z in range(6)]
    made = EvaluationReport("out.zarr", task_type, result, counts, threshold, sections, gallery)
    for key, value in changes.items():
        setattr(made, key, value)
    return made


def text_of(page):
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL))


def test_a_person_reads_first_how_many_objects_were_found():
    text = text_of(evaluation_page(report()))
    assert "The network finds 12 of 20 synapses; of the 16 it marks, 12 are right." in text
    assert "of 20 synapses are found" in text
    assert "if what they share is more than 50% of what the two cover together (their IoU). So each counts" in text
    assert "box 90:96,0:48,0:48" in text


def test_without_objects_the_headline_is_about_voxels():
    made = report("membrane")
    made.result["arand"], made.result["voi_split"], made.result["voi_merge"] = 0.1234, 0.5678, 0.9101
    text = text_of(evaluation_page(made))
    assert "The network finds about" in text
    assert "membrane voxels; of those it marks," in text
    for figure in ("0.123", "0.568", "0.910"):
        assert figure in text
    none = report("membrane")
    none.result["arand"] = None
    assert "ARAND" not in text_of(evaluation_page(none))


def test_every_figure_of_the_result_is_there():
    made = report()
    text = text_of(evaluation_page(made))
    for name in ("foreground_f1", "precision", "recall", "iou", "average_precision"):
        assert f"{made.result[name]:.3f}" in text
    for count in made.counts.confusion.ravel():
        assert f"{count:,}" in text
    for title in ("Precision over recall", "F1 of every section", "Confusion"):
        assert f'aria-label="{title}"' in evaluation_page(made)


def test_best_and_worst_are_named_and_parts_are_not_called_sections():
    page = text_of(evaluation_page(report()))
    assert page.count("The best section, z") == page.count("The worst section, z") == 1
    parts = text_of(evaluation_page(report(whole_sections=False)))
    assert "The best part, z" in parts
    assert parts.count("Part of section z") == page.count("Section z") == 4


@pytest.mark.parametrize(("threshold", "said"), [(0.2, True), (0.56, False)])
def test_another_threshold_is_named_where_it_is_better(threshold, said):
    made = report(threshold=threshold)
    words = f"At threshold {made.result['best_threshold']:.2f} F1 would be {made.result['best_foreground_f1']:.3f}"
    assert (words in text_of(evaluation_page(made))) == said


def test_a_threshold_has_one_name_on_the_page(monkeypatch):
    made = report(threshold=round(0.8866 * 1024) / 1024)  # the edge of a bin
    made.result["threshold"] = 0.8849
    assert f"{made.threshold:.2f}" == "0.89"
    page = text_of(evaluation_page(made))
    assert page.count("threshold 0.88") >= 3
    assert "threshold 0.89" not in page


def test_what_must_be_known_is_said_and_escaped():
    page = evaluation_page(report(notes=["not <finished>"]))
    assert "not &lt;finished&gt;" in page
    silent = report(threshold=1.0)
    silent.counts.confusion[:] = [[900, 0], [100, 0]]
    assert "answers background everywhere" in text_of(evaluation_page(silent))


def test_the_page_names_no_address_outside_itself():
    page = evaluation_page(report(settings={"task": {"name": "x"}, "image": "phantom://em"}))
    assert not re.search(r"https?:|@import|<script|<link", page)
    assert all(source.startswith("data:image/jpeg;base64,") for source in re.findall(r'src="([^"]*)"', page))


def test_nothing_compared_is_said():
    empty = report(counts=voxel_counts.VoxelCounts.zeros(), sections=[], gallery=[])
    assert "Nothing was compared: every voxel is ignored." in text_of(evaluation_page(empty))


def test_an_annotation_without_foreground_is_not_blamed_on_the_network():
    none = report()
    none.counts.confusion[:] = [[900, 100], [0, 0]]
    none.result["objects"] |= {"num_true": 0}
    text = text_of(evaluation_page(none))
    assert "The annotation holds no synapse voxels here: all that can be wrong is what the network marks, 100" in text
    assert "finds none" not in text


def test_sections_with_little_foreground_are_hollow_and_those_with_none_are_left_out():
    figure = section_score_chart([(0, 0.9, 100), (1, 0.8, 100), (2, 0.1, 2), (3, 0.0, 0)], 0.85)
    full, hollow = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert full.get_xdata().tolist() == [0, 1]
    assert hollow.get_xdata().tolist() == [2]
    assert section_score_chart([], 0.0).axes
