"""What the tests of settings share."""

import json

import pytest


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Change to a temporary folder; return `write(name, content)` for files in it."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, content: object) -> str:
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return name

    return write
