"""Conversion of VNC, published real EM with ground truth, to a zarr that training reads.

VNC has 20 sections of 1024 x 1024 of the ventral nerve cord of a Drosophila larva, by serial-section TEM at
4.6 x 4.6 x 45-50 nm, in the folder stack1 of the repository SOURCE. Licence: CC BY-NC-SA 3.0; publications must cite
CITATION.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from kasthuri_ray.errors import InputError, InputNotFound

SOURCE = "https://github.com/unidesigner/groundtruth-drosophila-vnc"
LICENCE = "CC BY-NC-SA 3.0"
CITATION = (
    "Gerhard S, Funke J, Martel J, Cardona A, Fetter R. Segmented anisotropic ssTEM dataset of neural tissue. "
    "figshare 2013. doi:10.6084/m9.figshare.856713"
)
VOXEL_SIZE_NM = (45, 4.6, 4.6)  # z, y, x

DOWNLOAD_HINT = (
    f"To download VNC: `git clone --depth 1 {SOURCE}` ({LICENCE}; cite {CITATION}); then "
    "`python jobs/benchmark.py vnc --source groundtruth-drosophila-vnc --output vnc.zarr`"
)

# Values of the merged labels that each binary annotation stands for (the README of SOURCE).
CLASSES = {"membrane": (0, 32, 64, 96, 128), "mitochondria": (191,), "synapse": (223,)}
FOLDERS = {
    "em": "raw",
    "labels": "labels",
    "membrane": "membranes",
    "mitochondria": "mitochondria",
    "synapse": "synapses",
}


def convert_vnc(source: str, output: str) -> None:
    """Write a zarr group of em, labels and the binary membrane, mitochondria and synapse, uint8 z, y, x.

    Parameters
    ----------
    source : str
        A checkout of SOURCE, or its folder stack1.
    output : str
        Path of the group.

    Raises
    ------
    InputNotFound
        If a folder holds no sections.
    InputError
        If `output` exists already, or if the sections or annotations do not fit together.
    """
    stack = Path(source) / "stack1" if (Path(source) / "stack1").is_dir() else Path(source)
    if Path(output).exists():
        raise InputError(f"{output} already exists; give another --output")
    arrays = {name: read_sections(stack / folder) for name, folder in FOLDERS.items()}
    for name, array in arrays.items():
        if array.shape != arrays["em"].shape:
            raise InputError(f"{stack / FOLDERS[name]} is {array.shape}, the images are {arrays['em'].shape} (z,y,x)")
    for name, values in CLASSES.items():
        arrays[name] = label_foreground(arrays[name], np.isin(arrays["labels"], values), str(stack / FOLDERS[name]))
    write_vnc(arrays, output)


def read_sections(folder: Path) -> np.ndarray:
    """Return the sections in a folder, one file (.tif, .png) each, by their numbers; uint8 z, y, x."""
    files = [file for file in folder.glob("*") if file.suffix.lower() in (".tif", ".tiff", ".png")]
    if not files:
        raise InputNotFound(f"{folder} holds no sections (.tif, .png). {DOWNLOAD_HINT}")
    files.sort(key=lambda file: int((re.findall(r"\d+", file.stem) or ["0"])[-1]))
    sections = [_read(file) for file in files]
    shapes = {section.shape for section in sections}
    if len(shapes) > 1:
        raise InputError(f"the sections in {folder} have different sizes: {', '.join(map(str, sorted(shapes)))}")
    return np.stack(sections)


def _read(file: Path) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("L"))
    except UnidentifiedImageError:
        raise InputError(f"{file} is not an image; is it a pointer of Git LFS? {DOWNLOAD_HINT}") from None


def label_foreground(drawn: np.ndarray, labelled: np.ndarray, name: str) -> np.ndarray:
    """Return 1 on the drawn structure and 0 elsewhere, no matter whether it was drawn in black or in white.

    drawn: two grey levels. labelled: where the merged labels have the structure, which is nearly the same.
    """
    white = drawn > 127
    agreement = float((white == labelled).mean())
    if 0.25 < agreement < 0.75:
        raise InputError(
            f"{name} and the merged labels agree in {agreement:.0%} of the voxels: they do not belong together"
        )
    return (white if agreement > 0.5 else ~white).astype(np.uint8)


def write_vnc(arrays: dict[str, np.ndarray], output: str) -> None:
    """Write the arrays as a zarr group, each with its voxel size."""
    import zarr

    origin = {"source": f"{SOURCE} stack1", "licence": LICENCE, "citation": CITATION}
    group = zarr.create_group(output, attributes={"voxel_size_nm_zyx": list(VOXEL_SIZE_NM), **origin})
    for name, array in arrays.items():
        stored = group.create_array(name, data=array, chunks=(1, *(min(256, n) for n in array.shape[1:])))
        stored.attrs["voxel_size_nm_zyx"] = list(VOXEL_SIZE_NM)
