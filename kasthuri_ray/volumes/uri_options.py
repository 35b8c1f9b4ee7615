"""Options at the end of a volume's URI: `?axes=zcyx&voxel_size_nm=40,4,4&offset_nm=0,0,0`. They win over the file."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

import numpy as np

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import AXES, Nm, per_axis
from kasthuri_ray.storage.uris import VOLUME_OPTIONS
from kasthuri_ray.volumes.place import Place
from kasthuri_ray.volumes.volume import Volume

EXAMPLE = "?axes=zcyx&voxel_size_nm=40,4,4&offset_nm=0,0,0&dtype=uint8"
OWN_QUERY = ("http://", "https://", "phantom://")  # schemes of URIs that have a query of their own


@dataclass(frozen=True)
class UriOptions:
    """What the options of a URI say about a volume; None where there is no such option.

    Parameters
    ----------
    axes : str or None
        One lower-case letter for each stored axis, in their order; z, y and x are among them.
    voxel_size_nm : tuple of float or None
        Size of a voxel along z, y, x, in nm.
    offset_nm : tuple of float or None
        Position of the lower corner of the first voxel along z, y, x, in nm.
    dtype : str or None
        Type that the stored voxels are taken for; its items have the size of those of the stored type.
    text : str
        The options as they were typed, `?` included; empty if there are none.
    """

    axes: str | None = None
    voxel_size_nm: Nm | None = None
    offset_nm: Nm | None = None
    dtype: str | None = None
    text: str = ""

    def apply_to(self, volume: Volume) -> Volume:
        """Return the volume with the voxel size and the place of the options, and a URI that holds them.

        Raises
        ------
        InputError
            If the volume does not start at voxel 0, 0, 0 and its voxel size, which the offset needs, is not known.
        """
        if not self.text:
            return volume
        name, mip, number = volume.uri.partition("#mip=")
        uri = volume.uri if name.endswith(self.text) else f"{name}{_joined(name, self.text)}{mip}{number}"
        volume = replace(volume, uri=uri)
        if self.voxel_size_nm is not None:
            volume = replace(volume, voxel_size_nm=self.voxel_size_nm, voxel_size_source="?voxel_size_nm")
        if self.axes or self.dtype:
            volume = replace(volume, source_id=f"{volume.identity}?axes={self.axes}&dtype={self.dtype}")
        if self.offset_nm is None:
            return volume
        size = volume.voxel_size_nm
        if size is None and any(volume.bounds.start):
            raise InputError(f"{uri}: offset_nm needs a voxel size, since the first voxel is {volume.bounds.start}")
        origin = per_axis(lambda o, start, n: o - start * n, self.offset_nm, volume.bounds.start, size or (0, 0, 0))
        return replace(volume, place=Place(origin, "corner", "?offset_nm"))


def split_uri_options(uri: str) -> tuple[str, UriOptions]:
    """Split the options from the URI of a volume.

    Parameters
    ----------
    uri : str
        URI whose options follow the last `?`, before `#mip=`. `https://` and `phantom://` keep what else their query
        holds; elsewhere a `?` that no `name=value` follows is part of the name.

    Returns
    -------
    uri : str
        The URI without the options.
    options : UriOptions
        The options.

    Raises
    ------
    InputError
        If an option is unknown, malformed or given twice; the message lists those that exist.
    """
    name, mip, number = uri.partition("#mip=")
    head, mark, tail = name.rpartition("?")
    parts = tail.split("&")
    if not mark or not re.match(r"[A-Za-z_]+=", tail) or "|" in tail:
        return uri, UriOptions()
    found = [part for part in parts if part.partition("=")[0] in VOLUME_OPTIONS]
    others = [part for part in parts if part not in found]
    if others and not uri.startswith(OWN_QUERY):
        raise _malformed(uri, others[0])
    if not found:
        return uri, UriOptions()
    values = dict(part.split("=", 1) for part in found)
    if len(values) < len(found):
        raise InputError(f"{uri} gives an option twice")
    options = UriOptions(
        axes=_axes(uri, values.get("axes")),
        voxel_size_nm=_three_numbers(uri, "voxel_size_nm", values.get("voxel_size_nm")),
        offset_nm=_three_numbers(uri, "offset_nm", values.get("offset_nm")),
        dtype=_dtype(uri, values.get("dtype")),
        text=f"?{'&'.join(found)}",
    )
    return f"{head}{f'?{chr(38).join(others)}' if others else ''}{mip}{number}", options


def _joined(name: str, text: str) -> str:
    """Return the text of options as it follows a name, which may have a query already."""
    return f"&{text[1:]}" if name.startswith(OWN_QUERY) and "?" in name and "|" not in name else text


def _malformed(uri: str, part: str) -> InputError:
    return InputError(
        f"{uri}: {part!r} is not an option of a volume; the options are {', '.join(VOLUME_OPTIONS)}, such as {EXAMPLE} "
        "(lengths in nm, z,y,x)"
    )


def _axes(uri: str, text: str | None) -> str | None:
    if text is None:
        return None
    names = text.lower()
    if not names.isalpha() or len(set(names)) < len(names) or not {"y", "x"} <= set(names):
        raise InputError(
            f"{uri}: axes={text} does not name each stored axis by a letter of its own, with {', '.join(AXES)} among "
            "them, such as axes=zyx or axes=czyx"
        )
    return names


def _three_numbers(uri: str, name: str, text: str | None) -> Nm | None:
    if text is None:
        return None
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    is_size = name == "voxel_size_nm"
    if len(values) != 3 or not all(math.isfinite(value) and (value > 0 or not is_size) for value in values):
        kind = "positive numbers" if is_size else "numbers"
        raise InputError(f"{uri}: {name}={text} is not three {kind} in nm, z,y,x, such as {name}=40,4,4")
    return per_axis(float, values)


def _dtype(uri: str, text: str | None) -> str | None:
    if text is None:
        return None
    try:
        return np.dtype(text).name
    except TypeError:
        raise InputError(f"{uri}: dtype={text} is not a type of voxels, such as uint8 or float32") from None
