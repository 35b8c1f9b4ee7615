"""An evaluation takes the place of one of the same volumes and settings alone."""

import json
import re
import shutil

import pytest

from kasthuri_ray.errors import InputError
from kasthuri_ray.evaluation.comparison_inputs import prepare_comparison
from kasthuri_ray.evaluation.evaluation_folder import check_evaluation_folder, evaluation_record
from kasthuri_ray.storage.folder import open_storage

OBJECTS = {"seed": [0.9], "extent": [0.3], "min_size": [0.0]}


def test_objects_that_are_found_by_other_settings_are_another_evaluation(synapses, write_prediction, tmp_path):
    folder, prediction = open_storage(str(tmp_path / "evaluation")), tmp_path / "out.zarr"
    settings = synapses.settings.model_copy(update={"prediction": str(prediction)})

    def record(**objects):
        shutil.rmtree(prediction, ignore_errors=True)
        write_prediction(prediction, synapses.probability, objects=OBJECTS | objects)
        return evaluation_record(prepare_comparison(settings), settings)

    before = record()
    folder.write_bytes("settings.json", json.dumps({"evaluate": before}).encode())
    check_evaluation_folder(folder, record(), overwrite=False)
    changed = record(seed=[0.95])
    with pytest.raises(InputError, match=re.escape("objects.seed: [0.9]")):
        check_evaluation_folder(folder, changed, overwrite=False)
    check_evaluation_folder(folder, changed, overwrite=True)
    del before["objects"], before["object_image"]  # of an earlier version
    folder.write_bytes("settings.json", json.dumps({"evaluate": before}).encode())
    check_evaluation_folder(folder, changed, overwrite=False)
