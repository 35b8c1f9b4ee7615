"""Losses for voxels: `make_loss` gives a callable that takes logits and labels, and leaves ignored voxels out.

Needs torch alone. Everything is computed in float32 (float64 stays), whatever the precision of the logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, nll_loss

Loss = Callable[[Tensor, Tensor], Tensor]
LOSSES = ("cross_entropy", "dice_ce", "focal", "tversky", "weighted_cross_entropy")

SMOOTH = 1e-5  # keeps a ratio of sums finite where a batch holds no foreground, as nnU-Net and MONAI do
FOCAL_GAMMA = 2.0  # the paper's best
TVERSKY_FALSE_POSITIVES = 0.3  # the paper's best for lesions: what is missed counts more than what is too much
TVERSKY_FALSE_NEGATIVES = 0.7
SMALLEST_SHARE = 1e-3  # a class rarer than this in a batch weighs no more than at this share


def make_loss(
    name: str, *, classes: int, class_weights: Sequence[float] | None = None, ignore_index: int = 255
) -> Loss:
    """The loss `name`, one of `LOSSES`, as a function of logits N, classes, [z], y, x and labels N, [z], y, x.

    It gives a scalar: the mean over the batch's voxels that are not `ignore_index` (Dice and Tversky: a ratio of sums
    over them), and 0 with zero gradients where all are ignored. `class_weights`, one a class, are for
    weighted_cross_entropy; without them it weighs by the batch itself. Raises ValueError for another name or weights
    that do not fit; the loss itself for shapes that do not.
    """
    if name not in LOSSES:
        raise ValueError(f"network.loss is {name!r}; it can be {', '.join(LOSSES)}")
    if class_weights is not None:
        _check_weights(name, classes, class_weights)
    losses: dict[str, Callable[..., Tensor]] = {
        "cross_entropy": _cross_entropy,
        "dice_ce": _dice_cross_entropy,
        "focal": _focal,
        "tversky": _tversky,
        "weighted_cross_entropy": partial(_weighted_cross_entropy, class_weights=class_weights),
    }
    return partial(_loss, losses[name], classes, ignore_index)


def _loss(loss: Callable[..., Tensor], classes: int, ignore_index: int, logits: Tensor, target: Tensor) -> Tensor:
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
    """Mean of -log p of the true class."""
    return _mean(nll_loss(log_p, target, reduction="none"), valid)


def _weighted_cross_entropy(
    log_p: Tensor, target: Tensor, valid: Tensor, class_weights: Sequence[float] | None
) -> Tensor:
    """Mean of -log p of the true class, weighted by class; as torch's, divided by the sum of the voxels' weights.

    Without given weights a class weighs 1 / sqrt(its share of the batch). In between 1 (rare classes are forgotten) and
    1 / share (each error on a rare class costs a hundred of the others, and the network calls too much foreground).
    """
    if class_weights is None:
        counts = torch.stack([((target == c) & valid).sum() for c in range(log_p.shape[1])])
        weights = (counts / valid.sum().clamp(min=1)).clamp(min=SMALLEST_SHARE).rsqrt().to(log_p.dtype)
    else:
        weights = torch.tensor(list(class_weights), dtype=log_p.dtype, device=log_p.device)
    return _mean(nll_loss(log_p, target, reduction="none"), weights[target] * valid)


def _focal(log_p: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean of -(1 - p)^gamma log p of the true class: Lin et al. 2017, arXiv:1708.02002, eq. 4."""
    surprise = nll_loss(log_p, target, reduction="none")
    return _mean((-torch.expm1(-surprise)) ** FOCAL_GAMMA * surprise, valid)


def _dice_cross_entropy(log_p: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy plus soft Dice, equally weighted, as nnU-Net trains: Isensee et al. 2021, Nature Methods 18.

    Dice is 1 - 2 |PG| / (|P| + |G|), Milletari et al. 2016, arXiv:1606.04797 (sums without squares), that is a Tversky
    index with both weights 1/2.
    """
    return _cross_entropy(log_p, target, valid) + _overlap(log_p, target, valid, 0.5, 0.5)


def _tversky(log_p: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """1 - TP / (TP + 0.3 FP + 0.7 FN): Salehi et al. 2017, arXiv:1706.05721, eq. 4."""
    return _overlap(log_p, target, valid, TVERSKY_FALSE_POSITIVES, TVERSKY_FALSE_NEGATIVES)


def _overlap(log_p: Tensor, target: Tensor, valid: Tensor, false_positives: float, false_negatives: float) -> Tensor:
    """One minus the Tversky index of sums over the whole batch, averaged over the classes but the background.

    Over the batch and not per tile, since a tile without a synapse has no overlap to speak of. Where the batch holds
    none of a class either, what the network calls it is all wrong, and the loss is near 1.
    """
    losses = []
    for c in range(1, log_p.shape[1]):
        p = log_p[:, c].exp() * valid
        truth = (target == c) & valid
        tp = (p * truth).sum()
        wrong = false_positives * (p.sum() - tp) + false_negatives * (truth.sum() - tp)
        losses.append(1 - (tp + SMOOTH) / (tp + wrong + SMOOTH))
    return torch.stack(losses).mean()


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean; 0 where all weights are."""
    total = weights.sum()
    return (values * weights).sum() / torch.where(total > 0, total, 1)


def _check_weights(name: str, classes: int, class_weights: Sequence[float]) -> None:
    if name != "weighted_cross_entropy":
        raise ValueError(f"class weights are for the loss weighted_cross_entropy, and network.loss is {name!r}")
    if len(class_weights) != classes:
        raise ValueError(f"{len(class_weights)} class weights for {classes} classes: {list(class_weights)}")
    if not all(math.isfinite(weight) and weight >= 0 for weight in class_weights) or not any(class_weights):
        raise ValueError(f"class weights must be 0 or more, and one of them more than 0; got {list(class_weights)}")
