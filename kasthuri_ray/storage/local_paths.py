"""Local paths: the nearest that exists, what may be created there, the user's cache, and what a typo meant."""

from __future__ import annotations

import difflib
import itertools
import os
import tempfile
from pathlib import Path

from kasthuri_ray.storage.uris import expand_home

BEST_FILE = "checkpoint/best.pt"  # in the folder of a run
MAX_COMPARED = 10_000  # names in a folder
LEAST_SIMILARITY = 0.6


def nearest_existing(path: str | Path) -> Path:
    """Return a path, or the nearest folder above it that exists.

    Parameters
    ----------
    path : str or Path
        An absolute path.

    Returns
    -------
    Path
        What exists; a folder that this user cannot enter hides what is in it.
    """
    return next(parent for parent in [Path(path), *Path(path).parents] if os.path.lexists(parent))


def can_create_in(folder: str | Path) -> bool:
    """Return whether this user may create files in a folder.

    Parameters
    ----------
    folder : str or Path
        Any path.

    Returns
    -------
    bool
        What its permissions say; False if it is no folder.
    """
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


def user_cache_folder() -> str:
    """Return the folder of this user for what may be made again: chunks of remote volumes, compiled kernels.

    Returns
    -------
    str
        KASTHURI_CACHE, which may be "none", or ~/.cache/kasthuri_ray. A container may have no home folder, or one that
        cannot be written: then a folder of this user among the temporary files; "none" if another user owns it.
    """
    if chosen := os.environ.get("KASTHURI_CACHE"):
        return chosen
    home = os.path.expanduser("~/.cache/kasthuri_ray")
    if os.path.isabs(home) and can_create_in(nearest_existing(home)):
        return home
    own = os.path.join(tempfile.gettempdir(), f"kasthuri_ray_cache_{os.getuid()}")
    return "none" if os.path.lexists(own) and os.lstat(own).st_uid != os.geteuid() else own


def describe_missing(path: str | Path) -> str:
    """Return that there is nothing at a local path, and what was probably meant.

    Parameters
    ----------
    path : str or Path
        A path, as a person typed it.

    Returns
    -------
    str
        The absolute path, and the nearest one that exists, if one is near.
    """
    absolute = os.path.abspath(expand_home(str(path)))
    near = find_near_path(absolute)
    return f"there is no {absolute}{f'; did you mean {near}?' if near else ''}"


def find_near_path(absolute: str) -> str | None:
    """Return the existing path that is nearest to one that does not exist.

    Parameters
    ----------
    absolute : str
        An absolute path.

    Returns
    -------
    str or None
        A path with one folder or name spelled otherwise, or the same name in the last folder that exists.
    """
    folder = nearest_existing(absolute)
    missing, *rest = Path(absolute).relative_to(folder).parts or ("",)
    names = _names_in(folder)
    near = [
        name
        for name in difflib.get_close_matches(missing, names, n=3, cutoff=LEAST_SIMILARITY)
        if difflib.SequenceMatcher(a=Path(missing).stem, b=Path(name).stem).ratio() >= LEAST_SIMILARITY
    ]
    candidates = [folder.joinpath(name, *rest) for name in near]
    if rest and rest[-1] in names:
        candidates.append(folder / rest[-1])
    found = next((path for path in candidates if path.exists()), None)
    return None if found is None else str(found)


def _names_in(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in itertools.islice(entries, MAX_COMPARED)]
    except OSError:
        return []
