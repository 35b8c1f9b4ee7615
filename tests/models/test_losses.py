from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from kasthuri_ray.models.losses import LOSSES, make_loss

SIZES = {2: (4, 4), 3: (2, 4, 4)}

# MONAI 1.6.1 on `logits_and_labels(dim, classes)`: DiceCELoss and TverskyLoss(alpha=0.3, beta=0.7) with softmax=True,
# batch=True, include_background=False, to_onehot_y=True; FocalLoss(gamma=2, use_softmax=True), times the number of
# classes that it averages over.
MONAI = {
    (2, 2): {"dice_ce": 2.766432437593732, "tversky": 0.6433350123067383, "focal": 1.8763638734817505},
    (2, 3): {"dice_ce": 3.2619123046959824, "tversky": 0.6691508107000202, "focal": 2.3915348052978516},
    (3, 2): {"dice_ce": 2.3017990531784593, "tversky": 0.46308919589536035, "focal": 1.7027831077575684},
    (3, 3): {"dice_ce": 3.76456604903052, "tversky": 0.7495918371369467, "focal": 2.8268799781799316},
}


def logits_and_labels(dim: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    size, num = SIZES[dim], 2 * math.prod(SIZES[dim])
    logits = 3 * torch.sin(torch.arange(num * classes, dtype=torch.float64) * 1.7)
    return logits.reshape(2, classes, *size), (torch.arange(num) * 7 % 11 % classes).reshape(2, *size)


def two_voxels(p_first: float, p_second: float) -> torch.Tensor:
    """Return logits (1, 2, 1, 2) with these foreground probabilities."""
    p = torch.tensor([p_first, p_second], dtype=torch.float64)
    return torch.stack([(1 - p).log(), p.log()])[None, :, None, :]


@pytest.mark.parametrize(("dim", "classes"), MONAI)
@pytest.mark.parametrize("name", ["dice_ce", "tversky", "focal"])
def test_losses_equal_those_of_monai(name, dim, classes):
    loss = make_loss(name, classes=classes)(*logits_and_labels(dim, classes))
    assert float(loss) == pytest.approx(MONAI[dim, classes][name], abs=1e-6)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("weights", [None, [0.2, 1.7, 3.0]])
def test_cross_entropy_equals_that_of_torch_with_class_weights_and_ignored_voxels(dim, weights):
    logits, target = logits_and_labels(dim, 3)
    target[0, 0] = 255
    name = "weighted_cross_entropy" if weights else "cross_entropy"
    loss = make_loss(name, classes=3, class_weights=weights)(logits, target.to(torch.uint8))
    weight = torch.tensor(weights, dtype=torch.float64) if weights else None
    torch.testing.assert_close(loss, cross_entropy(logits, target, weight=weight, ignore_index=255))


def test_losses_of_two_voxels_equal_their_formulas():
    logits, target = two_voxels(0.9, 0.2), torch.tensor([[[1, 0]]])
    log_losses = -math.log(0.9), -math.log(0.8)
    expected = {
        "cross_entropy": sum(log_losses) / 2,
        "focal": (0.1**2 * log_losses[0] + 0.2**2 * log_losses[1]) / 2,
        "tversky": 1 - 0.9 / (0.9 + 0.3 * 0.2 + 0.7 * 0.1),
        "dice_ce": sum(log_losses) / 2 + 1 - 2 * 0.9 / (1.1 + 1),
        "weighted_cross_entropy": sum(log_losses) / 2,  # each class is half of the batch
    }
    assert set(expected) == set(LOSSES)
    for name, value in expected.items():
        assert float(make_loss(name, classes=2)(logits, target)) == pytest.approx(value, abs=1e-4), name


def test_by_default_a_class_weighs_the_inverse_root_of_its_fraction_of_the_batch():
    logits = torch.zeros(1, 2, 1, 100, dtype=torch.float64)
    logits[:, 1] = 1.0
    target = torch.zeros(1, 1, 100, dtype=torch.long)
    target[..., :4] = 1
    background, foreground = math.log1p(math.e), math.log1p(math.exp(-1))
    weights = 1 / math.sqrt(0.96), 1 / math.sqrt(0.04)
    expected = (96 * weights[0] * background + 4 * weights[1] * foreground) / (96 * weights[0] + 4 * weights[1])
    assert float(make_loss("weighted_cross_entropy", classes=2)(logits, target)) == pytest.approx(expected)


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("name", LOSSES)
def test_ignored_voxels_change_neither_loss_nor_gradients(name, dim):
    logits, target = logits_and_labels(dim, 2)
    loss = make_loss(name, classes=2)
    target[..., -1] = 255
    whole = loss(logits.requires_grad_(), target)
    whole.backward()
    torch.testing.assert_close(whole, loss(logits[..., :-1], target[..., :-1]))
    assert logits.grad[..., -1].abs().max() == 0
    assert logits.grad[..., :-1].abs().min() > 0


@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_of_ignored_voxels_has_zero_loss_and_zero_gradients(name):
    logits = torch.randn(2, 2, 4, 4, requires_grad=True)
    loss = make_loss(name, classes=2)(logits, torch.full((2, 4, 4), 255, dtype=torch.uint8))
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_finite_differences_of_the_loss(name):
    logits, target = (value[..., :2] for value in logits_and_labels(2, 3))
    target[0, 0, 0] = 255
    assert torch.autograd.gradcheck(lambda x: make_loss(name, classes=3)(x, target), logits.requires_grad_())


@pytest.mark.parametrize("foreground", [0, 1])
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", LOSSES)
def test_extreme_logits_and_absent_classes_have_finite_losses(name, sign, foreground):
    logits = torch.full((1, 2, 4, 4), 200.0)
    logits[:, 0] *= -sign
    logits.requires_grad_()
    loss = make_loss(name, classes=2)(logits, torch.full((1, 4, 4), foreground))
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_bf16_logits_are_computed_in_float32(name):
    logits, target = logits_and_labels(2, 2)
    logits = logits.to(torch.bfloat16)
    loss = make_loss(name, classes=2)
    assert loss(logits, target).dtype == torch.float32
    torch.testing.assert_close(loss(logits, target), loss(logits.float(), target))


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_descent_recovers_the_labels(name):
    _, target = logits_and_labels(2, 2)
    logits = torch.zeros(2, 2, 4, 4, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(60):
        optimizer.zero_grad()
        make_loss(name, classes=2)(logits, target).backward()
        optimizer.step()
    assert torch.equal(logits.argmax(1), target)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_loss("dice", classes=2), "network.loss is 'dice'; it can be cross_entropy, dice_ce, focal"),
        (lambda: make_loss("focal", classes=2, class_weights=[1, 2]), "for the loss weighted_cross_entropy.*'focal'"),
        (lambda: make_loss("weighted_cross_entropy", classes=2, class_weights=[1]), "1 class weights for 2 classes"),
        (lambda: make_loss("weighted_cross_entropy", classes=2, class_weights=[0, 0]), "at least one more than 0"),
        (
            lambda: make_loss("focal", classes=3)(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4)),
            r"loss of 3 classes takes logits N, 3, .*got \(1, 2, 4, 4\) and \(1, 4, 4\)",
        ),
        (lambda: make_loss("focal", classes=2)(torch.zeros(1, 2, 4, 4), torch.zeros(1, 1, 4, 4)), r"\(1, 1, 4, 4\)"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
