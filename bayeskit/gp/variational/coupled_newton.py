"""A Newton step for the means of latent functions that the data couple through a mixing matrix.

With f = W g the sites of one latent function depend on the means of the others, so that steps for each by itself
converge slowly where columns of W are nearly alike. Together, with B_i the expected negative second derivatives (q x q)
of log p(y_i | W g) and A_ip = L_p^-1 k_p(Z, x_i), the bound is quadratic in the means m of all q whitened values:

    gradient_p = sum_i w_i alpha_ip A_ip - m_p,        Lambda_pr = [p = r] I + sum_i w_i (B_i)_pr A_ip A_ir'.

q(v) stays a product over the latent functions; only the target of its means is found jointly.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from bayeskit.core.operators import factorize


def coupled_means(rows: Iterable[tuple[Tensor, Tensor]], mean: Tensor, precision: Tensor, shift: Tensor) -> Tensor:
    """The means that a Newton step leads to.

    It costs a factorization of size q m. For Gaussian noise it gives the optimal means at once.

    Args:
        rows: Blocks of data points: A, (m, n) or (q, m, n), and w_i B_i, (n, q, q), whose diagonal is in `precision`.
        mean: The present m, (q, m).
        precision: S^-1 after a full step, (q, m, m).
        shift: S^-1 m after a full step for each latent function by itself, (q, m).

    Returns:
        (q, m).

    Examples:
        >>> a, b = torch.ones(1, 1).double(), torch.tensor([[[1.0, 0.5], [0.5, 1.0]]]).double()
        >>> one = torch.ones(2, 1).double()
        >>> means = coupled_means([(a, b)], 0 * one, 2 * one.unsqueeze(-1), one)
        >>> means.flatten().round(decimals=6).tolist()  # solves 2 m_1 + m_2 / 2 = 1 = m_1 / 2 + 2 m_2
        [0.4, 0.4]
    """
    q, m = shift.shape
    joint = torch.zeros(q, m, q, m, dtype=shift.dtype, device=shift.device)
    for projection, couplings in rows:
        a = projection.expand(q, *projection.shape[-2:])
        for p in range(q):
            for r in range(p):
                joint[p, :, r] += (a[p] * couplings[:, p, r]) @ a[r].mT
    joint = joint + joint.permute(2, 3, 0, 1)
    for p in range(q):
        joint[p, :, p] = precision[p]
    gradient = shift - (precision @ mean.unsqueeze(-1)).squeeze(-1)
    factor = factorize(joint.reshape(q * m, q * m), name="precision of all latent functions")
    return mean + factor.solve(gradient.reshape(-1, 1)).reshape(q, m)
