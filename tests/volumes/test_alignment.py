"""Alignment of volumes: places in nm, masks, and boxes in nm."""

import numpy as np
import pytest

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box
from kasthuri_ray.volumes.alignment import align_volumes
from kasthuri_ray.volumes.mask_alignment import align_mask, mask_box
from kasthuri_ray.volumes.place import Place
from kasthuri_ray.volumes.voxel_grid import box_nm

SIZE = (30.0, 4.0, 4.0)


@pytest.fixture
def placed(array_volume):
    """Return `placed(origin, anchor, shape, ...)`, which makes a volume of counted voxels at a place."""

    def make(origin=None, anchor="corner", shape=(4, 8, 8), size=SIZE, stated=True, **more):
        place = None if origin is None else Place(tuple(map(float, origin)), anchor, "offset", stated)
        voxels = np.arange(np.prod(shape), dtype=np.uint16).reshape(shape)
        return array_volume(voxels, voxel_size_nm=size, place=place, chunk=(1, 4, 4), **more)

    return make


@pytest.mark.parametrize("anchors", [("corner", "corner"), ("middle", "middle")])
def test_a_volume_is_shifted_by_whole_voxels_of_its_place(placed, anchors):
    image = placed((60, 8, -4), anchors[0], shape=(6, 20, 20), uri="array://image")
    labels = placed((120, 20, 8), anchors[1], uri="array://labels")
    aligned = align_volumes(image, labels)
    assert aligned.notes == ()
    assert aligned.fixed is image
    assert aligned.moving.bounds == Box((2, 3, 3), (6, 11, 11))
    assert aligned.overlap == Box((2, 3, 3), (6, 11, 11))
    assert (aligned.moving.voxel_size_nm, aligned.moving.place) == (SIZE, image.place)
    assert (aligned.moving.chunk_origin, aligned.moving.uri) == ((2, 3, 3), "array://labels")
    np.testing.assert_array_equal(aligned.moving.read(Box((3, 4, 5), (5, 9, 11))), labels.array[1:3, 1:6, 2:8])
    back = align_volumes(labels, image)
    assert back.moving.bounds == Box((-2, -3, -3), (4, 17, 17))
    assert back.overlap == labels.bounds


def test_a_volume_that_lies_on_the_grid_already_is_returned_itself(placed):
    image, labels = placed((60, 8, 8)), placed((60, 8, 8))
    assert align_volumes(image, labels).moving is labels


def test_bounds_that_start_elsewhere_count_with_the_place(placed):
    image = placed((0, 0, 0), offset=(10, -20, 5))
    labels = placed((300, -80, 20), "middle")
    assert align_volumes(image, labels).moving.bounds == image.bounds


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("corner", "middle", "shift"),
    [
        ((30, 4, 4), (45, 6, 6), (0, 0, 0)),  # both as they should be
        ((30, 4, 4), (30, 4, 4), (0, 0, 0)),  # OME's writer gave the corner
        ((45, 6, 6), (30, 4, 4), (0, 0, 0)),  # hence half a voxel in both directions
        ((30, 4, 4), (75, 6, 10), (1, 0, 1)),
        ((30, 4, 4), (60, 4, 8), (1, 0, 1)),
        ((30, 4, 4), (45, 4, 8), (0, 0, 1)),  # axis by axis
    ],
)
def test_half_a_voxel_between_a_corner_and_a_middle_counts_as_none(placed, corner, middle, shift, swapped):
    volumes = placed(corner, "corner"), placed(middle, "middle")
    if (corner, middle) == ((45, 6, 6), (30, 4, 4)):
        shift = (-1, -1, -1)  # a whole voxel after conversion
    fixed, moving = reversed(volumes) if swapped else volumes
    aligned = align_volumes(fixed, moving)
    assert aligned.moving.bounds.start == tuple(-n if swapped else n for n in shift)
    assert aligned.notes == ()


def test_a_remainder_is_rounded_to_whole_voxels_with_a_line(placed):
    image, labels = placed((0, 0, 0)), placed((0, 9.2, -5.2), uri="array://labels")
    aligned = align_volumes(image, labels)
    assert aligned.moving.bounds.start == (0, 2, -1)
    (note,) = aligned.notes
    assert "array://labels lies between the voxels of array://em" in note
    assert "0.00,0.30,-0.30 voxel" in note
    assert align_volumes(image, placed((0, 8.2, 0))).notes == ()


def test_one_voxel_size_counts_for_both(placed):
    known, unknown = placed((0, 0, 0)), placed(None, size=None, uri="array://labels")
    for fixed, moving in ((known, unknown), (unknown, known)):
        aligned = align_volumes(fixed, moving)
        assert aligned.fixed.voxel_size_nm == aligned.moving.voxel_size_nm == SIZE
        assert aligned.moving.bounds == aligned.fixed.bounds
        assert "array://labels does not state its voxel size" in aligned.notes[0]
        assert "array://labels states no place in nm: voxel lies on voxel" in aligned.notes[1]
    shifted = align_volumes(known, placed((30, 0, 0), size=None))
    assert shifted.moving.bounds.start == (1, 0, 0)


def test_without_a_place_equal_shapes_lie_on_each_other_and_others_are_refused(placed):
    image = placed((0, 0, 0), offset=(5, 6, 7))
    aligned = align_volumes(image, placed(None, uri="array://labels"))
    assert aligned.moving.bounds == image.bounds
    assert len(aligned.notes) == 1
    assert align_volumes(placed(None), placed(None)).notes == ()
    other = placed(None, shape=(4, 8, 9), uri="array://labels")
    with pytest.raises(
        InputError, match=r"different shapes: array://em is 5:9,6:14,7:15, array://labels is .*labels st"
    ):
        align_volumes(image, other)
    with pytest.raises(InputError, match=r"neither states a place in nm.*\?offset_nm=0,0,0"):
        align_volumes(placed(None), other)


def test_an_origin_that_is_only_implied_does_not_align_different_shapes(placed):
    implied = {"origin": (0, 0, 0), "anchor": "middle", "stated": False}
    assert align_volumes(placed(**implied), placed(**implied)).moving.bounds.start == (0, 0, 0)
    with pytest.raises(InputError, match=r"neither states a place in nm"):
        align_volumes(placed(**implied), placed(**implied, shape=(4, 8, 9)))
    stated = placed((30, 8, 0), "middle", shape=(2, 3, 3))
    assert align_volumes(placed(**implied), stated).moving.bounds == Box((1, 2, 0), (3, 5, 3))


def test_different_voxel_sizes_are_refused_with_both_places_and_rounded_sizes_are_not(placed):
    one, close, other = (
        placed((300, 0, 0), size=(30.0, size, size), uri=f"array://{size}") for size in (4.6, 4.63, 4.7)
    )
    assert align_volumes(one, close).moving.bounds.start == (0, 0, 0)
    sizes = r"array://4.6 has 30 x 4.6 x 4.6 nm, array://4.7 has 30 x 4.7 x 4.7 nm \(z,y,x\)"
    places = r"The first covers 300:420,0:36.8,0:36.8 nm in voxels of 30 x 4.6 x 4.6 nm, by its offset, the second 300:"
    with pytest.raises(InputError, match=f"{sizes}. {places}.*--resample"):
        align_volumes(one, other)


def test_the_resolution_that_would_match_is_named(placed):
    levels = {
        mip: placed((0, 0, 0), size=(30.0, 4.0 * 2**mip, 4.0 * 2**mip), pyramid="p", uri=f"array://p#mip={mip}")
        for mip in range(4)
    }

    def open_mip(uri, mip):
        if uri != "array://p" or mip not in levels:
            raise InputError("no such resolution")
        return levels[mip]

    image = placed((0, 0, 0), size=(30.0, 16.0, 16.0), uri="array://image")
    with pytest.raises(InputError, match=r"array://p#mip=2 has the voxel size of array://image: give that, or --resam"):
        align_volumes(image, levels[0], open_mip)
    with pytest.raises(InputError, match=r"array://p#mip=2 has the voxel size of array://image"):
        align_volumes(levels[3], image, open_mip)
    odd = placed((0, 0, 0), size=(30.0, 5.0, 5.0))
    with pytest.raises(InputError, match=r"Neither has a resolution that matches"):
        align_volumes(odd, levels[0], open_mip)


def test_volumes_that_do_not_overlap_are_refused_with_the_places_of_both(placed):
    expected = (
        r"do not overlap. The first covers 0:120,0:32,0:32 nm in .*, by its offset, the second 120:240,0:32,0:32 nm"
    )
    with pytest.raises(InputError, match=expected):
        align_volumes(placed((0, 0, 0)), placed((120, 0, 0)))


def test_places_without_any_voxel_size_are_refused(placed):
    with pytest.raises(InputError, match="state places in nm, but no voxel size"):
        align_volumes(placed((0, 0, 0), size=None), placed((30, 0, 0), size=None))


def test_a_mask_of_another_resolution_is_compared_by_nanometers(placed):
    image = placed((0, 0, 0), shape=(4, 64, 64), offset=(2, 8, 8))
    mask = placed((0, 0, 0), shape=(3, 20, 20), size=(60.0, 16.0, 16.0))
    assert mask_box(Box((2, 8, 8), (3, 9, 9)), mask, image) == Box((1, 2, 2), (2, 3, 3))
    assert mask_box(Box((3, 11, 8), (5, 13, 24)), mask, image) == Box((1, 2, 2), (3, 4, 6))
    assert mask_box(Box((2, 80, 8), (3, 90, 9)), mask, image).num_voxels == 0


def test_a_mask_of_the_images_resolution_is_aligned_with_it(placed):
    image = placed((0, 32, 0), "middle")
    mask = align_mask(image, placed((0, 16, 0), "middle")).moving
    assert mask_box(Box((0, 0, 0), (1, 2, 2)), mask, image) == Box((0, 0, 0), (1, 2, 2))
    assert mask.bounds == Box((0, -4, 0), (4, 4, 8))
    assert mask.read(Box((0, 0, 0), (1, 1, 1))) == 4 * 8


def test_a_mask_of_another_resolution_needs_a_place_or_the_extent_of_the_image(placed):
    image = placed((0, 0, 0), shape=(4, 30, 30), offset=(7, 6, 5))
    mask = placed(None, size=(30.0, 8.0, 8.0), shape=(4, 15, 15))
    assert align_mask(image, mask).moving is mask
    assert mask_box(Box((8, 6, 7), (9, 8, 9)), mask, image) == Box((1, 0, 1), (2, 1, 2))  # from the first voxels
    with pytest.raises(InputError, match=r"different extents: .*\?offset_nm="):
        align_mask(image, placed(None, size=(30.0, 8.0, 8.0), shape=(4, 15, 13)))


@pytest.mark.parametrize("middle", [(0, 14, 14), (15, 16, 16)])
def test_a_coarse_mask_of_a_segmentation_has_the_corner_of_its_image(placed, middle):
    """Its writer may have taken the corner of the image's voxel 0 for its middle: (0, 0, 0) + 4 nm * (8 - 1) / 2."""
    image = placed((0, 0, 0), "corner", shape=(4, 64, 64))
    mask = placed(middle, "middle", size=(30.0, 32.0, 32.0))
    assert mask_box(Box((0, 0, 0), (1, 8, 8)), mask, image) == Box((0, 0, 0), (1, 1, 1))
    assert mask_box(Box((1, 8, 16), (2, 17, 24)), mask, image) == Box((1, 1, 2), (2, 3, 3))


def test_boxes_in_nm_start_at_the_corner_of_the_first_voxel(placed):
    volume = placed((15, 2, 102), "middle")
    assert box_nm(volume, Box((0, 0, 0), (1, 8, 2))) == [(0.0, 30.0), (0.0, 32.0), (100.0, 108.0)]
    coarse = placed((15, 4, 104), "middle", size=(30.0, 8.0, 8.0))
    # The first voxel of the next coarser level covers four of these, from corner to corner.
    assert box_nm(coarse, Box((0, 0, 0), (1, 4, 1))) == box_nm(volume, Box((0, 0, 0), (1, 8, 2)))
    assert mask_box(Box((0, 0, 0), (1, 2, 2)), coarse, volume) == Box((0, 0, 0), (1, 1, 1))
    assert box_nm(placed((0, 0, 100)), Box((0, 0, 0), (1, 8, 2))) == [(0.0, 30.0), (0.0, 32.0), (100.0, 108.0)]


@pytest.mark.parametrize(
    ("uris", "advice"),
    [
        (
            ("em.tif?axes=xyz", "labels.tif"),
            "leave ?axes= out of em.tif?axes=xyz, or name those of the other volume too",
        ),
        (("em.tif", "labels.tif"), "name those of one of them, such as ?axes=xyz"),
        (("em.tif?axes=xyz", "labels.tif?axes=zxy"), "change ?axes= of one of them"),
    ],
)
def test_volumes_with_axes_in_another_order_are_refused_with_advice_about_axes_alone(placed, uris, advice):
    for sizes in ((SIZE, SIZE[::-1]), (None, None)):
        image = placed(shape=(20, 8, 4), size=sizes[1], uri=uris[0])
        labels = placed(shape=(4, 8, 20), size=sizes[0], uri=uris[1])
        with pytest.raises(InputError, match="voxel sizes differ" if sizes[0] else "different shapes") as caught:
            align_volumes(image, labels)
        text = str(caught.value)
        assert (
            f"These are the same lengths in another order, so the axes of one of them are not z, y, x: {advice}" in text
        )
        assert "--resample" not in text
        assert "offset_nm" not in text
