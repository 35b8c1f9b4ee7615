"""Volumes in public object storage, which a browser can read without this server."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from typing import Any
from urllib.parse import quote

import requests

from kasthuri_ray.errors import InputError
from kasthuri_ray.storage.s3_access import public_address
from kasthuri_ray.viewer.layers import Scene
from kasthuri_ray.viewer.viewer_state import viewer_state
from kasthuri_ray.volumes.volume import Volume

PUBLIC_VIEWER = "https://neuroglancer-demo.appspot.com"
TIMEOUT_S = 10
PRECOMPUTED = "neuroglancer_precomputed"


def find_public_url(volume: Volume) -> str | None:
    """Return the source of a volume as Neuroglancer names it, if a browser can read it.

    Parameters
    ----------
    volume : Volume
        A volume of any kind, without options that change its place.

    Returns
    -------
    str or None
        None unless it is precomputed on S3, and an anonymous request with an `Origin` is answered with
        `Access-Control-Allow-Origin`.
    """
    address = public_folder(volume)
    if address is None or not allows_browsers(f"{address}/info"):
        return None
    return f"precomputed://{address}"


def public_folder(volume: Volume) -> str | None:
    """Return the https address of a precomputed volume on S3; None for any other volume.

    Other formats state voxel sizes and places in ways that the client of the viewer does not read alike.
    """
    volume = getattr(volume, "source", volume)
    spec: dict[str, Any] = json.loads(getattr(volume, "spec", "{}"))
    kvstore = spec.get("kvstore", {})
    if spec.get("driver") != PRECOMPUTED or kvstore.get("driver") != "s3" or spec.get("scale_index"):
        return None
    if volume.place is None or volume.place.source != "voxel_offset" or volume.voxel_size_source != "resolution":
        return None
    return f"{public_address(kvstore)}/{quote(kvstore.get('path', '').strip('/'))}"


@lru_cache(maxsize=64)
def allows_browsers(url: str) -> bool:
    """Return whether a page of any origin may read a file without credentials; asked once."""
    try:
        answer = requests.get(url, headers={"Origin": PUBLIC_VIEWER}, timeout=TIMEOUT_S, stream=True)
        answer.close()
    except requests.RequestException:
        return False
    return answer.status_code == 200 and answer.headers.get("Access-Control-Allow-Origin") in ("*", PUBLIC_VIEWER)


def public_link(scene: Scene) -> str:
    """Return the address of a scene in a public Neuroglancer.

    Parameters
    ----------
    scene : Scene
        The scene.

    Returns
    -------
    str
        URL; `KASTHURI_NEUROGLANCER` names another Neuroglancer.

    Raises
    ------
    InputError
        If a layer is not in public storage, with its name.
    """
    private = [layer.name for layer in scene.voxel_layers if layer.public_url is None]
    if private:
        raise InputError(
            f"--link needs layers in public storage, which is not so of: {', '.join(private)}. Precomputed volumes on "
            "S3 are, if they can be read without credentials and their bucket allows browsers (CORS)"
        )
    state = viewer_state(scene, "")
    viewer = os.environ.get("KASTHURI_NEUROGLANCER", PUBLIC_VIEWER).rstrip("/")
    return f"{viewer}/#!{quote(json.dumps(state, separators=(',', ':')), safe='')}"
