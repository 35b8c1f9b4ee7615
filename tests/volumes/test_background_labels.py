"""Labels that mean "no object", found out from a sample: in which types, from which share, and with which words."""

import numpy as np
import pytest

from kasthuri_ray.errors import InputError
from kasthuri_ray.geometry import Box
from kasthuri_ray.labels import LabelRule
from kasthuri_ray.volumes import background_labels
from kasthuri_ray.volumes.background_labels import find_background, foreground_share, merged_classes_note

SHAPE = (4, 60, 80)
NONE = 2**64 - 1


def labels(share: float, dtype=np.uint64, none: int | None = None, other: int = 7) -> np.ndarray:
    """Return labels of which a share means "none"."""
    none = np.iinfo(dtype).max if none is None else none
    return np.where(np.random.default_rng(0).random(SHAPE) < share, dtype(none), dtype(other))


@pytest.fixture
def find(array_volume):
    """Return `find(labels, ..., rule=LabelRule(), others=[])`: the background that is found, and the notes."""

    def run(*arrays, rule=None, others=()):
        pairs = [[(v := array_volume(a, uri=f"array://{n}"), [v.bounds]) for n, a in each] for each in (
            enumerate(arrays), enumerate(others, len(arrays))
        )]  # fmt: skip
        found, notes = find_background(rule or LabelRule(0.0), *pairs)
        return found.background, notes

    return run


@pytest.mark.parametrize(("dtype", "none"), [(np.uint64, NONE), (np.uint32, 2**32 - 1), (np.int64, -1), (np.int32, -1)])
def test_a_label_for_none_that_fills_more_than_half_is_found_in_32_and_64_bits(find, dtype, none):
    background, (note,) = find(labels(0.6, dtype, none))
    assert background == (none,)
    assert note.startswith(f"array://0: the label {none} fills 60% of a sample and counts as background; every other")
    assert "0 included" in note
    assert ("2^64-3 are ignored" in note) == (dtype is np.uint64)
    assert find(labels(0.4, dtype, none)) == (None, [])


@pytest.mark.parametrize(
    ("dtype", "none"), [(np.uint8, 255), (np.uint16, 65_535), (np.int8, -1), (np.int16, -1), (np.int64, 2**63 - 1)]
)
def test_nothing_is_guessed_in_8_and_16_bits_nor_from_the_maximum_of_a_signed_type(find, dtype, none):
    assert find(labels(0.9, dtype, none), rule=LabelRule()) == (None, [])


def test_what_the_task_states_is_kept(find):
    many = labels(0.9)
    for stated in ((), (7,), (0, NONE)):
        assert find(many, rule=LabelRule(0.0, background=stated)) == (stated, [])
    assert find(many, rule=LabelRule(0.0, ignored=(NONE,))) == (None, [])
    assert find(labels(0.9, np.int32, -1), rule=LabelRule(None, num_classes=3)) == (None, [])


def test_voxels_that_are_ignored_do_not_count_for_the_share(find):
    padded = labels(0.8)
    padded[:, :45] = NONE - 2  # outside: three quarters
    assert find(padded)[0] == (NONE,)
    padded[:, :45] = 0
    assert find(padded, rule=LabelRule(0.0, ignored=(0,)))[0] == (NONE,)
    assert find(padded) == (None, [])


def test_annotations_of_several_types_have_the_labels_of_each(find):
    background, notes = find(labels(0.6), labels(0.3, np.int64, -1), others=[labels(0.1, np.uint32)])
    assert background == (-1, 2**32 - 1, NONE)
    assert len(notes) == 1


@pytest.mark.parametrize("other", [labels(0.0), labels(0.6, np.uint8)])
@pytest.mark.parametrize("where", ["others", "annotations"])
def test_an_annotation_without_such_a_label_beside_one_with_it_is_refused(find, other, where):
    with pytest.raises(InputError, match=rf"in array://0 the label {NONE} means background, and a sample of array://1"):
        find(labels(0.6), other) if where == "annotations" else find(labels(0.6), others=[other])


def test_the_share_of_foreground_leaves_out_what_is_ignored(array_volume):
    volume = array_volume(labels(0.25))
    volume.array[:, :30] = NONE - 1
    rule, annotation = LabelRule(background=(NONE,)), (volume, [volume.bounds])
    assert foreground_share(rule, annotation) == pytest.approx(0.75, abs=0.01)
    assert foreground_share(LabelRule(background=(7,)), annotation) == pytest.approx(0.25, abs=0.01)
    volume.array[:] = NONE - 1
    assert foreground_share(rule, annotation) == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int8, np.int16])
@pytest.mark.parametrize(("others", "first"), [((0, 1), "Not labelled"), ((0,), "Background"), ((3, 4), "Background")])
def test_the_maximum_of_a_small_type_is_not_made_foreground_by_a_threshold(array_volume, dtype, others, first):
    extreme = int(np.iinfo(dtype).max)
    labels = np.full((4, 64, 64), extreme, dtype)
    labels[:, :20] = np.random.default_rng(0).choice(others, (4, 20, 64))
    annotation = [(array_volume(labels), [Box((0, 0, 0), (4, 64, 64))])]
    with pytest.raises(InputError, match=rf"the label {extreme} fills 68.8% of the 16,384 voxels, and") as caught:
        find_background(LabelRule(0.0), annotation)
    text = str(caught.value)
    assert text.index("What does it mean? ") < text.index(first)
    assert all(f"--set task.{key}={extreme}" in text for key in ("ignore_label", "background"))
    assert text.index(first) == min(text.index("Not labelled"), text.index("Background"))
    assert "--set task.background=[]" in text
    for accepted in (
        LabelRule(0.0, ignored=(extreme,)),
        LabelRule(0.0, background=()),
        LabelRule(0.0, background=(extreme,)),
        LabelRule(),
    ):
        assert find_background(accepted, annotation)[0] == accepted
    labels[:, :40] = 0
    assert find_background(LabelRule(0.0), annotation)[1] == []


def test_a_refusal_has_the_shares_of_all_voxels_or_says_that_it_has_those_of_a_sample(array_volume, monkeypatch):
    labels = np.random.default_rng(0).integers(0, 2, (12, 256, 300), np.uint8)
    labels[:, :31] = 255
    volume = array_volume(labels, uri="array://labels")
    annotation = volume, [volume.bounds]
    share = (labels == 255).mean()
    with pytest.raises(InputError, match=rf"holds 255 \({share:.2%}\) among the 921,600 voxels that were read"):
        foreground_share(LabelRule(), annotation)
    monkeypatch.setattr(background_labels, "MAX_COUNTED_VOXELS", 1000)
    with pytest.raises(InputError, match=r"holds 255 \(\d+.\d\d%\) among the \d\d\d,\d\d\d voxels that were read"):
        foreground_share(LabelRule(), annotation)


@pytest.mark.parametrize(
    ("values", "rule", "listed"),
    [
        ((0, 1, 2, 3), LabelRule(0.0), "1, 2, 3"),
        ((0, 2, 5), LabelRule(0.0), "2, 5"),
        ((0, 1, 2, 255), LabelRule(0.0, ignored=(255,)), "1, 2"),
        ((0, 1), LabelRule(0.0), ""),
        ((0, 255), LabelRule(0.0), ""),
        ((0, 1, 2, 3), LabelRule(1.5), "2, 3"),
        ((0, 1, 2, 3), LabelRule(num_classes=4), ""),
        ((0, 1, 2, 3), LabelRule(0.0, background=(0,)), ""),
        ((0, 7, 1000), LabelRule(0.0), ""),
        (range(20), LabelRule(0.0), ""),
    ],
)
def test_few_small_labels_that_a_threshold_merges_are_named(array_volume, values, rule, listed):
    volume = array_volume(np.random.default_rng(0).choice(values, (4, 40, 40)).astype(np.uint16), uri="array://labels")
    note = merged_classes_note(rule, (volume, [volume.bounds]))
    assert bool(note) == bool(listed)
    assert f"holds the labels {listed} in the 6,400 voxels: all of them count as foreground" in note or not listed
    if listed.startswith("1, 2, 3"):
        assert "--set task.background=[0,2,3] leaves the label 1 alone" in note
