"""Which arrays lie at a place, for the errors that advise a person to name one of them."""

from __future__ import annotations

from pathlib import Path

from kasthuri_ray.storage import s3_filesystem
from kasthuri_ray.volumes.formats import DOCUMENTS, Node
from kasthuri_ray.volumes.keyvalue import Location

MOST = 20


def nothing_there(place: Location) -> Exception:
    """What to tell a person whose URI leads to nothing that is known."""
    looked = f"looked for {', '.join(name for name, driver in DOCUMENTS.items() if place.driver in (None, driver))}"
    parent = place.at("..")
    if place.folder is None:
        return FileNotFoundError(f"{place.uri}: nothing is there ({looked}){_of(_folders_in_bucket(parent), parent)}")
    if place.folder.is_dir():
        return ValueError(f"{place.uri} is no array or pyramid: {looked}{_of(_arrays_in_folder(place.folder), place)}")
    if parent.folder is None or not parent.folder.is_dir():
        return FileNotFoundError(f"{place.uri}: there is no {place.folder}")
    return FileNotFoundError(f"{place.uri}: nothing is there ({looked}){_of(_arrays_in_folder(parent.folder), parent)}")


def name_one(place: Location, group: Node) -> str:
    """The advice to name an array of a group, with those inside where they can be seen."""
    names = group.attributes.get("ome", group.attributes).get("labels") or []
    if not names and place.folder is not None:
        names = _arrays_in_folder(place.folder)
    elif not names:
        names = _folders_in_bucket(place)
    return f"name one: {_listed(names)}" if names else "name an array inside it"


def _of(names: list[str], place: Location) -> str:
    return f"; {place.path} holds: {_listed(names)}" if names else ""


def _listed(names: list[str]) -> str:
    return ", ".join(names[:MOST]) + (", ..." if len(names) > MOST else "")


def _arrays_in_folder(folder: Path) -> list[str]:
    """The arrays and pyramids up to two folders down."""
    marks = [mark for depth in ("*", "*/*") for name in DOCUMENTS for mark in folder.glob(f"{depth}/{name}")]
    return sorted({mark.parent.relative_to(folder).as_posix() for mark in marks if _is_readable(mark)})


def _is_readable(mark: Path) -> bool:
    """Whether this document is that of an array or a pyramid."""
    if mark.name in (".zarray", "info"):
        return True
    try:
        text = mark.read_text(errors="replace")
    except OSError:
        return False
    return any(word in text for word in ('"array"', '"multiscales"', '"blockSize"'))


def _folders_in_bucket(place: Location) -> list[str]:
    """The folders at a place on S3; none where they may not be listed, since this only serves advice."""
    kvstore = place.kvstore
    if kvstore["driver"] != "s3" or not kvstore.get("path"):
        return []
    from pyarrow.fs import FileSelector, FileType

    anonymous = kvstore.get("aws_credentials", {}).get("type") == "anonymous"
    try:
        files = s3_filesystem(kvstore["bucket"], anonymous)
        found = files.get_file_info(FileSelector(f"{kvstore['bucket']}/{kvstore['path'].strip('/')}"))
    except OSError:
        return []
    return sorted(info.base_name for info in found if info.type == FileType.Directory)
