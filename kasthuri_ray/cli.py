"""What the command lines of the jobs share: flags that become settings, exit codes, and errors in words."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from kasthuri_ray.storage import in_ray_job, without_secrets

DONE, FAILED, BAD_INPUT, SET_ASIDE = 0, 1, 2, 3
# Whatever is wrong before the work starts and that a person can mend on the command line.
INPUT_ERRORS = (ValueError, FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class WorkFailed(Exception):
    """The work had begun and could not be ended; the message says why, and how to go on."""


class SettingFlags(argparse.ArgumentParser):
    """A parser whose flags name the settings they set, so that each default stays in `config.py`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **options)
        self.targets: dict[str, tuple[str, str]] = {}

    def setting(self, group: Any, flag: str, section: str, **options: Any) -> None:
        """A flag that sets `section`.`key`; the key is the flag's name unless `key` says another."""
        key = options.pop("key", flag.lstrip("-").replace("-", "_"))
        action = group.add_argument(flag, default=argparse.SUPPRESS, **options)
        self.targets[action.dest] = (section, key)

    def layer(self, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
        """The settings that were given as flags of their own."""
        found: dict[str, dict[str, Any]] = {}
        for name, (section, key) in self.targets.items():
            if hasattr(arguments, name):
                found.setdefault(section, {})[key] = getattr(arguments, name)
        return found


def add_settings_flags(parser: argparse.ArgumentParser) -> None:
    """`--config` and `--set`."""
    group = parser.add_argument_group(
        "settings", "a flag wins over --set, --set over --config, --config over the files"
    )
    group.add_argument("--config", metavar="FILE", help="JSON with sections of settings, such as a run's settings.json")
    group.add_argument(
        "--set", action="append", default=[], dest="assignments", metavar="SECTION.KEY=VALUE", help="any setting"
    )


def add_reading_flags(parser: SettingFlags, section: str) -> None:
    """How voxels are read."""
    group = parser.add_argument_group("reading")
    parser.setting(group, "--boss", section, metavar="FILE", help="BossDB options, JSON: protocol, host, token")
    parser.setting(group, "--cache", section, metavar="DIR|none", help="keeps chunks of remote volumes on this disk")
    parser.setting(group, "--cache-size", section, metavar="SIZE", help="limit of the cache, such as 20GB")


def add_computing_flags(parser: SettingFlags, section: str, precision: str) -> None:
    """What is computed on. precision: the section that holds it."""
    group = parser.add_argument_group("computing")
    parser.setting(group, "--device", section, choices=["auto", "cpu", "cuda"], help="auto: GPUs if there are any")
    parser.setting(group, "--precision", precision, choices=["auto", "float32", "bf16"], help="of the network")
    parser.setting(group, "--compile", section, choices=["auto", "on", "off"], help="torch.compile; auto: if it pays")
    parser.setting(
        group,
        "--wait-for-resources",
        section,
        nargs="?",
        const=600.0,
        type=float,
        metavar="SECONDS",
        help="wait for the cluster to grow (600 s if no number is given) instead of stopping",
    )


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


def command_again(program: str, given: Sequence[str], name: str) -> str:
    """The command that goes on with the run `name`."""
    kept, skip = [], False
    for word in given:
        if skip or word.startswith("--name="):
            skip = False
        elif word == "--name":
            skip = True
        else:
            kept.append(word)
    return shlex.join(["python", program, *map(without_secrets, kept), "--name", name])


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Inside, SIGTERM (`kill`, `ray job stop`) unwinds the stack like Ctrl-C, and the exit code is 143."""

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
