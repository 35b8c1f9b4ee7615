"""Settings of networks and jobs: what each allows, and the messages about what it does not."""

import json

import pytest

from kasthuri_ray.config.loading import GivenSettings, resolve_settings
from kasthuri_ray.config.network import NetworkSettings
from kasthuri_ray.config.settings import TrainSettings


def test_secrets_in_the_urls_of_weights_and_trackers_are_not_written():
    train = TrainSettings(weights="https://host/w.pt?X-Amz-Signature=abc", mlflow="https://me:secret@host/mlflow")
    assert train.weights.endswith("Signature=abc")
    written = train.model_dump(mode="json")
    assert (written["weights"], written["mlflow"]) == ("https://host/w.pt", "https://host/mlflow")
    assert TrainSettings(weights="runs/a@b/best.pt").model_dump(mode="json")["weights"] == "runs/a@b/best.pt"


@pytest.mark.parametrize(
    ("value", "limits"), [(None, None), (3, (3, 3)), ("4", (4, 4)), ("2-8", (2, 8)), ("2-2", (2, 2))]
)
def test_the_number_of_workers_is_a_number_or_a_range(value, limits):
    assert TrainSettings(num_workers=value).worker_range == limits


@pytest.mark.parametrize("value", ["0", 0, -1, "x", "4-2", "2-", "-2", "0-2", 1.5, True, "", "²", "2-³", "٣", "2-4-8"])
def test_any_other_number_of_workers_is_refused(value):
    with pytest.raises(ValueError, match="expected N or MIN-MAX, such as 4 or 2-8"):
        TrainSettings(num_workers=value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("learning_rate", "Infinity", "expected a finite number"),
        ("learning_rate", "1e999", "expected a finite number"),
        ("weight_decay", "NaN", "expected a finite number"),
        ("beta1", "1", "expected less than 1"),
        ("beta2", "1.0", "expected less than 1"),
        ("start_filters", "1000000000", "expected less than or equal to 65536"),
    ],
)
def test_numbers_that_no_run_can_use_are_refused_with_what_is_allowed(key, value, message):
    with pytest.raises(ValueError, match=r".") as caught:
        resolve_settings(GivenSettings("synapse", assignments=[f"network.{key}={value}"]))
    assert str(caught.value) == f"--set network.{key}={value}: {message}"


def test_augmentations_0_of_the_challenge_means_basic():
    assert NetworkSettings(augmentations=0).augmentations == "basic"
    assert NetworkSettings(augmentations="none").augmentations == "none"
    with pytest.raises(ValueError, match="'none', 'basic' or 'em'"):
        NetworkSettings(augmentations=False)


def test_there_must_be_one_class_weight_for_each_class():
    assert NetworkSettings(class_weights=[1, 2.5]).class_weights == [1, 2.5]
    with pytest.raises(ValueError, match="class_weights has 3 values for 2 classes"):
        NetworkSettings(class_weights=[1, 2, 3])


def test_secrets_in_the_urls_of_volumes_are_not_written():
    signed = "https://me:pw@lab.org/em.zarr?token=secret"
    boxes = {name: [{"image": signed, "box": f"{n}:{n + 2},:,:"}] for n, name in enumerate(("train", "val"))}
    for task in ({"image_chan": signed, "annotation_chan": signed}, {"boxes": boxes, "annotation_chan": signed}):
        settings = resolve_settings(
            GivenSettings("membrane", "UNet_2D", flags={"task": task, "train": {"weights": signed}})
        )
        assert settings.task.annotation_chan == signed
        written = json.dumps(settings.training_record())
        assert "secret" not in written
        assert "pw@" not in written
        assert "https://lab.org/em.zarr" in written
