"""The Newton step for the means of all classes at once.

Under a softmax the logits of a row pull on each other: the bound's negative Hessian in the means is

    H = P + Phi' W Phi / kl_weight,      W_i = diag(p_i) - p_i p_i',

over all the weights of all the classes. It is never formed. Conjugate gradients need a product with it, two matrix
products with the features, and start from the steps of the classes apart, which are most of the answer.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bayeskit.bnn.vbll.row_prior import RowPrior

TOLERANCE = 1e-2
"""Relative size of the residual that ends the rounds: the step itself is only as good as the quadratic model."""

ROUNDS = 30
"""Rounds at most."""


def newton_step(
    prior: RowPrior, features: Tensor, probs: Tensor, gradient: Tensor, *, precondition: Callable[[Tensor], Tensor]
) -> Tensor:
    """`H^-1 gradient`, (k, d), nearly.

    Args:
        prior: Of the rows, P.
        features: (n, d).
        probs: p, (n, k), with a weight for each row: the sums over k are the weights.
        gradient: (k, d).
        precondition: The steps of the classes apart, (k, d) to (k, d).
    """
    share = probs / probs.sum(-1, keepdim=True).clamp_min(torch.finfo(probs.dtype).tiny)

    def curved(step: Tensor) -> Tensor:
        moved = features @ step.mT
        return prior.times(step) + (probs * (moved - (share * moved).sum(-1, keepdim=True))).mT @ features

    step = precondition(gradient)
    enough = TOLERANCE**2 * (gradient * step).sum()
    residual = gradient - curved(step)
    direction = better = precondition(residual)
    size = (residual * better).sum()
    for _ in range(ROUNDS):
        if size <= enough:
            break
        bent = curved(direction)
        along = size / (direction * bent).sum()
        step, residual = step + along * direction, residual - along * bent
        better = precondition(residual)
        size, before = (residual * better).sum(), size
        direction = better + size / before * direction
    return step
