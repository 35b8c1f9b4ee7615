"""URLs of stores as Neuroglancer and people write them, as URLs that tensorstore takes. Nothing is accessed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote

from kasthuri_ray.errors import InputError
from kasthuri_ray.storage.uris import expand_home

FORMATS = {"precomputed": "neuroglancer-precomputed", "n5": "n5", "zarr": "auto", "zarr2": "zarr2", "zarr3": "zarr3"}
NOT_READ = ("graphene", "brainmaps", "boss", "dvid", "nifti", "deepzoom", "render", "nggraph")  # of Neuroglancer
ZIP = re.compile(r"(?P<archive>.+?\.(?:zip|ozx))(?:/(?P<inside>.*))?", re.IGNORECASE)


def resolve_store_url(uri: str) -> str:
    """Return the tensorstore URL of a Neuroglancer source or of a zip archive; any other URI as it is.

    Parameters
    ----------
    uri : str
        `precomputed://URL`, `zarr://URL` and `n5://URL` as Neuroglancer writes them; `x.zarr.zip` or `x.ozx`, a path or
        URL, with or without `/em` for an array inside.

    Returns
    -------
    str

    Raises
    ------
    InputError
        For sources of Neuroglancer that are not read, by name.
    """
    scheme, mark, rest = uri.partition("://")
    if mark and scheme.removeprefix("middleauth+") in NOT_READ:
        raise InputError(
            f"{uri}: {scheme}:// volumes are not read; copy the part that you need to precomputed or zarr, for "
            "instance with CloudVolume, and give that"
        )
    if mark and scheme in FORMATS and "|" not in uri:
        inner = rest if "://" in rest else _file_url(rest)
        archive = ZIP.fullmatch(inner)
        return (
            f"{archive['archive']}|zip:|{FORMATS[scheme]}:{archive['inside'] or ''}"
            if archive
            else (f"{inner.rstrip('/')}/|{FORMATS[scheme]}:")
        )
    match = ZIP.fullmatch(uri) if "|" not in uri else None
    if match is None or (not mark and os.path.isdir(expand_home(uri))):
        return uri
    archive_url = match["archive"] if mark else _file_url(match["archive"])
    return f"{archive_url}|zip:|auto:{quote(match['inside'] or '')}"


def _file_url(path: str) -> str:
    return f"file://{quote(str(Path(expand_home(path)).absolute()))}"
