"""Compiled kernels are kept in the user's cache folder: a second process builds none."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from kasthuri_ray.hardware import find_compiler
from kasthuri_ray.models import compilation

# A network that is compiled with its weights as constants, as in a segmentation, and one that is trained.
PROGRAM = """
import json, sys
import torch
from torch._dynamo.utils import counters
from kasthuri_ray.models.compilation import compile_network
torch.manual_seed(0)
network, image = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.ReLU()), torch.ones(1, 1, 8, 8)
compile_network(network)(image).sum().backward()
with torch.no_grad(), torch._inductor.config.patch(freezing=True):
    compile_network(network.eval())(image)
print(json.dumps({name: counters["inductor"][f"fxgraph_cache_{name}"] for name in ("hit", "miss", "bypass")}))
"""


def run_program(cache: Path) -> dict[str, int]:
    environment = {**os.environ, "KASTHURI_CACHE": str(cache)}
    environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
    command = [sys.executable, "-c", PROGRAM]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(find_compiler() is None, reason="needs a C++ compiler")
def test_a_second_process_takes_its_kernels_from_the_users_cache(tmp_path: Path) -> None:
    first = run_program(tmp_path)
    kernels = {path: path.stat().st_mtime_ns for path in (tmp_path / "kernels").rglob("*.so")}
    second = run_program(tmp_path)
    assert first["miss"] > 0
    assert kernels
    assert (second["miss"], second["hit"]) == (0, first["miss"])
    assert second["bypass"] == first["bypass"], "graphs with constant weights; their kernels are kept all the same"
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "kernels").rglob("*.so")} == kernels


def test_processors_with_other_instructions_have_folders_of_their_own(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("KASTHURI_CACHE", str(tmp_path))
    folders = []
    for flags in ("avx2", "avx2 avx512f"):
        monkeypatch.setattr(compilation, "_instruction_sets", lambda flags=flags: flags)
        folders.append(compilation.kernel_folder())
    assert len(set(folders)) == 2
    assert all(folder is not None and Path(folder).is_relative_to(tmp_path / "kernels") for folder in folders)


@pytest.mark.parametrize(("before", "is_kept"), [(None, False), ("/tmp/torchinductor_me", False), ("/my/own", True)])
def test_a_folder_that_a_person_has_set_is_kept(tmp_path: Path, monkeypatch, before, is_kept) -> None:
    monkeypatch.setenv("KASTHURI_CACHE", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    monkeypatch.setenv(compilation.KERNEL_FOLDER_VARIABLE, before or "")
    if before is None:
        monkeypatch.delenv(compilation.KERNEL_FOLDER_VARIABLE)
    compilation.compile_network(torch.nn.Identity())
    assert os.environ[compilation.KERNEL_FOLDER_VARIABLE] == (before if is_kept else compilation.kernel_folder())


def test_without_a_cache_torch_chooses_the_folder(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("KASTHURI_CACHE", "none")
    assert compilation.kernel_folder() is None
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KASTHURI_CACHE", str(tmp_path / "file"))
    assert compilation.kernel_folder() is None, "it cannot be created"
