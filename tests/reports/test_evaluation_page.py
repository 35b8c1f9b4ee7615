"""The page of an evaluation shows the scores of its result, in one file."""

import re
from dataclasses import replace

import numpy as np
import pytest

from kasthuri_ray.metrics import thresholds, voxel_scores
from kasthuri_ray.metrics.voxel_counts import VoxelCounts
from kasthuri_ray.reports.evaluation_page import EvaluationReport, evaluation_page
from kasthuri_ray.reports.object_gallery import ObjectCrop


@pytest.fixture
def make_report(random_prediction, make_object_metrics):
    def make(task_type="synapse", threshold=0.5, **changes):
        counts, gallery = random_prediction(threshold)
        outcomes = thresholds.outcomes_at(counts.by_class[0], threshold)
        best, best_f1 = thresholds.best_threshold(counts.by_class[0])
        result = {
            "box": "90:96,0:48,0:48",
            "threshold": threshold,
            "foreground_f1": outcomes.f1,
            "precision": outcomes.precision,
            "recall": outcomes.recall,
            "iou": 0.51234,
            "best_threshold": best,
            "best_foreground_f1": best_f1,
            "average_precision": voxel_scores.mean_average_precision(counts),
        }
        if task_type == "synapse":
            result["objects"] = make_object_metrics(num_true=20, num_predicted=16, overlapping=12, centroids=9, alike=5)
        sections = [(90 + z, 0.1 * z, 40 * z) for z in range(6)]
        report = EvaluationReport("out.zarr", task_type, result, counts, [outcomes], sections, gallery)
        for key, value in changes.items():
            setattr(report, key, value)
        return report

    return make


def test_the_headline_says_how_many_objects_were_found(make_report, page_text):
    text = page_text(evaluation_page(make_report()))
    assert "The prediction finds 12 of 20 synapses; of the 16 that it marks, 12 are correct." in text
    assert "share of the 20 synapses that are found" in text
    assert "By every criterion objects are matched one to one, as many as possible." in text
    assert "box 90:96,0:48,0:48 (z,y,x)" in text


def test_every_criterion_stands_beside_the_others(make_report, page_text):
    report = make_report()
    report.result["cleft_distances"] = {"adgt_nm": 12.34, "adf_nm": 56.78, "cremi_score_nm": 34.56}
    text = page_text(evaluation_page(report))
    assert "share a voxel (overlap) 12 of 20 0.600 0.750 0.667" in text
    assert "share more than 50% of their union (IoU) 5 of 20 0.250 0.312 0.278" in text
    assert "have centroids at most 150 nm apart (centroid) 9 of 20 0.450 0.562 0.500" in text
    assert "by IoU 0.278" in text
    assert "marked voxels lie 12.3 nm from the annotation on average (ADGT)" in text
    assert "56.8 nm from marked ones (ADF); their mean, the CREMI score, is 34.6 nm" in text
    without_size = make_report()
    without_size.result["objects"]["by"]["centroid"] = None
    assert "centroids" not in page_text(evaluation_page(without_size))


def test_wrong_missed_and_found_objects_are_shown_with_their_place(make_report, page_text):
    masks = np.zeros((3, 40, 40), bool)
    masks[:, 10:20, 10:20] = True
    crops = [
        ObjectCrop(verdict, number, partner, "", (7, 15, 16), 6, 1234, 0.875, np.full((40, 40), 90, np.uint8), *masks)
        for verdict, number, partner in (("wrong", 3, 0), ("missed", 4, 0), ("found", 5, 6))
    ]
    page = evaluation_page(make_report(crops=crops, num_objects={"wrong": 21, "missed": 1, "found": 12}))
    text = page_text(page).replace(" ,", ",")
    assert "Wrong: marked, without an annotated partner 1 of 21 marked 3, probability 0.88" in text
    assert "z 7, y 15, x 16; 1,234 voxels" in text
    assert "cut at a border" not in text
    cut = [replace(crops[1], is_cut=True)]
    assert "1,234 voxels, cut at a border" in page_text(
        evaluation_page(make_report(crops=cut, num_objects={"missed": 1}))
    )
    assert (
        text.index("Wrong:")
        < text.index("Missed: annotated, without a marked partner 1 of 1 annotated 4")
        < text.index("Found 1")
    )
    assert "marked 5 = annotated 6" in text
    assert page.count('<div class="objects">') == 3


def test_without_objects_the_headline_is_about_voxels(make_report, page_text):
    report = make_report("membrane")
    report.result["arand"], report.result["voi_split"], report.result["voi_merge"] = 0.1234, 0.5678, 0.9101
    text = page_text(evaluation_page(report))
    assert "The prediction finds about" in text
    assert "membrane voxels; of the voxels that it marks," in text
    for score in ("0.123", "0.568", "0.910"):
        assert score in text
    without_cells = make_report("membrane")
    without_cells.result["arand"] = None
    assert "ARAND" not in page_text(evaluation_page(without_cells))


def test_every_score_of_the_result_is_on_the_page(make_report, page_text):
    report = make_report()
    page = evaluation_page(report)
    for name in ("foreground_f1", "precision", "recall", "iou", "average_precision"):
        assert f"{report.result[name]:.3f}" in page_text(page)
    for count in report.counts.confusion.ravel():
        assert f"{count:,}" in page_text(page)
    for title in ("Precision over recall", "F1 of every section", "Confusion"):
        assert f'aria-label="{title}"' in page


def test_captions_name_the_best_and_the_worst_section_or_part(make_report, page_text):
    page = page_text(evaluation_page(make_report()))
    assert page.count("The best section, z") == page.count("The worst section, z") == 1
    parts = page_text(evaluation_page(make_report(whole_sections=False)))
    assert "The best part, z" in parts
    assert parts.count("Part of section z") == page.count("Section z") == 4


@pytest.mark.parametrize(("threshold", "shown"), [(0.2, True), (0.56, False)])
def test_the_page_names_another_threshold_if_it_is_better(threshold, shown, make_report, page_text):
    report = make_report(threshold=threshold)
    text = f"At threshold {report.result['best_threshold']:.2f} F1 would be {report.result['best_foreground_f1']:.3f}"
    assert (text in page_text(evaluation_page(report))) == shown


def test_the_page_shows_the_threshold_of_the_user_not_the_edge_of_its_bin(make_report, page_text):
    edge = round(0.8866 * 1024) / 1024
    report = make_report(threshold=edge)
    report.result["threshold"] = 0.8849
    assert f"{edge:.2f}" == "0.89"
    page = page_text(evaluation_page(report))
    assert page.count("threshold 0.88") >= 3
    assert "threshold 0.89" not in page


def test_warnings_are_on_the_page_and_escaped(make_report, page_text):
    page = evaluation_page(make_report(notes=["not <finished>"]))
    assert "not &lt;finished&gt;" in page
    report = make_report()
    report.result["warnings"] = ["The prediction marks none of <1,000> voxels."]
    page = evaluation_page(report)
    assert "<h1>The prediction marks none of &lt;1,000&gt; voxels.</h1>" in page
    assert "finds" not in page_text(page)


def test_the_page_has_no_links(make_report):
    page = evaluation_page(make_report(settings={"task": {"name": "x"}, "image": "phantom://em"}))
    assert not re.search(r"https?:|@import|<script|<link", page)
    assert all(source.startswith("data:image/jpeg;base64,") for source in re.findall(r'src="([^"]*)"', page))


def test_the_headline_says_that_nothing_was_compared(make_report, page_text):
    empty = make_report(counts=VoxelCounts.zeros(), sections=[], gallery=[])
    assert "Nothing was compared: every voxel is ignored." in page_text(evaluation_page(empty))


def test_an_annotation_without_foreground_is_not_an_error_of_the_network(make_report, page_text):
    report = make_report()
    report.counts.confusion[:] = [[900, 100], [0, 0]]
    report.result["objects"] |= {"num_true": 0}
    text = page_text(evaluation_page(report))
    assert (
        "The annotation holds no synapse voxels here, so that all voxels which the prediction marks are errors: 100"
        in text
    )
    assert "finds none" not in text
