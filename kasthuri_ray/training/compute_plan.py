"""How a run computes: decided once, by rule, when it starts, and kept, so that it computes the same when it resumes."""

from __future__ import annotations

from dataclasses import dataclass

from kasthuri_ray.errors import InputError
from kasthuri_ray.hardware import Machine, choose_precision, should_compile_training


@dataclass(frozen=True)
class ComputePlan:
    """What a run decides once and saves.

    Parameters
    ----------
    precision : str
        A key of `kasthuri_ray.hardware.NUMBER_FORMATS`.
    compile : bool
        Whether torch.compile builds the training step.
    steps_per_epoch : int
        Number of batches in an epoch.
    channels_last : bool
        Whether the memory format in 2D is channels last.
    kind : str
        Kind of the processor that the run started on, a key of `kasthuri_ray.hardware.RULES`; "" if it is not known.
    by_labelled_voxels : bool
        Whether tiles, and so ranks, hold different numbers of labelled voxels, by which each rank then counts.
    """

    precision: str
    compile: bool
    steps_per_epoch: int
    channels_last: bool = True
    kind: str = ""
    by_labelled_voxels: bool = False

    def __str__(self) -> str:
        compiled = "compiled" if self.compile else "not compiled"
        return f"{self.precision}, {'channels last' if self.channels_last else 'contiguous'}, {compiled}"


def choose_compute_plan(
    machine: Machine, precision: str, compile: str, steps_per_epoch: int, num_voxels: int, num_parameters: int
) -> tuple[ComputePlan, str]:
    """Choose how a run computes.

    Parameters
    ----------
    machine : Machine
        Where it runs.
    precision, compile : str
        Settings; `auto` to choose.
    steps_per_epoch : int
        Number of batches in an epoch.
    num_voxels : int
        Voxels that the run puts through the network.
    num_parameters : int
        Size of the network.

    Returns
    -------
    plan : ComputePlan
        The same for the same arguments.
    message : str
        Why the network is not compiled although it should be; empty otherwise.

    Raises
    ------
    InputError
        If the machine cannot compute in the number format.
    """
    rule = machine.rule
    is_compiled, message = should_compile_training(compile, machine, num_voxels * num_parameters)
    number_format = choose_precision(precision, machine)
    return ComputePlan(number_format, is_compiled, steps_per_epoch, rule.trains_channels_last, machine.kind), message


def check_resumed_plan(plan: ComputePlan, machine: Machine, precision: str) -> str:
    """Check that a run can resume on a machine as it was begun.

    Parameters
    ----------
    plan : ComputePlan
        How the run computes.
    machine : Machine
        Where it resumes.
    precision : str
        The setting; a number format that was requested by name is emulated.

    Returns
    -------
    str
        A line for people if the run was begun on another kind of processor; empty otherwise.

    Raises
    ------
    InputError
        If the processor does not have the number format of the run.
    """
    begun = f"the run was begun on a processor of kind {plan.kind or 'unknown'}, in {plan.precision}"
    if not machine.multiplies(plan.precision) and precision != plan.precision:
        raise InputError(
            f"{begun}, which this one, of kind {machine.kind}, does not have; resume it on a processor of "
            "that kind, or start another run under another --name"
        )
    if plan.kind in ("", machine.kind):
        return ""
    return f"{begun}; this one is of kind {machine.kind}, and the run continues as it was begun: {plan}"
