"""The table of objects as segment properties: numbers, text, and columns in which nothing is known."""

from kasthuri_ray.viewer.segment_properties import segment_properties


def test_a_column_in_which_nothing_is_known_is_left_out_and_the_tags_are_those_of_the_class():
    rows = [
        {"id": 1, "size_voxels": 40, "size_nm3": None, "class": "membrane"},
        {"id": 2, "size_voxels": 10, "size_nm3": None, "class": "synapse"},
    ]
    properties = {each["id"]: each for each in segment_properties(rows)["inline"]["properties"]}
    assert list(properties) == ["label", "size_voxels", "class"]
    assert (properties["class"]["type"], properties["class"]["tags"]) == ("tags", ["membrane", "synapse"])
