"""Exit codes, error messages, and the settings that the command line of a job sets."""

import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from kasthuri_ray.cli import (
    SettingsParser,
    add_compute_flags,
    add_data_access_flags,
    add_settings_flags,
    job_command,
    resume_command,
    run_job,
    segment_resume_command,
)
from kasthuri_ray.errors import (
    InputDenied,
    InputError,
    InputNotFound,
    UnforeseenFailure,
    VolumeError,
    WorkFailed,
    missing_is_bad_input,
)
from kasthuri_ray.progress import Reporter
from kasthuri_ray.ray_cluster.driver import name_resume_command

ROOT = Path(__file__).resolve().parent.parent
TRAIN = str(ROOT / "jobs" / "train.py")


def raising(error: BaseException):
    def main(arguments):
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("no such thing"), 2, "error: no such thing\n"),
        (InputNotFound("not there"), 2, "error: not there\n"),
        (InputDenied("not yours"), 2, "error: not yours\n"),
        (WorkFailed("half way\nto resume: again"), 1, "error: half way\nto resume: again\n"),
        (VolumeError("the server is down"), 1, "error: the server is down\n"),
        (OSError("disk full"), 1, "error: disk full\n"),
        (FileNotFoundError("gone"), 1, "error: gone\n"),
        (InputError(), 2, "error: InputError\n"),
        (KeyboardInterrupt(), 130, "\nstopped\n"),
    ],
)
def test_an_error_sets_the_exit_code_and_prints_a_message_without_traceback(capsys, error, code, message):
    assert run_job(raising(error), ["--task", "x"]) == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("error", [ValueError("https://lab/x?token=abc is odd"), KeyError("x")])
def test_an_error_in_the_program_exits_with_1_and_leaves_its_traceback_in_a_file(capsys, tmp_path, monkeypatch, error):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run_job(raising(error), []) == 1
    (file,) = tmp_path.iterdir()
    stderr, text = capsys.readouterr().err, file.read_text()
    assert str(file) in stderr
    assert "Traceback" not in stderr
    assert "raise error" in text
    assert "abc" not in text + stderr  # the query of a URL may be a secret


def test_work_that_fails_unforeseen_leaves_its_traceback_in_a_file_and_names_the_command(capsys, monkeypatch, tmp_path):
    def main(arguments):
        with name_resume_command("again", Reporter()):
            try:
                [].pop()
            except IndexError as error:
                raise UnforeseenFailure("half way") from error

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run_job(main, []) == 1
    (file,) = tmp_path.iterdir()
    assert capsys.readouterr().err == f"error: half way\nto resume: again\nits traceback is in {file}\n"
    assert "[].pop()" in file.read_text()


def test_the_command_of_another_job_is_the_script_beside_this_one_or_the_installed_command():
    python = shlex.quote(sys.executable)
    assert job_command("jobs/tune.py", "train") == f"{python} {Path.cwd()}/jobs/train.py"
    assert job_command("/my code/jobs/tune.py", "segment") == f"{python} '/my code/jobs/segment.py'"
    assert job_command("/usr/bin/kasthuri-tune", "train") == "kasthuri-train"


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError])
def test_missing_and_forbidden_files_become_bad_input_of_the_same_kind(error):
    with pytest.raises(InputError, match=r"^/data/x$") as raised, missing_is_bad_input():
        raise error("/data/x")
    assert isinstance(raised.value, FileNotFoundError) == (error is FileNotFoundError)


def test_verbose_also_prints_the_traceback(capsys):
    assert run_job(raising(InputError("no such thing")), ["--verbose"]) == 2
    stderr = capsys.readouterr().err
    assert "Traceback (most recent call last)" in stderr
    assert stderr.endswith("error: no such thing\n")


def test_a_ray_job_says_where_to_put_a_missing_file(capsys, monkeypatch):
    missing = raising(InputNotFound("there is no file mine.json"))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert run_job(missing, []) == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: there is no file mine.json. A Ray job looks for a relative path in its copy of")
    assert "an absolute path that every node can read" in stderr
    run_job(raising(InputNotFound("s3://lab/mine.json is not there")), [])
    run_job(raising(InputError("no such key")), [])
    assert "--working-dir" not in capsys.readouterr().err


def test_success_is_0_and_a_returned_exit_code_is_kept():
    assert run_job(lambda arguments: None, []) == 0
    assert run_job(lambda arguments: 3, []) == 3


def test_only_the_flags_that_are_typed_become_keyword_arguments():
    parser = SettingsParser(prog="x")
    group = parser.add_group("input")
    group.add("--image")
    group.add("--num-workers")
    add_settings_flags(parser)
    add_data_access_flags(parser)
    add_compute_flags(parser)

    def keywords(line: str) -> dict:
        return parser.keywords(shlex.split(line))

    assert keywords("") == {}
    assert keywords("--image a --num-workers 2-4") == {"image": "a", "num_workers": "2-4"}
    assert keywords("--precision bf16 --set a.b=1 --set c.d=2") == {"precision": "bf16", "settings": ["a.b=1", "c.d=2"]}
    several = keywords("--set a.b=1 c.d=x,y --image z --set e.f=3")
    assert several == {"settings": ["a.b=1", "c.d=x,y", "e.f=3"], "image": "z"}
    assert keywords("--wait-for-resources") == {"wait_for_resources": 600.0}
    assert keywords("--wait-for-resources 5 --cache none --cache-size 1GB --boss b.json") == {
        "wait_for_resources": 5.0, "cache": "none", "cache_size": "1GB", "boss": "b.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ("--task synapse", "python jobs/train.py --task synapse --name n"),
        ("--name old --task synapse", "python jobs/train.py --task synapse --name n"),
        ("--task synapse --name=old", "python jobs/train.py --task synapse --name n"),
        (
            "--set a.b=1 c.d=2 --name old --set e.f=3",
            "python jobs/train.py --set a.b=1 c.d=2 --set e.f=3 --name n",
        ),
        (
            "--image 'file:///d/x y.zarr/|zarr3:em' --set task.z_train=0,14",
            "python jobs/train.py --image 'file:///d/x y.zarr/|zarr3:em' --set task.z_train=0,14 --name n",
        ),
    ],
)
def test_the_command_that_resumes_names_the_run(arguments, command):
    assert resume_command("jobs/train.py", shlex.split(arguments), "n") == command


def test_an_installed_command_is_resumed_by_its_own_name():
    resume = resume_command("/env/bin/kasthuri-train", ["--task", "synapse"], "n")
    assert resume == "kasthuri-train --task synapse --name n"
    arguments = ["--weights", "run", "--output", "x.zarr", "--overwrite"]
    command = segment_resume_command("/env/bin/kasthuri-segment", arguments)
    assert command == "kasthuri-segment --weights run --output x.zarr"


def test_an_installed_command_shows_its_own_name_in_help_and_errors(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/env/bin/kasthuri-tune"])
    parser = SettingsParser(prog="tune.py", description="Search.", epilog="python jobs/train.py --config x")
    assert parser.format_help().startswith("usage: kasthuri-tune")
    assert parser.format_help().endswith("kasthuri-train --config x\n")
    with pytest.raises(SystemExit):
        parser.parse_args(["--nme", "x"])
    assert "(kasthuri-tune --help shows all flags)" in capsys.readouterr().err


def test_the_command_that_resumes_a_segmentation_does_not_overwrite():
    arguments = ["--weights", "a run", "--output", "x.zarr", "--overwrite", "--tta"]
    command = "python jobs/segment.py --weights 'a run' --output x.zarr --tta"
    assert segment_resume_command("jobs/segment.py", arguments) == command


def train(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TRAIN, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60)


def test_help_is_printed_within_a_second_and_in_groups(tmp_path):
    fastest = 60.0
    for _ in range(3):
        start = time.perf_counter()
        process = train("--help", cwd=tmp_path)
        fastest = min(fastest, time.perf_counter() - start)
    assert process.returncode == 0
    for title in ("input:", "output:", "settings:", "data access:", "compute:", "logging:", "examples:"):
        assert title in process.stdout
    assert fastest < 1


def test_help_imports_no_heavy_package(help_text):
    assert "usage: train.py" in help_text(TRAIN)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task", "synapsis"], "error: --task synapsis: there is no "),
        (["--device", "tpu"], "error: argument --device: invalid choice: 'tpu'"),
        (["--tusk", "x"], "error: unrecognized arguments: --tusk x; did you mean --task? (jobs/train.py --help shows"),
        (["--task"], "error: argument --task: expected one argument (jobs/train.py --help shows all flags)\n"),
        (
            ["--name", "-6:0,:"],
            "a value that begins with - is written --name=-6:0,: (jobs/train.py",
        ),
        (["--task", "synapse", "--set", "network.epoch=3"], "no setting network.epoch; did you mean network.epochs?"),
        (["--task", "synapse", "--weights", "nowhere.pt"], "error: --weights: there is no "),
        (["--task", "synapse", "--weights", ""], "error: argument --weights: the value is empty; leave the flag out"),
        (["--set", "epochs=3"], "--set epochs=3: expected section.key=value, such as network.epochs=3\n"),
        (["--set", "network.epochs", "3"], "--set network.epochs: expected section.key=value"),
        (
            ["--task", "synapse", "--set", "network.ema=0.9", "segment.tta=true"],
            "--set segment.tta=true: train reads no setting of the section segment, only of task, network, train",
        ),
    ],
)
def test_bad_input_exits_with_2_without_traceback_and_writes_nothing(tmp_path, arguments, message):
    process = train(*arguments, cwd=tmp_path)
    assert process.returncode == 2
    assert message in process.stderr
    assert "Traceback" not in process.stderr
    assert list(tmp_path.iterdir()) == []
