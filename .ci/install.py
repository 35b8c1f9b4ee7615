"""Install the package and everything that it needs into the environment .venv; `make .venv` runs it.

Each step is announced, and the last line names the one that took longest. Exact versions come from constraints.txt. A
torch that the environment sees already, as with `make VENV_ARGS=--system-site-packages`, is kept if it is in the range
of pyproject.toml: the pins of torch, and of what it needs in other versions, give way. Needs no package.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = "test,lint,docs,benchmarks"

# Runs in the environment, whose pip brings the parser of version ranges. Takes the range of torch and the pins, and
# prints the version of torch, whether it is in the range, and which pins contradict it.
INSPECTION = """
import json, sys
from importlib import metadata
from pip._vendor.packaging.requirements import Requirement
wanted, pins = Requirement(sys.argv[1]), [Requirement(line) for line in json.loads(sys.argv[2])]
try:
    torch = metadata.distribution("torch")
except metadata.PackageNotFoundError:
    print(json.dumps({"version": None}))
    sys.exit()
needed = [Requirement(line) for line in torch.requires or ()]
needed = [each for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
def contradicts(pin):
    version = next(iter(pin.specifier)).version
    same = [each for each in needed if each.name.lower().replace("_", "-") == pin.name.lower().replace("_", "-")]
    return pin.name.lower() == "torch" or any(not each.specifier.contains(version, True) for each in same)
fits = wanted.specifier.contains(torch.version, prereleases=True)
print(json.dumps({"version": torch.version, "fits": fits, "dropped": [str(pin) for pin in pins if contradicts(pin)]}))
"""


@dataclass
class Steps:
    """The steps of an installation, with the seconds of each."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Announce a step and time it."""
        print(f"{len(self.seconds) + 1}. {what}", flush=True)
        start = time.monotonic()
        yield
        self.seconds[what] = time.monotonic() - start

    def summary(self) -> str:
        """Return how long everything took here, and which step took longest."""
        total, (longest, seconds) = sum(self.seconds.values()), max(self.seconds.items(), key=lambda item: item[1])
        return f"installed in {total:.0f} s; the longest step took {seconds:.0f} s here: {longest}"


def main(arguments: Sequence[str]) -> int:
    """Create the environment and install; return an exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--venv", default=".venv", help="folder of the environment")
    parser.add_argument("--venv-args", default="", help="flags of python -m venv, such as --system-site-packages")
    parser.add_argument("--torch-index", default="", help="URL of an index that torch is taken from")
    options = parser.parse_args(arguments)
    try:
        install(Path(options.venv), options.venv_args.split(), options.torch_index)
    except subprocess.CalledProcessError as error:
        print(f"error: {' '.join(map(str, error.cmd))} ended with exit code {error.returncode}", file=sys.stderr)
        return 1
    return 0


def install(venv: Path, venv_args: Sequence[str], torch_index: str) -> None:
    """Create the environment and install everything into it, step by step."""
    steps, python = Steps(), venv / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    pins = read_pins()
    with steps.step(
        f"create the environment {venv} with Python {sys.version.split()[0]} {' '.join(venv_args)}".rstrip()
    ):
        run([sys.executable, "-m", "venv", *venv_args, str(venv)])
    with steps.step("update pip"):
        run([*pip, "--upgrade", "pip"])
    torch = inspect_torch(python, pins)
    kept, lines = decide_torch(torch, pins, torch_index)
    for line in lines:
        print(f"   {line}")
    constraints = venv / "constraints.txt"
    constraints.write_text("\n".join(kept) + "\n")
    if torch_index and not is_kept(torch):
        pin = next(pin for pin in kept if pin.startswith("torch=="))
        with steps.step(f"install {pin} from {torch_index}"):
            run([*pip, "--no-deps", "--index-url", torch_index, pin])
    with steps.step(f"install the package and {len(kept)} packages with fixed versions"):
        run([*pip, "--constraint", str(constraints), "--editable", f"{ROOT}[{EXTRAS}]"])
    print(steps.summary())


def run(command: Sequence[str]) -> None:
    """Run a command; its output is shown."""
    subprocess.run(command, check=True)


def read_pins() -> list[str]:
    """Return the pins of constraints.txt."""
    lines = (line.strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def torch_range() -> str:
    """Return the requirement of torch in pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return next(line for line in project["dependencies"] if line.startswith("torch>"))


def inspect_torch(python: Path, pins: Sequence[str]) -> dict:
    """Return which torch an environment sees, whether it is in our range, and which pins contradict it."""
    command = [str(python), "-c", INSPECTION, torch_range(), json.dumps(list(pins))]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def is_kept(torch: dict) -> bool:
    """Return whether the torch that was found is kept."""
    return torch["version"] is not None and torch["fits"]


def decide_torch(torch: dict, pins: Sequence[str], torch_index: str) -> tuple[list[str], list[str]]:
    """Return the pins that are used, and lines that say what becomes of torch."""
    if is_kept(torch):
        others = [pin for pin in torch["dropped"] if not pin.startswith("torch==")]
        lines = [f"torch {torch['version']} is installed and in the range {torch_range()}: it is kept"]
        if others:
            lines.append(f"it needs other versions than {', '.join(others)}: these pins give way")
        if torch_index:
            lines.append(f"nothing is taken from {torch_index}")
        kept = [pin for pin in pins if pin not in torch["dropped"]]
        return [*kept, f"torch=={torch['version']}"], lines
    lines = []
    if torch["version"] is not None:
        lines.append(f"torch {torch['version']} is there, but not in the range {torch_range()}: another is installed")
    if not torch_index:
        lines.append(
            "torch comes from the index that pip is set up for; where there is no GPU, make TORCH_INDEX=URL with "
            "PyTorch's own index of CPU builds makes the download ten times smaller (README.md)"
        )
    return list(pins), lines


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
