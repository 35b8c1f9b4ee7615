"""The file of verdicts: what is written is read again, and wrong files are refused with the line."""

import pytest

from kasthuri_ray.errors import InputError, InputNotFound
from kasthuri_ray.output.reviewed_file import ReviewedObject, read_reviewed, reviewed_path, write_reviewed

HEAD = "id,verdict,stratum,stratum_size,mean_probability,size_voxels\n"
OBJECTS = [
    ReviewedObject(7, "keep", "score 1 of 3; size 2 of 3", 12, 0.625, 140),
    ReviewedObject(2, "", "score 1 of 3; size 2 of 3", 12, 0.5, 90),
    ReviewedObject(5, "unsure", "", 0, 0.75, 3),
]


def test_what_is_written_is_read_again(tmp_path):
    path = str(tmp_path / "out.zarr.reviewed.csv")
    write_reviewed(path, OBJECTS)
    assert read_reviewed(path) == OBJECTS
    assert [each.is_drawn for each in OBJECTS] == [True, True, False]
    assert reviewed_path(str(tmp_path / "out.zarr")) == path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id,verdict\n1,keep\n", "no column stratum"),
        (
            f"{HEAD}1,maybe,,0,0.5,3\n",
            "line 2: the verdict 'maybe'",
        ),
        (f"{HEAD}x,keep,,0,0.5,3\n", "line 2"),
        (f"{HEAD}1,keep,,0,0.5,3\n1,keep,,0,0.5,3\n", "twice"),
    ],
)
def test_another_file_is_refused(tmp_path, text, message):
    (tmp_path / "r.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        read_reviewed(str(tmp_path / "r.csv"))
    with pytest.raises(InputNotFound):
        read_reviewed(str(tmp_path / "none.csv"))
