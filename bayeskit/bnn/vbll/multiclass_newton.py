"""The Newton step for the means of all classes at once.

Under a softmax the logits of a data point are coupled: the bound's negative Hessian in the means is

    H = P + Phi' W Phi / kl_weight,      W_i = diag(p_i) - p_i p_i',

over all the weights of all the classes. It is never formed. Conjugate gradients need a product with it, two matrix
products with the features, and start from the separate steps of the classes, which are close to the solution.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from bayeskit.bnn.vbll.row_prior import RowPrior

ROUNDS = 30
"""Rounds at most, a bound on the time."""


def newton_step(
    prior: RowPrior,
    features: Tensor,
    probs: Tensor,
    gradient: Tensor,
    *,
    precondition: Callable[[Tensor], Tensor],
    tolerance: float = 1e-2,
) -> Tensor:
    """`H^-1 gradient`, (k, d), by preconditioned conjugate gradients.

    Args:
        prior: Of the rows, P.
        features: (n, d).
        probs: p, (n, k), times a weight for each data point: the sums over k are the weights.
        gradient: (k, d).
        precondition: The separate steps of the classes, (k, d) to (k, d).
        tolerance: Relative size of the residual that ends the rounds; the step is only as good as the quadratic model.
    """
    share = probs / probs.sum(-1, keepdim=True).clamp_min(torch.finfo(probs.dtype).tiny)

    def hessian_times(step: Tensor) -> Tensor:
        change = features @ step.mT
        return prior.times(step) + (probs * (change - (share * change).sum(-1, keepdim=True))).mT @ features

    step = precondition(gradient)
    enough = tolerance**2 * (gradient * step).sum()
    residual = gradient - hessian_times(step)
    direction = preconditioned = precondition(residual)
    size = (residual * preconditioned).sum()
    for _ in range(ROUNDS):
        if size <= enough:
            break
        product = hessian_times(direction)
        length = size / (direction * product).sum()
        step, residual = step + length * direction, residual - length * product
        preconditioned = precondition(residual)
        size, before = (residual * preconditioned).sum(), size
        direction = preconditioned + size / before * direction
    return step
