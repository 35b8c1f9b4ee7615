"""The structure of the package: unique names, short files, documented rooms, and few dependencies."""

import ast
import collections
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "kasthuri_ray"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
ROOMS = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))
PURE = [
    "models.unet", "models.losses", "models.receptive_field", "models.checkpoints", "models.user_network",
    "metrics.voxel_counts", "metrics.thresholds", "metrics.voxel_scores", "metrics.components", "metrics.objects",
    "metrics.matching", "metrics.one_to_one", "metrics.instances", "inference.predictor", "inference.tiling",
    "inference.tile_memory", "inference.inference_settings",
    "phantom.section", "labels", "geometry", "hardware", "tiles.augmentation", "tiles.transforms",
    "training.learner", "training.optimizer",
]  # fmt: skip

BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"ray", "pydantic"}:
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Blocked())
"""


def definitions(path: Path) -> list[str]:
    """Return the public functions and classes that a module defines."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    return [node.name for node in ast.parse(path.read_text()).body if isinstance(node, kinds) and node.name[0] != "_"]


def test_no_two_modules_share_a_name():
    counts = collections.Counter(path.stem for path in MODULES)
    assert [name for name, count in counts.items() if count > 1] == []


def test_no_two_public_functions_or_classes_share_a_name():
    places = collections.defaultdict(list)
    for path in MODULES:
        for name in definitions(path) if path.name != "api.py" else ():  # its functions are called as what they call
            places[name].append(str(path.relative_to(PACKAGE)))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_no_file_is_longer_than_400_lines():
    files = [*MODULES, *(ROOT / "jobs").glob("*.py"), *(ROOT / "tests").rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


@pytest.mark.parametrize("room", [room.name for room in ROOMS])
def test_the_init_module_of_a_room_is_a_docstring_only(room):
    (docstring,) = ast.parse((PACKAGE / room / "__init__.py").read_text()).body
    assert len(ast.literal_eval(docstring.value).split()) > 10


def run_without_ray_and_pydantic(code: str) -> str:
    process = subprocess.run(
        [sys.executable, "-c", BLOCKED + code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_numerical_modules_import_neither_ray_nor_pydantic():
    imports = "\n".join(f"import kasthuri_ray.{module}" for module in PURE)
    assert (
        run_without_ray_and_pydantic(f"{imports}\nprint('ray' in sys.modules, 'pydantic' in sys.modules)")
        == "False False\n"
    )


def test_a_network_trains_and_predicts_without_ray_and_pydantic():
    code = """
import numpy as np, torch
from types import SimpleNamespace
from kasthuri_ray.geometry import Box
from kasthuri_ray.hardware import Machine
from kasthuri_ray.inference.inference_settings import InferenceWork, RequestedInference, choose_inference_settings
from kasthuri_ray.inference.predictor import Predictor
from kasthuri_ray.inference.tiling import VolumePart
from kasthuri_ray.models.receptive_field import find_receptive_field
from kasthuri_ray.models.unet import UNet
from kasthuri_ray.training.compute_plan import ComputePlan
from kasthuri_ray.training.learner import Learner, LearnerSettings

network = UNet(start_filters=2, n_blocks=2)
settings = LearnerSettings(
    optimizer="AdamW", learning_rate=0.01, weight_decay=0.0, momentum=0.9, beta1=0.9, beta2=0.999, scheduler="constant",
    warmup=0.0, plateau_factor=0.1, plateau_patience=3, gradient_clip=1.0, ema=0.0, task_type="synapse", dim=2,
    classes=2, loss="dice_ce", class_weights=None, augmentations="em", seed=0, epochs=1, batch=2,
)
tiles = np.random.default_rng(0).integers(0, 256, (2, 1, 16, 16), dtype=np.uint8)
batch = SimpleNamespace(image=tiles, label=(tiles > 128).astype(np.uint8), number=np.arange(2))
loss = Learner(network, settings, torch.device("cpu"), ComputePlan("float32", False, 1)).train_epoch(0, [batch], [])
receptive_field = find_receptive_field(network, 2)
box = Box((0, 0, 0), (1, 32, 32))
machine = Machine.detect("cpu")
work, requested = InferenceWork(box.shape, box.num_voxels), RequestedInference(precision="float32", compile="off")
chosen = choose_inference_settings(network, 2, receptive_field, machine, work, requested)
image = np.zeros(box.shape, np.uint8)
probability = Predictor(network.eval(), 2, 2, receptive_field, chosen).predict(VolumePart(image, box, box), box)
print(np.isfinite(loss), probability.shape, probability.dtype)
"""
    assert run_without_ray_and_pydantic(code) == "True (1, 1, 32, 32) uint8\n"
