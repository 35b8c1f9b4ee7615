"""The optimizer Muon is that of torch for matrices, and AdamW for all other weights."""

import pytest
import torch
from torch import Tensor, nn

from kasthuri_ray.training.muon import STEP_SCALE, Muon, is_large_matrix, orthogonalize

RATE, DECAY, MOMENTUM, BETAS = 0.01, 0.1, 0.95, (0.9, 0.99)


def train(optimizer: torch.optim.Optimizer, weights: list[nn.Parameter], num_steps: int, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_steps):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()


def make_weights(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def muon(weights: list[nn.Parameter]) -> Muon:
    return Muon(weights, RATE, DECAY, MOMENTUM, BETAS)


@pytest.mark.parametrize("shape", [(24, 60), (60, 24), (32, 32)])
def test_matrices_become_nearly_orthogonal_with_the_same_singular_vectors(shape):
    matrix = make_weights(shape)[0].detach()
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    rotated = left.mT @ orthogonalize(matrix) @ right.mT
    values = rotated.diagonal()
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert (rotated - values.diag()).abs().max() < 1e-4


@pytest.mark.parametrize("shape", [(48, 200), (200, 48), (32, 32)])
def test_all_singular_values_are_those_of_the_iteration_of_newton_and_schulz(shape):
    left, _, right = torch.linalg.svd(make_weights(shape)[0].detach().double(), full_matrices=False)
    values = torch.logspace(0, -5, min(shape), dtype=torch.float64)
    expected = values / values.norm()
    for _ in range(5):
        expected = 3.4445 * expected - 4.7750 * expected**3 + 2.0315 * expected**5
    got = orthogonalize((left * values @ right).float()).double()
    torch.testing.assert_close(got, left * expected @ right, rtol=0, atol=1e-3)


def test_matrices_take_the_steps_of_torch():
    (ours,), (theirs,) = make_weights((24, 60)), make_weights((24, 60))
    published = torch.optim.Muon(
        [theirs], lr=RATE, weight_decay=DECAY, momentum=MOMENTUM, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    train(muon([ours]), [ours], 5)
    train(published, [theirs], 5)
    before = make_weights((24, 60))[0].detach()
    assert (ours - theirs).norm() < 0.02 * (theirs - before).norm()  # theirs in bf16


def test_a_convolution_takes_the_step_of_its_matrix():
    (conv,), (matrix,) = make_weights((32, 16, 3, 3)), make_weights((32, 144))
    for weights in ([conv], [matrix]):
        train(muon(weights), weights, 3)
    assert torch.equal(conv.detach().reshape(32, 144), matrix.detach())


def test_small_weights_take_the_steps_of_adamw():
    shapes = [(32,), (2, 32, 1, 1), (32, 1, 3, 3)]
    ours, theirs = make_weights(*shapes), make_weights(*shapes)
    assert not any(map(is_large_matrix, ours))
    train(muon(ours), ours, 4)
    train(torch.optim.AdamW(theirs, lr=RATE, betas=BETAS, weight_decay=DECAY), theirs, 4)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def test_a_step_is_as_large_as_one_of_adamw_is_on_average():
    (weight,) = make_weights((64, 32, 3, 3))
    before = weight.detach().clone()
    train(Muon([weight], RATE, 0.0, MOMENTUM, BETAS), [weight], 1)
    size = (weight.detach() - before).square().mean().sqrt()
    assert size == pytest.approx(STEP_SCALE * RATE, rel=0.25)


def test_it_resumes_bit_for_bit():
    def both() -> list[nn.Parameter]:
        return make_weights((24, 60), (24,))

    def values(weights: list[nn.Parameter]) -> Tensor:
        return torch.cat([weight.detach().ravel() for weight in weights])

    whole, first = both(), both()
    of_whole, of_first = muon(whole), muon(first)
    for seed in (1, 2):
        train(of_whole, whole, 2, seed)
    train(of_first, first, 2, 1)
    second = [nn.Parameter(weight.detach().clone()) for weight in first]
    of_second = muon(second)
    of_second.load_state_dict(of_first.state_dict())
    train(of_second, second, 2, 2)
    assert torch.equal(values(whole), values(second))


def test_frozen_and_unused_weights_stay():
    used, unused = make_weights((24, 60), (30, 30))
    before = unused.detach().clone()
    train(muon([used, unused]), [used], 1)
    assert torch.equal(unused, before)


def test_gradients_of_a_closure_are_those_of_its_step():
    stepped, closed = make_weights((24, 60), (5,)), make_weights((24, 60), (5,))
    sum((weight**3).sum() for weight in stepped).backward()
    muon(stepped).step()

    def compute_loss() -> Tensor:
        loss = sum((weight**3).sum() for weight in closed)
        loss.backward()
        return loss

    assert muon(closed).step(compute_loss) is not None
    for one, other in zip(stepped, closed, strict=True):
        assert torch.equal(one, other)
