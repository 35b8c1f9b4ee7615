"""What the tests share: the real data where it is there, and small arrays to read from."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real EM (`KASTHURI_TEST_DATA`, by default ../shared/data beside the checkout)."""
    folder = Path(os.environ.get("KASTHURI_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "vnc.zarr").is_dir():
        pytest.skip(f"no test data: {folder / 'vnc.zarr'} is not there; KASTHURI_TEST_DATA names its folder")
    return folder
