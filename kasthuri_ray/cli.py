"""What the command lines of the jobs share: flags that become settings, exit codes, and errors in words."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from kasthuri_ray.errors import WorkFailed
from kasthuri_ray.storage.uris import in_ray_job, redact_secrets

DONE, FAILED, BAD_INPUT, SET_ASIDE = 0, 1, 2, 3
# Whatever is wrong before the work starts and that a person can mend on the command line.
INPUT_ERRORS = (ValueError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class SettingFlags(argparse.ArgumentParser):
    """A parser whose flags name the settings they set, so that each default stays in `config.py`.

    section: the one that its flags set where they name no other.
    """

    def __init__(self, section: str, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)
        self.section = section
        self.targets: dict[str, tuple[str, str]] = {}
        self.flags: list[str] = []

    def group(self, title: str, description: str | None = None) -> SettingGroup:
        """Flags that stand together in --help."""
        return SettingGroup(self, self.add_argument_group(title, description))

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in a line, an unknown flag with the nearest that there is."""
        unknown = re.match("unrecognized arguments: (--[a-z-]+)", message)
        near = difflib.get_close_matches(unknown[1], self.flags, n=1) if unknown else []
        hint = f"; did you mean {near[0]}?" if near else ""
        self.exit(BAD_INPUT, f"error: {message}{hint} (jobs/{self.prog} --help shows all flags)\n")

    def layer(self, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
        """The settings that were given as flags of their own."""
        found: dict[str, dict[str, Any]] = {}
        for name, (section, key) in self.targets.items():
            if hasattr(arguments, name):
                found.setdefault(section, {})[key] = getattr(arguments, name)
        return found

    def layers(self, arguments: argparse.Namespace) -> dict[str, Any]:
        """All that was said above the files, as `layers.resolve` takes it; of a parser with `add_settings_flags`."""
        return {"config": arguments.config, "assignments": arguments.assignments, "flags": self.layer(arguments)}


@dataclass(frozen=True)
class SettingGroup:
    """A group of a parser's flags."""

    parser: SettingFlags
    inner: Any  # argparse's, which has no public name

    def setting(self, flag: str, section: str | None = None, **options: Any) -> None:
        """A flag that sets `section`.`key`; the key is the flag's name unless `key` says another."""
        key = options.pop("key", flag.lstrip("-").replace("-", "_"))
        name = self.flag(flag, default=argparse.SUPPRESS, **options)
        self.parser.targets[name] = (section or self.parser.section, key)

    def flag(self, flag: str, **options: Any) -> str:
        """A flag that sets nothing by itself, as of argparse; gives the name under which it is found."""
        self.parser.flags.append(flag)
        return str(self.inner.add_argument(flag, **options).dest)


def add_task_flags(group: SettingGroup) -> None:
    """The task of a job that trains, and other volumes than the task's."""
    group.flag("--task", metavar="NAME|FILE", help="synapse, membrane, phantom_synapse, ... or a task file")
    group.setting("--image", "task", key="image_chan", metavar="URI", help="instead of the task's")
    group.setting("--annotation", "task", key="annotation_chan", metavar="URI", help="instead of the task's")


def add_settings_flags(parser: SettingFlags) -> None:
    """`--config` and `--set`."""
    group = parser.group("settings", "a flag wins over --set, --set over --config, --config over the files")
    group.flag("--config", metavar="FILE", help="JSON with sections of settings, such as a run's settings.json")
    group.flag(
        "--set", action="append", default=[], dest="assignments", metavar="SECTION.KEY=VALUE", help="any setting"
    )


def add_reading_flags(parser: SettingFlags, section: str | None = None) -> None:
    """How voxels are read."""
    group = parser.group("reading")
    group.setting("--boss", section, metavar="FILE", help="BossDB options, JSON: protocol, host, token")
    group.setting("--cache", section, metavar="DIR|none", help="keeps chunks of remote volumes on this disk")
    group.setting("--cache-size", section, metavar="SIZE", help="limit of the cache, such as 20GB")


def add_computing_flags(parser: SettingFlags, section: str | None = None, precision: str | None = None) -> None:
    """What is computed on. precision: the section that holds it."""
    group = parser.group("computing")
    group.setting("--device", section, choices=["auto", "cpu", "cuda"], help="auto: GPUs if there are any")
    group.setting("--precision", precision, choices=["auto", "float32", "bf16"], help="of the network")
    group.setting("--compile", section, choices=["auto", "on", "off"], help="torch.compile; auto: if it pays")
    add_waiting_flag(group, section)


def add_waiting_flag(group: SettingGroup, section: str | None = None) -> None:
    """Whether a cluster that is too small is waited for."""
    words = "wait for the cluster to grow (600 s if no number is given) instead of stopping"
    group.setting("--wait-for-resources", section, nargs="?", const=600.0, type=float, metavar="SECONDS", help=words)


def add_reporting_flags(parser: SettingFlags, section: str | None = None, logged: str = "") -> None:
    """What is told, and to whom. logged: what a tracker is told of, in words; "" if nothing."""
    group = parser.group("watching")
    if logged:
        group.setting("--mlflow", section, metavar="URI", help=f"log {logged} to this MLflow server or file")
        group.setting("--wandb", section, metavar="PROJECT", help=f"log {logged} to Weights & Biases")
    group.setting("--verbose", section, action="store_true", help="tracebacks and Ray's own lines")


def run_job(main: Callable[[Sequence[str]], int | None], arguments: Sequence[str] | None = None) -> int:
    """Run a job's main function; gives its exit code, and says what went wrong without a traceback.

    `--verbose` among the arguments shows the traceback.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.path.insert(0, os.getcwd())  # a network of one's own may lie there
    try:
        return main(given) or DONE
    except WorkFailed as error:
        return _tell(str(error), error, FAILED, given)
    except KeyboardInterrupt:
        if arguments is None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # pressed again, it would break the ending off
        print("\nstopped", file=sys.stderr)
        return 130
    except INPUT_ERRORS as error:
        return _tell(f"{error}{_where_to_put_it(error)}", error, BAD_INPUT, given)
    except OSError as error:
        return _tell(str(error), error, FAILED, given)
    except Exception as error:
        return _tell(f"{type(error).__name__}: {error} (--verbose shows where)", error, FAILED, given)


def _where_to_put_it(error: Exception) -> str:
    """What to type where a Ray job, in its copy of `--working-dir`, does not find a file."""
    if not (in_ray_job() and isinstance(error, FileNotFoundError)) or "://" in str(error):
        return ""
    return (
        ". A Ray job looks for a relative path in its copy of --working-dir: put the file in there, or give s3://... "
        "or an absolute path that every node sees"
    )


def _tell(message: str, error: Exception, code: int, given: Sequence[str]) -> int:
    if "--verbose" in given:
        traceback.print_exception(error)
    print(f"error: {message or type(error).__name__}", file=sys.stderr, flush=True)
    return code


def resume_command(program: str, given: Sequence[str], name: str) -> str:
    """The command that goes on with the run `name`."""
    kept, skip = [], False
    for word in given:
        if skip or word.startswith("--name="):
            skip = False
        elif word == "--name":
            skip = True
        else:
            kept.append(word)
    return shlex.join(["python", program, *map(redact_secrets, kept), "--name", name])


def segment_resume_command(program: str, given: Sequence[str]) -> str:
    """The command that goes on: the same, but that it does not begin anew."""
    return shlex.join(["python", program, *(redact_secrets(word) for word in given if word != "--overwrite")])
