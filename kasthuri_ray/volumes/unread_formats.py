"""Files and folders of formats that are not read: their names, and how to convert them."""

from __future__ import annotations

import collections
from pathlib import Path

WITH_FIJI = "open it in Fiji, where Bio-Formats reads it, and save it as TIFF"
IN_PYTHON = "load it in Python and write it with tifffile.imwrite"
WITH_WEBKNOSSOS = (
    "convert it with the webknossos library: Dataset.open(folder).copy_dataset(new_folder, data_format='zarr3')"
)
FILES = {
    (".nii", ".nii.gz"): ("a NIfTI file", "load it with nibabel and write it with tifffile.imwrite"),
    (".nrrd", ".nhdr"): ("an NRRD file", "load it with pynrrd and write it with tifffile.imwrite"),
    (".mha", ".mhd", ".vtk", ".am"): ("a file of ITK, VTK or Amira", WITH_FIJI),
    (".dm3", ".dm4", ".emd", ".ser", ".czi", ".lif", ".nd2", ".lsm", ".ims", ".oib", ".oif", ".svs", ".dcm"): (
        "a file of a microscope or its software",
        WITH_FIJI,
    ),
    (".npy", ".npz", ".mat", ".nc", ".b2nd"): ("a file of arrays", IN_PYTHON),
    (".raw", ".vol", ".dat"): (
        "a file without a header",
        "import it in Fiji (File > Import > Raw) and save it as TIFF",
    ),
    (".bmp", ".gif", ".jp2", ".webp", ".psd"): ("a picture", "convert it to PNG or TIFF"),
    (".xml",): ("an XML file", "if it is BigDataViewer's, name the .h5 or .n5 to which it refers"),
    (".gz", ".bz2", ".xz", ".zst", ".tar", ".tgz", ".7z", ".rar"): ("a packed file", "unpack it"),
}
PICTURES = (".bmp", ".gif", ".jp2", ".webp", ".tga", ".pgm", ".dm3", ".dm4")


def describe_unread_file(path: Path) -> str | None:
    """Return what a file is that is not read, by its ending, and what to do; None for other files."""
    name = path.name.lower()
    for endings, (kind, advice) in FILES.items():
        if name.endswith(endings):
            return f"{kind}, which is not read; {advice}"
    return None


def describe_unread_folder(folder: Path) -> str | None:
    """Return what a folder holds that is not read, by the files in it, and what to do; None for other folders."""
    if any(next(folder.glob(f"{depth}header.wkw"), None) for depth in ("", "*/", "*/*/")):
        return f"WKW, which is not read; {WITH_WEBKNOSSOS}"
    if any(next(folder.glob(f"{depth}*knossos.conf"), None) for depth in ("", "*/")):
        return "cubes of KNOSSOS, which are not read; convert them with the webknossos library (convert-knossos)"
    if not folder.is_dir():
        return None
    kinds = collections.Counter(path.suffix.lower() for path in folder.iterdir())
    ending, number = max(((each, kinds[each]) for each in PICTURES), key=lambda item: item[1])
    return f"{number} {ending} files, which are not read; convert them to TIFF or PNG" if number else None
