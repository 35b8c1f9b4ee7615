"""The viewer in a frame of a notebook."""

from __future__ import annotations

import sys
from typing import Any

HEIGHT = 640  # pixels


def in_notebook() -> bool:
    """Return whether this process is the kernel of a notebook.

    Returns
    -------
    bool
        False in a terminal, also in that of IPython.
    """
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


def show_frame(url: str) -> None:
    """Show an address in a frame below the cell.

    Parameters
    ----------
    url : str
        The address.
    """
    display: Any = sys.modules["IPython"].display
    display.display(display.IFrame(url, width="100%", height=HEIGHT))
