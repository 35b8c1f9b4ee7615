"""The wheel, installed into an empty environment: its files, and its commands in another folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "kasthuri_ray", "jobs")
COMMANDS = [f"kasthuri-{name}" for name in ("benchmark", "check", "evaluate", "segment", "train", "tune", "view")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel from a copy of the sources, beside which nothing of an earlier build lies."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (folder / "source").mkdir(exist_ok=True)
            shutil.copy(source, folder / "source")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "source")
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def commands(wheel, tmp_path_factory) -> Path:
    """Install the wheel into an environment that holds only it, and finds its dependencies in this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    packages = sysconfig.get_path("purelib", vars={"base": str(folder)})
    pip("--python", folder, "install", "--no-deps", "--no-index", wheel)
    # Not a site folder, so that its own .pth files, such as that of this checkout, are not read.
    Path(packages, "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return folder / "bin"


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", *map(str, arguments)]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr


def run(commands: Path, name: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "PYTHON"))}
    command = [commands / name, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


def test_the_wheel_holds_every_file_of_the_package(wheel):
    source = wheel.parent / "source"
    files = [path for path in (source / "kasthuri_ray").rglob("*") if path.is_file()]
    expected = {str(path.relative_to(source)) for path in files}
    expected |= {f"kasthuri_ray/jobs/{path.name}" for path in (source / "jobs").iterdir()}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected
    assert {Path(name).suffix for name in expected} >= {".py", ".json", ".css", ".jinja"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_installed_command_shows_its_own_name_in_its_help(commands, tmp_path, name):
    process = run(commands, name, "--help", folder=tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith(f"usage: {name} ")
    assert f"\n  {name} " in process.stdout  # an example
    assert "python jobs/" not in process.stdout


def test_the_environment_has_these_commands_and_runs_the_installed_package(commands, tmp_path):
    assert sorted(path.name for path in commands.glob("kasthuri-*")) == COMMANDS
    code = "import kasthuri_ray, kasthuri_ray.jobs; print(kasthuri_ray.__file__, kasthuri_ray.jobs.__file__)"
    process = run(commands, "python", "-c", code, folder=tmp_path)
    assert process.returncode == 0, process.stderr
    assert all(Path(path).is_relative_to(commands.parent) for path in process.stdout.split())


@pytest.mark.slow
def test_an_installed_command_evaluates_from_any_folder_and_names_itself_in_errors(commands, tmp_path):
    import h5py
    import numpy as np

    with h5py.File(tmp_path / "tool.h5", "w") as file:
        file["probability"] = np.zeros((4, 64, 64), np.uint8)
    arguments = ["--prediction", "tool.h5:probability", "--annotation", "phantom://membrane?shape=4,64,64&seed=1"]
    process = run(commands, "kasthuri-evaluate", *arguments, "--task", "phantom_membrane", folder=tmp_path)
    assert process.returncode == 0, process.stderr
    page = (tmp_path / "tool.h5:probability.evaluation" / "index.html").read_text()
    assert "<style>" in page
    process = run(commands, "kasthuri-evaluate", "--predicton", "x", folder=tmp_path)
    assert (process.returncode, process.stdout) == (2, "")
    assert "kasthuri-evaluate --help shows all flags" in process.stderr
