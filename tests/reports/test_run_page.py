"""The page of a run is one well-formed file that holds all it shows and says what the figures say."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from kasthuri_ray.metrics import voxel_counts
from kasthuri_ray.reports.rendering import scale_bar_nm, share_words
from kasthuri_ray.reports.run_page import RunReport, run_page
from kasthuri_ray.reports.section_images import SectionResult

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Parsed(HTMLParser):
    """Tags that open and close in order, the addresses they name, and their text."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.addresses, self.words, self.alts = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.stack, f"left open: {self.stack}"

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        named = dict(attributes)
        assert len(named) == len(attributes), f"an attribute twice in {tag}"
        self.addresses += [
            named[key] for key in ("src", "href", "xlink:href", "srcset", "data", "action") if key in named
        ]
        if tag == "img":
            self.alts.append(named.get("alt"))

    def handle_endtag(self, tag):
        assert self.stack, f"</{tag}> closes nothing"
        opened = self.stack.pop()
        assert opened == tag, f"</{tag}> closes <{opened}>"

    def handle_data(self, data):
        if not self.stack or self.stack[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def run(task_type="synapse", side=64, slices=6, **changes):
    rng = np.random.default_rng(0)
    truth = (rng.random((slices, side, side)) < 0.1).astype(np.uint8)
    noise = rng.normal(0, 0.12, truth.shape) + np.linspace(-0.1, 0.1, slices)[:, None, None]
    probability = np.clip(0.3 + 0.35 * truth + noise, 0, 1)
    counts = voxel_counts.VoxelCounts.zeros()
    counts.add(probability, probability >= 0.5, truth)
    image = rng.integers(0, 255, truth.shape, dtype=np.uint8)
    gallery = [
        SectionResult(90 + z, image[z], truth[z], probability[z], f"{90 + z}:{91 + z},:,:") for z in range(slices)
    ]
    figures = voxel_counts.split_metrics(counts, 0.5)
    history = [
        {
            "epoch": e, "train.loss": 1 / e, "val.loss": 1 / e, "val.foreground_f1": 0.7, "val.average_precision": 0.6,
            "learning_rate": 1e-3, "seconds": 40.0, "tiles_per_second": 5.6,
        }
        for e in range(1, 9)
    ]  # fmt: skip
    report = RunReport(
        name="my_run", task_type=task_type, network="UNet_2D",
        metrics={"test": figures, "val": figures, "best_epoch": 7, "epochs": 8, "seconds": 400.0},
        history=history, counts=counts, gallery=gallery, threshold=0.5,
        settings={"task": {"image_chan": "bossdb://Kasthuri/ac4/em", "z_train": [0, 80]}, "network": {"dim": 2}},
        next_words="Train it for longer:",
        next_command="python jobs/train.py --name my_run",
    )  # fmt: skip
    for key, value in changes.items():
        setattr(report, key, value)
    return report


def test_the_page_is_well_formed_and_names_no_address_outside_itself():
    text = run_page(run())
    page = Parsed(text)
    assert page.addresses
    assert all(address.startswith(("data:image/jpeg;base64,", "#")) for address in page.addresses)
    assert all(address[1:] in re.findall(r'id="([^"]*)"', text) for address in page.addresses if address[0] == "#")
    assert not re.search(r"https?:|@import|<script|<link", text)
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", text))
    assert 'name="viewport"' in text
    assert "@media print" in text
    assert page.alts.count("image, section z 92") == 1
    assert all(page.alts)


def test_the_page_says_what_the_figures_say():
    report = run()
    text = Parsed(run_page(report)).text
    precision, recall = voxel_counts.precision_recall_at(report.counts, 0.5)
    assert f"The network finds {share_words(recall)} synapse voxels" in text
    assert f"of those it marks, {share_words(precision)} are right" in text
    for value in (
        precision,
        recall,
        report.metrics["test"]["foreground_f1"],
        report.metrics["test"]["average_precision"],
    ):
        assert f"{value:.3f}" in text
    assert "bossdb://Kasthuri/ac4/em (sections 0 to 80) for 8 epochs, 1,792 tiles in all, in 7 minutes" in text
    assert "the weights are those of epoch 7" in text
    (found, wrong), (missed, right) = voxel_counts.foreground_counts(report.counts, 0.5)
    for count in (found, wrong, missed, right, found + wrong + missed + right):
        assert f"{count:,}" in text
    assert "python jobs/train.py --name my_run" in text
    assert "Synapses are" in text


def test_the_best_and_the_worst_tile_are_named_as_such():
    report = run()
    scores = {section.z: section.f1(0.5) for section in report.gallery}
    text = Parsed(run_page(report)).text
    best, worst = max(scores, key=scores.get), min(scores, key=scores.get)
    assert f"The best tile, z {best} F1 {scores[best]:.3f}" in text
    assert f"The worst tile, z {worst} F1 {scores[worst]:.3f}" in text
    assert text.index("The best tile") < text.index("The worst tile") < text.index("How it learned")
    assert text.count("Tile of section z") == 4
    assert "Tiles of the test box" in text


def test_settings_are_folded_away_at_the_end():
    text = run_page(run())
    assert "<details>" in text
    assert text.index("What to do next") < text.index("<details>") < text.index("z_train")
    assert "[0, 80]" in text


def test_every_word_from_outside_is_escaped():
    evil = '<b onload="x">&\'</b>'
    report = run(
        name=evil, network=evil, notes=[evil], next_command=evil, task_type=evil, settings={evil: {evil: evil}}
    )
    report.settings["task"] = {"image_chan": evil}
    report.gallery[0].box = evil
    text = run_page(report)
    assert "<b onload" not in text
    assert "onload=" not in re.sub(r"&lt;b onload=", "", text)
    assert evil in Parsed(text).text


def test_without_an_annotation_for_test_the_page_says_so():
    report = run(counts_of="val", slices=2)
    report.metrics = {**report.metrics, "test": None}
    for section in report.gallery:
        section.truth = None
    page = Parsed(run_page(report))
    assert "no annotation for test" in page.text
    assert "of the validation box" in page.text
    assert "test box" not in page.text
    assert "no annotation to compare with" in page.text
    assert "wrongly marked" not in page.text
    assert len(page.alts) == 4


def test_a_run_with_nothing_measured_still_has_a_page():
    bare = RunReport("r", "synapse", "UNet_2D", {"test": None}, [], None, [], 0.5)
    text = Parsed(run_page(bare)).text
    assert "A network for synapses, trained and not yet measured." in text


def test_a_network_that_answers_background_everywhere_is_called_so():
    counts = voxel_counts.VoxelCounts.zeros()
    counts.add(np.full(1000, 0.01), np.zeros(1000, int), np.arange(1000) < 10)
    report = run(counts=counts, notes=["3 chunks are zero."])
    report.metrics = {**report.metrics, "test": voxel_counts.split_metrics(counts, 0.5)}
    text = Parsed(run_page(report)).text
    assert "The network finds none of the synapse voxels." in text
    assert "answers background everywhere: it calls none of 1,000 voxels synapse" in text
    assert "3 chunks are zero." in text


@pytest.mark.parametrize(
    ("task_type", "words"),
    [("membrane", "The membrane fraction is"), ("axon_spine", "The share of axon spine is"), ("", "foreground")],
)
def test_other_tasks_have_their_words(task_type, words):
    text = Parsed(run_page(run(task_type, slices=1))).text
    assert words in text
    assert "synapse" not in text.lower()


def test_the_scale_bar_is_as_long_as_it_says():
    text = run_page(run(pixel_size_nm=(6.0, 10.0), slices=1))
    assert re.findall(r'class="bar" style="width: ([\d.]+)%">([^<]*)<', text)[0] == ("15.62", "100 nm")
    assert 'class="bar"' not in run_page(run(slices=1))
    assert [scale_bar_nm(width) for width in (400, 1000, 6144)] == [100, 200, 1000]


def test_six_sections_of_512_pixels_stay_below_5_megabytes():
    assert len(run_page(run(side=512)).encode()) < 5_000_000


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0, "none"), (0.001, "fewer than 1 of 100"), (0.04, "4 of 100"), (0.33, "about 1 of 3"), (0.5, "about 5 of 10"),
        (0.76, "about 3 of 4"), (0.81, "about 8 of 10"), (0.967, "97 of 100"), (0.998, "more than 99 of 100"),
        (1, "all"),
    ],
)  # fmt: skip
def test_shares_in_words(share, words):
    assert share_words(share) == words
