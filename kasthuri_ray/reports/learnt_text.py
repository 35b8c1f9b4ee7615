"""Which part of what is judged a network learnt from: the entry of a result, and the sentences about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

MAX_IMAGES = 3  # that a sentence names


def learnt_entry(
    num_voxels: int, num_unseen: int, *, is_known: bool, is_same_image: bool, images: Sequence[str]
) -> dict[str, Any]:
    """Return the entry `learnt_from` of metrics.json and evaluation.json.

    Parameters
    ----------
    num_voxels, num_unseen : int
        Voxels that are judged, and those of them that are not known to have been learnt from.
    is_known : bool
        Whether it is known that the network learnt from nothing else.
    is_same_image : bool
        Whether the network learnt from any part of this image.
    images : sequence of str
        URIs of the images that it learnt from.

    Returns
    -------
    dict
        `known`, `share` (of the voxels, 0 to 1), `same_image` and `images`.
    """
    share = 1 - num_unseen / num_voxels if num_voxels else 0.0
    return {"known": is_known, "share": share, "same_image": is_same_image, "images": list(images)}


def is_partly_learnt(learnt: Mapping[str, Any] | None) -> bool:
    """Return whether a part of what is judged was learnt from, and another part not.

    Parameters
    ----------
    learnt : mapping or None
        Entry `learnt_from`.

    Returns
    -------
    bool
        False without an entry.
    """
    return learnt is not None and 0 < learnt["share"] < 1


def all_learnt_warning(learnt: Mapping[str, Any] | None, what: str) -> str:
    """Return a warning if everything that is judged was learnt from.

    Parameters
    ----------
    learnt : mapping or None
        Entry `learnt_from`.
    what : str
        What is judged, such as "the test box".

    Returns
    -------
    str
        A sentence, or "".
    """
    if learnt is None or learnt["share"] < 1:
        return ""
    return (
        f"The network learnt from all of {what}: the figures say how well it remembers that, not how well it finds "
        "anything elsewhere."
    )


def learnt_sentences(learnt: Mapping[str, Any] | None, what: str) -> str:
    """Return what is known about what the network learnt from.

    Parameters
    ----------
    learnt : mapping or None
        Entry `learnt_from`.
    what : str
        What is judged, such as "the test box".

    Returns
    -------
    str
        One or two sentences; "" if everything was learnt from, which `all_learnt_warning` says, or without an entry.
    """
    if learnt is None or learnt["share"] == 1:
        return ""
    share, others = learnt["share"], not learnt["same_image"]
    if share:
        known = (
            f"Of the voxels of {what}, {learnt_percent(share)} lie in boxes that the network learnt from. The figures "
            f"of the other {learnt_percent(1 - share)} come first, those of the whole stand beside them."
        )
        return known if learnt["known"] else f"{known} It is not known what else it learnt from."
    if not learnt["known"]:
        return f"It is not known what the network learnt from: {what} may be a part of it."
    if others:
        return (
            f"The network learnt from other images, {_name_images(learnt['images'])}: as far as image, place and "
            f"voxels tell, none of them shows {what}."
        )
    return f"The network never saw {what}."


def learnt_percent(share: float) -> str:
    """Return a share as a percentage that is 0% or 100% only if it is exactly that.

    Parameters
    ----------
    share : float
        From 0 to 1.

    Returns
    -------
    str
        Such as `70%`, `0.4%` or `over 99.9%`.
    """
    if share in (0, 1):
        return f"{share:.0%}"
    if not 0.001 <= share <= 0.999:
        return "under 0.1%" if share < 0.5 else "over 99.9%"
    return f"{share:.0%}" if 0.1 <= share <= 0.9 else f"{share:.1%}"


def _name_images(images: Sequence[str]) -> str:
    more = len(images) - MAX_IMAGES
    return ", ".join(images[:MAX_IMAGES]) + (f" and {more} more" if more > 0 else "")
