"""KubeRay's files, held against its schemas made strict, and against the flags and the demands of our jobs."""

import copy
import importlib.util
import os
import re
import shlex
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

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
    """What Ray's operator reads, and the network's policy."""
    ray, policy = yaml.safe_load_all(path.read_text())
    return ray, policy


def cluster_of(ray: dict[str, Any]) -> dict[str, Any]:
    return ray["spec"].get("rayClusterSpec", ray["spec"])


def groups(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {group["groupName"]: group for group in cluster["workerGroupSpecs"]}


def pods(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The templates of all pods of a cluster, by what they are."""
    return {"head": cluster["headGroupSpec"]["template"]} | {
        name: group["template"] for name, group in groups(cluster).items()
    }


def all_pods(ray: dict[str, Any]) -> dict[str, dict[str, Any]]:
    submitter = ray["spec"].get("submitterPodTemplate")
    return pods(cluster_of(ray)) | ({"submitter": submitter} if submitter else {})


def job_of(path: Path) -> tuple[Path, list[str]]:
    """The script that a file starts, in this checkout, and the words that it is given."""
    python, script, *given = shlex.split(documents(path)[0]["spec"]["entrypoint"])
    assert python == "python"
    folder = re.search(r"^WORKDIR (.*)$", (ROOT / "cluster" / "Dockerfile").read_text(), re.MULTILINE)[1]
    return ROOT / Path(script).relative_to(folder), given


JOBS = [path for path in FILES if path.stem != "cluster" and job_of(path)[0].exists()]


def in_bytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(\w*)", quantity).groups()
    return int(number) * UNITS[unit]


@pytest.fixture(scope="session")
def schemas() -> Path:
    """The folder of KubeRay's schemas, which must be there."""
    return Path(os.environ.get("KASTHURI_TEST_DATA", ROOT.parent / "shared" / "data")) / "kuberay"


@pytest.fixture(scope="session")
def strict() -> Any:
    spec = importlib.util.spec_from_file_location("strict", Path(__file__).with_name("strict.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_kinds_of_use_have_a_file():
    assert [path.stem for path in FILES] == ["cluster", "segment-synapse", "train-synapse", "tune-synapse"]
    assert [job_of(path)[0].stem for path in FILES[1:]] == ["segment", "train", "tune"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_key_is_one_that_kuberay_knows(path, schemas, strict):
    ray, _ = documents(path)
    schema = strict.read_schema(schemas, ray["kind"])
    assert strict.errors_of(ray, schema) == []


def test_a_misspelt_key_is_found_wherever_it_stands(schemas, strict):
    ray, _ = documents(FILES[-1])
    schema = strict.read_schema(schemas, ray["kind"])
    for where, key in (
        (("spec",), "shutdownAfterJobFinish"),
        (("spec", "rayClusterSpec", "authOptions"), "modus"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 1), "minReplica"),
        (("spec", "rayClusterSpec", "workerGroupSpecs", 1, "template", "spec", "containers", 0), "imagePullPolice"),
        (("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "volumes", 0, "emptyDir"), "sizelimit"),
    ):
        wrong = copy.deepcopy(ray)
        place: Any = wrong
        for step in where:
            place = place[step]
        place[key] = "x"
        assert any(f"{key!r} was unexpected" in line for line in strict.errors_of(wrong, schema)), key


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_pods_and_policy_are_what_kubernetes_takes(path):
    ray, policy = documents(path)
    kubernetes_validate.validate(policy, kubernetes_validate.latest_version(), strict=True)
    for name, template in all_pods(ray).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **template["metadata"]}}
        kubernetes_validate.validate(
            pod | {"spec": template["spec"]}, kubernetes_validate.latest_version(), strict=True
        )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_strangers_are_kept_out_and_keys_come_from_a_secret(path):
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
        assert spec["securityContext"]["runAsUser"] == 1000, "as the Dockerfile says"
        assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
        assert name == "head" or spec["automountServiceAccountToken"] is False, name
        assert name == "submitter" or "kasthuri-ray-keys" in str(container["envFrom"]), name
        assert not any(word in str(container.get("env")) for word in ("TOKEN", "SECRET", "KEY")), name
    assert "runtimeEnvYAML" not in ray["spec"], "what stands there, keys too, is shown on the dashboard"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_head_does_no_work_and_gpus_are_on_spot_from_none(path):
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
        room = in_bytes(volume["emptyDir"]["sizeLimit"])
        assert volume["emptyDir"]["medium"] == "Memory", name
        assert store < room < in_bytes(container["resources"]["limits"]["memory"]) / 2, name
        assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"], name


def entrypoint(path: Path) -> tuple[Any, list[str]]:
    """The parser of the job that a file starts, and the words that it is given."""
    job, given = job_of(path)
    spec = importlib.util.spec_from_file_location(f"job_{job.stem}", job)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.make_parser(), given


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_flag_is_one_that_the_job_takes(path):
    parser, given = entrypoint(path)
    arguments = vars(parser.parse_args(given))
    assert arguments["device"] == "cuda"
    assert arguments["wait_for_resources"] >= 600, "as long as nodes take to come"
    places = [arguments.get(name) for name in ("storage", "output") if arguments.get(name)]
    assert places
    assert all(place.startswith("s3://your-bucket/") for place in places)
    assert arguments.get("name") or arguments.get("output"), "the same file goes on where it stopped"
    layers = parser.layers(parser.parse_args(given))
    resolve_settings(arguments.get("task") or "synapse", None, **layers)  # the values are ones that the settings take


def room(path: Path) -> ClusterResources:
    """What the cluster of a file holds once it has grown."""
    cluster = cluster_of(documents(path)[0])
    cpus = gpus = 0.0
    for group in groups(cluster).values():
        (container,) = group["template"]["spec"]["containers"]
        cpus += group["maxReplicas"] * float(container["resources"]["limits"]["cpu"])
        gpus += group["maxReplicas"] * float(container["resources"]["limits"].get("nvidia.com/gpu", 0))
    return ClusterResources(cpus, gpus, sum(group["maxReplicas"] for group in groups(cluster).values()))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_the_cluster_grows_to_what_the_job_asks_for_and_no_further(path):
    parser, given = entrypoint(path)
    arguments, holds = vars(parser.parse_args(given)), room(path)
    share, cpus = 1.0, WORKER_CPUS
    if path.stem.startswith("segment"):
        low, high = map(int, arguments["actors"].split("-"))
        share, cpus = arguments["gpus_per_actor"], GPU_ACTOR_CPUS
    elif path.stem.startswith("tune"):
        low, high = 1, arguments["concurrent"]
    else:
        low, high = TrainSettings(num_workers=arguments["num_workers"]).workers
    assert low >= 1
    assert high * share == holds.gpus
    assert high * cpus + READ_CPUS <= holds.cpus
