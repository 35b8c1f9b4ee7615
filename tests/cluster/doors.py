"""Knocks at every port of the hosts that are named, as somebody without a token does, and prints what answered.

    python doors.py HOST:PORT[,PORT...] ...

A line of JSON: {"HOST:PORT": {"http": {path: status}, "grpc": {method: status}}}. Each method is called with an empty
request; a server that looked at the token first says UNAUTHENTICATED, one that knows no such method UNIMPLEMENTED.
"""

import json
import socket
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import grpc

# One that reads and one that would run or change something, of each service that Ray speaks.
METHODS = (
    "NodeInfoGcsService/GetAllNodeInfo",
    "NodeInfoGcsService/DrainNode",
    "InternalKVGcsService/InternalKVPut",
    "InternalKVGcsService/InternalKVGet",
    "JobInfoGcsService/AddJob",
    "ActorInfoGcsService/GetAllActorInfo",
    "ActorInfoGcsService/CreateActor",
    "NodeManagerService/GetNodeStats",
    "NodeManagerService/RequestWorkerLease",
    "NodeManagerService/ShutdownRaylet",
    "ObjectManagerService/Push",
    "ObjectManagerService/Pull",
    "CoreWorkerService/PushTask",
    "CoreWorkerService/GetCoreWorkerStats",
    "RayletDriver/ClusterInfo",
    "RayletDriver/Init",
    "LogService/ListLogs",
    "ReporterService/GetTraceback",
    "autoscaler.AutoscalerStateService/GetClusterStatus",
)
READ = (
    *("/", "/metrics", "/api/version", "/api/jobs/", "/api/healthz", "/api/gcs_healthz", "/api/local_raylet_healthz"),
    *("/api/authentication_mode", "/nodes?view=summary", "/logs", "/api/v0/logs/file?filename=raylet.out", "/events"),
    *("/worker/traceback?pid=1", "/api/v0/tasks", "/static/", "/-/healthz", "/api/serve/applications/", "/timezone"),
)
# What would run something.
ORDER = {
    "/api/jobs/": {"entrypoint": "touch {mark}"},
    "/api/job_agent/jobs/": {"entrypoint": "touch {mark}"},
    "/api/packages/gcs/x.zip": {},
    "/get_or_create_runtime_env": {},
    "/api/authenticate": {},
    "/": {"entrypoint": "touch {mark}"},
    "/metrics": {"entrypoint": "touch {mark}"},
}
SECONDS = 5


def main(mark, hosts):
    ends = [(each.partition(":")[0], int(port)) for each in hosts for port in each.partition(":")[2].split(",")]
    with ThreadPoolExecutor(len(ends)) as pool:  # what does not answer is waited for
        found = list(pool.map(lambda end: knock(*end, mark), ends))
    print(json.dumps({f"{host}:{port}": seen for (host, port), seen in zip(ends, found, strict=True)}))


def knock(host, port, mark):
    """What the server at a port says, which speaks HTTP or gRPC."""
    with socket.create_connection((host, port), SECONDS):
        pass
    url = f"http://{host}:{port}"
    if ask(url) == "no HTTP":
        return {"http": {}, "grpc": call_all(f"{host}:{port}")}
    http = {f"GET {path}": ask(url + path) for path in READ}
    for path, body in ORDER.items():
        http[f"POST {path}"] = ask(url + path, json.dumps(body).replace("{mark}", mark).encode())
    http["GET /api/jobs/ with a wrong token"] = ask(f"{url}/api/jobs/", token="0" * 64)
    return {"http": http, "grpc": {}}


def ask(url, body=None, token=None):
    """The status of the answer; "metrics" where the answer is Prometheus's text, whatever was asked."""
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=SECONDS) as answer:
            return "metrics" if answer.read(6) == b"# HELP" else answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except Exception:
        return "no HTTP"


def call_all(address):
    statuses = {}
    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=SECONDS)
        except grpc.FutureTimeoutError:
            return statuses
        for method in METHODS:
            path = f"/ray.rpc.{method}"
            try:
                channel.unary_unary(path)(b"", timeout=SECONDS)
                statuses[method] = "OK"
            except grpc.RpcError as error:
                statuses[method] = error.code().name
    return statuses


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
