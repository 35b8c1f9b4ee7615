"""Requests to a Boss server: its options and token, and the log of retries."""

import time

import pytest

from kasthuri_ray.errors import VolumeError
from kasthuri_ray.volumes import boss_requests
from kasthuri_ray.volumes.boss_requests import BossServer, RetryPolicy, request_with_retries
from kasthuri_ray.volumes.opening import open_volume


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hosst": "x"}, "no 'hosst'; they are protocol, host, token"),
        ({"protocol": "ftp"}, "'ftp' is neither https nor http"),
        ({"host": "https://api.bossdb.io"}, "'https://api.bossdb.io' is not a name with an optional port"),
        ({"token": ""}, "token is empty"),
        ({"token": "two words"}, "token is empty or holds characters"),
    ],
)
def test_unknown_and_malformed_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_volume("bossdb://a/b/c", boss=options)
    assert "two words" not in str(caught.value)


def test_the_token_is_that_of_the_options_or_else_of_the_environment(monkeypatch):
    monkeypatch.setenv("BOSSDB_TOKEN", "of-the-environment")
    assert BossServer.of(None) == BossServer("https", "api.bossdb.io", "of-the-environment")
    assert BossServer.of({"host": "boss.lab"}) == BossServer("https", "boss.lab", "of-the-environment")
    assert BossServer.of({"token": ""}).token == "of-the-environment"
    assert BossServer.of({"token": "mine"}).token == "mine"
    monkeypatch.delenv("BOSSDB_TOKEN")
    assert BossServer.of(None).token == BossServer.of({}).token == "public"


def test_a_token_that_the_server_repeats_is_removed_from_messages():
    assert BossServer(token="s3cret").without_token("no user for s3cret") == "no user for [token]"


def test_long_waits_for_a_retry_are_logged_at_most_once_a_second(monkeypatch, caplog):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    monkeypatch.setattr(boss_requests, "_last_logged", float("-inf"))
    monkeypatch.setattr(boss_requests, "call_with_timeout", lambda seconds, call: call())

    def call():
        raise TimeoutError("no answer to a-secret-token")

    policy = RetryPolicy(tries=6, first_pause_s=0.5, longest_pause_s=4.0)
    with pytest.raises(VolumeError):
        request_with_retries(call, "the metadata of channel 'em'", BossServer(token="a-secret-token"), policy)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition("retrying ")[2] for line in lines] == [
        "in 1 s (try 3 of 6)",
        "in 2 s (try 4 of 6)",
        "in 4 s (try 5 of 6)",
        "in 4 s (try 6 of 6)",
    ]
    assert lines[0].startswith("the metadata of channel 'em': TimeoutError: no answer to [token]; ")
    caplog.clear()
    now[0] += 60
    policy = RetryPolicy(tries=3, first_pause_s=0.2, longest_pause_s=0.2)
    with pytest.raises(VolumeError):  # short waits are not logged
        request_with_retries(call, "a cutout", BossServer(), policy)
    assert caplog.records == []
