"""The page of a run is one well-formed file without links that shows the scores of the run."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from kasthuri_ray.metrics import thresholds, voxel_scores
from kasthuri_ray.metrics.class_map import classes_at
from kasthuri_ray.metrics.object_choice import ClassChoice, ObjectChoice
from kasthuri_ray.metrics.object_settings import ObjectSettings
from kasthuri_ray.metrics.voxel_counts import VoxelCounts
from kasthuri_ray.reports.rendering import describe_share
from kasthuri_ray.reports.run_page import RunReport, run_page

VOID_TAGS = {"meta", "img", "br", "wbr", "hr", "link", "input"}


class ParsedPage(HTMLParser):
    """Tags that open and close in order, the addresses in them, and the text."""

    def __init__(self, page):
        super().__init__()
        self.open_tags, self.addresses, self.alts = [], [], []
        self.feed(page)
        self.close()
        assert not self.open_tags, f"left open: {self.open_tags}"

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID_TAGS:
            self.open_tags.append(tag)

    def handle_startendtag(self, tag, attributes):
        values = dict(attributes)
        assert len(values) == len(attributes), f"an attribute twice in {tag}"
        self.addresses += [
            values[key] for key in ("src", "href", "xlink:href", "srcset", "data", "action") if key in values
        ]
        if tag == "img":
            self.alts.append(values.get("alt"))

    def handle_endtag(self, tag):
        assert self.open_tags, f"</{tag}> closes nothing"
        opened = self.open_tags.pop()
        assert opened == tag, f"</{tag}> closes <{opened}>"


@pytest.fixture
def make_report(random_prediction):
    def make(task_type="synapse", side=64, num_sections=6, **changes):
        counts, gallery = random_prediction(0.5, num_sections, side)
        metrics = voxel_scores.split_metrics(counts, [0.5])
        history = [
            {
                "epoch": epoch,
                "train.loss": 1 / epoch,
                "val.loss": 1 / epoch,
                "val.foreground_f1": 0.7,
                "val.average_precision": 0.6,
                "learning_rate": 1e-3,
                "seconds": 40.0,
                "tiles_per_second": 5.6,
            }
            for epoch in range(1, 9)
        ]
        report = RunReport(
            name="my_run",
            task_type=task_type,
            network="UNet_2D",
            metrics={"test": metrics, "val": metrics, "best_epoch": 7, "epochs": 8, "seconds": 400.0},
            history=history,
            counts=counts,
            gallery=gallery,
            thresholds=[0.5],
            settings={"task": {"image_chan": "bossdb://Kasthuri/ac4/em", "z_train": [0, 80]}, "network": {"dim": 2}},
            next_text="Train it for longer:",
            next_command="python jobs/train.py --name my_run",
        )
        for key, value in changes.items():
            setattr(report, key, value)
        return report

    return make


def test_the_page_is_well_formed_and_has_no_links(make_report):
    text = run_page(make_report())
    page = ParsedPage(text)
    assert page.addresses
    assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in page.addresses)
    assert all(address[1:] in re.findall(r'id="([^"]*)"', text) for address in page.addresses if address[0] == "#")
    assert not re.search(r"https?:|@import|<script|<link", text)
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", text))
    assert 'name="viewport"' in text
    assert "@media print" in text
    assert page.alts.count("image, section z 92") == 1
    assert all(page.alts)


def test_the_page_shows_the_scores_and_the_voxel_counts(make_report, page_text):
    report = make_report()
    text = page_text(run_page(report))
    outcomes = thresholds.outcomes_at(report.counts.by_class[0], 0.5)
    assert f"The network finds {describe_share(outcomes.recall)} synapse voxels" in text
    assert f"of the voxels that it marks, {describe_share(outcomes.precision)} are correct" in text
    for value in (
        outcomes.precision,
        outcomes.recall,
        outcomes.iou,
        report.metrics["test"]["foreground_f1"],
        report.metrics["test"]["average_precision"],
    ):
        assert f"{value:.3f}" in text
    assert "bossdb://Kasthuri/ac4/em (sections 0 to 79) for 8 epochs (1,792 tiles in total) in 7 min" in text
    assert "The weights are those of epoch 7" in text
    for count in (outcomes.found, outcomes.wrong, outcomes.missed, outcomes.right, outcomes.total):
        assert f"{count:,}" in text
    assert "python jobs/train.py --name my_run" in text
    assert "The fraction of synapse voxels is" in text


def test_captions_name_the_best_and_the_worst_tile(make_report, page_text):
    report = make_report()
    scores = {section.z: section.f1 for section in report.gallery}
    text = page_text(run_page(report))
    best, worst = max(scores, key=scores.get), min(scores, key=scores.get)
    assert f"The best tile, z {best} F1 {scores[best]:.3f}" in text
    assert f"The worst tile, z {worst} F1 {scores[worst]:.3f}" in text
    assert text.index("The best tile") < text.index("The worst tile") < text.index("Loss on the training tiles")
    assert text.count("Tile of section z") == 4
    assert "Tiles of the test box" in text


def test_the_page_says_how_objects_are_found_and_what_a_precision_costs(make_report, page_text):
    choice = ClassChoice("val", num_true=12, scores=(0.9, 0.8, 0.7), verdicts=(True, True, False))
    settings = ObjectSettings((0.8,), (0.35,), (1_234_567.0,), is_nm3=True)
    report = make_report()
    density = {"predicted_per_um3": 1.5, "true_per_um3": 0.75, "um3": 20.0}
    object_settings = ObjectChoice(settings, {"synapse": choice}, {"synapse": 1}).to_metrics()
    report.metrics = {**report.metrics, "object_settings": object_settings, "object_density": density}
    page = run_page(report)
    ParsedPage(page)
    text = page_text(page)
    assert "reaches the probability 0.80 somewhere and 0.35 everywhere, and has at least 1,234,567 nm³" in text
    assert "chosen on the 12 objects of the validation box" in text
    assert "precision of 67%, by overlap. So few objects allow no fine choice." in text
    assert "none 0 0.667 0.167 0.8 0.800 1.000 0.167 0.9 0.800 1.000 0.167" in text
    assert "1.50 synapses per µm³ are marked, and 0.75 per µm³ annotated, in 20.00 µm³" in text
    for source, words in (
        ("annotation", "5th percentile of the 40 whole objects"),
        ("threshold", "nothing was chosen"),
    ):
        other = ClassChoice(source, num_true=3, num_annotated=40, scores=(0.5,), verdicts=(False,))
        report.metrics["object_settings"] = ObjectChoice(settings, {"synapse": other}, {"synapse": 1}).to_metrics()
        text = page_text(run_page(report))
        assert words in text
        assert "not reached" in text


def test_settings_are_folded_away_at_the_end(make_report):
    text = run_page(make_report())
    assert "<details>" in text
    assert text.index("What to do next") < text.index("<details>") < text.index("z_train")
    assert "[0, 80]" in text


def test_all_text_of_the_user_is_escaped(make_report, page_text):
    evil = '<b onload="x">&\'</b>'
    report = make_report(
        name=evil, network=evil, notes=[evil], next_command=evil, task_type=evil, settings={evil: {evil: evil}}
    )
    report.settings["task"] = {"image_chan": evil}
    report.gallery[0].box = evil
    text = run_page(report)
    assert "<b onload" not in text
    assert "onload=" not in re.sub(r"&lt;b onload=", "", text)
    assert evil in page_text(text)
    ParsedPage(text)


def test_without_an_annotation_for_test_the_page_shows_the_validation_box(make_report, page_text):
    report = make_report(counts_of="val", num_sections=2, notes=["There is no annotation for test."])
    report.metrics = {**report.metrics, "test": None}
    for section in report.gallery:
        section.truth = None
    page = run_page(report)
    text = page_text(page)
    assert text.count("no annotation for test") == 1
    assert "of the validation box" in text
    assert "test box" not in text
    assert "no annotation to compare with" in text
    assert "wrongly marked" not in text
    assert len(ParsedPage(page).alts) == 4


def test_a_run_without_measurements_has_a_page(page_text):
    page = run_page(RunReport("r", "synapse", "UNet_2D", {"test": None}, [], None, [], [0.5]))
    ParsedPage(page)
    assert "A network for synapses, trained and not yet measured." in page_text(page)


def test_a_warning_is_the_headline_and_no_praise_stands_above_the_figures(make_report, page_text):
    warnings = ["F1 is no better than chance.", "No voxel of val is synapse."]
    report = make_report(notes=["3 chunks are zero.", warnings[1]])
    report.metrics = {**report.metrics, "warnings": warnings}
    page = run_page(report)
    text = page_text(page)
    assert re.search(r"<h1>F1 is no better than chance.</h1>", page)
    assert page.index('aria-label="Warnings about the scores"') < page.index("<h1>")  # in the box above all figures
    assert [text.count(warning) for warning in warnings] == [1, 1]
    assert text.index("No voxel of val is synapse.") < text.index("over all thresholds")
    assert "finds" not in text
    assert "3 chunks are zero." in text


def test_several_classes_have_a_row_a_colour_and_a_threshold_each(make_report, page_text):
    rng, names = np.random.default_rng(0), ["membrane", "synapse"]
    labels = rng.choice(3, 4000, p=[0.7, 0.2, 0.1])
    own = labels == np.arange(1, 3)[:, None]
    probability = np.clip(0.2 + 0.5 * own + rng.normal(0, 0.1, own.shape), 0, 1)
    counts = VoxelCounts.zeros(3)
    predicted = classes_at(probability, [0.5, 0.25])
    counts.add(probability, predicted, labels)
    metrics = voxel_scores.split_metrics(counts, [0.5, 0.25], names)
    report = make_report(
        counts=counts, thresholds=[0.5, 0.25], class_names=names, confusion=counts.confusion.tolist(), gallery=[]
    )
    report.metrics = {**report.metrics, "test": metrics}
    page = run_page(report)
    text = page_text(page)
    ParsedPage(page)
    for name, row in metrics["classes"].items():
        assert f"{name}: F1 {row['foreground_f1']:.2f}" in text
        cells = [f"{row[key]:.3f}" for key in ("foreground_f1", "recall", "precision", "foreground_iou")]
        assert f"{name} {' '.join(cells)}" in text
    assert f"{counts.confusion[1, 2]:,}" in text
    assert "mean over the annotated classes, each at its threshold" in text


@pytest.mark.parametrize(
    ("task_type", "text"),
    [
        ("membrane", "The fraction of membrane voxels is"),
        ("axon_spine", "The fraction of axon spine voxels is"),
        ("", "foreground"),
    ],
)
def test_other_tasks_are_named_on_the_page(task_type, text, make_report, page_text):
    page = page_text(run_page(make_report(task_type, num_sections=1)))
    assert text in page
    assert "synapse" not in page.lower()


def test_the_scale_bar_has_the_length_in_its_label(make_report):
    text = run_page(make_report(pixel_size_nm=(6.0, 10.0), num_sections=1))
    assert re.findall(r'class="bar" style="width: ([\d.]+)%">([^<]*)<', text)[0] == ("15.62", "100 nm")
    assert 'class="bar"' not in run_page(make_report(num_sections=1))


def test_a_page_of_six_sections_of_512_pixels_is_smaller_than_5_megabytes(make_report):
    assert len(run_page(make_report(side=512)).encode()) < 5_000_000


def test_a_threshold_that_no_validation_voxel_chose_is_called_a_default(make_report, page_text):
    report = make_report()
    assert "at threshold 0.50, chosen on the validation box" in page_text(run_page(report))
    without = {**report.metrics["val"], "confusion": [[100, 0], [0, 0]]}
    report.metrics = {**report.metrics, "val": without}
    text = page_text(run_page(report))
    assert "at threshold 0.50, a default: the validation box holds no foreground" in text


def test_objects_stand_beside_the_voxels_and_not_in_the_text_above(make_report, make_object_metrics, page_text):
    report = make_report()
    objects = make_object_metrics(num_true=0, num_predicted=7)
    report.metrics = {**report.metrics, "test": {**report.metrics["test"], "objects": objects}, "warnings": ["No."]}
    text = page_text(run_page(report))
    above, below = text.split("at threshold 0.50", 1)
    assert not re.search(r"\b(finds|found|right|correct)\b", above)
    assert "share a voxel (overlap) 0 of 0" in below
    assert "recall of objects 0.000 the annotation holds none to find" in below
    assert "precision of objects 0.000 share of the 7 marked objects that are correct" in below


def test_a_network_of_ones_own_is_listed_without_settings_of_unets(make_report, page_text):
    network = {"model": "my.Net", "model_args": {"width": 3}, "n_blocks": None, "start_filters": 32, "epochs": 2}
    text = page_text(run_page(make_report(settings={"network": network})))
    assert "model_args" in text
    assert "epochs" in text
    for key in ("n_blocks", "start_filters"):
        assert key not in text
    assert "start_filters" in page_text(run_page(make_report(settings={"network": {**network, "model": "UNet"}})))


def test_hatching_is_explained_where_there_is_any(make_report, page_text):
    report = make_report()
    assert "Hatched" not in page_text(run_page(report))
    report.gallery[0].truth[:5] = 255
    assert "Hatched pixels are not labelled and not counted. Colours of the errors:" in page_text(run_page(report))


def test_the_page_says_that_an_evaluation_of_the_same_sections_can_differ(make_report, page_text):
    text = page_text(run_page(make_report(settings={"task": {"tile_size": [128, 64], "volume_z": 1}})))
    assert "Measured tile by tile, 64 x 128 voxels each. A segmentation may show the network more" in text
    assert "can differ from these scores." in text
