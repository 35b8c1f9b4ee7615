"""Advice for a URI at which there is no array: which arrays and folders exist nearby."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlencode
from xml.etree import ElementTree

import tensorstore as ts

from kasthuri_ray.errors import InputError, InputNotFound
from kasthuri_ray.storage.folder import read_uri
from kasthuri_ray.storage.kvstore import StoreLocation, credential_variants, start_reads, tensorstore_context
from kasthuri_ray.storage.local_paths import describe_missing
from kasthuri_ray.storage.s3_access import public_address
from kasthuri_ray.volumes.store_metadata import DOCUMENTS, Document, StoreNode
from kasthuri_ray.volumes.unread_formats import describe_unread_folder

MAX_LISTED = 20  # arrays that a message names
LISTING_TIMEOUT_S = 10.0  # for a private bucket


def no_array_error(place: StoreLocation, documents: Mapping[str, Document]) -> Exception:
    """Return the error for a URI at which no known format was found; it lists what exists nearby."""
    if "info" in documents:
        kind = documents["info"].get("@type", "something without scales")
        return InputError(f"{place.uri}: its info describes {kind}, not an image or a segmentation")
    if place.folder and (unread := describe_unread_folder(place.folder)):
        return InputError(f"{place.uri} holds {unread}")
    looked = f"looked for {', '.join(name for name, driver in DOCUMENTS.items() if place.driver in (None, driver))}"
    parent = place.at("..")
    if os.path.isdir(place.folder or ""):
        return InputError(f"{place.uri} is not an array or a pyramid: {looked}{_listing(place)}")
    if place.folder is not None:
        missing = describe_missing(place.folder)
        where = "" if place.uri == str(place.folder) else f"{place.uri}: "
        return InputNotFound(f"{where}{missing}{'' if '; did you mean' in missing else _listing(parent)}")
    return InputNotFound(f"{place.uri}: nothing was found ({looked}){_listing(parent)}")


def name_array_advice(place: StoreLocation, group: StoreNode) -> str:
    """Return the advice to name an array of a group, with a list of them if they can be listed."""
    names = group.attributes.get("ome", group.attributes).get("labels") or _names_inside(place)
    return f"name one: {_listed(names)}" if names else "name an array inside it"


def _listing(place: StoreLocation) -> str:
    names = _names_inside(place)
    return f"; {place.path} holds: {_listed(names)}" if names else ""


def _names_inside(place: StoreLocation) -> list[str]:
    """Return the arrays in a folder on a disk, or the folders at a path on S3."""
    return _arrays_in_folder(place.folder) if place.folder else _folders_in_bucket(place)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:MAX_LISTED]) + (", ..." if len(names) > MAX_LISTED else "")


def _arrays_in_folder(folder: Path) -> list[str]:
    """Return the paths of arrays and pyramids up to two folders down."""
    documents = [file for depth in ("*", "*/*") for name in DOCUMENTS for file in folder.glob(f"{depth}/{name}")]
    return sorted({file.parent.relative_to(folder).as_posix() for file in documents if _describes_volume(file)})


def _describes_volume(document: Path) -> bool:
    """Return whether a metadata file is that of an array or a pyramid."""
    if document.name in (".zarray", "info"):
        return True
    try:
        text = document.read_text(errors="replace")
    except OSError:
        return False
    return any(key in text for key in ('"array"', '"multiscales"', '"blockSize"'))


def _folders_in_bucket(place: StoreLocation) -> list[str]:
    """Return the names of the folders at a path on S3; none if that takes long or is refused: this is only advice."""
    if place.kvstore["driver"] != "s3" or not place.path:
        return []
    try:
        return _public_folders(place)
    except (OSError, ElementTree.ParseError):
        return _private_folders(place)


def _public_folders(place: StoreLocation) -> list[str]:
    """Ask S3 for the folders alone, without credentials: a public bucket may hold millions of objects below them."""
    query = urlencode({"list-type": 2, "delimiter": "/", "prefix": place.path})
    listing = ElementTree.fromstring(read_uri(f"{public_address(place.kvstore)}/?{query}"))
    folders = [str(prefix.text) for prefix in listing.iterfind("{*}CommonPrefixes/{*}Prefix")]
    return sorted(folder.removeprefix(place.path).rstrip("/") for folder in folders)


def below_only_folder(place: StoreLocation) -> StoreLocation | None:
    """Return the place inside the only folder at the top of a zip archive; None if there is none, or no archive."""
    if place.kvstore["driver"] != "zip":
        return None
    root = StoreLocation(place.uri, {**place.kvstore, "path": ""}, place.driver)
    folders = [name for name in _private_folders(root) if name != "__MACOSX"]
    return root.at(f"{folders[0]}/{place.path}") if len(folders) == 1 else None


def _private_folders(place: StoreLocation) -> list[str]:
    """List all objects, since tensorstore cannot list folders alone."""
    try:
        store = ts.KvStore.open(place.kvstore, context=tensorstore_context()).result(timeout=LISTING_TIMEOUT_S)
        keys = store.list().result(timeout=LISTING_TIMEOUT_S)
    except (ValueError, OSError):
        return []
    return sorted({key.decode().partition("/")[0] for key in keys if b"/" in key})


def check_archive_exists(location: StoreLocation) -> None:
    """Raise an InputNotFound for a zip archive that does not exist: tensorstore may wait for it forever."""
    if location.kvstore["driver"] != "zip":
        return
    base = location.kvstore["base"]
    if base["driver"] == "file" and os.path.isfile(base["path"]) and not zipfile.is_zipfile(base["path"]):
        raise InputError(f"{location.uri}: {base['path']} is not a complete zip archive")
    for kvstore in credential_variants(location.kvstore):
        base = kvstore["base"]
        folder, _, name = base["path"].rstrip("/").rpartition("/")
        try:
            around = StoreLocation(location.uri, {**base, "path": f"{folder}/"})
            if start_reads(around, [name], part=slice(0, 0))[name]() is not None:
                return
        except PermissionError:
            return  # reading says what is refused
    raise InputNotFound(f"{location.uri}: there is no archive {name}")
