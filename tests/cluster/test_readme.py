"""The commands in the READMEs can be typed: their files and their flags exist."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "cluster" / "README.md"]


def commands(page: Path) -> list[str]:
    """Return the complete command lines of a page without their comments."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = "".join(code for language, code in blocks if not language).replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"\s+#\s.*", "", line) for line in lines) if line.strip()]


def arguments_of(line: str, program: str) -> list[str]:
    """Return the arguments of a program in a line; dots stand for further ones and are left out."""
    rest = shlex.split(re.split(r"(?:^|\s)" + re.escape(program) + r"(?=\s|$)", line, maxsplit=1)[1])
    ends = [i for i, word in enumerate(rest) if word in ("|", "&&", ";", ">")]
    return [word for word in rest[: min(ends, default=len(rest))] if word != "..."]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_every_job_accepts_the_flags_that_a_page_shows(page, load_module):
    shown = [(line, script) for line in commands(page) for script in re.findall(r"jobs/\w+\.py", line)]
    assert shown
    for line, script in shown:
        assert (ROOT / script).exists(), line
        load_module(ROOT / script).make_parser().parse_args(arguments_of(line, script))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_every_file_that_a_page_names_exists(page):
    named = {name for line in commands(page) for name in re.findall(r"(?<![\w/])cluster/[\w./-]+", line)}
    named |= {str(Path(page.parent, link).relative_to(ROOT)) for link in links(page)}
    assert len(named) >= 3
    assert [name for name in named if not (ROOT / name).exists()] == []


def links(page: Path) -> list[str]:
    return [link.partition("#")[0] for link in re.findall(r"\]\(([^)#:][^):]*)\)", page.read_text())]


def test_ray_accepts_the_flags_that_the_pages_show():
    from ray.dashboard.modules.job.cli import submit
    from ray.scripts.scripts import start

    lines = [line for page in PAGES for line in commands(page)]
    starts = [line for line in lines if "ray start" in line]
    assert len(starts) == 2
    for line in starts:
        start.make_context("start", arguments_of(line, "ray start"))
    submits = [line for line in lines if "ray job submit" in line]
    assert len(submits) >= 2
    for line in submits:
        arguments = arguments_of(line, "ray job submit")
        if arguments:
            submit.make_context("submit", arguments)


def test_every_heading_that_is_linked_to_exists():
    for page in PAGES:
        for target, heading in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
            text = (page.parent / target if target else page).read_text()
            headings = {
                re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
                for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
            }
            assert heading in headings, f"{page}: {heading}"


def test_files_with_keys_are_not_sent_with_the_working_directory(tmp_path):
    """Ray excludes what .gitignore names."""
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    (tmp_path / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    excluded = get_excludes_from_ignore_files(tmp_path, include_gitignore=True)
    for name in ("keys.env", "token.txt", ".ray-17-abcdef/token"):
        assert any(exclude(tmp_path / name) for exclude in excluded), name
    assert not any(exclude(tmp_path / "README.md") for exclude in excluded)
