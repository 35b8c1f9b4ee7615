"""The optimizer Muon: steps of weight matrices whose singular values are all about 1, and AdamW for all other weights.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon. The scale of the steps is that of Liu et al.
2025, arXiv:2502.16982, eq. 4, so that learning rate and weight decay mean about what they mean for AdamW.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration: the steepest slope at 0
NUM_ITERATIONS = 5
STEP_SCALE = 0.2  # root mean square of a step of AdamW, as a share of the learning rate
MIN_SIDE = 16  # of a matrix; smaller ones, such as the first and the last convolution, have too few singular values
EPSILON = 1e-7


class Muon(torch.optim.AdamW):
    """Muon for the weights of convolutions and linear layers, AdamW for the rest.

    A convolution's weights are a matrix with a row for each first index: output channels, or input channels of a
    transposed convolution.

    Parameters
    ----------
    parameters : iterable of nn.Parameter
        The weights.
    learning_rate, weight_decay : float
        As of AdamW.
    momentum : float
        Decay of the average gradient of matrices, which Nesterov's rule looks ahead of.
    betas : tuple of float
        Of AdamW.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        learning_rate: float,
        weight_decay: float,
        momentum: float,
        betas: tuple[float, float],
    ) -> None:
        weights = list(parameters)
        matrices = [weight for weight in weights if is_large_matrix(weight)]
        others = [weight for weight in weights if not is_large_matrix(weight)]
        groups: list[dict[str, Any]] = [
            {"params": of_kind, "momentum": momentum if of_kind is matrices else None}
            for of_kind in (matrices, others)
            if of_kind
        ]
        super().__init__(groups, lr=learning_rate, betas=betas, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Change all weights; the gradients of matrices are gone afterwards."""
        loss = None
        if closure is not None:  # it computes the gradients, of matrices too
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if group["momentum"] is not None:
                self._step_matrices(group)
        super().step()  # it leaves out weights without a gradient
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        for weight in group["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if not state:
                state["step"] = torch.tensor(0.0)  # AdamW looks for it in a state that it loads
                state["momentum_buffer"] = torch.zeros_like(weight)
            state["step"] += 1
            average = state["momentum_buffer"].mul_(group["momentum"]).add_(weight.grad)
            ahead = weight.grad.add(average, alpha=group["momentum"])
            matrix = ahead.reshape(len(ahead), -1)
            step = orthogonalize(matrix.float()).to(weight.dtype)
            scale = STEP_SCALE * max(matrix.shape) ** 0.5
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.add_(step.reshape(weight.shape), alpha=-group["lr"] * scale)
            weight.grad = None


def is_large_matrix(weight: Tensor) -> bool:
    """Return whether a weight is a matrix with at least MIN_SIDE rows and columns."""
    return weight.ndim > 1 and min(len(weight), weight[0].numel()) >= MIN_SIDE


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return the matrix with singular values near 1 and the same singular vectors.

    Each iteration of Newton and Schulz multiplies X from the left by a polynomial of X X^T. These polynomials commute.
    So they are computed from X X^T alone, which is small, and their product multiplies X once: for the matrices of
    UNet_2D this takes a third of the time.

    Parameters
    ----------
    matrix : Tensor
        Of two axes, float32: the smallest eigenvalues of X X^T would be lost in a shorter format.

    Returns
    -------
    Tensor
        Singular values from 0.001 of the Frobenius norm on are between 0.6 and 1.3.
    """
    a, b, c = COEFFICIENTS
    x = matrix / (matrix.norm() + EPSILON)
    is_tall = x.shape[0] > x.shape[1]
    x = x.mT if is_tall else x
    square = x @ x.mT
    factors: list[Tensor] = []
    for _ in range(NUM_ITERATIONS):
        if factors:
            square = factors[-1] @ square @ factors[-1]
        factor = torch.addmm(square, square, square, beta=b, alpha=c)
        factor.diagonal().add_(a)
        factors.append(factor)
    x = functools.reduce(torch.matmul, factors) @ x
    return x.mT if is_tall else x
