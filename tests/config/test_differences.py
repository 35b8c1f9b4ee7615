"""What differs between the settings that something was started with and those of now."""

from kasthuri_ray.config.differences import record_differences


def test_records_differ_by_key_whatever_their_order_and_whether_tuples_or_lists():
    before = {"tile": [1, 2, 3], "network": {"depth": 4}}
    assert record_differences(before, {"network": {"depth": 4}, "tile": (1, 2, 3)}) == []
    assert record_differences(before, {"tile": (1, 2, 4), "network": {"depth": 5, "new": None}}) == [
        "network.depth: 4 -> 5",
        "network.new: not there -> null",
        "tile: [1, 2, 3] -> [1, 2, 4]",
    ]
