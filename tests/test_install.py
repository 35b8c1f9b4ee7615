"""`make .venv`: a torch that is there is kept, another index is used for torch alone, and each step is announced."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
INDEX = "https://example.org/cpu"


@pytest.fixture
def installer(load_module) -> ModuleType:
    return load_module(ROOT / ".ci" / "install.py")


@pytest.fixture
def install(installer: ModuleType, tmp_path: Path, monkeypatch, capsys):
    """Return a function that installs without pip: it returns the commands, the constraints and what is printed."""

    def run(found: dict, *flags: str) -> tuple[list[str], list[str], str]:
        commands: list[str] = []
        venv = tmp_path / "venv"
        venv.mkdir(exist_ok=True)
        monkeypatch.setattr(installer, "run", lambda command: commands.append(" ".join(command)))
        monkeypatch.setattr(installer, "inspect_torch", lambda python, pins: found)
        assert installer.main([f"--venv={venv}", *flags]) == 0
        return commands, (venv / "constraints.txt").read_text().splitlines(), capsys.readouterr().out

    return run


def test_without_a_torch_the_pin_is_installed_from_the_index_that_pip_has(install, installer) -> None:
    commands, pins, printed = install({"version": None})
    assert not any("index" in command for command in commands)
    assert pins == installer.read_pins()
    assert "make TORCH_INDEX=URL" in printed
    assert [line[:2] for line in printed.splitlines() if line[0].isdigit()] == ["1.", "2.", "3."]
    assert printed.splitlines()[-1].startswith("installed in 0 s; the longest step took 0 s here: ")


def test_another_index_is_used_for_torch_alone(install) -> None:
    commands, _, _ = install({"version": None}, f"--torch-index={INDEX}")
    (torch,) = (command for command in commands if INDEX in command)
    assert "--no-deps" in torch
    assert torch.split()[-1].startswith("torch==")
    assert commands.index(torch) < len(commands) - 1, "the others come later, from pip's own index"


def test_an_installed_torch_in_the_range_is_kept_and_the_pins_give_way(install, installer) -> None:
    dropped = [pin for pin in installer.read_pins() if pin.startswith(("torch==", "sympy=="))]
    found = {"version": "2.6.0+cu124", "fits": True, "dropped": dropped}
    flags = ("--venv-args=--system-site-packages", f"--torch-index={INDEX}")
    commands, pins, printed = install(found, *flags)
    assert "--system-site-packages" in commands[0]
    assert not any(INDEX in command for command in commands)
    assert "torch==2.6.0+cu124" in pins
    assert not set(dropped) & set(pins)
    assert "torch 2.6.0+cu124 is installed and in the range torch>=" in printed
    assert "sympy==" in printed


def test_a_torch_outside_of_the_range_is_replaced(install, installer) -> None:
    commands, pins, printed = install({"version": "1.13.1", "fits": False, "dropped": []}, f"--torch-index={INDEX}")
    assert any(INDEX in command for command in commands)
    assert pins == installer.read_pins()
    assert "torch 1.13.1 is there, but not in the range" in printed


@pytest.mark.parametrize(("version", "fits"), [("2.6.0", True), ("2.4.1", False), ("2.99.0.dev1+cu1", True)])
def test_the_environment_is_asked_for_its_torch_and_what_that_needs(
    installer, tmp_path: Path, monkeypatch, version: str, fits: bool
) -> None:
    folder = tmp_path / f"torch-{version}.dist-info"
    folder.mkdir()
    needs = ["sympy==1.13.1", "networkx", "jinja2>=1; extra == 'other'"]
    lines = [
        "Metadata-Version: 2.1",
        "Name: torch",
        f"Version: {version}",
        *(f"Requires-Dist: {each}" for each in needs),
    ]
    (folder / "METADATA").write_text("\n".join(lines))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    pins = ["torch==2.13.0", "sympy==1.14.0", "networkx==3.6.1", "jinja2==0.1"]
    found = installer.inspect_torch(Path(sys.executable), pins)
    assert found == {"version": version, "fits": fits, "dropped": ["torch==2.13.0", "sympy==1.14.0"]}


def test_make_passes_its_variables_to_the_installation(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text((ROOT / name).read_text())
    command = ["make", "-n", f"TORCH_INDEX={INDEX}", "VENV_ARGS=--system-site-packages"]
    text = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert f"--torch-index='{INDEX}'" in text
    assert "--venv-args='--system-site-packages'" in text
