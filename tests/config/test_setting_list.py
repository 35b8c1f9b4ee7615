"""The list of settings, which the jobs print and the documentation holds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kasthuri_ray.config.flags import SECTIONS_OF_JOBS
from kasthuri_ray.config.setting_list import describe_settings, describe_type, section_entries, settings_page
from kasthuri_ray.config.settings import SECTIONS
from kasthuri_ray.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
LIST_WITHOUT_RAY_AND_TORCH = """
import runpy, sys
sys.argv = sys.argv[1:]
try: runpy.run_path(sys.argv[0], run_name='__main__')
except SystemExit as end: assert end.code == 0
assert not {"ray", "torch", "zarr"} & sys.modules.keys()
"""


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_has_a_sentence_a_type_and_a_default(section):
    for entry in section_entries(section):
        assert entry.meaning[:1].isupper() or entry.meaning[:1].isdigit() or entry.meaning.startswith("torch"), entry
        assert entry.meaning.endswith("."), entry
        assert "None" not in entry.meaning, "null is what people type"
        assert entry.kind, entry
        assert entry.default or entry.name.rpartition(".")[2] in ("box", "prediction", "annotation"), entry


def test_the_page_of_settings_is_the_list_of_the_code():
    page = (ROOT / "docs" / "settings.md").read_text()
    expected = settings_page().rstrip("\n") + "\n"
    assert page == expected, "python -m kasthuri_ray.config.setting_list > docs/settings.md"


@pytest.mark.parametrize("job", SECTIONS_OF_JOBS)
def test_a_job_lists_the_settings_that_hold_a_word_without_ray_or_torch(job):
    command = [
        sys.executable,
        "-c",
        LIST_WITHOUT_RAY_AND_TORCH,
        str(ROOT / "jobs" / f"{job}.py"),
        "--settings",
        "DECAY",
    ]
    before = os.times()
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=None)
    seconds = os.times().children_user - before.children_user
    assert (process.returncode, process.stderr) == (0, "")
    assert "network.weight_decay (number >= 0, default 0.01 in UNet_2D, 0.0 where a" in process.stdout
    assert "Decay of a moving average of the weights" in process.stdout, "the sentence holds the word"
    assert "network.epochs" not in process.stdout
    assert seconds < 2, "a third of a second on an idle machine"


def test_without_a_word_every_setting_is_listed_with_the_jobs_that_read_it():
    text = describe_settings(width=200)
    for section, kind in SECTIONS.items():
        assert all(f"  {section}.{key} (" in text for key in kind.model_fields)
    assert "task.boxes.SPLIT[NUMBER].box" in text
    assert "(--set tune.KEY=VALUE of tune.py)" in text
    assert "network.KEY=VALUE of train.py, tune.py and segment.py" in text
    assert max(map(len, describe_settings(width=60).splitlines())) < 60


def test_a_word_that_no_setting_holds_is_an_error_that_names_the_nearest():
    with pytest.raises(
        InputError, match=r"--settings lerning: no setting holds this word; did you mean network.learning"
    ):
        describe_settings("lerning")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"enum": ["a", "b", "c"]}, "a, b or c"),
        ({"const": 1}, "1"),
        ({"type": "integer", "minimum": 2, "maximum": 8}, "integer >= 2 and <= 8"),
        ({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}]}, "number > 0 or null"),
        ({"type": "array", "minItems": 3, "maxItems": 3, "items": {"type": "integer"}}, "list of 3 (integer)"),
        ({"type": "array", "minItems": 1, "items": {"type": "string"}}, "list (text)"),
        ({"type": "boolean"}, "true or false"),
        ({"$ref": "#/$defs/SplitBoxes"}, "object {...}"),
    ],
    ids=lambda value: value if isinstance(value, str) else json.dumps(value)[:20],
)
def test_the_type_of_a_setting_is_described_in_words(schema, words):
    assert describe_type(schema) == words
