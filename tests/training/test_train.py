"""The commands that a run names."""

import pytest

from kasthuri_ray.api import SAME_CALL_WITH_NAME
from kasthuri_ray.training.train import command_with_epochs


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("python jobs/train.py --task synapse --name a", "python jobs/train.py --task synapse --name a"),
        ("train --set network.epochs=4 --name a", "train --name a"),
        ("train --set=network.epochs=4 --name a", "train --name a"),
        (
            "train --set network.ema=0.9 network.epochs=4 task.name=b --name a",
            "train --set network.ema=0.9 task.name=b --name a",
        ),
        (
            "train --set network.epochs=4 --set 'task.labels={\"a b\": 1}' --name a",
            "train --set 'task.labels={\"a b\": 1}' --name a",
        ),
        ("train --name a --set network.epochs=4", "train --name a"),
    ],
)
def test_the_command_for_more_epochs_sets_them_once(command, expected):
    assert command_with_epochs(command, 8) == f"{expected} --set network.epochs=8"


def test_a_call_in_python_is_told_more_epochs_in_its_settings():
    expected = "the same call with name='a' and \"network.epochs\": 8 in its settings"
    assert command_with_epochs(SAME_CALL_WITH_NAME("a"), 8) == expected
