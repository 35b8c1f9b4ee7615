"""Command lines of the jobs: flags that set settings, exit codes, error messages, and the command that resumes."""

from __future__ import annotations

import argparse
import difflib
import itertools
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from kasthuri_ray.config import defaults
from kasthuri_ray.errors import TRACEBACK_PREFIX, InputError, UnforeseenFailure, WorkFailed
from kasthuri_ray.module_path import search_working_folder_last
from kasthuri_ray.storage.uris import in_ray_job, redact_secrets

# Exit codes. A shell expects 130 after Ctrl-C: 128 + SIGINT.
DONE, FAILED, BAD_INPUT, SET_ASIDE, INTERRUPTED = 0, 1, 2, 3, 130


class SettingsParser(argparse.ArgumentParser):
    """Argument parser whose flags become keyword arguments of a function of `kasthuri_ray.api`.

    A flag that is not typed sets nothing, so each default stays in `config/settings.py`.

    Parameters
    ----------
    **options
        Options of `argparse.ArgumentParser`.
    """

    def __init__(self, **options: Any) -> None:
        if command := _installed_command(sys.argv[0]):
            texts = {key: re.sub(r"python jobs/(\w+)\.py", r"kasthuri-\1", text) for key, text in options.items()}
            options = {**texts, "prog": command}
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)
        self.flags: list[str] = []
        self.typed: Sequence[str] = ()

    def add_group(self, title: str, description: str | None = None) -> FlagGroup:
        """Add a titled group of flags to --help."""
        return FlagGroup(self, self.add_argument_group(title, description))

    def error(self, message: str) -> NoReturn:
        """Print the error in one line and exit; suggest the nearest flag for an unknown one."""
        unknown = re.match("unrecognized arguments: (--[a-z0-9-]+)", message)
        near = difflib.get_close_matches(unknown[1], self.flags, n=1) if unknown else []
        hint = f"; did you mean {near[0]}?" if near else self._negative_value_hint(message)
        program = self.prog if _installed_command(self.prog) else f"jobs/{self.prog}"
        self.exit(BAD_INPUT, f"error: {message}{hint} ({program} --help shows all flags)\n")

    def _negative_value_hint(self, message: str) -> str:
        """Return how to write a value such as -64:0,:,: which argparse takes for a flag; "" for other errors."""
        flag = re.match("argument (--[a-z0-9-]+): expected one argument", message)
        pairs = itertools.pairwise(self.typed)
        values = [value for name, value in pairs if flag and name == flag[1] and re.match(r"-[\d.]", value)]
        return f"; a value that begins with - is written {flag[1]}={values[0]}" if flag and values else ""

    def keywords(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Parse command-line arguments, and return those that were typed, by the names of the API's arguments."""
        self.typed = arguments
        keywords = vars(self.parse_args(arguments))
        for name, value in keywords.items():
            if value == "" or (isinstance(value, list) and "" in value):
                self.error(f"argument --{name.replace('_', '-')}: the value is empty; leave the flag out, or give one")
        return keywords


@dataclass(frozen=True)
class FlagGroup:
    """Titled group of flags of a parser."""

    parser: SettingsParser
    group: Any  # argparse does not export the class

    def add(self, flag: str, **options: Any) -> None:
        """Add a flag; it is absent from `SettingsParser.keywords` unless it is typed."""
        self.parser.flags.append(flag)
        self.group.add_argument(flag, default=argparse.SUPPRESS, **options)


class _ListSettings(argparse.Action):
    """Print the settings that hold a word, all of them for "", and exit, as --help does."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        from kasthuri_ray.config.setting_list import describe_settings

        try:
            text = describe_settings(values, shutil.get_terminal_size().columns)
        except InputError as error:
            parser.exit(BAD_INPUT, f"error: {error} (--settings lists all)\n")
        print(text)
        parser.exit(DONE)


def add_task_flags(group: FlagGroup) -> None:
    """Add the flags for the task of a training and for its volumes.

    Parameters
    ----------
    group : FlagGroup
        Group that shows the flags.
    """
    group.add(
        "--task", metavar="NAME|FILE", help="built-in task (synapse, membrane, phantom_synapse, ...) or task file"
    )
    group.add(
        "--image",
        metavar="URI",
        help="image (default: the task's); without ranges it is split by itself into train, val and test",
    )
    group.add(
        "--annotation",
        metavar="URI",
        help="annotation (default: the task's); --set task.ignore_label=V leaves out voxels whose label V means "
        "not labelled, task.labels names labels",
    )


def add_settings_flags(parser: SettingsParser) -> None:
    """Add `--config` and `--set`.

    Parameters
    ----------
    parser : SettingsParser
        Parser that shows them in the group `settings`.
    """
    group = parser.add_group(
        "settings", "precedence, highest first: other flags, --set, --config, task and network files, defaults"
    )
    group.add("--config", metavar="FILE", help="JSON file of settings by section, such as a run's settings.json")
    group.add(
        "--set", action="extend", nargs="+", dest="settings", metavar="SECTION.KEY=VALUE",
        help="set any settings, one or several; repeatable",
    )  # fmt: skip
    group.add(
        "--settings", action=_ListSettings, nargs="?", const="", dest=argparse.SUPPRESS, metavar="WORD",
        help="list all settings with their defaults, or those that hold a word, and exit",
    )  # fmt: skip


def add_data_access_flags(parser: SettingsParser) -> None:
    """Add the flags for access to remote volumes.

    Parameters
    ----------
    parser : SettingsParser
        Parser that shows them in the group `data access`.
    """
    group = parser.add_group("data access")
    group.add("--boss", metavar="FILE", help="BossDB options: JSON with protocol, host, token")
    group.add(
        "--cache",  metavar="DIR|none",
        help="disk cache for chunks of remote volumes and of the phantom (default: KASTHURI_CACHE, else "
        "~/.cache/kasthuri_ray)",
    )  # fmt: skip
    group.add("--cache-size", metavar="SIZE", help=f"size limit of the cache (default: {defaults.CACHE_SIZE})")


def add_compute_flags(parser: SettingsParser) -> FlagGroup:
    """Add the flags for device, precision, compilation and resources.

    Parameters
    ----------
    parser : SettingsParser
        Parser that shows them in the group `compute`.

    Returns
    -------
    FlagGroup
        The group, to which a job may add further flags.
    """
    group = parser.add_group("compute")
    default = f"(default: {defaults.AUTO})"
    group.add("--device", choices=["auto", "cpu", "cuda"], help=f"auto: GPUs if available {default}")
    group.add(
        "--precision",
        choices=["auto", "float32", "bf16", "float16"],
        help=f"number format; float16 on GPUs alone {default}",
    )
    group.add(
        "--compile",
        choices=["auto", "on", "off"],
        help=f"torch.compile; auto: if it saves time {default}",
    )
    add_wait_flag(group)
    return group


def add_wait_flag(group: FlagGroup) -> None:
    """Add `--wait-for-resources`.

    Parameters
    ----------
    group : FlagGroup
        Group that shows the flag.
    """
    group.add(
        "--wait-for-resources",  nargs="?", const=defaults.WAIT_S, type=float, metavar="SECONDS",
        help=f"wait for the cluster to grow ({defaults.WAIT_S:.0f} s if no number is given; default: fail at once if "
        "it is too small, wait 60 s if it is only busy)",
    )  # fmt: skip


def add_logging_flags(parser: SettingsParser, tracked: str = "") -> None:
    """Add `--verbose`, and the flags for experiment trackers.

    Parameters
    ----------
    parser : SettingsParser
        Parser that shows them in the group `logging`.
    tracked : str
        What a tracker records, for the help text; without it the parser has no tracker flags.
    """
    group = parser.add_group("logging")
    if tracked:
        group.add("--mlflow", metavar="URI", help=f"log {tracked} to this MLflow server or file")
        group.add("--wandb", metavar="PROJECT", help=f"log {tracked} to Weights & Biases")
    group.add("--verbose", action="store_true", help="show tracebacks and the log lines of Ray")


def print_published_weights_if_asked(keywords: Mapping[str, Any]) -> bool:
    """Print the list of the published weights if `--weights kasthuri://` asks for it.

    Parameters
    ----------
    keywords : mapping
        What was typed, see `SettingsParser.keywords`.

    Returns
    -------
    bool
        Whether it was asked for.
    """
    typed = keywords.get("weights", "")
    if "kasthuri://" not in [each.lower() for each in ([typed] if isinstance(typed, str) else typed)]:
        return False
    from kasthuri_ray.models.published_weights import describe_published

    print(describe_published(), flush=True)
    return True


def run_job(main: Callable[[Sequence[str]], int | None], arguments: Sequence[str] | None = None) -> int:
    """Run the main function of a job and report its errors, without a traceback unless `--verbose` is among the flags.

    Parameters
    ----------
    main : callable
        Takes the command-line arguments; returns an exit code, or None for success.
    arguments : sequence of str, optional
        Command-line arguments; those of this process by default.

    Returns
    -------
    int
        Exit code of the process.
    """
    flags = list(sys.argv[1:] if arguments is None else arguments)
    if in_ray_job():
        search_working_folder_last()
    try:
        return main(flags) or DONE
    except UnforeseenFailure as error:
        text = f"{redact_secrets(str(error))}\nits traceback is in {_write_traceback(error)}"
        return _report_error(text, error, FAILED, flags)
    except WorkFailed as error:
        return _report_error(str(error), error, FAILED, flags)
    except KeyboardInterrupt:
        if arguments is None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the cleanup at exit
        print("\nstopped", file=sys.stderr)
        return INTERRUPTED
    except InputError as error:
        return _report_error(f"{error}{_missing_file_hint(error)}", error, BAD_INPUT, flags)
    except OSError as error:
        return _report_error(str(error), error, FAILED, flags)
    except Exception as error:
        text = f"{type(error).__name__}: {error} (a bug; its traceback is in {_write_traceback(error)})"
        return _report_error(redact_secrets(text), error, FAILED, flags)


def resume_command(program: str, arguments: Sequence[str], name: str) -> str:
    """Return the command that resumes a run or a sweep.

    Parameters
    ----------
    program : str
        Path of the job's script, or of its installed command.
    arguments : sequence of str
        Command-line arguments of the job.
    name : str
        Name of the run; it replaces the `--name` among the arguments.

    Returns
    -------
    str
        Shell command without secrets.
    """
    kept, skip = [], False
    for argument in arguments:
        if skip or argument.startswith("--name="):
            skip = False
        elif argument == "--name":
            skip = True
        else:
            kept.append(argument)
    return shlex.join([*_program_words(program), *map(redact_secrets, kept), "--name", name])


def segment_resume_command(program: str, arguments: Sequence[str]) -> str:
    """Return the command that resumes a segmentation: the same one without `--overwrite`.

    Parameters
    ----------
    program : str
        Path of the job's script, or of its installed command.
    arguments : sequence of str
        Command-line arguments of the job.

    Returns
    -------
    str
        Shell command without secrets.
    """
    kept = [redact_secrets(argument) for argument in arguments if argument != "--overwrite"]
    return shlex.join([*_program_words(program), *kept])


def job_command(program: str, job: str) -> str:
    """Return what starts another job from any folder.

    Parameters
    ----------
    program : str
        Path of this job's script, or of its installed command.
    job : str
        Name of the other job, such as "train".

    Returns
    -------
    str
        Shell words: the installed command if this is one, by its path if the shell would not find it; else this Python
        and the script beside this one. In a Ray job, whose folders are temporary, the words are relative.
    """
    folder = os.path.dirname(program)
    if _installed_command(program):
        command = f"kasthuri-{job}"
        beside = os.path.abspath(os.path.join(folder, command))
        return shlex.quote(beside if folder and os.path.exists(beside) and not shutil.which(command) else command)
    script = os.path.join(folder, f"{job}.py")
    return shlex.join(["python", script] if in_ray_job() else [sys.executable, os.path.abspath(script)])


def _installed_command(program: str) -> str:
    """Return the name of a command that the installed package has, such as kasthuri-train; "" for a script."""
    name = os.path.basename(program)
    return name if name.startswith("kasthuri-") else ""


def _program_words(program: str) -> list[str]:
    """Return the words that start a job on a command line."""
    command = _installed_command(program)
    return [command] if command else ["python", program]


def _missing_file_hint(error: Exception) -> str:
    """Return how to make a missing file visible to a Ray job, which runs in a copy of `--working-dir`."""
    if not (in_ray_job() and isinstance(error, FileNotFoundError)) or "://" in str(error):
        return ""
    return (
        ". A Ray job looks for a relative path in its copy of --working-dir: put the file there, or give s3://... "
        "or an absolute path that every node can read"
    )


def _write_traceback(error: Exception) -> str:
    """Write the traceback of an error to a new file, without secrets, and return the path."""
    text = redact_secrets("".join(traceback.format_exception(error)))
    with tempfile.NamedTemporaryFile("w", prefix=TRACEBACK_PREFIX, suffix=".txt", delete=False) as file:
        file.write(text)
    return file.name


def _report_error(message: str, error: Exception, code: int, flags: Sequence[str]) -> int:
    if "--verbose" in flags:
        traceback.print_exception(error)
    print(f"error: {message or type(error).__name__}", file=sys.stderr, flush=True)
    return code
