"""The module path: the folder where the user stands is searched last, so that no file in it hides a library.

A network that is named by its import path may lie in that folder (`models/user_network.py`). A file `queue.py` or
`h5py.py` beside it must not take the place of the library, in this process or in Ray's workers.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from contextlib import suppress

# Where the user stands, for the workers of a cluster that was started elsewhere.
FOLDER_VARIABLE = "KASTHURI_MODULE_FOLDER"


def add_working_folder() -> None:
    """Put the folder where the user stands at the end of the module path, unless the path has it."""
    folder = os.environ.get(FOLDER_VARIABLE) or os.getcwd()
    if not any(_is_folder(entry, folder) for entry in sys.path):
        sys.path.append(folder)


def search_working_folder_last() -> None:
    """Move the current folder to the end of the module path, if the path has it.

    Ray puts the copy of `--working-dir` first, in the driver of a Ray job and in its workers, which call this when they
    start.
    """
    folder = os.getcwd()
    others = [entry for entry in sys.path if not _is_folder(entry, folder)]
    if len(others) < len(sys.path):
        sys.path[:] = [*others, folder]


def is_searched_first(folder: str) -> bool:
    """Return whether Python itself searches a folder before its own modules, as it does in a notebook.

    Parameters
    ----------
    folder : str
        Path of the folder.

    Returns
    -------
    bool
        False if the folder is not on the module path, or comes later.
    """
    own_modules = os.path.dirname(os.__file__)
    entries = sys.path[: sys.path.index(own_modules)] if own_modules in sys.path else sys.path
    return any(_is_folder(entry, folder) for entry in entries)


def import_in_background(name: str) -> None:
    """Import a module in a thread while this process waits for something; an import of it later waits for the thread.

    Parameters
    ----------
    name : str
        Name of the module.
    """

    def load() -> None:
        with suppress(Exception):  # raised where the module is used
            importlib.import_module(name)

    threading.Thread(target=load, name=f"import {name}", daemon=True).start()


def _is_folder(entry: str, folder: str) -> bool:
    """Return whether an entry of the module path is a folder; an empty one is the current folder."""
    return os.path.realpath(entry) == os.path.realpath(folder)
