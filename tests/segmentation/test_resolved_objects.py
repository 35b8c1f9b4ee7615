"""How a segmentation finds objects: flags, then the run, then the threshold."""

import pytest

from kasthuri_ray.config.settings import SegmentSettings
from kasthuri_ray.errors import InputError
from kasthuri_ray.metrics.object_choice import ClassChoice, ObjectChoice
from kasthuri_ray.metrics.object_settings import ObjectSettings
from kasthuri_ray.segmentation.resolved_objects import FLAGS, objects_note, resolve_object_settings
from kasthuri_ray.segmentation.trained_network import TrainedNetwork

SIZE_NM = (10.0, 5.0, 4.0)
CHOSEN = ObjectSettings((0.8,), (0.3,), (1000.0,), is_nm3=True)
SURE = ClassChoice("val", 2, scores=(0.9, 0.6), verdicts=(True, False))
BARE = TrainedNetwork("w.pt", {})
TRAINED = TrainedNetwork("run", {}, objects=ObjectChoice(CHOSEN, {"synapse": SURE}, {"synapse": 1}, SIZE_NM))


def resolve(trained, size=SIZE_NM, threshold=0.4, names=("synapse",), **flags):
    return resolve_object_settings(SegmentSettings(**flags), trained, [threshold] * len(names), names, size)


def test_weights_without_object_settings_use_the_threshold_and_a_line_names_the_flags():
    assert resolve(BARE) == ObjectSettings((0.4,), (0.4,), (0.0,))
    assert FLAGS in objects_note(SegmentSettings(objects=True), BARE)
    for segment, trained in [
        (SegmentSettings(), BARE),
        (SegmentSettings(objects=True), TRAINED),
        (SegmentSettings(save_objects=True, min_sections=1), BARE),
    ]:
        assert objects_note(segment, trained) == ""


def test_the_settings_of_the_run_are_used_whatever_the_threshold_of_the_mask():
    assert resolve(TRAINED, threshold=0.9) == CHOSEN


def test_flags_win_one_by_one():
    flags = {"object_threshold": "0.9", "min_size_nm3": "400", "min_sections": 2, "bridge_sections": 3}
    settings = resolve(TRAINED, **flags)
    assert settings == ObjectSettings((0.9,), (0.3,), (400.0,), is_nm3=True, min_sections=2, bridge_sections=3)
    assert settings.min_voxels(SIZE_NM) == (2.0,)
    assert resolve(BARE, object_extent=0.2).extent == (0.2,)


def test_without_a_voxel_size_a_size_is_in_voxels_and_that_of_the_run_is_converted():
    assert resolve(BARE, size=None, min_size_nm3=30.0).min_voxels(None) == (30.0,)
    assert resolve(TRAINED, size=None).min_voxels(None) == (5.0,)


def test_a_precision_sets_the_lowest_score():
    assert resolve(TRAINED, object_precision=0.9).min_score == (0.9,)
    with pytest.raises(InputError, match=r"--object-precision needs the scores .* w.pt does not hold"):
        resolve(BARE, object_precision=0.9)
    wrong = ObjectChoice(CHOSEN, {"synapse": ClassChoice("val", 2, scores=(0.9,), verdicts=(False,))}, {"synapse": 1})
    with pytest.raises(InputError, match=r"--object-precision 0.9: the 1 objects .* at most a precision of 0; give a"):
        resolve(TrainedNetwork("run", {}, objects=wrong), object_precision=0.9)


def test_values_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"--object-threshold 0.2 is below the extent 0.3 of the class synapse"):
        resolve(TRAINED, object_threshold=0.2)
    with pytest.raises(InputError, match="2 values for 1 class: give --min-size-nm3 one number, or one for each of"):
        resolve(TRAINED, min_size_nm3="1,2")
    two = resolve(BARE, names=("synapse", "mitochondrion"), object_extent="0.2,0.3", min_size_nm3=7.0)
    assert (two.seed, two.extent, two.min_size) == ((0.4, 0.4), (0.2, 0.3), (7.0, 7.0))
