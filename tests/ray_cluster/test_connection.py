"""Connecting to Ray: starting it on a busy machine, choosing the token, and no automatic connection."""

import getpass
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from kasthuri_ray import cli
from kasthuri_ray.errors import InputError
from kasthuri_ray.progress import Reporter
from kasthuri_ray.ray_cluster import connection
from kasthuri_ray.ray_cluster.connection import choose_auth_token


@pytest.fixture
def ray_init(monkeypatch):
    """Replace `ray.init`; yield the list of its calls, and a list of errors that the next calls raise."""
    import ray

    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    calls: list[dict] = []
    failures: list[Exception] = []

    def init(**options):
        calls.append({**options, "dashboard_address": os.environ.get("RAY_API_SERVER_ADDRESS")})
        if failures:
            raise failures.pop(0)

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "started here"))
    monkeypatch.setattr(connection, "_own_nodes", set())
    monkeypatch.setattr("kasthuri_ray.process_resources.usable_cpus", lambda: 2)
    return calls, failures


def test_starting_ray_prints_a_line_to_stderr_and_none_to_stdout(ray_init, capsys):
    calls, failures = ray_init
    connection._start(Reporter(), False, 40)
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "starting Ray on this machine (2 CPUs)\n")
    assert calls[0]["num_cpus"] == 2
    assert calls[0]["dashboard_address"] == "none://none", "processes that Ray starts look for no dashboard"
    assert "RAY_API_SERVER_ADDRESS" not in os.environ, "processes that are started later do"
    failures.append(Exception("The current node timed out during startup"))
    connection._start(Reporter(), False, 40)
    assert capsys.readouterr().err.splitlines()[1:] == ["Ray did not start in time; retrying (attempt 2 of 3)"]
    failures.append(RuntimeError("out of disk space"))
    with pytest.raises(RuntimeError, match="out of disk space"):
        connection._start(Reporter(), False, 40)


def test_actors_get_the_environment_unless_they_inherit_it_from_a_ray_that_is_started_here(ray_init):
    assert connection.worker_runtime_env() == {"env_vars": connection.RAY_ENVIRONMENT}
    connection._start(Reporter(), False, 40)
    assert connection.is_own_ray()
    assert connection.worker_runtime_env() == {}


def test_a_machine_that_is_too_busy_to_start_ray_is_an_error_that_says_what_to_do(ray_init, monkeypatch, capsys):
    calls, failures = ray_init
    failures += [Exception("The current node timed out during startup")] * 3
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cli.run_job(lambda arguments: connection._start(Reporter(), False, 40), []) == cli.FAILED
    assert len(calls) == 3
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: Ray did not start on this machine in 3 attempts: the machine is too busy")
    assert "the same command again later; or set RAY_ADDRESS=HOST:PORT" in error


@pytest.fixture
def home(monkeypatch, tmp_path):
    """Return a home folder without a token, with an environment that sets none."""
    for name in ("RAY_AUTH_MODE", *connection.TOKEN_VARIABLES):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "ray", raising=False)  # as in a job, which imports it afterwards
    return tmp_path


def auth_variables() -> dict[str, str]:
    return {name: os.environ[name] for name in ("RAY_AUTH_MODE", *connection.TOKEN_VARIABLES) if name in os.environ}


def test_a_ray_that_we_start_has_a_token_that_is_in_no_file(home):
    choose_auth_token(attach=False)
    variables = auth_variables()
    assert variables["RAY_AUTH_MODE"] == "token"
    assert re.fullmatch("[0-9a-f]{64}", variables["RAY_AUTH_TOKEN"])
    assert not list(home.iterdir())
    choose_auth_token(attach=False)
    assert auth_variables() == variables, "a process keeps the token of its Ray"


def test_the_users_own_token_settings_win(home, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    choose_auth_token(attach=False)
    assert auth_variables() == {"RAY_AUTH_MODE": "disabled"}
    monkeypatch.delenv("RAY_AUTH_MODE")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/a/token")
    choose_auth_token(attach=False)
    assert auth_variables() == {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/a/token"}


def test_attaching_uses_the_token_of_the_home_folder_if_there_is_one(home):
    choose_auth_token(attach=True)
    assert auth_variables() == {"RAY_AUTH_MODE": "disabled"}
    os.environ.pop("RAY_AUTH_MODE")
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("x")
    choose_auth_token(attach=True)
    assert auth_variables() == {"RAY_AUTH_MODE": "token"}


def test_a_call_to_ray_does_not_connect_by_itself():
    code = (
        "from kasthuri_ray.ray_cluster.connection import set_ray_environment\n"
        "set_ray_environment()\n"
        "import ray\n"
        "try: ray.put(1)\n"
        "except Exception as error: print('refused', ray.is_initialized())"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert process.stdout == "refused False\n", process.stderr


@pytest.fixture
def module_path(monkeypatch, tmp_path):
    """Stand in a folder that is not on the module path; return the path."""
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    return sys.path


def test_workers_do_not_search_the_folder_of_a_job_first(ray_init, module_path, tmp_path, monkeypatch):
    calls, _ = ray_init
    connection._start(Reporter(), False, 40)
    assert calls[-1]["job_config"]._client_job, "Ray adds the folders of no client"
    assert "runtime_env" not in calls[-1]
    connection._attach("127.0.0.1:6379", False, 40)
    assert calls[-1]["job_config"]._client_job
    assert calls[-1]["runtime_env"] == {"env_vars": {"KASTHURI_MODULE_FOLDER": str(tmp_path)}}
    connection._attach("ray://127.0.0.1:10001", False, 40)
    assert calls[-1].keys() == {"log_to_driver", "logging_level", "dashboard_address"}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    connection._attach("127.0.0.1:6379", False, 40)
    hook = calls[-1]["runtime_env"]["worker_process_setup_hook"]
    assert hook == "kasthuri_ray.module_path.search_working_folder_last"


def test_workers_of_a_notebook_search_its_folder_first_as_it_does(ray_init, module_path):
    calls, _ = ray_init
    module_path.insert(0, "")
    connection._start(Reporter(), False, 40)
    connection._attach("127.0.0.1:6379", False, 40)
    assert not [call for call in calls if "job_config" in call or "runtime_env" in call]


def test_ray_starts_in_a_folder_of_its_own_where_its_choice_would_fail(ray_init, monkeypatch, capsys):
    calls, _ = ray_init
    monkeypatch.setattr(connection, "private_ray_folder", lambda: "/tmp/kr_1/ray")
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    monkeypatch.setattr(connection, "find_fault", lambda folder: "")
    connection._start(Reporter(), False, 40)
    monkeypatch.setattr(connection, "find_fault", lambda folder: f"{folder} belongs to another user")
    connection._start(Reporter(), False, 40)
    assert [call["_temp_dir"] for call in calls] == ["/tmp/ray", "/tmp/kr_1/ray"]
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "starting" not in line] == [
        "Ray keeps its temporary files in /tmp/kr_1/ray, because /tmp/ray belongs to another user"
    ]


def test_a_user_without_name_and_home_gets_both_for_libraries_that_ask(without_home):
    connection.set_ray_environment()
    assert os.path.expanduser("~/x") == "/nonexistent/x"
    assert getpass.getuser() == f"uid{os.getuid()}"


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [
        ("cuda", "auto", "--device cuda: this machine has no GPU"),
        ("auto", "float16", "--precision float16: this machine has no GPU"),
        ("cpu", "float16", "--precision float16 needs a GPU, and --device is cpu"),
    ],
)
def test_a_gpu_that_is_needed_and_missing_is_an_error_before_ray_starts(monkeypatch, device, precision, message):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(InputError, match=message):
        connection.check_local_gpu(device, precision)
    for others in (("cpu", "bf16"), ("auto", "float32")):
        connection.check_local_gpu(*others)
    monkeypatch.setenv("RAY_ADDRESS", "host:6379")
    connection.check_local_gpu("cuda", "float16")  # the cluster may have one
