"""Exit codes, errors in words, and what the command line of a job sets."""

import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kasthuri_ray.cli import SettingFlags, add_computing_flags, add_reading_flags, resume_command, run_job
from kasthuri_ray.errors import VolumeError, WorkFailed

ROOT = Path(__file__).resolve().parent.parent
TRAIN = str(ROOT / "jobs" / "train.py")


def raising(error: BaseException):
    def main(given):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ValueError("no such thing"), 2, "error: no such thing\n"),
        (FileNotFoundError("not there"), 2, "error: not there\n"),
        (PermissionError("not yours"), 2, "error: not yours\n"),
        (WorkFailed("half way\nto go on: again"), 1, "error: half way\nto go on: again\n"),
        (VolumeError("the server is down"), 1, "error: the server is down\n"),
        (OSError("disk full"), 1, "error: disk full\n"),
        (KeyError("x"), 1, "error: KeyError: 'x' (--verbose shows where)\n"),
        (RuntimeError(), 1, "error: RuntimeError:  (--verbose shows where)\n"),
        (ValueError(), 2, "error: ValueError\n"),
        (KeyboardInterrupt(), 130, "\nstopped\n"),
    ],
)
def test_what_goes_wrong_has_a_code_and_words_but_no_traceback(capsys, error, code, words):
    assert run_job(raising(error), ["--task", "x"]) == code
    assert capsys.readouterr().err == words


def test_verbose_shows_the_traceback_too(capsys):
    assert run_job(raising(ValueError("no such thing")), ["--verbose"]) == 2
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert shown.endswith("error: no such thing\n")


def test_a_ray_job_says_where_a_missing_file_is_to_be_put(capsys, monkeypatch):
    missing = raising(FileNotFoundError("there is no file mine.json"))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert run_job(missing, []) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: there is no file mine.json. A Ray job looks for a relative path in its copy of")
    assert "an absolute path that every node sees" in said
    run_job(raising(FileNotFoundError("s3://lab/mine.json is not there")), [])
    run_job(raising(ValueError("no such key")), [])
    assert "--working-dir" not in capsys.readouterr().err


def test_done_is_0_and_a_code_of_its_own_is_kept():
    assert run_job(lambda given: None, []) == 0
    assert run_job(lambda given: 3, []) == 3


def test_flags_that_are_given_and_no_others_become_settings():
    parser = SettingFlags("train", prog="x")
    group = parser.group("what to train")
    group.setting("--image", "task", key="image_chan")
    group.setting("--num-workers")
    add_reading_flags(parser)
    add_computing_flags(parser, precision="network")

    def layer(line: str) -> dict:
        return parser.layer(parser.parse_args(shlex.split(line)))

    assert layer("") == {}
    assert layer("--image a --num-workers 2-4") == {"task": {"image_chan": "a"}, "train": {"num_workers": "2-4"}}
    assert layer("--precision bf16 --compile off --device cpu") == {
        "network": {"precision": "bf16"},
        "train": {"compile": "off", "device": "cpu"},
    }
    assert layer("--wait-for-resources") == {"train": {"wait_for_resources": 600.0}}
    assert layer("--wait-for-resources 5 --cache none --cache-size 1GB --boss b.json") == {
        "train": {"wait_for_resources": 5.0, "cache": "none", "cache_size": "1GB", "boss": "b.json"}
    }


@pytest.mark.parametrize(
    ("given", "again"),
    [
        ("--task synapse", "python jobs/train.py --task synapse --name n"),
        ("--name old --task synapse", "python jobs/train.py --task synapse --name n"),
        ("--task synapse --name=old", "python jobs/train.py --task synapse --name n"),
        (
            "--image 'file:///d/x y.zarr/|zarr3:em' --set task.z_train=0,14",
            "python jobs/train.py --image 'file:///d/x y.zarr/|zarr3:em' --set task.z_train=0,14 --name n",
        ),
    ],
)
def test_the_command_that_goes_on_names_the_run(given, again):
    assert resume_command("jobs/train.py", shlex.split(given), "n") == again


def train(*given: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TRAIN, *given], cwd=cwd, capture_output=True, text=True, timeout=60)


def test_help_comes_at_once_and_in_groups(tmp_path):
    quickest = 60.0
    for _ in range(3):
        start = time.perf_counter()
        shown = train("--help", cwd=tmp_path)
        quickest = min(quickest, time.perf_counter() - start)
    assert shown.returncode == 0
    for words in ("what to train:", "the run:", "settings:", "reading:", "computing:", "watching:", "examples:"):
        assert words in shown.stdout
    assert quickest < 1


def test_help_imports_nothing_heavy(tmp_path):
    code = (
        "import runpy, sys\n"
        f"sys.argv = [{TRAIN!r}, '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print('HEAVY', sorted({'torch', 'ray', 'numpy', 'pydantic', 'tensorstore'} & sys.modules.keys()))"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert shown.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--task", "synapsis"], "error: no task 'synapsis': it is neither a file nor one of"),
        (["--device", "tpu"], "error: argument --device: invalid choice: 'tpu'"),
        (["--tusk", "x"], "error: unrecognized arguments: --tusk x; did you mean --task? (jobs/train.py --help shows"),
        (["--task"], "error: argument --task: expected one argument (jobs/train.py --help shows all flags)\n"),
        (["--task", "synapse", "--set", "network.epoch=3"], "no setting network.epoch; did you mean epochs?"),
    ],
)
def test_bad_input_is_2_without_a_traceback_and_leaves_nothing(tmp_path, given, words):
    shown = train(*given, cwd=tmp_path)
    assert shown.returncode == 2
    assert words in shown.stderr
    assert "Traceback" not in shown.stderr
    assert list(tmp_path.iterdir()) == []
