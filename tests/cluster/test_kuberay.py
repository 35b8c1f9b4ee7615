"""The files for KubeRay are compared with its schemas, and with the flags and resource demands of the jobs."""

import copy
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from kasthuri_ray import api
from kasthuri_ray.config.loading import resolve_settings
from kasthuri_ray.config.settings import TrainSettings
from kasthuri_ray.ray_cluster.connection import WORKER_CPUS
from kasthuri_ray.ray_cluster.resources import ClusterResources
from kasthuri_ray.segmentation.actor_resources import GPU_ACTOR_CPUS
from kasthuri_ray.tiles.streaming import READ_CPUS

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "cluster" / "kuberay").glob("*.yaml"))
UNITS = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def documents(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the custom resource of KubeRay, and the network policy."""
    ray, policy = yaml.safe_load_all(path.read_text())
    return ray, policy


def cluster_of(ray: dict[str, Any]) -> dict[str, Any]:
    return ray["spec"].get("rayClusterSpec", ray["spec"])


def groups(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in cluster["workerGroupSpecs"]}


def pods(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the templates of all pods of a cluster by name."""
    return {"head": cluster["headGroupSpec"]["template"]} | {
        name: group["template"] for name, group in groups(cluster).items()
    }


def all_pods(ray: dict[str, Any]) -> dict[str, dict[str, Any]]:
    submitter = ray["spec"].get("submitterPodTemplate")
    return pods(cluster_of(ray)) | ({"submitter": submitter} if submitter else {})


def job_of(path: Path) -> tuple[Path, list[str]]:
    """Return the script that a file runs, in this checkout, and its arguments."""
    python, script, *arguments = shlex.split(documents(path)[0]["spec"]["entrypoint"])
    assert python == "python"
    folder = re.search(r"^WORKDIR (.*)$", (ROOT / "cluster" / "Dockerfile").read_text(), re.MULTILINE)[1]
    return ROOT / Path(script).relative_to(folder), arguments


JOBS = [path for path in FILES if path.stem != "cluster" and job_of(path)[0].exists()]


def in_bytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(\w*)", quantity).groups()
    return int(number) * UNITS[unit]


@pytest.fixture(scope="session")
def schemas() -> Path:
    """Return the folder of KubeRay's schemas, which must exist."""
    return Path(os.environ.get("KASTHURI_TEST_DATA", ROOT.parent / "shared" / "data")) / "kuberay"


@pytest.fixture(scope="session")
def strict_schema(load_module) -> Any:
    return load_module(Path(__file__).with_name("strict_schema.py"))


def test_every_job_and_a_permanent_cluster_have_a_file():
    assert [path.stem for path in FILES] == ["cluster", "segment-synapse", "train-synapse", "tune-synapse"]
    assert [job_of(path)[0].stem for path in FILES[1:]] == ["segment", "train", "tune"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_kuberay_knows_every_key(path, schemas, strict_schema):
    ray, _ = documents(path)
    schema = strict_schema.read_schema(schemas, ray["kind"])
    assert strict_schema.find_errors(ray, schema) == []


def test_a_misspelt_key_is_an_error_at_every_level(schemas, strict_schema):
    ray, _ = documents(FILES[-1])
    schema = strict_schema.read_schema(schemas, ray["kind"])
    for parents, key in (
        (("spec",), "shutdownAfterJobFinish"),
        (("spec", "rayClusterSpec", "authOptions"), "modus"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 1), "minReplica"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 1, "template", "spec", "containers", 0), "imagePullPolice"),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "volumes", 0, "emptyDir"), "sizelimit"),
    ):
        wrong = copy.deepcopy(ray)
        target: Any = wrong
        for parent in parents:
            target = target[parent]
        target[key] = "x"
        assert any(f"{key!r} was unexpected" in line for line in strict_schema.find_errors(wrong, schema)), key


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_pods_and_policy_are_valid_for_kubernetes(path):
    ray, policy = documents(path)
    kubernetes_validate.validate(policy, kubernetes_validate.latest_version(), strict=True)
    for name, template in all_pods(ray).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **template["metadata"]}}
        kubernetes_validate.validate(
            pod | {"spec": template["spec"]}, kubernetes_validate.latest_version(), strict=True
        )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_access_is_restricted_and_keys_come_from_a_secret(path):
    ray, policy = documents(path)
    cluster = cluster_of(ray)
    assert cluster["authOptions"] == {"mode": "token"}
    release = next(
        line.partition("==")[2]
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line.startswith("ray==")
    )
    assert cluster["rayVersion"] == release
    label = policy["spec"]["podSelector"]["matchLabels"].items()
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert all("from" in rule for rule in policy["spec"]["ingress"])
    for name, template in all_pods(ray).items():
        assert label <= template["metadata"]["labels"].items(), name
        spec, (container,) = template["spec"], template["spec"]["containers"]
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["runAsUser"] == 1000, "the user of the Dockerfile"
        assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
        assert name == "head" or spec["automountServiceAccountToken"] is False, name
        assert name == "submitter" or "kasthuri-ray-keys" in str(container["envFrom"]), name
        assert not any(word in str(container.get("env")) for word in ("TOKEN", "SECRET", "KEY")), name
    assert "runtimeEnvYAML" not in ray["spec"], "the dashboard shows it, keys included"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_head_runs_no_work_and_gpus_are_spot_nodes_scaled_from_zero(path):
    ray, _ = documents(path)
    cluster = cluster_of(ray)
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    gpu, fetch = groups(cluster)["gpu"], groups(cluster)["fetch"]
    assert (gpu["minReplicas"], gpu["replicas"]) == (0, 0)
    assert (
        "spot"
        in str(
            gpu["template"]["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        ).lower()
    )
    assert "nvidia.com/gpu" not in str(fetch)
    for name, template in pods(cluster).items():
        (container,) = template["spec"]["containers"]
        (mount,) = [each for each in container["volumeMounts"] if each["mountPath"] == "/dev/shm"]
        (volume,) = [each for each in template["spec"]["volumes"] if each["name"] == mount["name"]]
        group = cluster["headGroupSpec"] if name == "head" else groups(cluster)[name]
        store = int(group["rayStartParams"]["object-store-memory"])
        shared_memory = in_bytes(volume["emptyDir"]["sizeLimit"])
        assert volume["emptyDir"]["medium"] == "Memory", name
        assert store < shared_memory < in_bytes(container["resources"]["limits"]["memory"]) / 2, name
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"], name


@pytest.fixture(scope="session")
def entrypoint(load_module) -> Callable[[Path], tuple[Any, list[str]]]:
    """Return `entrypoint(path)`: the parser of the job that a file runs, and the arguments of the job."""

    def read(path: Path) -> tuple[Any, list[str]]:
        script, arguments = job_of(path)
        return load_module(script).make_parser(), arguments

    return read


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_the_job_accepts_every_flag_and_value(path, entrypoint):
    parser, arguments = entrypoint(path)
    parsed = parser.parse_args(arguments)
    flags = vars(parsed)
    assert flags["device"] == "cuda"
    assert flags["wait_for_resources"] >= 600, "the time that nodes take to start"
    outputs = [flags.get(name) for name in ("storage", "output") if flags.get(name)]
    assert outputs
    assert all(output.startswith("s3://your-bucket/") for output in outputs)
    assert flags.get("name") or flags.get("output"), "needed to resume with the same file"
    job = path.stem.partition("-")[0]
    keywords = {"task": "synapse", **parser.keywords(arguments)}
    if job == "segment":
        (keywords["weights"],) = keywords["weights"]
    resolve_settings(api.given_settings(job, keywords))


def largest_cluster(path: Path) -> ClusterResources:
    """Return the resources of the cluster of a file when all its groups have their maximum size."""
    cluster = cluster_of(documents(path)[0])
    cpus = gpus = 0.0
    for group in groups(cluster).values():
        (container,) = group["template"]["spec"]["containers"]
        cpus += group["maxReplicas"] * float(container["resources"]["limits"]["cpu"])
        gpus += group["maxReplicas"] * float(container["resources"]["limits"].get("nvidia.com/gpu", 0))
    return ClusterResources(cpus, gpus, sum(group["maxReplicas"] for group in groups(cluster).values()))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_the_cluster_grows_to_what_the_job_requests_and_no_further(path, entrypoint):
    parser, arguments = entrypoint(path)
    flags, resources = vars(parser.parse_args(arguments)), largest_cluster(path)
    share, cpus = 1.0, WORKER_CPUS
    if path.stem.startswith("segment"):
        low, high = map(int, flags["actors"].split("-"))
        share, cpus = flags["gpus_per_actor"], GPU_ACTOR_CPUS
    elif path.stem.startswith("tune"):
        low, high = 1, flags["concurrent"]
    else:
        low, high = TrainSettings(num_workers=flags["num_workers"]).worker_range
    assert low >= 1
    assert high * share == resources.gpus
    assert high * cpus + READ_CPUS <= resources.cpus
