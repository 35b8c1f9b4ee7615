"""Annotations converted to classes and images to bytes, compared with plain numpy on whole arrays."""

import numpy as np
import pytest

from kasthuri_ray.errors import InputError
from kasthuri_ray.labels import (
    IGNORE_LABEL,
    VOXELS_AT_ONCE,
    LabelRule,
    find_not_imaged,
    none_label,
    to_classes,
    to_uint8,
)


def classes(labels, threshold_value=None, num_classes=2, ignore_label=None, background=None):
    ignored = () if ignore_label is None else (ignore_label,)
    rule = LabelRule(threshold_value, num_classes, ignored, background)
    return to_classes(np.asarray(labels), rule, "bossdb://a/b/c at 0:1,0:2,0:3")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int8", "int32", "int64"])
def test_a_threshold_converts_any_integers_to_two_classes(dtype):
    top = np.iinfo(dtype).max
    labels = np.array([[0, 1, 2], [3, top - 1, top]], dtype)
    converted = classes(labels, threshold_value=1)
    assert converted.dtype == np.uint8
    np.testing.assert_array_equal(converted, [[0, 0, 1], [1, 1, 1]])
    np.testing.assert_array_equal(classes(labels, threshold_value=0.5), [[0, 1, 1], [1, 1, 1]])


def test_a_threshold_is_exact_for_ids_that_a_float_cannot_hold():
    labels = np.array([2**60, 2**60 + 1], np.uint64)
    np.testing.assert_array_equal(classes(labels, threshold_value=2**60), [0, 1])


def test_negative_labels_and_thresholds_compare_as_numbers():
    np.testing.assert_array_equal(classes(np.array([-9, -1, 0], np.int16), threshold_value=-1), [0, 0, 1])
    np.testing.assert_array_equal(classes(np.array([0, 9], np.uint64), threshold_value=-1), [1, 1])


def test_without_a_threshold_the_values_are_the_classes():
    labels = np.array([0, 1, 2, 1], np.uint64)
    np.testing.assert_array_equal(classes(labels, num_classes=3), [0, 1, 2, 1])
    np.testing.assert_array_equal(classes(np.array([False, True])), [0, 1])
    np.testing.assert_array_equal(classes(np.array([False, True]), threshold_value=0), [0, 1])


@pytest.mark.parametrize(("dtype", "wrong"), [("uint64", 2**40), ("int16", -1), ("uint8", 2), ("uint16", 256)])
def test_a_value_that_is_not_a_class_is_an_error_that_names_it(dtype, wrong):
    with pytest.raises(
        ValueError,
        match=rf"bossdb://a/b/c at 0:1,0:2,0:3: the annotation holds {wrong} \(.*%\) among .*; allowed are 0",
    ):
        classes(np.array([0, 1, wrong], dtype))


def test_the_error_says_which_values_are_allowed():
    message = r"holds 5 \(12.50%\), .*, 9 \(12.50%\), \.\.\. among the 8 .*; allowed are 0 to 2 and 300 \(ignore_lab"
    with pytest.raises(InputError, match=message):
        classes([0, 300, *range(5, 11)], num_classes=3, ignore_label=300)


def test_the_error_gives_the_shares_of_the_labels_that_are_allowed_too():
    with pytest.raises(InputError, match=r"holds 2 \(12\.50%\) among the 8 .*, beside 0 \(62\.50%\), 1 \(25\.00%\);"):
        classes([0, 0, 0, 0, 0, 1, 1, 2])


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        ([0, 1, 255], ["task.ignore_label=255", "task.threshold=true", "task.labels"]),
        ([0, 0, 255], ["task.threshold=true", "task.ignore_label=255"]),
        ([0, 1, 2, 3], ["network.classes=4", "task.threshold=true"]),
        ([7, 7, 7, 0], ["task.ignore_label=7", "network.classes=8"]),
        ([0, 51234, 7100], ["task.threshold=true", "task.labels"]),
        ([0, 1, -1], ["task.background=-1", "task.threshold=true"]),
    ],
)
def test_the_error_names_all_remedies_the_likeliest_first(labels, order):
    with pytest.raises(InputError, match="What do these labels mean") as caught:
        classes(np.array(labels, np.int32))
    found = [str(caught.value).index(text) for text in order]
    assert found == sorted(found)


def test_of_ids_of_many_objects_none_is_said_to_be_unlabelled():
    with pytest.raises(InputError, match=r"task\.threshold=true") as caught:
        classes(np.array([0, 7, 7, 7, 8, 9, 10, 11, 12], np.int32))
    assert "ignore_label" not in str(caught.value)


@pytest.mark.parametrize("threshold_value", [None, 0])
def test_voxels_of_the_ignored_label_become_the_ignored_class(threshold_value):
    labels = np.array([0, 1, 300, 1], np.uint16)
    expected = [0, 1, IGNORE_LABEL, 1]
    np.testing.assert_array_equal(classes(labels, threshold_value, ignore_label=300), expected)
    np.testing.assert_array_equal(classes([0, 1, -1, 1], threshold_value, ignore_label=-1), expected)
    np.testing.assert_array_equal(classes(np.array([5, 0], np.uint8), 0, ignore_label=0), [1, IGNORE_LABEL])


def test_float_annotations_need_a_threshold():
    with pytest.raises(ValueError, match="holds float32; set `threshold` to true in the task"):
        classes(np.array([0.0, 1.0], np.float32))
    np.testing.assert_array_equal(classes(np.array([0.2, 0.5, 0.7], np.float32), threshold_value=0.5), [0, 0, 1])
    with pytest.raises(ValueError, match="holds nan"):
        classes(np.array([np.nan]), threshold_value=0)
    with pytest.raises(ValueError, match="holds integers, this one holds complex128"):
        classes(np.array([1j]))


NONE = 2**64 - 1  # of CREMI's clefts


def test_every_label_that_is_not_background_is_foreground_whatever_the_threshold():
    labels = np.array([0, 7, NONE, 2**40], np.uint64)
    for threshold_value in (None, 0, 2**50):
        np.testing.assert_array_equal(classes(labels, threshold_value, background=(NONE,)), [1, 1, 0, 1])
    np.testing.assert_array_equal(classes(labels, background=(0, NONE)), [0, 1, 0, 1])
    np.testing.assert_array_equal(classes(np.array([-1, 0, 3], np.int64), 0, background=(-1,)), [0, 1, 1])
    np.testing.assert_array_equal(classes(np.array([0, 4, 9], np.uint8), background=(9, NONE, -1)), [1, 1, 0])
    np.testing.assert_array_equal(classes(np.array([-1.0, 0.0, 2.5], np.float32), background=(-1,)), [0, 1, 1])


def test_without_background_labels_the_largest_label_is_as_any_other():
    labels = np.array([0, 7, NONE, NONE - 1], np.uint64)
    for background in (None, ()):
        np.testing.assert_array_equal(classes(labels, 0, background=background), [0, 1, 1, 1])


def test_invalid_and_outside_of_cremi_are_ignored_where_there_are_background_labels():
    labels = np.array([NONE, NONE - 1, NONE - 2, 5, 0], np.uint64)
    ignored = IGNORE_LABEL
    np.testing.assert_array_equal(classes(labels, background=(NONE,)), [0, ignored, ignored, 1, 1])
    np.testing.assert_array_equal(classes(labels, background=(0,), ignore_label=5), [1, ignored, ignored, ignored, 0])
    np.testing.assert_array_equal(classes(labels, background=(NONE, NONE - 2)), [0, ignored, 0, 1, 1])
    signed = np.array([-1, -2, -3], np.int64)  # the same bits, but numbers that may be labels
    np.testing.assert_array_equal(classes(signed, background=(-1,)), [0, 1, 1])


def test_background_labels_that_a_type_cannot_hold_are_refused():
    rule = LabelRule(background=(NONE,))
    rule.check_type(np.dtype("uint64"), "labels.h5:clefts")
    LabelRule(background=(0, NONE)).check_type(np.dtype("uint8"), "labels.h5:clefts")
    for dtype in ("uint8", "int64", "uint32", "bool"):
        with pytest.raises(InputError, match=rf"labels.h5:clefts holds {dtype}, which cannot hold .* {NONE} of the"):
            rule.check_type(np.dtype(dtype), "labels.h5:clefts")
    with pytest.raises(InputError, match=r"task.background leaves two classes.* network.classes is 3"):
        LabelRule(num_classes=3, background=(0,))
    with pytest.raises(InputError, match=r"task.threshold leaves two classes.* network.classes is 3"):
        LabelRule(num_classes=3, threshold_value=0.0)


def test_only_integers_of_32_and_64_bits_have_a_label_for_none():
    found = {name: none_label(np.dtype(name)) for name in ("uint32", "uint64", "int32", "int64")}
    assert found == {"uint32": 2**32 - 1, "uint64": NONE, "int32": -1, "int64": -1}
    assert not any(none_label(np.dtype(name)) for name in ("bool", "uint8", "int8", "uint16", "int16", "float32"))


def test_the_annotation_itself_is_not_changed():
    labels = np.array([0, 1, 3], np.uint8)
    labels.flags.writeable = False
    np.testing.assert_array_equal(classes(labels, ignore_label=3), [0, 1, IGNORE_LABEL])
    np.testing.assert_array_equal(labels, [0, 1, 3])


def test_a_uint8_image_with_its_full_range_is_not_copied():
    image = np.zeros((2, 3, 4), np.uint8)
    assert to_uint8(image, (0, 255)) is image


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32"])
def test_grey_levels_are_mapped_linearly_rounded_and_clipped(dtype):
    top = min(np.iinfo(dtype).max, 60_000)
    image = np.random.default_rng(0).integers(0, top, (3, 700, 800)).astype(dtype)
    assert image.size > VOXELS_AT_ONCE
    low, high = top * 0.1, top * 0.8
    exact = np.clip((image.astype(np.float64) - low) * 255 / (high - low), 0, 255)
    grey = to_uint8(image, (low, high))
    assert grey.dtype == np.uint8
    assert np.abs(grey - exact).max() <= 0.5001
    assert grey.min() == 0
    assert grey.max() == 255


def test_a_transposed_image_is_mapped_the_same():
    image = np.arange(24, dtype=np.uint16).reshape(2, 3, 4).transpose(2, 0, 1)
    np.testing.assert_array_equal(to_uint8(image, (0, 23)), to_uint8(image.copy(), (0, 23)))


def test_floats_are_mapped_to_the_stated_range():
    np.testing.assert_array_equal(to_uint8(np.array([-2, -1, 0, 1, 2], np.float32), (-1, 1)), [0, 0, 128, 255, 255])


def test_nan_is_black_and_counts_in_no_percentile():
    image = np.array([np.nan, 0, 5, 10, np.nan, np.inf, -np.inf], np.float32)
    np.testing.assert_array_equal(to_uint8(image, (0, 10)), [0, 0, 128, 255, 0, 255, 0])
    np.testing.assert_array_equal(find_not_imaged(image), [True, False, False, False, True, False, False])
    assert find_not_imaged(image[1:4]) is None
    assert find_not_imaged(np.array([1, 2], np.uint16)) is None


ILASTIK = {"Unlabelled": 0, "background": 1, "membrane": 7, "synapse": 3}


def test_labels_are_read_by_their_names():
    rule = LabelRule.from_task({"labels": ILASTIK}, 3)
    labels = np.array([0, 1, 3, 7, 1], np.uint16)
    np.testing.assert_array_equal(to_classes(labels, rule, "here"), [IGNORE_LABEL, 0, 1, 2, 0])
    with pytest.raises(
        InputError, match=r"^here: .* 2 \(.*%\), 9 \(.*%\) among .*, and task.labels lists 0, 1, 3, 7; a"
    ):
        to_classes(np.array([2, 3, 9]), rule, "here")


def test_several_labels_are_ignored():
    rule = LabelRule.from_task({"threshold": False, "threshold_value": 0.0, "ignore_label": [2, 255]}, 2)
    np.testing.assert_array_equal(to_classes(np.array([0, 1, 2, 255]), rule, ""), [0, 1, IGNORE_LABEL, IGNORE_LABEL])
    with pytest.raises(
        InputError, match=r"holds 3 \(50.00%\) among .*; allowed are 0 to 1 and 2, 255 \(ignore_label\)"
    ):
        to_classes(np.array([0, 3]), rule, "")


def test_where_0_is_ignored_no_remedy_takes_it_for_background():
    rule = LabelRule(ignored=(0,))
    with pytest.raises(InputError) as error:
        to_classes(np.repeat(np.array([0, 1, 2], np.uint8), [5, 2, 3]), rule, "labels.tif")
    message = str(error.value)
    assert "allowed are 0 to 1 without 0 (ignore_label)" in message
    assert "name all labels with task.labels in place of task.ignore_label." in message
    assert "--set task.ignore_label=[0,2]" in message
    assert "threshold" not in message
    assert "network.classes" not in message
