"""`make demo` says how long it takes on each kind of processor, and its box is one that no split touches."""

import itertools
import re
from pathlib import Path

import pytest

from kasthuri_ray.benchmarks import demo_time
from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.config.task import SPLITS, region_box
from kasthuri_ray.geometry import parse_box
from kasthuri_ray.hardware import CPU_KINDS
from kasthuri_ray.volumes.opening import open_volume

MAKEFILE = (Path(__file__).resolve().parents[2] / "Makefile").read_text()


@pytest.mark.parametrize("kind", CPU_KINDS)
def test_every_kind_of_processor_has_a_recorded_time(kind: str) -> None:
    minutes, evidence = demo_time.DEMO_MINUTES[kind]
    assert evidence
    assert f"about {minutes:g} minutes on 2 cores of this kind ({kind})" in demo_time.demo_line(kind, 2)
    assert demo_time.demo_line(kind, 8).endswith("this machine has 8.")


def test_the_first_line_of_the_demo_says_how_long_it_takes() -> None:
    recipe = MAKEFILE.split("\ndemo:")[1].splitlines()[1:]
    assert recipe[0] == "\t@$(BIN)/python -m kasthuri_ray.benchmarks.demo_time"


def demo_settings() -> list[str]:
    """Return the settings of the demo, as its training gets them by `--set`."""
    text = re.search(r"^DEMO_SETTINGS := (.*\\\n.*)$", MAKEFILE, re.MULTILINE)
    assert text
    return text[1].replace("\\", " ").split()


def test_the_guide_types_the_settings_of_the_demo() -> None:
    guide = Path(__file__).resolve().parents[2].joinpath("docs", "getting_started.md").read_text()
    command = guide.split("--task phantom_synapse --name first")[1].split("python jobs/segment.py")[0]
    assert command.replace("\\", " ").replace("--set", "").split() == demo_settings()


def test_no_split_of_the_demo_touches_its_box() -> None:
    settings = resolve_settings(GivenSettings("phantom_synapse", assignments=demo_settings())).task
    bounds = open_volume(str(settings.image_chan)).bounds
    text = re.search(r"^DEMO_BOX := (\S+)", MAKEFILE, re.MULTILINE)
    assert text
    for split in SPLITS:
        box = region_box(settings.regions(split)[0], bounds, split, "")
        assert box.stop[0] <= parse_box(text[1], bounds).start[0], split


@pytest.mark.parametrize("task", ["phantom_synapse", "phantom_membrane"])
def test_no_split_touches_the_sections_that_the_demo_is_judged_on(task: str) -> None:
    settings = resolve_settings(GivenSettings(task)).task
    bounds = open_volume(str(settings.image_chan)).bounds
    boxes = {split: region_box(settings.regions(split)[0], bounds, split, "") for split in SPLITS}
    assert boxes["val"].shape[0] >= 10
    assert boxes["test"].shape[0] >= 24
    text = re.search(r"^DEMO_BOX := (\S+)", MAKEFILE, re.MULTILINE)
    assert text
    first, last = parse_box(text[1], bounds).start[0], parse_box(text[1], bounds).stop[0]
    assert last - first >= 20
    ranges = sorted((box.start[0], box.stop[0]) for box in boxes.values())
    assert ranges[-1][1] <= first, "a split touches them"
    assert all(stop < start for (_, stop), (start, _) in itertools.pairwise(ranges)), "a section between them"
