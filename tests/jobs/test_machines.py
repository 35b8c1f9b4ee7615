"""Jobs on machines that lack something: containers without a home, a name or a short TMPDIR; a system like macOS."""

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

# What macOS lacks is taken away from all of Python; /proc, /sys and /dev/shm from this package alone, since psutil and
# Ray have other code there. What the package looked for is written to a file.
LIKE_MACOS = """
import builtins, ctypes, io, os, sys, sysconfig, time

def taken_away(function, name):
    def call(path, *args, **kwargs):
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(("/proc", "/sys", "/dev/shm")):
            if asked_by_package(sys._getframe(1)):
                note(path)
                raise FileNotFoundError(2, "there is no such file on macOS", os.fspath(path))
        return function(path, *args, **kwargs)
    call.__name__ = name
    return call

def asked_by_package(frame):
    own = (sysconfig.get_path("stdlib"), "<frozen")
    while frame and frame.f_code.co_filename.startswith(own) and "site-packages" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None and "/kasthuri_ray/" in frame.f_code.co_filename

def note(what):
    with plain_open(os.environ["LOOKED_FOR"], "a") as file:
        print(what, file=file)

def no_glibc(name, *args, **kwargs):
    if name == "libc.so.6":
        note(name)
        raise OSError("dlopen(libc.so.6): no such file")
    return plain_library(name, *args, **kwargs)

plain_open, plain_library = builtins.open, ctypes.CDLL
ctypes.CDLL = no_glibc
builtins.open = io.open = taken_away(plain_open, "open")
for name in ("open", "stat", "lstat", "listdir", "scandir", "readlink", "statvfs", "access"):
    setattr(os, name, taken_away(getattr(os, name), name))
for name in [name for name in dir(os) if name.startswith(("sched_", "SCHED_", "posix_f", "memfd", "pidfd", "eventfd"))]:
    if name != "sched_yield":
        delattr(os, name)
del time.CLOCK_BOOTTIME
"""
NAMELESS = 12345
AS_NAMELESS = [
    *("setpriv", f"--reuid={NAMELESS}", f"--regid={NAMELESS}", "--clear-groups"),
    # to read the environment of Python, which may belong to root
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
    *("env", "--unset=USER", "--unset=LOGNAME", "--unset=KASTHURI_CACHE"),
]


@dataclass(frozen=True)
class Segmented:
    """What a segmentation on this machine as it is took and left."""

    arguments: list[Any]
    output: Path

    def assert_same_output(self, other: Path) -> None:
        """Assert that another segmentation is byte for byte equal."""
        one, two = (
            {path.relative_to(top): path.read_bytes() for path in top.rglob("*") if path.is_file()}
            for top in (self.output, other)
        )
        assert one == two


@pytest.fixture(scope="module")
def public_folder() -> Iterator[Path]:
    """Return a folder in which everybody may write; those of pytest cannot be entered by other users."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def segmented(finished_run, start_job, cluster, public_folder) -> Segmented:
    """Segment a folder of PNG sections, which are decoded into the chunk cache, on this machine as it is."""
    folder = public_folder
    (folder / "sections").mkdir()
    for z, section in enumerate(np.random.default_rng(0).integers(1, 255, (4, 64, 128), np.uint8)):
        Image.fromarray(section).save(folder / f"sections/s{z}.png")
    arguments = ["--weights", finished_run.folder, "--image", folder / "sections", "--precision", "float32"]
    arguments += ["--compile", "off", "--shard", "4,64,64", "--block", "4,64,64"]
    output = folder / "out.zarr"
    job = start_job(*arguments, "--output", output, cluster=cluster, script="jobs/segment.py").wait()
    assert job.code == 0, job.out + job.err
    return Segmented(arguments, output)


@pytest.mark.skipif(
    sys.platform != "linux" or os.getuid() != 0 or shutil.which("setpriv") is None,
    reason="only root on Linux can take a user id without a name",
)
def test_jobs_in_a_container_without_a_home_and_a_name_equal_others(
    finished_run, segmented, start_job, tiny_flags, public_folder, assert_same_run
):
    folder, long, foreign = public_folder, public_folder / ("long" * 15), public_folder / "foreign"
    for path in (long, foreign / "ray"):
        path.mkdir(parents=True)
        path.chmod(0o777)
    prefix, env = [*AS_NAMELESS, "--unset=HOME"], {"TMPDIR": str(long)}
    run = start_job(*tiny_flags, "--storage", folder, "--name", "run", cwd=folder, env=env, prefix=prefix).wait()
    assert run.code == 0, run.out + run.err
    assert run.errors[0].startswith("starting Ray on this machine")
    ray_folder = re.fullmatch(
        r"Ray keeps its temporary files in (/tmp/kr_.*)/ray, because .* too long .*", run.errors[1]
    )
    assert not Path(ray_folder[1]).exists()
    assert len(run.errors) == 2
    assert_same_run(finished_run.folder, folder / "run")
    assert (folder / "run/metrics.json").stat().st_uid == NAMELESS

    # HOME is a folder that belongs to root; so does the folder for Ray.
    env = {"TMPDIR": str(long), "HOME": "/etc", "RAY_TMPDIR": str(foreign)}
    arguments = [*segmented.arguments, "--output", folder / "nameless.zarr"]
    job = start_job(*arguments, cwd=folder, env=env, script="jobs/segment.py", prefix=AS_NAMELESS).wait()
    assert job.code == 0, job.out + job.err
    assert job.errors[1].endswith(f"because {foreign}/ray belongs to another user")
    assert len(job.errors) == 2
    assert not list((foreign / "ray").iterdir())
    assert list((long / f"kasthuri_ray_cache_{NAMELESS}").rglob("*.chunk"))
    segmented.assert_same_output(folder / "nameless.zarr")


def test_jobs_on_a_system_without_what_macos_lacks_equal_others(
    finished_run, segmented, start_job, tiny_flags, tmp_path, assert_same_run
):
    (tmp_path / "like_macos").mkdir()
    (tmp_path / "like_macos/sitecustomize.py").write_text(LIKE_MACOS)
    looked_for = tmp_path / "looked_for"
    env = {"PYTHONPATH": str(tmp_path / "like_macos"), "LOOKED_FOR": str(looked_for)}
    run = start_job(*tiny_flags, "--storage", tmp_path, "--name", "run", env=env).wait()
    assert run.code == 0, run.out + run.err
    assert len(run.errors) == 1, run.err
    assert {"libc.so.6", "/proc/sys/kernel/random/boot_id"} <= set(looked_for.read_text().split())
    assert_same_run(finished_run.folder, tmp_path / "run")
    arguments = [*segmented.arguments, "--output", tmp_path / "out.zarr"]
    job = start_job(*arguments, env=env, script="jobs/segment.py").wait()
    assert job.code == 0, job.out + job.err
    assert len(job.errors) == 1, job.err
    assert "/proc/cpuinfo" in looked_for.read_text().split()
    segmented.assert_same_output(tmp_path / "out.zarr")
