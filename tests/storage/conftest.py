"""The storages that tests are run with: on a disk, and on S3."""

import pytest

from kasthuri_ray.storage.folder import open_storage
from kasthuri_ray.storage.storage import Storage


@pytest.fixture(params=["disk", "s3"])
def storage(request, tmp_path) -> Storage:
    """Return an empty storage."""
    if request.param == "disk":
        return open_storage(str(tmp_path / "runs"))
    request.getfixturevalue("strict_s3")
    return open_storage("s3://some-bucket/my/runs/")
