"""Nodes: a function runs on each of them and returns a result or an error."""

import os

from kasthuri_ray.ray_cluster import nodes


def test_a_node_answers_with_a_result_or_an_error(local_ray):
    (node,) = nodes.living_nodes()
    assert node.resources["CPU"] == 2
    (pid,) = nodes.ask_nodes([node], os.getpid)
    assert pid.error is None
    assert pid.value != os.getpid()
    (failed,) = nodes.ask_nodes([node], os.listdir, "/no/such/folder")
    assert "/no/such/folder" in str(failed.error)
    (silent,) = nodes.ask_nodes([node], __import__("time").sleep, 30, timeout_s=0.5)
    assert isinstance(silent.error, TimeoutError)
    assert nodes.ask_nodes([], os.getpid) == []
