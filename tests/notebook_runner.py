"""Execute notebooks: `python tests/notebook_runner.py` runs those of notebooks/ anew, as they are.

The files keep what was printed and their last figure, as a JPEG: a repository is no place for more.
"""

import base64
import io
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TIMEOUT_S = 900  # of a cell
SHOWN_FOLDER = "/home/me/kasthuri_ray/notebooks"  # in the files, in place of the folder where they were executed
JPEG_QUALITY = 80
NO_WIDGETS = ("IProgress not found", "'ipywidgets'")  # a person who has ipywidgets does not see these


def read_notebook(path: Path) -> Any:
    """Return the content of a notebook."""
    return nbformat.read(path, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    """Return the cells that hold code."""
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def change_values(cell: Any, values: Mapping[str, str]) -> None:
    """Replace what a cell assigns to names at the beginning of lines; fail if it assigns nothing to one of them."""
    for names, value in values.items():
        cell.source, count = re.subn(rf"^{names} = .*$", f"{names} = {value}", cell.source, flags=re.MULTILINE)
        assert count == 1, f"the first cell does not assign {names}: {cell.source}"


def execute(notebook: Any, folder: Path, env: Mapping[str, str] | None = None) -> Any:
    """Execute a notebook in a folder, and return it; an error in a cell is raised."""
    kernel_env = {**os.environ, **(env or {})}
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=TIMEOUT_S, kernel_name="python3", resources=resources).execute(env=kernel_env)
    return notebook


def images_of(notebook: Any) -> list[tuple[Any, str]]:
    """Return the outputs that hold an image, and the type of each image."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    kinds = [(output, kind) for output in outputs for kind in output.get("data", {}) if kind.startswith("image/")]
    return [(output, kind) for output, kind in kinds if kind in ("image/png", "image/jpeg")]


def keep_for_the_repository(notebook: Any, folder: Path) -> None:
    """Keep texts, without the name of a folder, and the last image; drop times, other images and frames."""
    images = [output for output, _ in images_of(notebook)]
    for cell in code_cells(notebook):
        cell.metadata = {}
        cell.outputs = [each for each in cell.outputs if _is_kept(each) or each is images[-1]]
        for output in cell.outputs:
            if output.output_type == "stream":
                output.text = output.text.replace(str(folder), SHOWN_FOLDER)
    shown = images[-1]
    shown.data = {"image/jpeg": _as_jpeg(shown.data["image/png"])}
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}


def _is_kept(output: Any) -> bool:
    return output.output_type == "stream" and not any(text in output.text for text in NO_WIDGETS)


def _as_jpeg(png: str) -> str:
    image, content = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    image.save(content, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return base64.b64encode(content.getvalue()).decode()


def main(names: list[str]) -> None:
    """Execute the notebooks of these names, or all, in a folder of their own, and write them."""
    for path in NOTEBOOKS:
        if names and path.stem not in names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            print(path.name, flush=True)
            notebook = execute(read_notebook(path), Path(folder), {"PYTHONPATH": str(ROOT)})
            keep_for_the_repository(notebook, Path(folder))
        nbformat.write(notebook, path)


if __name__ == "__main__":
    main(sys.argv[1:])
