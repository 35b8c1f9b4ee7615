"""What the tests share: the real data where it is there, and small arrays to read from."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real EM (`KASTHURI_TEST_DATA`, by default ../shared/data beside the checkout)."""
    folder = Path(os.environ.get("KASTHURI_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "vnc.zarr").is_dir():
        pytest.skip(f"no test data: {folder / 'vnc.zarr'} is not there; KASTHURI_TEST_DATA names its folder")
    return folder


@pytest.fixture(scope="session")
def boss_server_class() -> type:
    """`BossServer` of tests/boss_server.py: a Boss on loopback, with faults on demand."""
    spec = importlib.util.spec_from_file_location("boss_server", ROOT / "tests" / "boss_server.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["boss_server"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module.BossServer


@pytest.fixture
def boss_server(boss_server_class: type) -> Iterator[Any]:
    """A Boss server without channels, for one test: `add` gives it some, `options` reaches it."""
    server = boss_server_class()
    yield server
    server.close()
