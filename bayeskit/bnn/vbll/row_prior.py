"""The prior of the rows of a last layer."""

import torch
from torch import Tensor, nn

from bayeskit.bnn.vbll.row_gaussians import Rows
from bayeskit.core import operators


class RowPrior(nn.Module):
    """Independent Gaussians `w_o ~ N(m_o, P_o^-1)` for the outputs o, by their precisions.

    Args:
        mean: (k, d).
        precision: (k, d) where the weights of a row are independent too, else (k, d, d).

    >>> prior = RowPrior(torch.zeros(1, 2), torch.ones(1, 2))
    >>> prior.logdet()
    tensor([0.])
    """

    mean: Tensor
    precision: Tensor

    def __init__(self, mean: Tensor, precision: Tensor):
        super().__init__()
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("precision", precision.detach().clone())

    def logdet(self) -> Tensor:
        """`log det P_o`, (k,)."""
        if self.precision.ndim == 2:
            return self.precision.log().sum(-1)
        return operators.factorize(self.precision, name="the prior precision").logdet().to(self.precision.dtype)

    def matrices(self) -> Tensor:
        """The precisions as matrices, (k, d, d)."""
        return torch.diag_embed(self.precision) if self.precision.ndim == 2 else self.precision

    def diagonal(self) -> Tensor:
        """The precisions of the weights given the others, (k, d)."""
        return self.precision if self.precision.ndim == 2 else self.precision.diagonal(dim1=-2, dim2=-1)

    def times(self, step: Tensor) -> Tensor:
        """`P_o u_o`, (k, d), for u of shape (k, d)."""
        if self.precision.ndim == 2:
            return self.precision * step
        return (self.precision @ step.unsqueeze(-1)).squeeze(-1)

    def gradient(self, weights: Tensor) -> Tensor:
        """`P_o (w_o - m_o)`, minus the gradient of the log density, (k, d), for weights (k, d)."""
        return self.times(weights - self.mean)

    def quadratic(self, weights: Tensor) -> Tensor:
        """`(w_o - m_o)' P_o (w_o - m_o)`, (k,)."""
        return ((weights - self.mean) * self.gradient(weights)).sum(-1)

    def divergence(self, rows: Rows) -> Tensor:
        """`KL(q_o || p_o) = (tr P S + (m_q - m_p)' P (m_q - m_p) - d - log det P - log det S) / 2`, (k,)."""
        constant = rows.mean.shape[-1] + self.logdet()
        return 0.5 * (rows.trace(self.precision) + self.quadratic(rows.mean) - constant - rows.logdet())


def weighted_grams(features: Tensor, weights: Tensor) -> Tensor:
    """`Phi' diag(w_o) Phi` for the outputs o, (k, d, d); (1, d, d) if all outputs have the same weights.

    Args:
        features: Phi, (n, d).
        weights: w, (n, k).
    """
    if bool((weights == weights[:, :1]).all()):
        return ((features * weights[:, :1]).mT @ features).unsqueeze(0)
    if bool((weights == weights[:1]).all()):
        return weights[0, :, None, None] * (features.mT @ features)
    return torch.stack([(features * column.unsqueeze(-1)).mT @ features for column in weights.unbind(-1)])
