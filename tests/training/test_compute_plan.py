"""How a run computes: by rule when it starts, as recorded when it resumes."""

from dataclasses import asdict, replace

import pytest

from kasthuri_ray.hardware import CPU_KINDS, Machine
from kasthuri_ray.training.compute_plan import ComputePlan, check_resumed_plan, choose_compute_plan

LARGE_RUN = (100, 8 * 256 * 256 * 1000, 2_000_000)


def machine_of(kind):
    return Machine("cpu", "name", 16 << 30, 8, kind, True)


def begun_on(kind):
    return choose_compute_plan(machine_of(kind), "auto", "auto", *LARGE_RUN)[0]


def test_a_run_computes_by_the_rule_of_its_processor(machine):
    rule, (plan, _) = machine.rule, choose_compute_plan(machine, "auto", "auto", *LARGE_RUN)
    expected = (rule.precision, rule.compiles_training, 100, rule.trains_channels_last, machine.kind, False)
    assert tuple(asdict(plan).values()) == expected
    requested, _ = choose_compute_plan(machine, "float32", "off", *LARGE_RUN)
    assert (requested.precision, requested.compile) == ("float32", False)


@pytest.mark.parametrize("kind", CPU_KINDS)
@pytest.mark.parametrize("begun", CPU_KINDS)
def test_a_run_resumes_on_another_processor_as_it_was_begun_or_not_at_all(begun, kind):
    plan, machine = begun_on(begun), machine_of(kind)
    if plan.precision == "bf16" and kind not in ("bf16", "amx"):
        with pytest.raises(ValueError, match=rf"begun on a processor of kind {begun}, in bf16, which .* kind {kind}, "):
            check_resumed_plan(plan, machine, "auto")
        return
    line = check_resumed_plan(plan, machine, "auto")
    assert (
        line == ""
        if begun == kind
        else line.endswith(f"this one is of kind {kind}, and the run continues as it was begun: {plan}")
    )


def test_a_run_in_bf16_resumes_where_bf16_is_slow():
    slow = replace(machine_of("avx512"), has_slow_bf16=True)
    assert "the run continues as it was begun: bf16" in check_resumed_plan(begun_on("bf16"), slow, "auto")


def test_a_number_format_that_was_requested_by_name_is_emulated():
    plan, _ = choose_compute_plan(machine_of("avx2"), "bf16", "off", *LARGE_RUN)
    assert check_resumed_plan(plan, machine_of("avx2"), "bf16") == ""


def test_a_run_of_an_earlier_version_was_channels_last():
    plan = ComputePlan("float32", False, 4)
    assert plan.channels_last
    assert check_resumed_plan(plan, machine_of("avx2"), "auto") == ""
