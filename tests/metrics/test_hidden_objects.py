"""Objects that continue in voxels that do not count are cut: no smallest size applies to what is left of them."""

from functools import partial

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, gaussian_filter, label

from kasthuri_ray.geometry import Box
from kasthuri_ray.labels import IGNORE_LABEL
from kasthuri_ray.metrics.block_objects import find_block_objects, find_labelled_objects
from kasthuri_ray.metrics.object_comparison import ObjectComparison
from kasthuri_ray.metrics.object_criteria import ObjectCriteria
from kasthuri_ray.metrics.object_detection import block_with_shell, find_objects, select_objects
from kasthuri_ray.metrics.object_settings import ObjectSettings

BOUNDS = Box((0, 0, 0), (12, 40, 44))
ALL_AROUND = np.ones((3, 3, 3), bool)


def compare(predicted, truth, known_truth, smallest, block=BOUNDS.shape, ids=None):
    """Return the compared objects of all blocks."""
    settings = ObjectSettings((0.5,), (0.5,), (smallest,))
    objects = ObjectComparison(partial(select_objects, settings=settings, bounds=BOUNDS))
    for own in BOUNDS.cells(block, BOUNDS.start):
        inside = block_with_shell(own, BOUNDS).slices()
        known = known_truth[inside]
        voxels = (predicted[inside], truth[inside], own, [1], 255 * predicted[inside])
        if ids is None:
            objects.add(find_block_objects(*voxels, known_truth=known))
        else:
            objects.add(find_labelled_objects(ids[inside], *voxels, known_truth=known))
    return objects


def test_what_is_left_of_an_object_beside_a_hidden_part_is_found_whatever_its_size():
    truth = np.zeros(BOUNDS.shape, np.uint8)
    for x in range(2, 40, 8):
        truth[4:9, 10:16, x : x + 6] = 1  # 180 voxels each, of which 72 count
    hidden = np.where(np.arange(12)[:, None, None] < 7, IGNORE_LABEL, truth).astype(np.uint8)
    outcomes = compare(truth, hidden, truth, 100).match([1], ObjectCriteria(BOUNDS))[1].outcomes
    assert len(outcomes.partners["overlap"]) == 5
    assert outcomes.is_found("overlap").all()
    assert outcomes.true_is_cut.all()
    assert outcomes.predicted_is_cut.all()
    speck = np.where(np.arange(12)[:, None, None] < 7, 0, truth).astype(np.uint8)  # nothing is beyond: too small
    assert len(compare(speck, hidden, truth, 100).joined().predicted) == 0


@pytest.mark.parametrize("block", [BOUNDS.shape, (5, 13, 17), (4, 4, 4)])
@pytest.mark.parametrize("has_ids", [False, True])
def test_cut_objects_are_those_with_a_neighbour_in_the_hidden_part(block, has_ids):
    rng = np.random.default_rng(3)
    smooth = [gaussian_filter(rng.normal(size=BOUNDS.shape), 1.5) for _ in range(3)]
    predicted, truth = ((each > 0.11).astype(np.uint8) for each in smooth[:2])
    is_hidden = smooth[2] > 0.12
    hidden = np.where(is_hidden, IGNORE_LABEL, truth).astype(np.uint8)
    ids = find_objects(255 * predicted[None], ObjectSettings.of_thresholds([0.5]))[0] if has_ids else None
    joined = compare(predicted, hidden, truth, 8, block, ids).joined()

    def sizes(mask, labels, is_large):
        """Return the size of each piece that counts, and whether it is cut."""
        found = []
        for number in range(1, labels.max() + 1):
            piece = (labels == number) & ~is_hidden
            beyond = binary_dilation(piece, ALL_AROUND) & is_hidden & mask
            if has_ids and mask is predicted_mask:
                beyond = (labels == number) & is_hidden
            at_face = piece[[0, -1]].any() or piece[:, [0, -1]].any() or piece[:, :, [0, -1]].any()
            is_cut = bool(beyond.any() or at_face)
            if piece.any() and (is_cut or piece.sum() >= is_large):
                found.append((int(piece.sum()), is_cut))
        return sorted(found)

    predicted_mask, true_mask = predicted > 0, truth > 0
    visible = [label(mask & ~is_hidden, ALL_AROUND)[0] for mask in (true_mask, predicted_mask)]
    for mask, labels, table, smallest in (
        (true_mask, visible[0], joined.true, 0),
        (predicted_mask, visible[1] if ids is None else ids, joined.predicted, 8),
    ):
        found = sorted(zip(table.size_voxels.tolist(), table.is_cut(BOUNDS).tolist(), strict=True))
        assert found == sizes(mask, labels, smallest)
        assert len({is_cut for _, is_cut in found}) == 2
