"""What README and docs show can be typed: commands, flags, settings, JSON, Python, links; and the site builds."""

import argparse
import ast
import importlib
import inspect
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
README, CLUSTER = ROOT / "README.md", ROOT / "cluster" / "README.md"
PAGES = [
    *(README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", CLUSTER),
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md"),
]
SCRIPT = re.compile(r"(?:python )?(?:jobs/|kasthuri-)(\w+)(?:\.py)?(?=\s|$)")
FLAGS_OF_OTHER_PROGRAMS = {
    "--plugin",
    "--working-dir",
    "--runtime-env-json",
    "--node-ip-address",
    "--exclusive",
    "--help",
}
FLAGS_OF_BENCHMARKS = {"--quick", "--compare", "--data", "--tasks", "--seeds", "--no-recipe"}
HISTORY_COLUMNS = {"train.loss"}
NAMES_OF_NO_DEFINITION = {"voxel_size_nm", "timeout_s", "kasthuri_ray", "LossName"}
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def fences(page: Path, language: str) -> list[str]:
    """Return the contents of the fenced blocks of a language; "" are commands."""
    blocks = re.findall(r"^```([^\n`]*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [code for found, code in blocks if found == language]


def command_lines(page: Path) -> list[str]:
    """Return the complete command lines of a page without their comments."""
    lines = "".join(fences(page, "")).replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"\s+#\s.*", "", line) for line in lines) if line.strip()]


def inline_codes(page: Path) -> list[str]:
    """Return what stands in single backticks outside of the fenced blocks."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [code.replace("\n", " ") for code in re.findall(r"`([^`]+)`", text)]


def arguments_of(line: str, program: str) -> list[str]:
    """Return the arguments of a program in a line; dots stand for further ones and are left out."""
    rest = shlex.split(re.split(r"(?:^|\s)" + re.escape(program) + r"(?=\s|$)", line, maxsplit=1)[1])
    ends = [i for i, word in enumerate(rest) if word in ("|", "&&", ";", ">")]
    return [word for word in rest[: min(ends, default=len(rest))] if word != "..."]


def job_calls(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the job and the arguments of each command of ours, in blocks and in the text."""
    for line in [*command_lines(page), *inline_codes(page)]:
        for match in SCRIPT.finditer(line):
            arguments = arguments_of(line, match[0].removeprefix("python "))
            if (ROOT / "jobs" / f"{match[1]}.py").exists() and (arguments or line in command_lines(page)):
                yield match[1], arguments


@pytest.fixture(scope="module")
def parsers(load_module) -> dict[str, Any]:
    names = [path.stem for path in (ROOT / "jobs").glob("[a-z]*.py")]
    return {name: load_module(ROOT / "jobs" / f"{name}.py").make_parser() for name in names}


def typed(parser: Any, arguments: list[str]) -> argparse.Namespace:
    """Return what a command line sets; nothing for one that lists settings."""
    return argparse.Namespace() if arguments[:1] == ["--settings"] else parser.parse_args(arguments)


@each_page
def test_every_job_accepts_the_flags_that_a_page_shows(page, parsers):
    for line in command_lines(page):
        for script in re.findall(r"jobs/\w+\.py", line):
            assert (ROOT / script).exists(), line
    for job, arguments in job_calls(page):
        typed(parsers[job], arguments)


def test_the_readme_shows_every_job(parsers):
    assert {job for job, _ in job_calls(README)} == set(parsers)


@each_page
def test_every_setting_that_a_command_sets_can_have_this_value(page, parsers):
    from kasthuri_ray.config.loading import GivenSettings, resolve_settings

    for job, arguments in job_calls(page):
        if assignments := getattr(typed(parsers[job], arguments), "settings", None):
            resolve_settings(GivenSettings("phantom_synapse", assignments=assignments))


@each_page
def test_every_flag_and_setting_that_a_text_names_exists(page, parsers):
    from kasthuri_ray.config.settings import SECTIONS

    flags = {flag for parser in parsers.values() for flag in getattr(parser, "flags", [])}
    flags |= FLAGS_OF_OTHER_PROGRAMS | FLAGS_OF_BENCHMARKS
    for code in inline_codes(page):
        if SCRIPT.match(code) or not re.search(r"^\w+ ", code):  # not the flags of another program
            assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", code)) <= flags, code
        for section, key in re.findall(rf"(?<![\w./])({'|'.join(SECTIONS)})\.([a-z_]+)(?![\w/])", code):
            known = key in SECTIONS[section].model_fields or f"{section}.{key}" in HISTORY_COLUMNS
            assert known or key in ("py", "json", "md", "key", "toml"), code


@each_page
def test_every_json_example_is_valid(page, tmp_path):
    from kasthuri_ray.config.loading import GivenSettings, resolve_settings
    from kasthuri_ray.tuning.search_space import parse_space
    from kasthuri_ray.volumes.opening import read_boss_options

    for code in fences(page, "json"):
        content = json.loads(code)
        if "protocol" in content:
            (tmp_path / "boss.json").write_text(code)
            assert read_boss_options(str(tmp_path / "boss.json")) == content
        elif all("." in key for key in content):
            parse_space(content, resolve_settings(GivenSettings("phantom_synapse")), page.name)
        elif "task_type" in content:
            assert not resolve_settings(GivenSettings(content)).kept
        else:
            assert not resolve_settings(GivenSettings("phantom_synapse", content)).kept


@each_page
def test_every_python_example_calls_what_exists(page):
    import kasthuri_ray

    for code in fences(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("kasthuri_ray"):
                module = importlib.import_module(str(node.module))
                assert [name.name for name in node.names if not hasattr(module, name.name)] == []
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "kasthuri_ray":
                assert hasattr(kasthuri_ray, node.attr) or node.attr == "errors", node.attr
            if isinstance(node, ast.Call):
                check_call(node)


def check_call(call: ast.Call) -> None:
    """Check the keyword arguments of a call of the API, and the keys of its settings."""
    import kasthuri_ray
    from kasthuri_ray import api
    from kasthuri_ray.config.settings import SECTIONS

    name = ast.unparse(call.func)
    if not name.startswith("kasthuri_ray."):
        return
    name = name.removeprefix("kasthuri_ray.")
    allowed = set(inspect.signature(getattr(kasthuri_ray, name)).parameters)
    allowed |= set(getattr(getattr(api, f"{name.title()}Flags", api.DataFlags), "__annotations__", {}))
    assert {keyword.arg for keyword in call.keywords} <= allowed, ast.unparse(call)
    for keyword in call.keywords:
        if keyword.arg == "settings" and isinstance(keyword.value, ast.Dict):
            for setting in keyword.value.keys:
                if setting is None:  # **other
                    continue
                section, key = ast.literal_eval(setting).split(".")
                assert key in SECTIONS[section].model_fields, setting


def test_the_example_of_a_network_fits_into_its_file():
    import torch

    from kasthuri_ray.models.user_network import check_network_output

    page = ROOT / "docs" / "your_own_network.md"
    names: dict[str, Any] = {}
    (code,) = fences(page, "python")
    exec(code, names)
    (settings,) = (file for file in map(json.loads, fences(page, "json")) if "model" in file)
    network = names[settings["model"].rpartition(".")[2]](**settings["model_args"])
    assert isinstance(network, torch.nn.Module)
    check_network_output(network, settings["model"], {}, (1, 1, 64, 64), (1, settings["classes"], 64, 64))


@pytest.mark.slow
def test_the_first_example_of_the_python_api_runs(tmp_path):
    code = fences(ROOT / "docs" / "python_api.md", "python")[0]
    process = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stdout + process.stderr
    assert {"outputs", "first.zarr", "first.zarr.evaluation"} <= {path.name for path in tmp_path.iterdir()}


@each_page
def test_every_file_and_heading_that_a_page_names_exists(page):
    named = {name for line in command_lines(page) for name in re.findall(r"(?<![\w/])cluster/[\w./-]+", line)}
    assert [name for name in named if not (ROOT / name).exists()] == []
    for target, heading in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", page.read_text()):
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{page}: {target}"
        if heading:
            titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}
            assert heading in slugs, f"{page}: {heading}"


@each_page
def test_every_make_target_that_a_page_names_exists(page):
    targets = set(re.findall(r"^([\w.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for code in [*command_lines(page), *inline_codes(page)]:
        assert set(re.findall(r"^make ([\w.-]+)(?![\w.=-])", code)) <= targets, code  # `make NAME=VALUE` names none


def test_the_architecture_names_files_and_definitions_that_exist():
    sources = [path for folder in ("kasthuri_ray", "jobs") for path in (ROOT / folder).rglob("*.py")]
    definitions = (ast.FunctionDef, ast.ClassDef)
    nodes = [node for path in sources for node in ast.walk(ast.parse(path.read_text()))]
    defined = {node.name for node in nodes if isinstance(node, definitions)}
    for page in (ROOT / "docs" / "architecture.md", ROOT / "CONTRIBUTING.md"):
        for code in inline_codes(page):
            if re.fullmatch(r"[\w/]+(\.py|/)", code):
                folders = (ROOT, ROOT / "kasthuri_ray", *(path.parent for path in sources))
                assert any((folder / code).exists() for folder in folders), code
            elif re.fullmatch(r"[A-Z][a-z]\w+(\.\w+)?|[a-z]+_[a-z_]+", code):
                assert set(code.split(".")) <= defined | NAMES_OF_NO_DEFINITION, code


def test_ray_accepts_the_flags_that_the_pages_show():
    from ray.dashboard.modules.job.cli import submit
    from ray.scripts.scripts import start

    lines = [line for page in PAGES for line in command_lines(page)]
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


def test_files_with_keys_are_not_sent_with_the_working_directory(tmp_path):
    """Ray excludes what .gitignore names."""
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    (tmp_path / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    excluded = get_excludes_from_ignore_files(tmp_path, include_gitignore=True)
    for name in ("keys.env", "token.txt", ".ray-17-abcdef/token"):
        assert any(exclude(tmp_path / name) for exclude in excluded), name
    assert not any(exclude(tmp_path / "README.md") for exclude in excluded)


def test_the_readme_is_short_and_leads_to_every_page():
    text = README.read_text()
    assert len(text.splitlines()) <= 165
    linked = set(re.findall(r"docs/(\w+)\.md", text))
    assert {page.stem for page in (ROOT / "docs").glob("*.md")} - linked == {"index", "api_reference"}


@pytest.mark.slow
def test_the_site_builds_without_warnings(tmp_path):
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "-c", "docs", "."]
    process = subprocess.run([*command, tmp_path], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (process.returncode, process.stderr) == (0, "")
    reference = (tmp_path / "docs" / "api_reference.html").read_text()
    for name in ("open_volume", "train", "tune", "segment", "evaluate", "view", "TileDataset", "InputError"):
        assert f"kasthuri_ray.{name}" in reference or f'id="kasthuri_ray.errors.{name}"' in reference
