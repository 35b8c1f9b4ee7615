"""TIFF stacks of which a part is missing, or whose pages are not alike: they are refused, and side images left out."""

import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile

from kasthuri_ray.errors import InputError
from kasthuri_ray.volumes.file_formats import open_file_volume
from kasthuri_ray.volumes.opening import open_volume

SHAPE = (6, 300, 210)
GREY = {"photometric": "minisblack"}


@pytest.fixture
def voxels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 60_000, SHAPE, dtype=np.uint16)


@pytest.fixture(autouse=True)
def without_warnings_of_tifffile(caplog):
    caplog.set_level(logging.CRITICAL, "tifffile")


def test_missing_remote_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no .*/none.tif"):
        open_file_volume(str(tmp_path / "none.tif"))
    with pytest.raises(ValueError, match="are read from a local disk only; copy the files, or convert them to zarr"):
        open_file_volume("s3://bucket/x.tif")
    (tmp_path / "x.tif").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"x.tif is not a complete TIFF file"):
        open_file_volume(str(tmp_path / "x.tif"))


@pytest.mark.parametrize(
    "kind", ["contiguous", "imagej", "ome", "zlib", "pages", "plain pages", "tiled", "imagej zlib"]
)
@pytest.mark.parametrize("share", [0.3, 0.75, 0.999])
def test_a_truncated_stack_is_refused_with_both_counts(tmp_path, voxels, write_pages, kind, share):
    path = tmp_path / ("x.ome.tif" if kind == "ome" else "x.tif")
    if "pages" in kind:
        write_pages(path, voxels, **({"metadata": None} if kind == "plain pages" else {}))
    else:
        zlib = {"compression": "zlib"}
        more = {"imagej": {"imagej": True}, "imagej zlib": {"imagej": True, **zlib}, "zlib": zlib}
        more["tiled"] = {"tile": (64, 64), **zlib}
        tifffile.imwrite(path, voxels, **GREY, **more.get(kind, {}))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    counts = r"\d of 6 sections are there" if kind in ("imagej", "imagej zlib") else r"\d( of 6)? sections are there"
    with pytest.raises(InputError, match=rf"is incomplete: .*{counts}|is not a complete TIFF file"):
        open_file_volume(str(path))


def test_a_header_that_promises_more_planes_is_refused_with_both_counts(tmp_path, voxels):
    tifffile.imwrite(tmp_path / "ij.tif", voxels, imagej=True, compression="zlib", metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "x.ome.tif", voxels, metadata={"axes": "ZYX"})
    tifffile.imwrite(tmp_path / "shaped.tif", voxels, compression="zlib", **GREY)
    for name, old, new in (
        ("ij.tif", b"images=6\nslices=6", b"images=9\nslices=9"),
        ("x.ome.tif", b'SizeZ="6"', b'SizeZ="9"'),
        ("shaped.tif", b'"shape": [6,', b'"shape": [9,'),
    ):
        content = (tmp_path / name).read_bytes()
        assert content.count(old) == 1, name
        (tmp_path / name).write_bytes(content.replace(old, new))
        with pytest.raises(InputError, match=rf"{name} is incomplete: 6 of 9 sections are there"):
            open_file_volume(str(tmp_path / name))


def write_ome_files(folder: Path, voxels: np.ndarray, fifth: np.ndarray | None = None) -> None:
    """Write an OME-TIFF of one file a section, as Bio-Formats does: each file holds the whole XML."""
    pages = list(voxels)
    if fifth is not None:
        pages[4] = fifth[4]
    names = [f"s{z}.ome.tif" for z in range(len(voxels))]
    uuids = [f"urn:uuid:00000000-0000-0000-0000-00000000000{z}" for z in range(len(voxels))]
    data = "".join(
        f'<TiffData IFD="0" FirstZ="{z}" FirstC="0" FirstT="0" PlaneCount="1"><UUID FileName="{name}">{uuid}</UUID>'
        "</TiffData>"
        for z, (name, uuid) in enumerate(zip(names, uuids, strict=True))
    )
    for page, name, uuid in zip(pages, names, uuids, strict=True):
        xml = (
            f'<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{uuid}">'
            f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16" SizeX="{page.shape[1]}" '
            f'SizeY="{page.shape[0]}" SizeZ="{len(voxels)}" SizeC="1" SizeT="1" PhysicalSizeX="4" '
            'PhysicalSizeXUnit="nm" PhysicalSizeY="4" PhysicalSizeYUnit="nm" PhysicalSizeZ="40" PhysicalSizeZUnit="nm">'
            f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{data}</Pixels></Image></OME>'
        )
        tifffile.imwrite(folder / name, page, description=xml, metadata=None, compression="zlib", **GREY)


def test_an_ome_tiff_of_several_files_is_read_whole_or_refused(tmp_path, voxels, check_file):
    write_ome_files(tmp_path, voxels)
    for name in ("s0.ome.tif", "s3.ome.tif"):
        volume = open_file_volume(str(tmp_path / name))
        check_file(volume, voxels)
        assert volume.voxel_size_nm == (40, 4, 4)
    check_file(open_volume(str(tmp_path)), voxels)  # each file is one section, whatever its XML says
    (tmp_path / "s4.ome.tif").rename(tmp_path / "renamed.ome.tif")
    with pytest.raises(InputError, match=r"is incomplete: 5 of 6 sections are there; there is no s4.ome.tif beside it"):
        open_file_volume(str(tmp_path / "s0.ome.tif"))


def test_a_part_of_an_ome_tiff_names_the_whole(tmp_path, voxels):
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<BinaryOnly MetadataFile="whole.ome.tif" UUID="urn:uuid:00000000-0000-0000-0000-000000000000"/></OME>'
    )
    tifffile.imwrite(tmp_path / "x.ome.tif", voxels[0], description=xml, metadata=None)
    with pytest.raises(InputError, match=r"is one part of an OME-TIFF of several files; open the whole: whole.ome.tif"):
        open_file_volume(str(tmp_path / "x.ome.tif"))


def test_an_ome_tiff_whose_files_are_of_two_types_is_refused(tmp_path, voxels):
    write_ome_files(tmp_path, voxels, voxels.astype(np.uint8))
    with pytest.raises(InputError, match=r"s4.ome.tif holds pages of 300 x 210 uint8 .*, not of 300 x 210 uint16"):
        open_file_volume(str(tmp_path / "s0.ome.tif"))


def test_pages_of_two_shapes_are_refused(tmp_path, voxels):
    with tifffile.TiffWriter(tmp_path / "two.tif") as file:
        file.write(voxels[0])
        file.write(voxels[0, :50])
    with pytest.raises(ValueError, match=r"two.tif holds 2 images, shapes \(300, 210\), \(50, 210\); a volume is one"):
        open_file_volume(str(tmp_path / "two.tif"))


ODD_PAGES = {
    "compression": {"compression": "zlib"},
    "rows per strip": {"rowsperstrip": 7},
    "tile width": {"tile": (64, 64)},
    "photometric interpretation": {"photometric": "miniswhite"},
    "height": {},
    "bits a value": {},
    "sample format": {},
}


@pytest.mark.parametrize("what", ODD_PAGES)
def test_a_page_that_is_stored_in_another_form_is_named(tmp_path, voxels, what):
    """tifffile looks at few pages of a stack, and reads the others as if they were like these."""
    pages = list(np.concatenate([voxels, voxels])[:, :40, :50])
    odd = {
        "height": pages[5][:-1],
        "bits a value": pages[5].astype(np.uint32),
        "sample format": pages[5].view(np.int16),
    }
    pages[5] = odd.get(what, pages[5])
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        for z, page in enumerate(pages):
            file.write(page, contiguous=False, metadata=None, **(GREY | ODD_PAGES[what] if z == 5 else GREY))
    with pytest.raises(InputError, match=rf"x.tif: page 6 is stored with {what} \d+, the pages before it with \d+; "):
        open_volume(str(tmp_path / "x.tif"))


@pytest.mark.parametrize("first", [True, False])
def test_previews_and_masks_in_a_file_are_no_sections(tmp_path, voxels, check_file, first):
    sides = [(voxels[0, ::4, ::4], 1), (voxels[0] > 100, 4)]
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        for page, kind in [*(sides if first else []), *((page, 0) for page in voxels), *([] if first else sides)]:
            file.write(page, contiguous=False, metadata=None, subfiletype=kind, **GREY)
    check_file(open_volume(str(tmp_path / "x.tif")), voxels)
