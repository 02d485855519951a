"""A Newton step for the means of latent functions that the data couple through a mixing.

With f = W g the sites of one latent function depend on the means of the others, so that steps for each by itself creep
where columns of W are nearly alike. Together, with B_i the expected negative second derivatives (q x q) of
log p(y_i | W g) and A_ip = L_p^-1 k_p(Z, x_i), the bound is quadratic in the means m of all q whitened values at once:

    gradient_p = sum_i w_i alpha_ip A_ip - m_p,        Lambda_pr = [p = r] I + sum_i w_i (B_i)_pr A_ip A_ir'.

q(v) stays a product over the latent functions; only where its means go is found together.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bayeskit.core.operators import factorize
from bayeskit.gp.hyperparameters import Model


def coupled_shift(model: Model, blocks: Iterable[Any], variational: Any, precision: Tensor, shift: Tensor) -> Tensor:
    """The natural parameter S^-1 m, at the target precision, of the means that a Newton step leads to.

    It costs a factorization of size q m. For Gaussian noise it gives the best means at once.

    Args:
        model: A model with a mixing.
        blocks: Rows in blocks, each with `data`, `projection` (m, n) or (q, m, n), and `marginals(variational)`.
        variational: The present q(v), with a mean (q, m).
        precision: What a full step makes of S^-1, (q, m, m).
        shift: What a full step for each latent function by itself makes of S^-1 m, (q, m).

    Returns:
        (q, m).
    """
    q, m = shift.shape
    joint = torch.eye(q * m, dtype=shift.dtype, device=shift.device).reshape(q, m, q, m)
    for block in blocks:
        mean, variance = block.marginals(variational)
        couplings = model.couplings(mean, variance, block.data.y)  # (n, q, q)
        if block.data.weights is not None:
            couplings = couplings * block.data.weights[:, None, None]
        a = block.projection.expand(q, *block.projection.shape[-2:])
        for p in range(q):
            for r in range(q):
                joint[p, :, r] += (a[p] * couplings[:, p, r]) @ a[r].mT
    gradient = shift - (precision @ variational.mean.unsqueeze(-1)).squeeze(-1)
    step = factorize(joint.reshape(q * m, q * m), name="precision of all latent functions").solve(gradient.reshape(-1, 1))
    return (precision @ (variational.mean + step.reshape(q, m)).unsqueeze(-1)).squeeze(-1)
