"""`<output>.reviewed.csv`: what a person said of objects of an output, and how the objects were drawn."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields

from kasthuri_ray.errors import InputError, InputNotFound
from kasthuri_ray.storage.folder import open_storage

KEEP, REJECT, UNSURE = "keep", "reject", "unsure"
VERDICTS = (KEEP, REJECT, UNSURE)


@dataclass(frozen=True)
class ReviewedObject:
    """An object of the file.

    Parameters
    ----------
    id : int
        As in the table of objects.
    verdict : str
        `keep`, `reject` or `unsure`; "" if the object was drawn and nobody looked at it yet.
    stratum : str
        Group of objects from which it was drawn at random; "" if a person chose it.
    stratum_size : int
        Number of all objects of the group; 0 without a group.
    mean_probability : float
        As in the table of objects.
    size_voxels : int
        As in the table of objects.
    """

    id: int
    verdict: str
    stratum: str
    stratum_size: int
    mean_probability: float
    size_voxels: int

    @property
    def is_drawn(self) -> bool:
        """Whether it was drawn at random."""
        return self.stratum != ""


COLUMNS = tuple(each.name for each in fields(ReviewedObject))


def reviewed_path(output: str) -> str:
    """Return the path of the file of an output.

    Parameters
    ----------
    output : str
        Path or URL of the output.

    Returns
    -------
    str
        `<output>.reviewed.csv`.
    """
    return f"{open_storage(output).path}.reviewed.csv"


def read_reviewed(path: str) -> list[ReviewedObject]:
    """Read the file.

    Parameters
    ----------
    path : str
        Path or `s3://` URL.

    Returns
    -------
    list of ReviewedObject
        In the order in which they are reviewed.

    Raises
    ------
    InputNotFound
        If there is no such file.
    InputError
        If it is another file, or a row is wrong; the message names the line.
    """
    folder, _, name = path.rpartition("/")
    try:
        text = open_storage(folder or ("/" if path.startswith("/") else ".")).read_bytes(name).decode("utf-8-sig")
    except FileNotFoundError:
        raise InputNotFound(f"there is no file {path} of reviewed objects") from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a CSV file of reviewed objects") from None
    reader = csv.DictReader(io.StringIO(text))
    missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
    if missing:
        raise InputError(f"{path} is not a file of reviewed objects: it has no column {', '.join(missing)}")
    objects = [_parse_row(row, f"{path}, line {number}") for number, row in enumerate(reader, 2)]
    if len({each.id for each in objects}) < len(objects):
        raise InputError(f"{path} names an object twice")
    return objects


def _parse_row(row: dict[str, str], where: str) -> ReviewedObject:
    try:
        found = ReviewedObject(
            id=int(row["id"]),
            verdict=row["verdict"],
            stratum=row["stratum"],
            stratum_size=int(row["stratum_size"]),
            mean_probability=float(row["mean_probability"]),
            size_voxels=int(row["size_voxels"]),
        )
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from None
    if found.verdict not in (*VERDICTS, ""):
        raise InputError(f"{where}: the verdict {found.verdict!r} is not one of {', '.join(VERDICTS)}")
    return found


def write_reviewed(path: str, objects: Sequence[ReviewedObject]) -> None:
    """Write the file, whole or not at all.

    Parameters
    ----------
    path : str
        Path or `s3://` URL.
    objects : sequence of ReviewedObject
        In the order in which they are reviewed.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([getattr(each, column) for column in COLUMNS] for each in objects)
    folder, _, name = path.rpartition("/")
    open_storage(folder or ("/" if path.startswith("/") else ".")).write_bytes(name, text.getvalue().encode())
