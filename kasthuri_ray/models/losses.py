"""Losses over voxels: `make_loss` returns a function of logits and labels that leaves ignored voxels out.

Losses are computed in float32, also for logits in bf16; float64 logits stay float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, nll_loss

from kasthuri_ray.errors import InputError

Loss = Callable[[Tensor, Tensor], Tensor]

WEIGHTED = "weighted_cross_entropy"  # the loss that takes class weights
SMOOTH = 1e-5  # keeps a ratio of sums finite where a batch holds no foreground, as in nnU-Net and MONAI
FOCAL_GAMMA = 2.0  # best in the paper
TVERSKY_FALSE_POSITIVES = 0.3  # best in the paper, for lesions: a missed voxel costs more than a false one
TVERSKY_FALSE_NEGATIVES = 0.7
MIN_CLASS_FRACTION = 1e-3  # a class that is rarer in a batch weighs no more than at this fraction


def make_loss(
    name: str, *, classes: int, class_weights: Sequence[float] | None = None, ignore_index: int = 255
) -> Loss:
    """Return a loss by its name.

    Parameters
    ----------
    name : str
        One of `LOSSES`.
    classes : int
        Number of classes, background included.
    class_weights : sequence of float, optional
        One weight for each class, for `weighted_cross_entropy` alone. By default its weights follow from the class
        fractions of each batch.
    ignore_index : int
        Voxels with this label are left out.

    Returns
    -------
    callable
        Function of logits (N, classes, [z], y, x) and labels (N, [z], y, x) that returns a scalar: the mean over the
        voxels of the batch that are not ignored (for Dice and Tversky a ratio of sums over them). If all voxels are
        ignored it is 0 and its gradients are 0. It raises InputError for shapes that do not match.

    Raises
    ------
    InputError
        If there is no such loss, or the class weights do not fit the loss or the number of classes.
    """
    if name not in LOSSES:
        raise InputError(f"network.loss is {name!r}; it can be {', '.join(LOSSES)}")
    if class_weights is not None:
        _check_class_weights(name, classes, class_weights)
    loss = LOSSES[name]
    if name == WEIGHTED:
        loss = partial(loss, class_weights=class_weights)
    return partial(_masked_loss, loss, classes, ignore_index)


def _masked_loss(
    loss: Callable[..., Tensor], classes: int, ignore_index: int, logits: Tensor, target: Tensor
) -> Tensor:
    expected = (logits.shape[0], classes, *target.shape[1:])
    if logits.ndim != target.ndim + 1 or tuple(logits.shape) != expected:
        raise ValueError(
            f"a loss of {classes} classes takes logits N, {classes}, [z], y, x and labels N, [z], y, x; "
            f"got {tuple(logits.shape)} and {tuple(target.shape)}"
        )
    log_p = log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=1)
    valid = target != ignore_index
    return loss(log_p, torch.where(valid, target, 0).long(), valid)


def _cross_entropy(log_p: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of -log p of the true class."""
    return _weighted_mean(nll_loss(log_p, target, reduction="none"), valid)


def _weighted_cross_entropy(
    log_p: Tensor, target: Tensor, valid: Tensor, class_weights: Sequence[float] | None
) -> Tensor:
    """Return the mean of -log p of the true class, weighted by class and divided by the sum of weights, as in torch.

    By default a class weighs 1 / sqrt(its fraction of the batch). It is between 1, which neglects rare classes, and
    1 / fraction, which makes an error on a rare class cost as much as a hundred others, so that the network predicts
    too much foreground.
    """
    if class_weights is None:
        counts = torch.stack([((target == c) & valid).sum() for c in range(log_p.shape[1])])
        weights = (counts / valid.sum().clamp(min=1)).clamp(min=MIN_CLASS_FRACTION).rsqrt().to(log_p.dtype)
    else:
        weights = torch.tensor(list(class_weights), dtype=log_p.dtype, device=log_p.device)
    return _weighted_mean(nll_loss(log_p, target, reduction="none"), weights[target] * valid)


def _focal(log_p: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of -(1 - p)^gamma log p of the true class: Lin et al. 2017, arXiv:1708.02002, eq. 4."""
    cross_entropy = nll_loss(log_p, target, reduction="none")
    return _weighted_mean((-torch.expm1(-cross_entropy)) ** FOCAL_GAMMA * cross_entropy, valid)


def _dice_cross_entropy(log_p: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return cross-entropy plus soft Dice, equally weighted, as in nnU-Net: Isensee et al. 2021, Nature Methods 18.

    Dice is 1 - 2 |PG| / (|P| + |G|), Milletari et al. 2016, arXiv:1606.04797 (sums without squares). It is the Tversky
    loss with both weights 1/2.
    """
    return _cross_entropy(log_p, target, valid) + _tversky_index_loss(log_p, target, valid, 0.5, 0.5)


def _tversky(log_p: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return 1 - TP / (TP + 0.3 FP + 0.7 FN): Salehi et al. 2017, arXiv:1706.05721, eq. 4."""
    return _tversky_index_loss(log_p, target, valid, TVERSKY_FALSE_POSITIVES, TVERSKY_FALSE_NEGATIVES)


def _tversky_index_loss(
    log_p: Tensor, target: Tensor, valid: Tensor, false_positives: float, false_negatives: float
) -> Tensor:
    """Return one minus the Tversky index, averaged over the foreground classes.

    Its sums run over the whole batch, not over each tile: a tile without a synapse has no overlap to measure. If the
    whole batch lacks a class, every voxel predicted as that class is false, and the loss is near 1.
    """
    losses = []
    for c in range(1, log_p.shape[1]):
        p = log_p[:, c].exp() * valid
        truth = (target == c) & valid
        tp = (p * truth).sum()
        wrong = false_positives * (p.sum() - tp) + false_negatives * (truth.sum() - tp)
        losses.append(1 - (tp + SMOOTH) / (tp + wrong + SMOOTH))
    return torch.stack(losses).mean()


def _weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted mean; 0 if all weights are 0."""
    total = weights.sum()
    return (values * weights).sum() / torch.where(total > 0, total, 1)


def _check_class_weights(name: str, classes: int, class_weights: Sequence[float]) -> None:
    if name != WEIGHTED:
        raise InputError(f"class weights are for the loss {WEIGHTED}, and network.loss is {name!r}")
    if len(class_weights) != classes:
        raise InputError(f"{len(class_weights)} class weights for {classes} classes: {list(class_weights)}")
    if not all(math.isfinite(weight) and weight >= 0 for weight in class_weights) or not any(class_weights):
        raise InputError(f"class weights must be 0 or more, and at least one more than 0; got {list(class_weights)}")


LOSSES: dict[str, Callable[..., Tensor]] = {
    "cross_entropy": _cross_entropy,
    "dice_ce": _dice_cross_entropy,
    "focal": _focal,
    "tversky": _tversky,
    WEIGHTED: _weighted_cross_entropy,
}
"""Each is a function of log p (N, classes, [z], y, x), labels and which voxels count, both N, [z], y, x."""
