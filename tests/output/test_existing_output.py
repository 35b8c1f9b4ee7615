"""What exists at the path of an output is described, and outputs are removed without other files."""

import pytest
import zarr

from kasthuri_ray.output.existing_output import find_existing_output, remove_output
from kasthuri_ray.output.ome_zarr import OmeZarrOutput


def test_what_exists_at_a_path_is_described(tmp_path, make_spec):
    assert find_existing_output(str(tmp_path / "nothing")) is None
    (tmp_path / "empty").mkdir()
    assert find_existing_output(str(tmp_path / "empty")) is None
    (tmp_path / "file").write_text("a")
    assert "is a file" in find_existing_output(str(tmp_path / "file")).description
    output = OmeZarrOutput.create(str(tmp_path / "out.zarr"), make_spec(weights="abc"))
    found = find_existing_output(f"file://{output.path}")
    assert found.is_segmentation
    assert found.record == output.spec.record
    zarr.create_group(tmp_path / "other.zarr", attributes={"a": 1})
    found = find_existing_output(str(tmp_path / "other.zarr"))
    assert (found.is_segmentation, found.record) == (False, None)
    assert "a zarr group that no segmentation wrote" in found.description
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/letter.txt").write_text("dear")
    assert "a folder that holds letter.txt" in find_existing_output(str(tmp_path / "folder")).description


def test_an_output_is_removed_without_other_files(tmp_path, make_spec, random_probabilities, write_output):
    output = OmeZarrOutput.create(str(tmp_path / "out.zarr"), make_spec(mask="synapse"))
    write_output(output, random_probabilities())
    (tmp_path / "out.zarr/notes.txt").write_text("mine")
    remove_output(output.path)
    assert [path.name for path in (tmp_path / "out.zarr").iterdir()] == ["notes.txt"]
    with pytest.raises(ValueError, match=r"a folder that holds notes\.txt: it is not removed; choose another output"):
        remove_output(output.path)
    (tmp_path / "out.zarr/notes.txt").unlink()
    remove_output(output.path)
    OmeZarrOutput.create(output.path, output.spec)
    remove_output(output.path)
    assert not (tmp_path / "out.zarr").exists()
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(ValueError, match="no segmentation wrote: it is not removed"):
        remove_output(str(tmp_path / "other.zarr"))


def test_what_exists_on_s3_is_described(s3, make_spec):
    s3.put_object(Bucket="some-bucket", Key="a/letter.txt", Body=b"dear")
    assert "a folder that holds letter.txt" in find_existing_output("s3://some-bucket/a").description
    assert find_existing_output("s3://some-bucket/b") is None
    with pytest.raises(ValueError, match="it is not removed"):
        remove_output("s3://some-bucket/a")
    with pytest.raises(FileNotFoundError, match="no-bucket"):
        OmeZarrOutput.create("s3://no-bucket/a", make_spec())
