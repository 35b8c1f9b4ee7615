"""Number format, compilation and memory format follow by rule from the kind of processor and the settings."""

import subprocess
import sys

import pytest
import torch

from kasthuri_ray import hardware

CPU = torch.device("cpu")
LARGE, SMALL = 8 * 256 * 256 * 1000, 8 * 256 * 256 * 10
UNET_2D = 1_971_554


def machine_of(kind, compiler=True):
    return hardware.Machine("cuda" if kind.startswith("cuda") else "cpu", "name", 16 << 30, 8, kind, compiler)


@pytest.mark.parametrize(
    ("architecture", "words", "kind"),
    [
        ("x86_64", "fpu avx512_bf16 avx512f avx2", "bf16"),
        ("x86_64", "amx_bf16 amx_tile avx512_bf16 avx512f", "amx"),
        ("AMD64", "avx512f avx2", "avx512"),
        ("x86_64", "AuthenticAMD avx512_bf16 avx512f avx2", "bf16"),
        ("x86_64", "GenuineIntel avx512_bf16 avx512f avx2", "avx512"),
        ("x86_64", "GenuineIntel amx_bf16 avx512_bf16 avx512f", "amx"),
        ("x86_64", "avx2 sse", "avx2"),
        ("x86_64", "", "avx2"),
        ("aarch64", "asimd bf16", "arm"),
        ("arm64", "", "arm"),
    ],
)
def test_a_cpu_is_classified_by_its_vendor_and_instructions(architecture, words, kind):
    assert hardware.classify_cpu(architecture, words.split()) == kind


def test_the_kind_of_this_cpu_is_read_from_the_system(monkeypatch):
    monkeypatch.delenv("KASTHURI_CPU", raising=False)
    monkeypatch.setattr(hardware.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(hardware.Path, "read_text", lambda path: "flags\t\t: fpu avx512_bf16 sse\n")
    assert hardware.processor_kind(CPU) == "bf16"

    def missing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(hardware.Path, "read_text", missing)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert hardware.processor_kind(CPU) == "avx512"


def test_bf16_that_is_slower_than_float32_is_there_but_not_chosen(monkeypatch):
    monkeypatch.delenv("KASTHURI_CPU", raising=False)
    monkeypatch.setattr(hardware.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(hardware, "_cpu_words", lambda: {"GenuineIntel", "avx512f", "avx512_bf16"})
    intel = hardware.Machine.detect("cpu")
    assert (intel.kind, hardware.choose_precision("auto", intel)) == ("avx512", "float32")
    assert intel.multiplies("bf16")
    monkeypatch.setattr(hardware, "_cpu_words", lambda: {"AuthenticAMD", "avx512f"})
    assert not hardware.Machine.detect("cpu").multiplies("bf16")


def test_the_kind_of_a_gpu_follows_its_compute_capability(monkeypatch):
    for capability, kind in {(6, 1): "cuda6", (7, 5): "cuda7", (8, 6): "cuda8", (9, 0): "cuda8"}.items():
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        assert hardware.processor_kind(torch.device("cuda", 0)) == kind


@pytest.mark.parametrize("kind", hardware.CPU_KINDS)
def test_kasthuri_cpu_is_reported_instead_of_what_is_found(monkeypatch, kind):
    monkeypatch.setenv("KASTHURI_CPU", kind)
    machine = hardware.Machine.detect("cpu")
    assert (machine.kind, machine.rule) == (kind, hardware.RULES[kind])
    monkeypatch.setenv("KASTHURI_CPU", "z80")
    with pytest.raises(ValueError, match="KASTHURI_CPU is 'z80'; it can be avx2, avx512, bf16, amx, arm"):
        hardware.Machine.detect("cpu")


# precision, channels last in training, compiled training, of a long run
DECISIONS = {
    "avx2": ("float32", False, False),
    "avx512": ("float32", True, True),
    "bf16": ("bf16", True, False),
    "amx": ("bf16", True, True),
    "arm": ("float32", True, False),
    "cuda6": ("float32", True, True),
    "cuda7": ("float16", True, True),
    "cuda8": ("bf16", True, True),
}


@pytest.mark.parametrize("kind", hardware.RULES)
def test_every_kind_of_processor_has_a_rule(kind):
    rule = hardware.RULES[kind]
    compiles, _ = hardware.should_compile_training("auto", machine_of(kind), LARGE * UNET_2D)
    assert (hardware.choose_precision("auto", machine_of(kind)), rule.trains_channels_last, compiles) == DECISIONS[kind]
    assert hardware.choose_precision("float32", machine_of(kind)) == "float32"
    assert rule.evidence == "not measured" or any(character.isdigit() for character in rule.evidence)
    native = {name for name in hardware.NUMBER_FORMATS if machine_of(kind).multiplies(name)}
    assert native == {"float32", rule.precision} | ({"float16"} if kind.startswith("cuda") else set())


def test_float16_is_refused_on_a_cpu():
    assert hardware.choose_precision("float16", machine_of("cuda8")) == "float16"
    with pytest.raises(ValueError, match="float16 is for GPUs alone; on a CPU use auto, float32 or bf16"):
        hardware.choose_precision("float16", machine_of("amx"))


def test_autocast_computes_in_the_chosen_precision():
    layer, x = torch.nn.Linear(4, 4), torch.ones(1, 4)
    for precision, dtype in hardware.NUMBER_FORMATS.items():
        with hardware.autocast(precision, CPU):
            assert layer(x).dtype == dtype


def test_long_trainings_are_compiled_if_there_is_a_compiler():
    amx, without = machine_of("amx"), machine_of("amx", compiler=False)
    assert hardware.should_compile_training("auto", amx, LARGE * UNET_2D) == (True, "")
    assert hardware.should_compile_training("auto", amx, SMALL * UNET_2D) == (False, "")
    assert hardware.should_compile_training("on", machine_of("avx2"), SMALL * UNET_2D) == (True, "")
    assert hardware.should_compile_training("off", amx, LARGE * UNET_2D) == (False, "")
    for setting in ("auto", "on"):
        compiled, message = hardware.should_compile_training(setting, without, LARGE * UNET_2D)
        assert not compiled
        assert message.startswith("this machine has no C++ compiler with Python's headers: the network runs uncompiled")
    assert hardware.should_compile_training("auto", without, SMALL * UNET_2D) == (False, "")


def test_convolutions_are_channels_last_except_in_3d_on_a_cpu():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert torch.empty(2, 3, 4, 4).to(memory_format=hardware.memory_format(2, cpu)).stride() == (48, 1, 12, 3)
    assert torch.empty(2, 3, 4, 4, 4).to(memory_format=hardware.memory_format(3, gpu)).stride()[1] == 1
    assert torch.empty(2, 3, 4, 4, 4).to(memory_format=hardware.memory_format(3, cpu)).is_contiguous()


NAN_IN_FREED_MEMORY = """
import torch
from kasthuri_ray import hardware
from kasthuri_ray.models.unet import UNet
from kasthuri_ray.process_resources import configure_allocator

def leave_nan():  # in memory that is freed, and allocated again as it is
    [torch.full((size,), float("nan")) for size in (10_000, 100_000, 1_000_000, 3_000_000) for _ in range(6)]

configure_allocator()
cpu = torch.device("cpu")
for dim, size in ((2, (64, 64)), (3, (4, 32, 32))):
    for seed in range(5):
        torch.manual_seed(seed)
        layout = hardware.memory_format(dim, cpu)
        network = UNet(n_blocks=2, start_filters=4, dim=dim).to(memory_format=layout)
        image = torch.rand(4, 1, *size).to(memory_format=layout)
        leave_nan()
        with hardware.autocast("bf16", cpu):
            output = network(image)
        leave_nan()
        output.float().square().mean().backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters()), (dim, seed)
"""


def test_a_network_does_not_read_uninitialized_memory():
    subprocess.run([sys.executable, "-c", NAN_IN_FREED_MEMORY], check=True, timeout=120)


def test_the_machine_is_detected_and_a_missing_gpu_is_an_error(monkeypatch):
    machine = hardware.Machine.detect("cpu")
    assert machine.device == "cpu"
    assert machine.cpus >= 1
    assert machine.memory_bytes >= 1 << 30
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hardware.Machine.detect().device == "cpu"
    with pytest.raises(ValueError, match="torch finds no CUDA GPU on this machine; use cpu"):
        hardware.Machine.detect("cuda")
