"""Jobs write no key anywhere, Ray's logs included, and send no key to a server with an unverified certificate."""

import json
import os
import shutil
import ssl
import tempfile
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

KEYS = {"BOSSDB_TOKEN": "boss-token-5d0c1e77ab", "AWS_SECRET_ACCESS_KEY": "cloud-key-77aa0e41c9"}
SIZES = ["--set", "task.xrange_vol=0,128", "--set", "task.yrange_vol=0,128", "--set", "task.tile_size=64,64"]
SIZES += ["--set", "task.z_train=0,8", "--set", "task.z_val=8,11", "--set", "task.z_test=11,16"]


def read_files(*folders: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def ray_folder():
    """Yield the folder of logs of the Ray that a job starts; short, because socket names are limited."""
    folder = Path(tempfile.mkdtemp(prefix="kr", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_training_and_a_segmentation_write_no_key_anywhere(
    start_job, tiny_flags, boss_server, clean_env, ray_folder, tmp_path
):
    """Both read from a BossDB server that requires a token and run with `--verbose`; the run is on S3."""
    import boto3

    rng = np.random.default_rng(0)
    boss_server.add("Kasthuri/ac4/em", rng.integers(1, 255, (16, 128, 128), np.uint8))
    boss_server.add("Kasthuri/ac4/membrane", rng.integers(0, 2, (16, 128, 128)).astype(np.uint64))
    boss_server.token = KEYS["BOSSDB_TOKEN"]
    boss = tmp_path / "boss.json"
    boss.write_text(json.dumps(boss_server.options))
    env = {**KEYS, "RAY_TMPDIR": str(ray_folder), "KASTHURI_CACHE": str(tmp_path / "cache")}
    train = start_job(
        *("--task", "membrane", *tiny_flags[2:], *SIZES, "--boss", boss),
        *("--storage", "s3://lab/secrets", "--name", "run", "--set", "network.epochs=1", "--verbose"),
        env=env,
    )
    train.wait_for_line("epoch")
    token = find_ray_token(train)
    train.wait()
    assert train.code == 0, train.out + train.err
    out = tmp_path / "out.zarr"
    segment = start_job(
        *("--weights", "s3://lab/secrets/run", "--output", out, "--boss", boss, "--objects", "--verbose"),
        env=env,
        script="jobs/segment.py",
    ).wait()
    assert segment.code == 0, segment.out + segment.err
    assert boss_server.requests
    assert all(request.token == KEYS["BOSSDB_TOKEN"] for request in boss_server.requests)

    s3 = boto3.client(
        "s3", region_name="us-east-1", endpoint_url=clean_env["AWS_ENDPOINT_URL"],
        aws_access_key_id="key", aws_secret_access_key="secret",
    )  # fmt: skip
    names = [item["Key"] for item in s3.list_objects_v2(Bucket="lab", Prefix="secrets/")["Contents"]]
    written = {name: s3.get_object(Bucket="lab", Key=name)["Body"].read() for name in names}
    written |= read_files(ray_folder, *(path for path in tmp_path.iterdir() if path.is_dir()))
    written |= {"printed": "".join((train.out, train.err, segment.out, segment.err)).encode()}
    assert {"secrets/run/settings.json", "secrets/run/index.html", "secrets/run/checkpoint/last.pt"} <= written.keys()
    assert any(name.endswith("raylet.out") for name in written)
    assert any(name.endswith("out.zarr/zarr.json") for name in written)
    for secret in (*KEYS.values(), token):
        assert not [name for name, content in written.items() if secret.encode() in content]


def find_ray_token(job) -> str:
    """Return the token of the Ray that a job started, from the environment of its processes."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[3]) != job.process.pid:
                continue
            variables = (folder / "environ").read_bytes().decode().split("\0")
        except OSError:
            continue
        tokens = [each.partition("=")[2] for each in variables if each.startswith("RAY_AUTH_TOKEN=")]
        if tokens:
            assert "RAY_AUTH_MODE=token" in variables
            assert len(tokens[0]) == 64
            return tokens[0]
    raise AssertionError("no process of the job's Ray has a token")


@pytest.fixture
def untrusted_server(tmp_path):
    """Yield the port of an HTTPS server on the loopback with a self-signed certificate, and its requests."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    certificate = certificate.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    certificate = certificate.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    pem = certificate.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    (tmp_path / "server.pem").write_bytes(
        pem
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            received.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"trust me")

        def log_message(self, *_: object) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, received
    server.shutdown()


def test_a_server_with_a_self_signed_certificate_is_refused_before_the_token_is_sent(untrusted_server, monkeypatch):
    from kasthuri_ray.errors import VolumeError
    from kasthuri_ray.storage.folder import read_uri
    from kasthuri_ray.volumes.boss_requests import RetryPolicy
    from kasthuri_ray.volumes.bossdb import open_bossdb

    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    port, received = untrusted_server
    with pytest.raises(ConnectionError, match=r"(?i)certificate verify failed"):
        read_uri(f"https://localhost:{port}/weights.pt")
    boss = {"protocol": "https", "host": f"localhost:{port}", "token": KEYS["BOSSDB_TOKEN"]}
    with pytest.raises(VolumeError, match=r"(?i)certificate") as caught:
        open_bossdb("bossdb://Kasthuri/ac4/em", boss=boss, retry_policy=RetryPolicy(tries=2, first_pause_s=0.1))
    assert KEYS["BOSSDB_TOKEN"] not in str(caught.value)
    assert not received
