"""Connect to ports without a token, call everything that Ray serves, and print the answers.

    python port_scan.py MARK HOST:PORT[,PORT...] ...

Prints a line of JSON: {"HOST:PORT": {"http": {path: status}, "grpc": {method: status}}}. Each gRPC method is called
with an empty request; a server that requires a token answers UNAUTHENTICATED, one without the method UNIMPLEMENTED.
MARK is a file that exists afterwards if a server has run a command.
"""

import json
import socket
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import grpc

# Of each service of Ray a method that reads, and one that would run or change something.
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
READ_PATHS = (
    *("/", "/metrics", "/api/version", "/api/jobs/", "/api/healthz", "/api/gcs_healthz", "/api/local_raylet_healthz"),
    *("/api/authentication_mode", "/nodes?view=summary", "/logs", "/api/v0/logs/file?filename=raylet.out", "/events"),
    *("/worker/traceback?pid=1", "/api/v0/tasks", "/static/", "/-/healthz", "/api/serve/applications/", "/timezone"),
)
# Requests that would run something.
POSTS = {
    "/api/jobs/": {"entrypoint": "touch {mark}"},
    "/api/job_agent/jobs/": {"entrypoint": "touch {mark}"},
    "/api/packages/gcs/x.zip": {},
    "/get_or_create_runtime_env": {},
    "/api/authenticate": {},
    "/": {"entrypoint": "touch {mark}"},
    "/metrics": {"entrypoint": "touch {mark}"},
}
TIMEOUT_S = 5


def main(mark, hosts):
    ends = [(each.partition(":")[0], int(port)) for each in hosts for port in each.partition(":")[2].split(",")]
    with ThreadPoolExecutor(len(ends)) as pool:  # in parallel, because some calls run into the timeout
        answers = list(pool.map(lambda end: scan_port(*end, mark), ends))
    print(json.dumps({f"{host}:{port}": answer for (host, port), answer in zip(ends, answers, strict=True)}))


def scan_port(host, port, mark):
    """Return the answers of the server at a port, by HTTP or gRPC."""
    with socket.create_connection((host, port), TIMEOUT_S):
        pass
    url = f"http://{host}:{port}"
    if http_status(url) == "no HTTP":
        return {"http": {}, "grpc": call_all_methods(f"{host}:{port}")}
    http = {f"GET {path}": http_status(url + path) for path in READ_PATHS}
    for path, body in POSTS.items():
        http[f"POST {path}"] = http_status(url + path, json.dumps(body).replace("{mark}", mark).encode())
    http["GET /api/jobs/ with a wrong token"] = http_status(f"{url}/api/jobs/", token="0" * 64)
    return {"http": http, "grpc": {}}


def http_status(url, body=None, token=None):
    """Return the status of the answer, or "metrics" if the answer is the text of Prometheus."""
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=TIMEOUT_S) as answer:
            return "metrics" if answer.read(6) == b"# HELP" else answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except Exception:
        return "no HTTP"


def call_all_methods(address):
    statuses = {}
    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=TIMEOUT_S)
        except grpc.FutureTimeoutError:
            return statuses
        for method in METHODS:
            path = f"/ray.rpc.{method}"
            try:
                channel.unary_unary(path)(b"", timeout=TIMEOUT_S)
                statuses[method] = "OK"
            except grpc.RpcError as error:
                statuses[method] = error.code().name
    return statuses


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
