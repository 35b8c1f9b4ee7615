"""Command lines of the jobs: flags that set settings, exit codes, error messages, and the command that resumes."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shlex
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from kasthuri_ray.errors import InputError, WorkFailed
from kasthuri_ray.storage.uris import in_ray_job, redact_secrets

# Exit codes. A shell expects 130 after Ctrl-C: 128 + SIGINT.
DONE, FAILED, BAD_INPUT, SET_ASIDE, INTERRUPTED = 0, 1, 2, 3, 130

DEFAULT_WAIT_S = 600.0  # of --wait-for-resources without a number


class SettingsParser(argparse.ArgumentParser):
    """Argument parser whose flags set settings.

    A flag that is not typed sets nothing, so each default stays in `config/settings.py`.

    Parameters
    ----------
    section : str
        Section of the settings that a flag sets if it names no other.
    **options
        Further options of `argparse.ArgumentParser`.
    """

    def __init__(self, section: str, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)
        self.section = section
        self.targets: dict[str, tuple[str, str]] = {}  # section and key that an argument sets
        self.flags: list[str] = []

    def add_group(self, title: str, description: str | None = None) -> FlagGroup:
        """Add a titled group of flags to --help."""
        return FlagGroup(self, self.add_argument_group(title, description))

    def error(self, message: str) -> NoReturn:
        """Print the error in one line and exit; suggest the nearest flag for an unknown one."""
        unknown = re.match("unrecognized arguments: (--[a-z-]+)", message)
        near = difflib.get_close_matches(unknown[1], self.flags, n=1) if unknown else []
        hint = f"; did you mean {near[0]}?" if near else ""
        self.exit(BAD_INPUT, f"error: {message}{hint} (jobs/{self.prog} --help shows all flags)\n")

    def flag_settings(self, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
        """Return the settings that were given by their own flags, by section."""
        found: dict[str, dict[str, Any]] = {}
        for name, (section, key) in self.targets.items():
            if hasattr(arguments, name):
                found.setdefault(section, {})[key] = getattr(arguments, name)
        return found

    def parse_settings(self, arguments: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Parse command-line arguments, and return the settings that they contain, by section."""
        return self.flag_settings(self.parse_args(arguments))

    def overrides(self, arguments: argparse.Namespace) -> dict[str, Any]:
        """Return all that overrides the task and network files, as keyword arguments of `resolve_settings`.

        The parser must have the flags of `add_settings_flags`.
        """
        flags = self.flag_settings(arguments)
        return {"config": arguments.config, "assignments": arguments.assignments, "flags": flags}


@dataclass(frozen=True)
class FlagGroup:
    """Titled group of flags of a parser."""

    parser: SettingsParser
    group: Any  # argparse does not export the class

    def add_setting(self, flag: str, section: str | None = None, **options: Any) -> None:
        """Add a flag that sets `section.key`; the key is the name of the flag unless `key` is passed."""
        key = options.pop("key", flag.lstrip("-").replace("-", "_"))
        name = self.add_flag(flag, default=argparse.SUPPRESS, **options)
        self.parser.targets[name] = (section or self.parser.section, key)

    def add_flag(self, flag: str, **options: Any) -> str:
        """Add a flag that sets no setting; return its attribute name in the parsed arguments."""
        self.parser.flags.append(flag)
        return str(self.group.add_argument(flag, **options).dest)


def add_task_flags(group: FlagGroup) -> None:
    """Add the flags for the task of a training and for its volumes.

    Parameters
    ----------
    group : FlagGroup
        Group that shows the flags.
    """
    group.add_flag(
        "--task", metavar="NAME|FILE", help="built-in task (synapse, membrane, phantom_synapse, ...) or task file"
    )
    group.add_setting("--image", "task", key="image_chan", metavar="URI", help="image (default: the task's)")
    group.add_setting(
        "--annotation", "task", key="annotation_chan", metavar="URI", help="annotation (default: the task's)"
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
    group.add_flag("--config", metavar="FILE", help="JSON file of settings by section, such as a run's settings.json")
    group.add_flag(
        "--set", action="append", default=[], dest="assignments", metavar="SECTION.KEY=VALUE",
        help="set any setting; repeatable",
    )  # fmt: skip


def add_data_access_flags(parser: SettingsParser, section: str | None = None) -> None:
    """Add the flags for access to remote volumes.

    Parameters
    ----------
    parser : SettingsParser
        Parser that shows them in the group `data access`.
    section : str, optional
        Section of `boss`, `cache` and `cache_size`; the parser's by default.
    """
    group = parser.add_group("data access")
    group.add_setting("--boss", section, metavar="FILE", help="BossDB options: JSON with protocol, host, token")
    group.add_setting(
        "--cache", section, metavar="DIR|none",
        help="disk cache for chunks of remote volumes (default: KASTHURI_CACHE, else ~/.cache/kasthuri_ray)",
    )  # fmt: skip
    group.add_setting("--cache-size", section, metavar="SIZE", help="size limit of the cache (default: 20GB)")


def add_compute_flags(parser: SettingsParser, section: str | None = None, precision: str | None = None) -> FlagGroup:
    """Add the flags for device, precision, compilation and resources.

    Parameters
    ----------
    parser : SettingsParser
        Parser that shows them in the group `compute`.
    section : str, optional
        Section of `device`, `compile` and `wait_for_resources`; the parser's by default.
    precision : str, optional
        Section that holds `precision`; the parser's by default.

    Returns
    -------
    FlagGroup
        The group, to which a job may add further flags.
    """
    group = parser.add_group("compute")
    group.add_setting(
        "--device", section, choices=["auto", "cpu", "cuda"], help="auto: GPUs if available (default: auto)"
    )
    group.add_setting(
        "--precision", precision, choices=["auto", "float32", "bf16"], help="precision of the network (default: auto)"
    )
    group.add_setting(
        "--compile",
        section,
        choices=["auto", "on", "off"],
        help="torch.compile; auto: if the run is long enough (default: auto)",
    )
    add_wait_flag(group, section)
    return group


def add_wait_flag(group: FlagGroup, section: str | None = None) -> None:
    """Add `--wait-for-resources`.

    Parameters
    ----------
    group : FlagGroup
        Group that shows the flag.
    section : str, optional
        Section of `wait_for_resources`; the parser's by default.
    """
    group.add_setting(
        "--wait-for-resources", section, nargs="?", const=DEFAULT_WAIT_S, type=float, metavar="SECONDS",
        help=f"wait for the cluster to grow ({DEFAULT_WAIT_S:.0f} s if no number is given; default: fail at once if "
        "it is too small, wait 60 s if it is only busy)",
    )  # fmt: skip


def add_logging_flags(parser: SettingsParser, section: str | None = None, tracked: str = "") -> None:
    """Add `--verbose`, and the flags for experiment trackers.

    Parameters
    ----------
    parser : SettingsParser
        Parser that shows them in the group `logging`.
    section : str, optional
        Section of `mlflow`, `wandb` and `verbose`; the parser's by default.
    tracked : str
        What a tracker records, for the help text; without it the parser has no tracker flags.
    """
    group = parser.add_group("logging")
    if tracked:
        group.add_setting("--mlflow", section, metavar="URI", help=f"log {tracked} to this MLflow server or file")
        group.add_setting("--wandb", section, metavar="PROJECT", help=f"log {tracked} to Weights & Biases")
    group.add_setting("--verbose", section, action="store_true", help="show tracebacks and the log lines of Ray")


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
    sys.path.insert(0, os.getcwd())  # so that a network file can name a module of the current folder
    try:
        return main(flags) or DONE
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
        Path of the job's script.
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
    return shlex.join(["python", program, *map(redact_secrets, kept), "--name", name])


def segment_resume_command(program: str, arguments: Sequence[str]) -> str:
    """Return the command that resumes a segmentation: the same one without `--overwrite`.

    Parameters
    ----------
    program : str
        Path of the job's script.
    arguments : sequence of str
        Command-line arguments of the job.

    Returns
    -------
    str
        Shell command without secrets.
    """
    kept = [redact_secrets(argument) for argument in arguments if argument != "--overwrite"]
    return shlex.join(["python", program, *kept])


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
    with tempfile.NamedTemporaryFile("w", prefix="kasthuri_ray_error_", suffix=".txt", delete=False) as file:
        file.write(text)
    return file.name


def _report_error(message: str, error: Exception, code: int, flags: Sequence[str]) -> int:
    if "--verbose" in flags:
        traceback.print_exception(error)
    print(f"error: {message or type(error).__name__}", file=sys.stderr, flush=True)
    return code
